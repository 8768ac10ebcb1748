"""`reconcile` as an operator runs it: what it says, how it ends, and what becomes of a run that was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sync_worker.enrollment.reconcile import Scope
from sync_worker.operations.reconciling import Reconciliation
from tests.support.engine import Engine
from tests.support.facts import member, method, new_id, source
from tests.support.site import Site, wait_for

MEMBERS = 2500  # several steps of the command


@pytest.fixture
def engine(site: Site) -> Iterator[Engine]:
    running = Engine(site.database_url)
    yield running
    running.close()


def json_of(site: Site, *arguments: str, exit_code: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The differences and the summary that a run printed."""
    done = site.command("reconcile", "--json", *arguments)
    assert done.returncode == exit_code, done.stderr
    *differences, summary = map(json.loads, done.stdout.splitlines())
    assert all(each["type"] == "difference" for each in differences)
    return differences, summary


def interventions(site: Site) -> list[dict[str, Any]]:
    return [row["detail"] for row in site.query("select detail from intervention where operation = 'reconcile'")]


def damaged(engine: Engine) -> dict[tuple[str, str], dict[str, Any]]:
    """Members of a method, nearly all of whom lose what it gave them; the rows as they were."""
    enabled = method(new_id(), new_id(), group_id=new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, new_id(), 1) for _ in range(MEMBERS)])
    before = engine.enrollments()
    engine.lms.execute("update enrollment set sources = '{}' where user_id > '08000000-0000-0000-0000-000000000000'")
    return before


