"""What else names an erased person: dead letters, whatever their encoding and also in front of the relay; what operators did to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sync_worker import failpoints
from sync_worker.enrollment import erase
from sync_worker.failpoints import ENVIRONMENT_NAME, KILLED
from tests.support.facts import new_id, source
from tests.support.relay import RunningRelay
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.traces import tables_naming


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """No worker: the dead letters stay until the test lets a relay run."""
    return make_site()


@pytest.fixture
def eraser(site: Site) -> Iterator[Writer]:
    with Writer(site.database_url) as opened:
        yield opened


def _dead_letter(site: Site, **columns: Any) -> int:
    """As the worker keeps one."""
    row = {
        "topic": "segments.membership", "partition": 0, "record_offset": 7, "key": b"key", "value": b"value", "header_names": [],
        "header_values": [], "reason": "undecodable", "detail": "a detail", **columns,
    }  # fmt: skip
    names = ", ".join(row)
    with site.connect() as connection:
        inserted = connection.execute(
            f"insert into dead_letter ({names}) values ({', '.join(['%s'] * len(row))}) returning id",
            list(row.values()),
        ).fetchone()
        assert inserted is not None
        if not row.get("truncated"):
            connection.execute("insert into outbox (dead_letter_id) values (%s)", (inserted["id"],))
    return int(inserted["id"])


def test_dead_letters_are_found_wherever_they_name_the_person(site: Site, eraser: Writer) -> None:
    user = UUID(new_id())
    text = str(user)
    naming: list[dict[str, Any]] = [
        {"key": text.encode()},
        {"key": f"{new_id()}:{text}".encode()},
        {"value": b"\xc3\x01\x00\xff" + text.encode() + b"\x02"},
        {"value": text.upper().encode()},
        {"value": f'{{"user":"{user.hex}"}}'.encode()},
        {"value": b"\x00\x08" + user.bytes},
        {"detail": f"version 5 of segment_id={new_id()} user_id={text} was applied with other content"},
        {"header_names": ["ce_subject", "other"], "header_values": [b"x", text.encode()]},
        {"header_names": [f"of {text}"], "header_values": [None], "key": None, "value": None},
        {"value": text.encode(), "truncated": True},
    ]
    others: list[dict[str, Any]] = [
        {"value": str(new_id()).encode()},
        {"key": None, "value": None},
        {"value": text[:-1].encode()},
    ]
    for columns in naming:
        _dead_letter(site, **columns)
    kept = {_dead_letter(site, **columns) for columns in others}
    assert erase.find(eraser.session, user).dead_letter == len(naming)
    assert erase.erase_dead_letters(eraser.session, user, "a test") == len(naming)
    assert {row["id"] for row in site.query("select id from dead_letter")} == kept
    assert {row["dead_letter_id"] for row in site.query("select dead_letter_id from outbox")} == kept
    assert not erase.find(eraser.session, user).any


def test_a_dead_letter_erased_in_front_of_the_relay_is_passed_over(site: Site, eraser: Writer, tmp_path: Path) -> None:
    user = new_id()
    _dead_letter(site, value=user.encode())
    _dead_letter(site, value=b"somebody else")
    (hold := tmp_path / "hold").touch()
    failpoints.arm(f"relay_publishing=hold:{hold}@1")
    try:
        with RunningRelay(site) as relay:
            wait_for(Path(f"{hold}.reached").exists, what="the publication")
            assert erase.erase_dead_letters(eraser.session, UUID(user), "a test") == 1
            hold.unlink()
            relay.wait_until_published()
    finally:
        failpoints.arm("")
    assert [record.value for record in site.dead_letters()] == [b"somebody else"]


@pytest.mark.parametrize("place", ["erase_dead_letters_gone", "erase_before_commit"])
def test_an_erasure_that_was_killed_is_finished_by_the_next(site: Site, eraser: Writer, place: str) -> None:
    user, course = new_id(), new_id()
    eraser.batch(source(course, user, 1))
    _dead_letter(site, value=user.encode())
    killed = subprocess.run(
        [sys.executable, "-m", "sync_worker", "erase", user, "--yes"],
        env=site.environment | {ENVIRONMENT_NAME: f"{place}=exit"}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert killed.returncode == KILLED
    assert set(tables_naming(site, user)) == {"enrollment", "source", "outbox"}
    again = site.command("erase", user, "--yes")
    assert again.returncode == 0, again.stderr
    assert set(tables_naming(site, user)) == {"outbox"}
    recorded = [row["detail"] for row in site.query("select detail from intervention order by id")]
    assert recorded == [
        {"rows": {"dead_letter": 1}, "tombstones": 0},
        {"rows": {"enrollment": 1, "source": 1}, "tombstones": 1},
    ]


def test_what_was_done_to_the_person_stays_on_record_and_no_longer_names_them(site: Site, eraser: Writer) -> None:
    user, other, course = new_id(), new_id(), new_id()
    for each in (user, other):
        eraser.batch(source(course, each, 9))
        lowered = site.command("versions", "lower", "source", course, each, "manual", "--to", "2", "--yes")
        assert lowered.returncode == 0, lowered.stderr
    assert erase.erase_person(eraser.session, UUID(user), "a test").intervention == 1
    assert set(tables_naming(site, user)) == {"outbox"}
    of_user, of_other, _ = site.query("select detail from intervention order by id")
    entities = [row["detail"]["entities"][0] for row in (of_user, of_other)]
    assert [entity["user_id"] for entity in entities] == ["erased", other]
    assert [entity["from"] for entity in entities] == [9, 9]
