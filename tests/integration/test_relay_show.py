"""`relay show`, and when `relay adopt` is refused: on a real Kafka and PostgreSQL, by the commands."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest

from tests.support.adopting import (
    METHOD,
    SEGMENT,
    apply,
    ends_well,
    join,
    show,
)
from tests.support.facts import member, new_id
from tests.support.relay import RunningRelay, cursors, publish
from tests.support.sessions import Writer
from tests.support.site import Site, wait_for
from tests.support.went_back import Backup


@pytest.fixture
def site(site: Site) -> Site:
    """A site with a method that everybody of SEGMENT gets."""
    apply(site, METHOD)
    return site


# ── relay show ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_relay_that_fits_is_shown_with_both_its_memories(site: Site) -> None:
    fresh = show(site)
    assert fresh["fits"] is True
    assert (fresh["windows"], fresh["cursor"], fresh["leader"]) == ([], None, None)
    join(site, 3)
    publish(site)
    join(site, 2)
    shown = show(site)
    (identifier,) = site.query("select system_identifier::text as s from pg_control_system()")
    assert shown["misfit"] is None
    assert shown["next"] == "nothing to do"
    assert shown["system_identifier"] == identifier["s"]
    assert [(each["number"], each["published"]) for each in shown["windows"]] == [(1, True)]
    assert shown["cursor"] == {"window": 1, "last_id": 3, "complete": True, "system_identifier": identifier["s"]}
    assert shown["leader"]["leads"] is False
    assert shown["unpublished"] == 2


def test_a_relay_at_work_is_not_taken_for_a_misfit(site: Site) -> None:
    with RunningRelay(site) as relay, Writer(site.database_url) as writer:
        writer.batch(member(SEGMENT, new_id(), 1))
        relay.wait_until_published()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                writer.batch(member(SEGMENT, new_id(), 1))

        working = threading.Thread(target=work)
        working.start()
        shown: list[dict[str, Any]] = []

        def is_at_work() -> bool:
            """It leads, and has gone on since the first look. A lease ends where this process stands still."""
            shown.append(show(site))
            first, last = shown[0], shown[-1]
            gone_on: bool = first["windows"][0]["number"] < last["windows"][0]["number"]
            return gone_on and len(shown) >= 3 and last["leader"]["leads"]

        try:
            wait_for(is_at_work, what="a relay at work")
        finally:
            stop.set()
            working.join(60)
    assert all(each["fits"] for each in shown), [each["misfit"] for each in shown]


def test_a_misfit_is_shown_in_the_words_in_which_the_relay_stops(site: Site) -> None:
    join(site, 1)
    publish(site)
    backup = Backup(site)
    join(site, 1)
    publish(site)
    backup.restore()
    with RunningRelay(site) as relay:
        error = relay.ended()
    shown = show(site)
    assert shown["fits"] is False
    assert shown["misfit"] == str(error)
    assert "relay adopt --dry-run" in shown["next"]
    table = site.command("relay", "show")
    assert table.returncode == 0
    assert str(error) in table.stdout


# ── when adopting is refused ────────────────────────────────────────────────────────────────────────────────────────


def test_where_everything_fits_there_is_nothing_to_adopt(site: Site) -> None:
    join(site, 1)
    publish(site)
    refused = site.command("relay", "adopt", "--yes")
    assert refused.returncode == 1
    assert "nothing to adopt" in refused.stderr


def test_adopting_is_refused_while_a_relay_leads_or_a_worker_is_in_the_group(site: Site) -> None:
    def refused() -> str:
        done = site.command("relay", "adopt", "--yes")
        assert done.returncode == 1
        return done.stderr

    with RunningRelay(site, "the leader") as relay:
        join(site, 1)
        relay.wait_until_published()
        # Its lease ends where this process stands still for seconds: then there is nothing to adopt.
        wait_for(lambda: "a relay leads (the leader until " in refused(), what="a relay that leads")
    worker = site.start_worker(failpoints=f"relay_fenced=hold:{site.directory / 'hold'}")
    worker.wait_for_event("partition_started")
    with site.connect() as connection:
        connection.execute(
            "update relay_lease set expires_at = clock_timestamp() - interval '1 hour', holder = 'nobody'"
        )
        member_of = refused()
    assert "stop the workers first" in member_of


def test_nobody_is_asked_without_a_terminal_and_a_dry_run_changes_nothing(site: Site) -> None:
    join(site, 2)
    publish(site)
    backup = Backup(site)
    join(site, 3)
    publish(site)
    backup.restore()

    def everything() -> list[Any]:
        tables = ("enrollment", "outbox", "relay_window", "intervention", "relay_lease")
        return [site.query(f"select t::text from {table} t order by 1") for table in tables]

    untouched = everything()
    dry = site.command("relay", "adopt", "--dry-run")
    assert dry.returncode == 3, dry.stderr
    assert re.search(r"^published\t3\t", dry.stdout, re.MULTILINE)
    unconfirmed = site.command("relay", "adopt")
    assert unconfirmed.returncode == 2
    assert "say --yes" in unconfirmed.stderr
    assert everything() == untouched
    assert len(cursors(site)) == 2

    done = site.command("relay", "adopt", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)["differences"]
    assert differences["published"] == 3
    (record,) = site.query("select by, operation, detail from intervention")
    assert record["operation"] == "relay adopt"
    assert record["detail"] == {**differences, "window": 3, "dead_letters_dropped": 0}
    ends_well(site)