def without_versions(rows: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {pair: row | {"version": 0} for pair, row in rows.items()}


def test_json_names_each_difference_and_sums_up(site: Site, engine: Engine) -> None:
    enabled = method(new_id(), course := new_id(), group_id=new_id())
    engine.apply([enabled])
    engine.apply([member(enabled.segment_id, user := new_id(), 1)])
    _, summary = json_of(site, "--dry-run", exit_code=0)
    assert summary["found"] == {}
    engine.lms.execute("""update enrollment set sources = replace(sources::text, 'student', 'janitor')::jsonb""")
    should_be = {
        "kind": "SEGMENT_SYNC", "status": "ACTIVE", "role": "student", "group_id": enabled.group_id, "member": True,
    }  # fmt: skip
    difference = {
        "type": "difference", "kind": "different", "course_id": course, "user_id": user, "source": enabled.method_id,
        "is": should_be | {"role": "janitor"}, "should_be": should_be,
    }  # fmt: skip
    differences, summary = json_of(site, "--dry-run", exit_code=3)
    assert differences == [difference | {"repaired": None}]
    assert (summary["dry_run"], summary["left"]) == (True, 1)
    assert interventions(site) == []
    assert site.query("select from reconcile_run") == []
    differences, summary = json_of(site, "--method", enabled.method_id, exit_code=0)
    assert differences == [difference | {"repaired": True}]
    assert summary.pop("seconds") > 0
    assert summary == {
        "type": "summary",
        "scope": {"course_id": None, "segment_id": None, "method_id": enabled.method_id},
        "dry_run": False, "resumed": False, "looked_at": 2, "found": {"different": 1}, "repaired": {"different": 1}, "left": 0,
        "events": 1, "pending": 0, "not_known_by_facts": {"suspended_contributions": 0, "hand_made_groups": 0},
    }  # fmt: skip
    assert interventions(site) == [{"scope": f"method {enabled.method_id}", "repaired": {"different": 1}, "events": 1}]
    (event,) = engine.changes()[1:]
    assert event["cause"] == {"type": "RECONCILE", "event_id": None, "method_id": enabled.method_id}
    assert site.query("select from reconcile_run") == []


def test_words_and_exit_codes(site: Site, engine: Engine) -> None:
    engine.apply([source(course := new_id(), user := new_id(), 1)])
    healthy = site.command("reconcile")
    assert (healthy.returncode, "everything is as the facts say" in healthy.stdout) == (0, True)
    engine.lms.execute("update enrollment set sources = '{}'")
    dry = site.command("reconcile", "--dry-run")
    assert dry.returncode == 3
    line = f"missing: user {user} in course {course} by manual: nothing, should be kind=OTHER member=true role=teacher status=ACTIVE"
    assert dry.stdout.splitlines()[0] == line
    repaired = site.command("reconcile")
    assert (repaired.returncode, f"{line}; repaired" in repaired.stdout) == (0, True)
    unknown = '{"kind": "SEGMENT_SYNC", "status": "ACTIVE", "role": "x", "member": true}'
    engine.lms.execute(
        f"update enrollment set sources = sources || jsonb_build_object(gen_random_uuid()::text, '{unknown}'::jsonb)"
    )
    left = site.command("reconcile")
    assert left.returncode == 1
    assert "1 unknown_method: nothing is known of these methods" in left.stderr
    nowhere = site.command("reconcile", "--method", new_id())
    assert (nowhere.returncode, "no such method" in nowhere.stderr) == (2, True)
    assert site.command("reconcile", "--course", "nonsense").returncode == 2


def test_a_second_run_of_a_scope_is_refused_while_one_is_under_way(site: Site) -> None:
    with closing(Reconciliation(site.settings, Scope())):
        refused = site.command("reconcile")
        assert (refused.returncode, "is under way already" in refused.stderr) == (1, True)
        assert site.command("reconcile", "--dry-run").returncode == 0
    assert site.command("reconcile").returncode == 0


@pytest.mark.parametrize("place", ["reconcile_before_commit@2", "reconcile_after_commit@2"])
def test_a_run_that_was_killed_goes_on_where_it_stopped(site: Site, engine: Engine, place: str) -> None:
    before = damaged(engine)
    failpoint, _, nth = place.partition("@")
    site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = f"{failpoint}=exit@{nth}"
    assert site.command("reconcile").returncode == 137
    del site.environment["SYNC_WORKER_TEST_FAILPOINTS"]
    (run,) = [row["counts"] for row in site.query("select counts from reconcile_run")]
    steps_done = 1 if "before" in place else 2
    assert 0 < run["repaired"]["missing"] <= 1000 * steps_done
    differences, summary = json_of(site, exit_code=0)
    assert summary["resumed"]
    assert len(differences) < summary["found"]["missing"], "it began anew"
    injected = summary["found"]["missing"]
    assert summary["repaired"] == {"missing": injected}
    assert summary["events"] == injected
    assert without_versions(engine.enrollments()) == without_versions(before)
    on_record = sum((Counter(each["repaired"]) for each in interventions(site)), Counter())
    assert on_record == {"missing": injected}
    assert len(interventions(site)) == 2
    causes = Counter(event["cause"]["type"] for event in engine.changes())
    assert causes == {"SegmentMemberAdded": MEMBERS, "RECONCILE": injected}
    _, summary = json_of(site, exit_code=0)
    assert (summary["resumed"], summary["found"]) == (False, {})


def test_a_killed_run_begins_anew_when_told_to_or_after_a_day(site: Site, engine: Engine) -> None:
    damaged(engine)
    for forget in ("told", "late"):
        engine.lms.execute(
            "update enrollment set sources = '{}' where user_id > '08000000-0000-0000-0000-000000000000'"
        )
        site.environment["SYNC_WORKER_TEST_FAILPOINTS"] = "reconcile_after_commit=exit@1"
        assert site.command("reconcile").returncode == 137
        del site.environment["SYNC_WORKER_TEST_FAILPOINTS"]
        if forget == "late":
            engine.lms.execute("update reconcile_run set updated_at = now() - interval '2 days'")
        _, summary = json_of(site, *(["--restart"] if forget == "told" else []), exit_code=0)
        assert not summary["resumed"]
        assert summary["left"] == 0


def test_a_run_whose_database_goes_away_says_so_and_the_next_one_goes_on(
    site: Site, engine: Engine, tmp_path: Path
) -> None:
    before = damaged(engine)
    hold = tmp_path / "hold"
    hold.touch()
    environment = site.environment | {"SYNC_WORKER_TEST_FAILPOINTS": f"reconcile_before_commit=hold:{hold}@2"}
    command = [sys.executable, "-m", "sync_worker", "reconcile"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        wait_for(Path(f"{hold}.reached").exists, what="the second commit")
        # Unless PostgreSQL is quicker: a transaction of the worker's code may idle for two seconds.
        site.query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sync-worker reconcile'"
        )
        hold.unlink()
        _, words = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "run it again, it goes on where it stopped" in words
    _, summary = json_of(site, exit_code=0)
    assert (summary["resumed"], summary["left"]) == (True, 0)
    assert without_versions(engine.enrollments()) == without_versions(before)
