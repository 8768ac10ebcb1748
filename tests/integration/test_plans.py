"""The plans of the hot statements hold without statistics and with stale ones: look-ups, and the rule inlined (design §8).

Plans, not times: the machines are shared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sync_worker.database import arrays
from sync_worker.database.sessions import Session, apply_session, relay_session, watch_session
from sync_worker.enrollment.apply import SQL as ENROLLMENT
from sync_worker.enrollment.breaker import SQL as BREAKER
from sync_worker.enrollment.reconcile import SQL as RECONCILE
from sync_worker.intake.positions import SQL as INTAKE
from sync_worker.outbox.windows import SQL as OUTBOX

HOT = [
    *(("enrollment", name) for name in (
        "survey", "memberships", "memberships_judged", "sources", "sources_judged", "suspensions_judged",
        "converge", "people", "members", "memberships_lock", "backfill_lock", "methods_before",
    )),
    *(("breaker", name) for name in (
        "hold_lock", "hold_mark", "removals_count", "removals_window", "release_people", "release_lock", "release_unmark",
    )),
    *(("reconcile", name) for name in (
        "members", "sources", "rows", "differences", "malformed", "strip", "hand_made_clear", "versions_behind",
        "lock_memberships", "lock_sources", "source_facts", "unlock_memberships", "unlock_sources",
    )),
    *(("intake", name) for name in ("positions_move", "positions")),
]  # fmt: skip
STATEMENTS = {"enrollment": ENROLLMENT, "breaker": BREAKER, "reconcile": RECONCILE, "intake": INTAKE, "outbox": OUTBOX}
TYPES = {
    "segment": "uuid",
    "course": "uuid",
    "method": "uuid",
    "after": "uuid",
    "deleted": "bool",
    "n": "bigint",
    "number": "bigint",
    "minimum": "int",
    "last": "bigint",
}


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    opened = apply_session(database_url, "test")
    arrays.register(opened)
    autovacuum_off(opened)
    yield opened
    opened.close()


def autovacuum_off(session: Session) -> None:
    """Statistics are the test's: none come from elsewhere in the middle of it."""
    for table in ("membership", "enrollment", "method", "source", "outbox", "position", "backfill"):
        session.execute(f"alter table {table} set (autovacuum_enabled = off)")


def plan_of(session: Session, statement: str) -> list[dict[str, Any]]:
    """The nodes of the generic plan, flat."""
    names: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in names:
            names.append(name)
        cast = f"::{TYPES[name]}" if name in TYPES else ""
        return f"${names.index(name) + 1}{cast}"

    text = re.sub(r"%\((\w+)\)s", numbered, statement).replace("%%", "%")
    row = session.execute(f"explain (generic_plan, verbose, format json) {text}").fetchone()
    assert row is not None
    (document,) = row[0] if isinstance(row[0], list) else json.loads(row[0])

    def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield plan
        for part in plan.get("Plans", ()):
            yield from nodes(part)

    return list(nodes(document["Plan"]))


def assert_look_ups(nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        if node.get("Relation Name") == "removal_hold" and node["Node Type"] == "Seq Scan":
            continue  # the few holds there are, read as a whole
        assert node["Node Type"] not in {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Merge Join"}, node


def fill(session: Session, *, analyze_when_empty: bool) -> None:
    """Rows enough that a scan would hurt; statistics either missing or of the empty tables."""
    session.execute("truncate membership, enrollment, method, source")
    if analyze_when_empty:
        for table in ("membership", "enrollment", "method", "source"):
            session.execute(f"analyze {table}")
    session.execute("""insert into method (method_id, version, course_id, segment_id, kind, name, active, visible, role, on_removal,
                                           deleted, event_id, occurred_at)
        select gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), 'SEGMENT_SYNC', 'm', true, true, 'student', 'UNENROLL', false,
               gen_random_uuid(), now() from generate_series(1, 500)""")
    session.execute("""insert into membership (segment_id, user_id, is_member, version)
        select segment_id, gen_random_uuid(), true, 1 from method, generate_series(1, 40)""")


@pytest.mark.parametrize(("room", "name"), HOT)
def test_a_hot_statement_looks_up_right_after_truncate(session: Session, room: str, name: str) -> None:
    session.execute("truncate membership, enrollment, method, source, outbox, position, backfill")
    assert_look_ups(plan_of(session, STATEMENTS[room][name]))


@pytest.mark.parametrize(
    "analyze_when_empty", [False, True], ids=["without statistics", "with statistics of empty tables"]
)
@pytest.mark.parametrize(("room", "name"), HOT)
def test_a_hot_statement_looks_up_in_grown_tables(
    session: Session, room: str, name: str, analyze_when_empty: bool
) -> None:
    fill(session, analyze_when_empty=analyze_when_empty)
    assert_look_ups(plan_of(session, STATEMENTS[room][name]))


@pytest.mark.parametrize(("room", "name"), [("enrollment", "converge"), ("reconcile", "differences")])
def test_the_rule_is_inlined(session: Session, room: str, name: str) -> None:
    text = json.dumps(plan_of(session, STATEMENTS[room][name]))
    assert "active_delta" in text
    assert "rule(" not in text


def test_the_relay_reads_a_window_by_the_index_on_xid(database_url: str) -> None:
    """Two ranges above `from`; never everything since a dump began."""
    session = relay_session(database_url)
    autovacuum_off(session)
    session.execute("""insert into outbox (course_id, user_id, version, sources, hand, suspended)
        select gen_random_uuid(), gen_random_uuid(), 1, '{}', '{}', false from generate_series(1, 20000)""")
    statement = OUTBOX["window_rows"] + " limit 5000"
    nodes = plan_of(session, statement)
    scans = [node for node in nodes if "Relation Name" in node or "Index Name" in node]
    assert scans
    for node in scans:
        assert node.get("Index Name", "outbox_xid") == "outbox_xid"
        assert node["Node Type"] != "Seq Scan"
    session.close()


@pytest.mark.parametrize(
    "analyze_when_empty", [False, True], ids=["without statistics", "with statistics of empty tables"]
)
@pytest.mark.parametrize(("room", "name"), [("breaker", "held"), ("outbox", "waiting")])
def test_what_each_worker_asks_every_few_seconds_reads_no_table(
    session: Session, database_url: str, room: str, name: str, analyze_when_empty: bool
) -> None:
    fill(session, analyze_when_empty=analyze_when_empty)
    with watch_session(database_url) as watch:
        nodes = plan_of(watch, STATEMENTS[room][name])
    read_whole = [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"]
    # These have a row for each hold and for each window.
    assert set(read_whole) <= {"removal_hold", "relay_window"}
