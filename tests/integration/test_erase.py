"""`erase USER` on a real site: nothing of the person is left in any table, and consumers hear of it, each key in its order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.model.events import Event
from tests.support.check import assert_changes_are_a_chain
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.site import Site, wait_for
from tests.support.traces import state_of_a_consumer, tables_naming

INSERT = "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
DELETE = "delete from course_group_member where course_id = %s and group_id = %s and user_id = %s"
DAY_MS = 24 * 60 * 60 * 1000


class People:
    """A person who is everywhere, and somebody else who has the same."""

    def __init__(self) -> None:
        self.user, self.other = new_id(), new_id()
        self.segment, self.left = new_id(), new_id()
        self.enrolled, self.suspended, self.by_hand, self.ended = (new_id() for _ in range(4))
        self.hand_group = new_id()

    @property
    def courses(self) -> set[str]:
        return {self.enrolled, self.suspended, self.by_hand, self.ended}

    def events(self) -> list[Event]:
        methods = [
            method(self.segment, self.enrolled, group_id=new_id()),
            method(self.segment, self.enrolled, role="tutor"),
            method(self.segment, self.enrolled, kind="SEGMENT_GROUP", role=None, group_id=new_id()),
            method(self.left, self.ended),
        ]
        facts: list[Event] = []
        for user in (self.user, self.other):
            facts += [member(self.segment, user, 3), member(self.left, user, 1)]
            facts += [
                source(self.by_hand, user, 5),
                suspension(self.enrolled, user, 2),
                suspension(self.suspended, user, 1),
            ]
        return [*methods, *facts]

    def leave(self) -> list[Event]:
        return [member(self.left, user, 2, is_member=False) for user in (self.user, self.other)]

    def keys_of(self, user: str) -> set[bytes]:
        return {f"{course}:{user}".encode() for course in self.courses}


def erase(site: Site, user: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = site.command("erase", user, "--json", *arguments)
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def wait_until_gone(site: Site, user: str) -> None:
    """Until the relay has published and deleted what named the person."""
    wait_for(lambda: site.command("erase", user, "--dry-run").returncode == 0, what="a dry run that finds nothing")


def edit_by_hand(site: Site, edit: str, course: str, group: str, user: str) -> None:
    with site.connect() as connection:
        connection.execute(edit, (course, group, user))


def populate(site: Site, people: People) -> None:
    site.produce(people.events())
    site.wait_settled()
    site.produce(people.leave())
    site.wait_settled()
    for user in (people.user, people.other):
        edit_by_hand(site, INSERT, people.by_hand, people.hand_group, user)
    site.wait_settled()


def test_nothing_of_a_person_is_left_and_consumers_forget_each_key(site: Site) -> None:
    people = People()
    worker = site.start_worker()
    populate(site, people)
    site.produce_raw("membership", b"not a record of %b" % people.user.encode(), key=people.user.encode())
    site.produce([source(people.by_hand, people.user, 5, role="another")])  # says something else under the same version
    site.wait_settled()
    wait_for(lambda: len(site.dead_letters()) == 2, what="both dead letters")
    # What was published and not deleted yet would be counted now, and not in a moment.
    wait_for(
        lambda: not site.query("select from outbox") and not site.query("select from dead_letter"), what="the clean-up"
    )
    before_other = {key: row for key, row in site.enrollments().items() if key[1] == people.other}

    found = erase(site, people.user, "--dry-run", code=3)
    assert found["rows"]["enrollment"] == found["tombstones"] == len(people.courses)
    assert (found["rows"]["membership"], found["rows"]["source"]) == (2, 1)
    unconfirmed = site.command("erase", people.user)
    assert unconfirmed.returncode == 2
    assert "--yes" in unconfirmed.stderr
    assert erase(site, people.user, "--dry-run", code=3)["rows"] == found["rows"]

    report = erase(site, people.user, "--yes")
    assert report["rows"] == found["rows"]
    assert report["tombstones"] == len(people.courses)
    site.wait_settled()
    wait_until_gone(site, people.user)

    assert tables_naming(site, people.user) == {}
    assert site.enrollments() == before_other
    assert {row[2] for row in site.group_members()} == {people.other}
    log = site.records("changes")
    assert {record.key for record in log if record.value is None} == people.keys_of(people.user)
    for key in people.keys_of(people.user):
        of_key = [record.value is None for record in log if record.key == key]
        assert of_key.index(True) == len(of_key) - 1
    assert set(state_of_a_consumer(log)) == people.keys_of(people.other) - {
        f"{people.suspended}:{people.other}".encode()
    }
    assert all(not tombstone.headers for tombstone in site.tombstones())
    assert_changes_are_a_chain(site)
    metrics = httpx.get(f"http://127.0.0.1:{worker.http_port}/metrics", timeout=60).text
    assert f'sync_worker_published_total{{kind="tombstone"}} {len(people.courses):.1f}' in metrics

    (recorded,) = site.query("select by, detail from intervention where operation = 'erase'")
    assert "@" in recorded["by"]
    rows = {table: count for table, count in found["rows"].items() if count}
    assert recorded["detail"] == {"rows": rows, "tombstones": len(people.courses)}


def test_who_comes_back_begins_a_new_life_at_version_1(site: Site) -> None:
    people = People()
    site.start_worker()
    populate(site, people)
    erase(site, people.user, "--yes")
    wait_until_gone(site, people.user)

    site.produce([member(people.segment, people.user, 1), suspension(people.suspended, people.user, 1)])
    site.wait_settled()
    assert_changes_are_a_chain(site)
    row = site.enrollments()[people.enrolled, people.user]
    assert (row["version"], row["status"], row["suspended_in_course"]) == (1, "ACTIVE", False)

    erase(site, people.user, "--yes")
    wait_until_gone(site, people.user)
    assert tables_naming(site, people.user) == {}
    assert_changes_are_a_chain(site)
    tombstones = [tombstone.key for tombstone in site.tombstones()]
    assert tombstones.count(f"{people.enrolled}:{people.user}".encode()) == 2


def test_erasing_nobody_and_erasing_twice_publish_nothing(site: Site) -> None:
    people = People()
    site.start_worker()
    populate(site, people)
    nobody = erase(site, new_id(), "--yes")
    assert (nobody["tombstones"], nobody["outbox"], set(nobody["rows"].values())) == (0, 0, {0})

    erase(site, people.user, "--yes")
    again = erase(site, people.user, "--yes")
    assert (again["tombstones"], set(again["rows"].values())) == (0, {0})
    wait_until_gone(site, people.user)
    assert len(site.tombstones()) == len(people.courses)
    assert len(site.query("select from intervention")) == 1


def test_what_was_not_published_yet_is_published_before_the_tombstone(site: Site) -> None:
    """The workers are away: all of a person's life and its end come in one go."""
    people = People()
    worker = site.start_worker()
    populate(site, people)
    worker.terminate()
    edit_by_hand(site, INSERT, people.by_hand, new_id(), people.user)
    edit_by_hand(site, DELETE, people.by_hand, people.hand_group, people.user)
    report = erase(site, people.user, "--yes")
    due = 2 + len(people.courses)
    assert site.status()["outbox"]["unpublished"] == due
    assert report["outbox"] >= due  # what the relay had published, but not deleted yet, is among it
    shown = site.command("erase", people.user, "--dry-run")
    assert shown.returncode == 3
    assert "outbox" in shown.stdout
    site.start_worker()
    wait_until_gone(site, people.user)
    assert tables_naming(site, people.user) == {}
    assert_changes_are_a_chain(site)


