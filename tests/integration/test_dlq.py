"""`dlq list`, `show` and `replay` on a real site: what is wrong is shown where it is, and a mended cause and a replay heal everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported
from fastavro.schema import fingerprint, to_parsing_canonical_form

from tests.model.events import Event, MembershipChanged, to_record
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.kafka import KafkaRecord
from tests.support.site import Site, wait_for
from tests.support.wire import encode, schema

KILLED = 137
OWN_HEADERS: list[tuple[str, bytes | None]] = [
    ("ce_id", b"0b0e6a9e"), ("twice", b"1"), ("twice", b"2"), ("null", None), ("odd", b"\xff\x00"),
]  # fmt: skip
OWN_KEY = b"\xff a key"
PARTITION = 1


def newer_schema() -> dict[str, Any]:
    """SegmentMemberAdded as a publisher writes it that is newer than the worker."""
    raw = json.loads(json.dumps(schema("SegmentMemberAdded"), default=str))
    return {
        **{key: value for key, value in raw.items() if not key.startswith("__")},
        "fields": [*raw["fields"], {"name": "tenant", "type": "string", "default": ""}],
    }


def written_newer(event: MembershipChanged) -> bytes:
    canonical = to_parsing_canonical_form(newer_schema())
    value = BytesIO(b"\xc3\x01" + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")))
    value.seek(0, 2)
    fastavro.schemaless_writer(value, fastavro.parse_schema(newer_schema()), to_record(event)[1] | {"tenant": "north"})
    return value.getvalue()


def wire(event: Event) -> bytes:
    return encode(*to_record(event))


class Yard:
    """A site with a worker, an open method over a segment, and what its rows must come to."""

    def __init__(self, site: Site) -> None:
        self.site, self.model = site, Model()
        self.method = method(new_id(), new_id())
        self.segment = self.method.segment_id
        self.apply([self.method])
        site.start_worker()

    def apply(self, events: Sequence[Event]) -> None:
        """Events that are sent as they should be."""
        self.site.produce(events)
        self.model.apply_batch(events)

    def send(self, value: bytes, topic: str = "membership") -> None:
        self.site.produce_raw(topic, value, key=OWN_KEY, headers=OWN_HEADERS, partition=PARTITION)

    def newcomers(self, count: int) -> list[MembershipChanged]:
        return [member(self.segment, new_id(), 1) for _ in range(count)]

    def settled(self, dead_letters: int) -> list[KafkaRecord]:
        """The dead letters, when there are so many and all else is done."""
        self.site.wait_settled()
        letters = self.site.dead_letters()
        assert len(letters) == dead_letters
        return letters

    def dlq(self, *arguments: str, code: int = 0) -> str:
        done = self.site.command("dlq", *arguments)
        assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def entries(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.dlq("list", "--json", *arguments).splitlines()]

    def input(self) -> list[KafkaRecord]:
        return self.site.records("membership")


@pytest.fixture
def yard(site: Site) -> Yard:
    return Yard(site)


def address_of(letter: KafkaRecord) -> str:
    return f"{letter.partition}:{letter.offset}"


def test_records_of_an_unknown_schema_are_all_applied_by_a_replay_once_it_is_known(yard: Yard, tmp_path: Path) -> None:
    late = yard.newcomers(20)
    for event in late:
        yard.send(written_newer(event))
    yard.apply(yard.newcomers(3))
    letters = yard.settled(20)
    assert_site_equals_model(yard.site, yard.model)

    refused = yard.dlq("replay", "--reason", "unknown_schema", code=1)
    assert "20 can't be sent back" in refused
    assert "would be rejected again: unknown_schema: no schema with the fingerprint" in refused
    assert "0 sent back" in refused

    (tmp_path / "SegmentMemberAdded.avsc").write_text(json.dumps(newer_schema()))
    yard.site.workers[-1].terminate()
    yard.site.environment["SYNC_WORKER_SCHEMA_DIR"] = str(tmp_path)
    yard.site.start_worker()
    before = len(yard.input())
    dry = yard.dlq("replay", "--reason", "unknown_schema", "--dry-run", code=3)
    assert all(
        f"\n{address_of(letter)}\tunknown_schema\t{yard.site.topic('membership')}\t" in dry for letter in letters
    )
    assert len(yard.input()) == before
    assert "20 sent back (20 unknown_schema)" in yard.dlq("replay", "--reason", "unknown_schema")

    returned = [record for record in yard.input() if record.header("dlq_replayed_from")]
    topic = yard.site.topic("dead_letters")
    assert len(returned) == 20
    sources = {f"{topic}/{letter.partition}/{letter.offset}".encode(): letter for letter in letters}
    for record in returned:
        letter = sources.pop(record.header("dlq_replayed_from") or b"")
        assert (record.partition, record.key, record.value) == (PARTITION, OWN_KEY, letter.value)
        assert list(record.headers[:-1]) == OWN_HEADERS
    assert not sources

    yard.model.apply_batch(late)
    yard.settled(20)
    assert assert_site_equals_model(yard.site, yard.model) == 23


def test_each_is_sent_back_once_unless_it_is_insisted_on(yard: Yard) -> None:
    first = member(yard.segment, new_id(), 1)
    yard.apply([first])
    yard.site.wait_settled()
    conflict = replace(first, is_member=False)
    yard.send(wire(conflict))
    (letter,) = yard.settled(1)

    assert "1 sent back (1 version_conflict)" in yard.dlq("replay", "--all")
    wait_for(lambda: len(yard.site.dead_letters()) == 2, what="the conflict coming back")
    back = next(each for each in yard.settled(2) if address_of(each) != address_of(letter))
    assert back.header("dlq_reason") == b"version_conflict"
    assert back.value == letter.value
    assert back.header("dlq_replayed_from") is not None

    again = yard.dlq("replay", address_of(letter))
    assert "0 sent back\n1 were sent back before" in again
    entries = {entry["address"]: entry for entry in yard.entries()}
    assert entries[address_of(letter)]["replayed_at"] is not None
    assert entries[address_of(back)]["replayed_at"] is None

    assert "1 sent back" in yard.dlq("replay", address_of(back))
    wait_for(lambda: len(yard.site.dead_letters()) == 3, what="the conflict coming back once more")
    source = f"{yard.site.topic('dead_letters')}/{back.partition}/{back.offset}".encode()
    (twice,) = (record for record in yard.input() if record.header("dlq_replayed_from") == source)
    assert [name for name, _ in twice.headers].count("dlq_replayed_from") == 1
    assert "1 sent back" in yard.dlq("replay", address_of(letter), "--again")
    wait_for(lambda: len(yard.site.dead_letters()) == 4, what="the conflict coming back again")
    yard.settled(4)
    assert assert_site_equals_model(yard.site, yard.model) == 1


def test_a_replay_that_dies_after_the_broker_has_taken_it_sends_twice_and_changes_nothing(
    yard: Yard, tmp_path: Path
) -> None:
    late = yard.newcomers(5)
    for event in late:
        yard.send(written_newer(event))
    yard.settled(5)
    (tmp_path / "SegmentMemberAdded.avsc").write_text(json.dumps(newer_schema()))
    yard.site.workers[-1].terminate()
    yard.site.environment["SYNC_WORKER_SCHEMA_DIR"] = str(tmp_path)
    yard.site.start_worker()
    before = len(yard.input())
    yard.site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = "replay_acknowledged=exit"
    yard.dlq("replay", "--all", code=KILLED)
    del yard.site.environment["SYNC_WORKER_TEST_FAILPOINTS"]
    assert len(yard.input()) == before + 5
    assert all(entry["replayed_at"] is None for entry in yard.entries())
    assert "5 sent back" in yard.dlq("replay", "--all")
    assert len(yard.input()) == before + 10
    yard.model.apply_batch(late)
    yard.settled(5)
    assert assert_site_equals_model(yard.site, yard.model) == 5


def test_what_would_be_rejected_again_or_can_t_go_anywhere_is_named_and_stays(yard: Yard) -> None:
    yard.send(b"{}")
    yard.send(wire(member(yard.segment, "nobody", 1)))
    yard.send(b"\x00", topic="sources")
    letters = yard.settled(3)
    addresses = {letter.header("dlq_reason"): address_of(letter) for letter in letters if letter.value != b"\x00"}
    refused = yard.dlq("replay", "--all", code=1)
    assert f"{addresses[b'undecodable']}: it would be rejected again: undecodable: the value begins with" in refused
    assert f"{addresses[b'invalid_event']}: it would be rejected again: invalid_event: user_id: 'nobody'" in refused
    assert "3 can't be sent back" in refused

    sources = yard.site.topic("sources")
    yard.site.environment["SYNC_WORKER_SOURCES_TOPIC"] = ""
    assert f"it came from {sources}, which is no input topic now" in yard.dlq(
        "replay", "--topic", sources, "--unchecked", code=1
    )
    assert "1 can't be sent back" in yard.dlq("replay", "--topic", sources, "--dry-run", code=1)
    yard.site.environment["SYNC_WORKER_SOURCES_TOPIC"] = sources

    yard.site.produce_raw("dead_letters", b"by hand", partition=0)
    by_hand = next(entry["address"] for entry in yard.entries() if entry["reason"] == "")
    assert "it doesn't say where it came from" in yard.dlq("replay", by_hand, code=1)

    assert "1 sent back" in yard.dlq("replay", "--reason", "undecodable", "--topic", sources, "--unchecked")
    wait_for(lambda: len(yard.site.dead_letters()) == 5, what="the nonsense coming back")
    yard.site.wait_settled()
    assert_site_equals_model(yard.site, yard.model)


def test_one_too_large_for_its_topic_is_sent_back_with_the_bytes_that_the_database_keeps(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site(topics=False)
    admin = AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    name = site.topic("dead_letters")
    admin.create_topics([NewTopic(name, 1, 1, config={"max.message.bytes": "2000"})])[name].result(60)
    site.create_topics()
    yard = Yard(site)
    event = replace(method(yard.segment, new_id()), name="n" * 250)
    raw = json.loads(json.dumps(schema("EnrollmentMethodChanged"), default=str))
    newer = {**{key: value for key, value in raw.items() if not key.startswith("__")}}
    newer["fields"] = [*raw["fields"], {"name": "note", "type": "string", "default": ""}]
    value = BytesIO(b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(newer), "CRC-64-AVRO")))
    value.seek(0, 2)
    fastavro.schemaless_writer(value, fastavro.parse_schema(newer), to_record(event)[1] | {"note": "x" * 5000})
    yard.send(value.getvalue(), topic="methods")
    yard.send(b"\xc3\x01" + b"lost for good" * 500)
    letters = yard.settled(2)
    assert [letter.value for letter in letters] == [None, None]
    kept = next(letter for letter in letters if letter.header("dlq_topic") == site.topic("methods").encode())
    lost = next(letter for letter in letters if letter is not kept)
    with site.connect() as connection:
        connection.execute("delete from dead_letter where topic = %s", [site.topic("membership")])

    (tmp_path / "EnrollmentMethodChanged.avsc").write_text(json.dumps(newer))
    site.workers[-1].terminate()
    site.environment["SYNC_WORKER_SCHEMA_DIR"] = str(tmp_path)
    site.start_worker()
    shown = json.loads(yard.dlq("show", address_of(kept), "--json"))
    assert (shown["truncated"], shown["readable"], shown["fields"]["note"]) == (True, True, "x" * 5000)
    assert json.loads(yard.dlq("show", address_of(lost), "--json"))["value"] is None
    answer = yard.dlq("replay", "--all", code=1)
    assert "1 sent back (1 unknown_schema)" in answer
    assert (
        f"{address_of(lost)}: it was too large for its topic, and its bytes are not in the database any more" in answer
    )
    first, returned = [record for record in site.records("methods") if record.key == OWN_KEY]
    assert first.value == returned.value == value.getvalue()
    assert list(returned.headers[:-1]) == OWN_HEADERS
    yard.model.apply_batch([event])
    yard.apply(yard.newcomers(1))
    site.wait_settled()
    assert assert_site_equals_model(site, yard.model) == 2


def test_a_dead_letter_topic_made_anew_has_other_records_under_the_same_offsets(yard: Yard) -> None:
    yard.send(b"old")
    (old,) = yard.settled(1)
    yard.dlq("replay", "--all", "--unchecked")
    yard.site.wait_settled()
    yard.site.workers[-1].terminate()
    name = yard.site.topic("dead_letters")
    admin = AdminClient({"bootstrap.servers": yard.site.stack.kafka.bootstrap_servers})
    admin.delete_topics([name])[name].result(60)
    wait_for(lambda: name not in admin.list_topics(timeout=60).topics, what="the topic gone")
    yard.site.create_topics()
    yard.site.start_worker()
    for _ in range(3):
        yard.send(b"new")
    wait_for(lambda: len(yard.site.dead_letters()) == 3, what="the new dead letters")
    assert address_of(old) in {entry["address"] for entry in yard.entries()}
    assert all(entry["replayed_at"] is None for entry in yard.entries())
    assert "3 sent back" in yard.dlq("replay", "--all", "--unchecked")
    (row,) = yard.site.query("select count(*), count(distinct topic_id) as topics from dead_letter_replay")
    assert (row["count"], row["topics"]) == (3, 1)


def test_the_list_counts_filters_and_ends_with_the_newest(yard: Yard) -> None:
    first = member(yard.segment, new_id(), 1)
    yard.apply([first])
    yard.send(b"nonsense")
    yard.site.wait_settled()
    yard.send(wire(replace(first, is_member=False)))
    yard.send(b"nonsense", topic="sources")
    yard.settled(3)
    membership, sources = yard.site.topic("membership"), yard.site.topic("sources")

    entries = yard.entries()
    assert [(each["partition"], each["offset"]) for each in entries] == sorted(
        (each["partition"], each["offset"]) for each in entries
    )
    conflict = next(entry for entry in entries if entry["reason"] == "version_conflict")
    assert conflict["from"]["topic"] == membership
    assert conflict["from"]["partition"] == PARTITION
    assert conflict["key"] == "\\xff a key"
    assert set(conflict) == {
        "address", "partition", "offset", "rejected_at", "reason", "detail", "from", "key", "value_bytes", "truncated",
        "replayed_at",
    }  # fmt: skip
    assert yard.entries("--reason", "version_conflict") == [conflict]
    assert len(yard.entries("--reason", "version_conflict", "--reason", "undecodable")) == 3
    assert [each["from"]["topic"] for each in yard.entries("--topic", sources)] == [sources]
    assert yard.entries("--topic", "no.such.topic") == []

    times = sorted(each["rejected_at"] for each in entries)
    assert len(yard.entries("--since", times[0])) == 3
    assert {each["rejected_at"] for each in yard.entries("--until", times[-1])} == set(times) - {times[-1]}
    assert {each["rejected_at"] for each in yard.entries("--since", times[-1])} == {times[-1]}
    assert yard.entries("--since", "2099-01-01T00:00:00Z") == []
    assert [each["rejected_at"] for each in yard.entries("--limit", "1")] == [times[-1]]

    shown = yard.dlq("list").splitlines()
    assert shown[:4] == [
        "Dead letters", "reason\ttopic\trecords", f"undecodable\t{membership}\t1", f"undecodable\t{sources}\t1",
    ]  # fmt: skip
    rows = [line.split("\t") for line in shown if line.startswith(("0:", "1:", "2:"))]
    assert [row[1] for row in rows] == times
    assert yard.dlq("list", "--since", "2099-01-01T00:00:00Z") == "no dead letters\n"
    assert "is not a time like" in yard.dlq("list", "--since", "yesterday", code=2)
    assert "needs its offset from UTC" in yard.dlq("list", "--until", "2026-01-31T12:00:00", code=2)
    assert "nonsense" in yard.dlq("list", "--reason", "nonsense", code=2)


def test_one_is_shown_with_all_there_is_and_the_place_where_it_is_wrong(yard: Yard) -> None:
    cut_short = wire(method(new_id(), new_id()))[:120]
    yard.send(cut_short, topic="methods")
    yard.send(wire(member(yard.segment, "nobody", 1)))
    yard.settled(2)
    addresses = {entry["reason"]: entry["address"] for entry in yard.entries()}

    shown = json.loads(yard.dlq("show", addresses["undecodable"], "--json"))
    assert shown["headers"] == [
        ["ce_id", "0b0e6a9e"], ["twice", "1"], ["twice", "2"], ["null", None], ["odd", "\\xff\x00"],
    ]  # fmt: skip
    assert shown["framing"].startswith("Avro single-object encoding, fingerprint ")
    assert shown["schema"] == "user_segment_sync.v1.EnrollmentMethodChanged"
    assert list(shown["fields"]) == ["event_id", "occurred_at", "method_id", "version"]
    assert (shown["flaw"]["begin"], shown["flaw"]["end"], shown["flaw"]["field"]) == (93, 120, "course_id")
    assert shown["flaw"]["bytes"][-1].startswith("00000070 [")
    assert shown["verdict"].startswith("undecodable: ")
    assert "mend the publisher" in shown["advice"]

    for_people = yard.dlq("show", addresses["invalid_event"])
    assert "user_id\tnobody" in for_people
    assert "At byte 92, field user_id: 'nobody' is not a uuid" in for_people
    assert "This version, with these settings, would reject it: invalid_event: user_id" in for_people
    assert "twice\t2" in for_people

    assert "is not the address of a dead letter" in yard.dlq("show", "somewhere", code=2)
    assert "has no partition 9, only 0 to 2" in yard.dlq("show", "9:0", code=1)
    assert "there is no dead letter at 0:99999" in yard.dlq("show", "0:99999", code=1)


@pytest.mark.parametrize(
    "arguments", [(), ("0:1", "--all"), ("--reason", "undecodable", "--all"), ("0:1", "--topic", "t")]
)
def test_a_replay_must_say_which(arguments: tuple[str, ...], make_site: Callable[..., Site]) -> None:
    done = make_site(topics=False).command("dlq", "replay", *arguments)
    assert done.returncode == 2
    assert "give addresses, or --reason" in done.stderr


def test_a_dead_letter_topic_that_is_not_there_is_an_error_that_says_what_to_do(make_site: Callable[..., Site]) -> None:
    site = make_site(topics=False)
    site.environment["SYNC_WORKER_DEAD_LETTERS_TOPIC"] = missing = f"missing-{uuid4().hex}"
    done = site.command("dlq", "list")
    assert done.returncode == 1
    assert f"no such topic: {missing}; make it with `sync-worker topics create`" in done.stderr
