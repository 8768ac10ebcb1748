"""The check in constant memory reports what it is for: events falsified in one place, rows that aren't what was published."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

import pytest

from tests.faults.load import World, compare
from tests.faults.streaming import ChainReader
from tests.model.histories import pool
from tests.support.check import ABSENT
from tests.support.wire import encode

COURSE, USER = pool("course", 1)[0], pool("user", 1)[0]
KEY = f"{COURSE}:{USER}".encode()


def state(role: str | None) -> dict[str, Any]:
    """Enrolled with this role, or absent."""
    if role is None:
        return ABSENT
    source = {"source": "manual", "kind": "OTHER", "status": "ACTIVE", "role": role, "group_id": None, "member": True}
    return {"status": "ACTIVE", "roles": [role], "groups": [], "suspended_in_course": False, "sources": [source]}


def event(version: int, before: str | None, after: str | None) -> bytes:
    return encode(
        "EnrollmentChanged",
        {
            "event_id": str(uuid5(NAMESPACE_DNS, str(version))), "occurred_at": 0, "course_id": COURSE, "user_id": USER,
            "version": version, "change": "UPDATED", "before": state(before), "after": state(after),
            "cause": {"type": "SQL", "event_id": None, "method_id": None},
        },
    )  # fmt: skip


CHAIN = (event(1, None, "student"), event(2, "student", "teacher"), event(3, "teacher", None))


def read(*events: bytes, homes: dict[int, int] | None = None) -> ChainReader:
    chains = ChainReader("nowhere:1", "topic", 1)
    for number, value in enumerate(events):
        chains.take(KEY, value, (homes or {}).get(number, 0))
    return chains


def test_a_sound_chain_is_found_sound() -> None:
    chains = read(*CHAIN)
    assert (chains.violations, chains.versions, chains.count) == ([], {KEY: 3}, 3)


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ((CHAIN[0], CHAIN[2]), "lost"),
        ((CHAIN[0], CHAIN[1], CHAIN[1], CHAIN[2]), "repeated"),
        ((CHAIN[0], event(2, "tutor", "teacher"), CHAIN[2]), "wrong"),
        ((event(1, "student", "teacher"),), "wrong"),
    ],
)
def test_a_chain_with_a_fault_is_reported(events: tuple[bytes, ...], word: str) -> None:
    assert read(*events).violations[0].startswith(f"{word}: ")


def test_a_key_in_two_partitions_is_reported() -> None:
    assert read(*CHAIN, homes={2: 1}).violations[0].startswith("reordered: ")


def test_rows_and_versions_are_compared_with_what_was_published() -> None:
    world = World(Random("test"), segments=1, people=2)
    list(world.first())
    expected = world.expected()
    rows = {pair: ("ACTIVE", roles) for pair, roles in expected.items()}
    first, second = sorted(rows)
    sound = read(*CHAIN)
    versions = {KEY.decode(): 3}
    assert list(compare(expected, rows, versions, sound)) == []
    assert next(iter(compare(expected, {first: rows[first]}, versions, sound))).startswith("wrong: ")
    assert next(iter(compare(expected, {**rows, second: ("ACTIVE", ["nobody"])}, versions, sound))).startswith(
        "wrong: "
    )
    assert next(iter(compare({first: expected[first]}, rows, versions, sound))).startswith("wrong: ")
    assert list(compare(expected, rows, {KEY.decode(): 4}, sound)) == [
        f"lost: {KEY.decode()} is at version 4, the events told 3"
    ]
    assert next(iter(compare(expected, rows, versions, read(*CHAIN[:2])))).startswith("lost: ")