def test_a_row_that_the_lms_holds_is_waited_for(site: Site, tmp_path: Path) -> None:
    people = People()
    site.start_worker()
    populate(site, people)
    log = tmp_path / "erase.log"
    with psycopg.connect(site.database_url, options="-c search_path=sync_worker") as lms, log.open("wb") as stream:
        lms.execute(INSERT, (people.by_hand, new_id(), people.user))
        lms.execute("set local idle_in_transaction_session_timeout = 0")  # a command takes its time to start
        command = [sys.executable, "-m", "sync_worker", "erase", people.user, "--yes"]
        with subprocess.Popen(command, env=site.environment, stdout=stream, stderr=stream) as erasing:
            wait_for(lambda: "lock_wait" in log.read_text("utf-8"), what="an attempt that gave way")
            lms.commit()
            assert erasing.wait(120) == 0
    wait_until_gone(site, people.user)
    assert tables_naming(site, people.user) == {}
    assert_changes_are_a_chain(site)


def test_what_topics_hold_is_said_as_the_broker_keeps_it(site: Site) -> None:
    report = erase(site, new_id(), "--dry-run")
    topics = {each["topic"]: each for each in report["topics"]}
    assert set(topics) == {site.topic(name) for name in ("membership", "sources", "changes", "dead_letters")}
    assert topics[site.topic("dead_letters")]["deleted_after_ms"] == 14 * DAY_MS
    assert topics[site.topic("dead_letters")]["compacted_after_ms"] is None
    changes = topics[site.topic("changes")]
    assert (changes["deleted_after_ms"], changes["compacted_after_ms"]) == (None, 7 * DAY_MS)
    assert changes["tombstones_kept_ms"] == DAY_MS
    told = site.command("erase", new_id())
    assert told.returncode == 0, told.stderr
    assert "after 14 days" in told.stdout
    assert "the database holds nothing of this person" in told.stdout
    assert "positions reset" in told.stdout


@pytest.mark.parametrize("wrong", ["nobody", "", "00000000-0000-0000-0000-00000000000"])
def test_what_is_no_id_is_wrong_usage(make_site: Callable[..., Site], wrong: str) -> None:
    done = make_site(topics=False).command("erase", wrong, "--yes")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
