"""What must hold of a site whose database or Kafka was another one for a while: asked of the topics and the public views alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any
from uuid import uuid4

import psycopg
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported

from tests.support.check import ABSENT, state_of
from tests.support.databases import copy_database, drop_database
from tests.support.kafka import KafkaRecord
from tests.support.site import Site, wait_for
from tests.support.wire import decode_change


def assert_versions_never_repeat_with_other_content(records: list[KafkaRecord]) -> None:
    """In one life of a key (until its tombstone) every version says one thing, whoever read it and when."""
    said: dict[bytes, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        key = _key(record)
        if record.value is None:
            del said[key]
            continue
        event = decode_change(record.value)
        content = {name: event[name] for name in ("event_id", "change", "before", "after", "cause")}
        first = said[key].setdefault(event["version"], content)
        assert first == content, f"{key!r} version {event['version']} said {first}, then {content}"


def assert_last_events_are_the_rows(
    site: Site, records: list[KafkaRecord], *, from_any_version: bool = False
) -> Counter[bytes]:
    """Per key no gap, each `before` the previous `after`, the last one the row; how many events each has.

    Unlike in a chain that nothing befell, an event may say what was known. from_any_version: the topic lost its beginning.
    """
    version: dict[bytes, int | None] = defaultdict(lambda: None if from_any_version else 0)
    state: dict[bytes, dict[str, Any]] = defaultdict(lambda: ABSENT)
    events: Counter[bytes] = Counter()
    for record in records:
        key = _key(record)
        if record.value is None:
            version[key], state[key] = 0, ABSENT
            continue
        event = decode_change(record.value)
        due, known = version[key], state[key]
        if due is None:
            due, known = event["version"] - 1, event["before"]
        assert event["version"] == due + 1, f"{key!r}: version {event['version']} where {due + 1} was due"
        assert event["before"] == known, f"{key!r} version {due + 1}: before is not the previous after"
        version[key], state[key] = due + 1, event["after"]
        events[key] += 1
    rows = {f"{course}:{user}".encode(): row for (course, user), row in site.enrollments().items()}
    for key in rows.keys() | state.keys():
        row = rows.get(key)
        assert state[key] == (ABSENT if row is None else state_of(row)), f"{key!r}: the last event is not the row"
        assert row is None or row["version"] == version[key], f"{key!r}: the row has another version than the topic"
    return events


def _key(record: KafkaRecord) -> bytes:
    assert record.key is not None
    return record.key


class Backup:
    """A copy of the site's database as it is now, on the same server; it may be put back any number of times."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._name = site.database_url.rpartition("/")[2]
        self._copy = f"{self._name}_copy_{uuid4().hex[:6]}"
        self._clone(self._copy, self._name)

    def restore(self) -> None:
        """The site's database is the copy from now on. Nobody may be connected who would mind."""
        drop_database(self._site.stack, self._name)
        self._clone(self._name, self._copy)

    def _clone(self, name: str, template: str) -> None:
        with psycopg.connect(self._site.stack.postgres.url(), autocommit=True) as owner:
            owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (template,))
        copy_database(self._site.stack, name, template)


def make_topic_anew(site: Site, name: str, partitions: int = 1) -> None:
    """Delete the site's topic of that name with all its records, and make it again."""
    topic = site.topic(name)
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    for future in admin.delete_topics([topic]).values():
        future.result(60)
    wait_for(lambda: topic not in admin.list_topics(timeout=60).topics, what="the topic's end")
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(60)
    wait_for(lambda: topic in admin.list_topics(timeout=60).topics, what="the topic")
