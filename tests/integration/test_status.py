"""The status document: complete, described key by key, and settled exactly when nothing is left to the worker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sync_worker.operations.status import read_status
from tests.support.facts import member, method, new_id
from tests.support.scenes import SCENES
from tests.support.site import Site, wait_for

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "status.md"
# Their keys are values: a reason, a topic.
BY_NAME = frozenset({"dead_letters.by_reason", "workers[].partitions"})


def keys_of(value: object, path: str = "") -> Iterator[str]:
    """Every key of a document, as the reference names it."""
    if isinstance(value, Mapping):
        if path in BY_NAME or (path and not value):
            yield path
            return
        for key, part in value.items():
            yield from keys_of(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        yield f"{path}[]"
        for part in value:
            yield from keys_of(part, f"{path}[]")
    else:
        yield path


def described() -> set[str]:
    rows = [line.split("|")[1] for line in REFERENCE.read_text("utf-8").splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


@pytest.fixture
def busy(site: Site) -> Site:
    """A worker, a dead letter, and a hold with three removals that wait, put there by hand."""
    segment = new_id()
    site.produce([method(segment, new_id(), segment_name="Everybody"), member(segment, new_id(), 1)])
    site.produce_raw("membership", b"garbage")
    site.start_worker()
    site.wait_settled()
    wait_for(lambda: site.status()["workers"], what="the worker in the document")
    with site.connect() as connection:
        connection.execute(
            "with held as (insert into removal_hold (segment_id, members, removed) values (%s, 10, 6) returning segment_id, number) "
            "insert into membership (segment_id, user_id, is_member, version, hold) "
            "select segment_id, gen_random_uuid(), false, 1, number from held, generate_series(1, 3)",
            (segment,),
        )
    return site


def test_every_key_is_described_and_every_description_has_its_key(busy: Site) -> None:
    # `leader` itself is a key, too, for when there is none.
    assert set(keys_of(with_work_in_steps(busy))) | {"leader"} == described()


def with_work_in_steps(site: Site) -> dict[str, Any]:
    """The document with a backfill and a release, which the worker would take: so it is killed first."""
    leader = site.status()["leader"]
    for worker in site.workers:
        worker.kill()
    with site.connect() as connection:
        connection.execute("insert into backfill (method_id, version) select method_id, version from method")
        connection.execute(
            "insert into hold_release (number, segment_id, total) select number + 1000, segment_id, 3 from removal_hold"
        )
    document = read_status(site.settings)
    document["leader"] = document["leader"] or leader
    return document


def test_a_hold_alone_does_not_unsettle(busy: Site) -> None:
    document = busy.wait_settled()
    (hold,) = document["holds"]
    assert (hold["members"], hold["removed"], hold["held"]) == (10, 6, 3)
    assert hold["segment_name"] == "Everybody"
    checked = busy.command("status", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "Removals held: 3 removals of 1 segment wait for a decision." in checked.stdout


def test_work_in_steps_unsettles(busy: Site) -> None:
    document = with_work_in_steps(busy)
    assert document["settled"] is False
    assert [release["total"] for release in document["releases"]] == [3]
    assert [each["name"] for each in document["backfills"]] == ["A method"]
    with busy.connect() as connection:
        connection.execute("delete from backfill")
    checked = busy.command("status", "--check")
    assert checked.returncode == 3, checked.stderr
    with busy.connect() as connection:
        connection.execute("delete from hold_release")
    assert busy.command("status", "--check").returncode == 0


def test_dead_letters_are_told_by_reason_and_topic(busy: Site) -> None:
    letters = busy.wait_settled()["dead_letters"]
    assert letters["by_reason"] == {"undecodable": 1}
    (each,) = letters["reasons"]
    assert (each["reason"], each["topic"], each["records"]) == ("undecodable", busy.topic("membership"), 1)
    assert each["last_at"] == letters["last_at"]


def test_the_scenes_of_the_page_tell_what_a_worker_would(busy: Site) -> None:
    """Or their pictures would be of something that does not exist."""
    real = set(keys_of(with_work_in_steps(busy)))
    for name, scene in SCENES.items():
        assert set(keys_of(scene.story(0))) <= real | {"leader", "leader.holder"}, name
    told = {key for scene in SCENES.values() for key in keys_of(scene.story(0))}
    assert told - {"leader"} == real - {"leader"}
