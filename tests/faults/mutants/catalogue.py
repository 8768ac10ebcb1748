"""The mutants: what each leaves out, and how. A patch that finds nothing to patch is an error, not a correct worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong worker. holds: it shows where the removal breaker is on."""

    name: str
    leaves_out: str
    patch: Callable[[], None]
    holds: bool = False


def _replace(statements: Any, name: str, old: str, new: str) -> None:
    text = statements[name]
    if old not in text:
        raise LookupError(f"the statement {name} has no {old!r} any more")
    statements[name] = text.replace(old, new)


def _positions_apart() -> None:
    """Positions move in a transaction of their own, before the facts'."""
    from sync_worker.database.sessions import apply_session  # noqa: PLC0415 - patched in the worker's process alone
    from sync_worker.intake import positions  # noqa: PLC0415 - as above

    advance = positions.advance
    apart: list[Any] = []

    def alone(_session: Any, moves: Mapping[Any, Any]) -> None:
        if not apart or apart[0].closed:
            apart[:] = [apply_session(os.environ["SYNC_WORKER_DATABASE_URL"], "apply")]
        with apart[0].transaction():
            advance(apart[0], moves)

    cast("Any", positions).advance = alone


def _no_compare_and_set() -> None:
    """Positions are set, whatever they are."""
    from sync_worker.intake import positions  # noqa: PLC0415 - as above

    _replace(positions.SQL, "positions_move", "and p.next_offset = held.before", "")


def _end_of_partition_ignored() -> None:
    """Control records at the end of a partition move no position."""
    from sync_worker.intake.gathering import Gathering  # noqa: PLC0415 - as above

    Gathering._take_end = lambda self, lane, offset: None  # type: ignore[method-assign]  # noqa: ARG005


def _any_version_wins() -> None:
    """A membership is what was said last, not what has the newest version: repetitions and stale records are not dropped."""
    from sync_worker.enrollment import apply  # noqa: PLC0415 - as above

    _replace(apply.SQL, "memberships", "where s.version < excluded.version", "")
    # Versions are compared there, too: a replay that is looked up first would be dropped all the same.
    _replace(apply.SQL, "survey", "where s.version >= t.version", "where false")


def _no_advisory_lock() -> None:
    """Methods, batches and backfill steps don't wait for one another."""
    from sync_worker.enrollment import apply  # noqa: PLC0415 - as above

    for name in ("lock_shared", "lock_exclusive"):
        cast("Any", apply.SQL)[name] = "select 1"


def _methods_under_the_shared_lock() -> None:
    """A method's event doesn't keep batches away while it looks for the people it touches."""
    from sync_worker.enrollment import apply  # noqa: PLC0415 - as above

    apply.SQL["lock_exclusive"] = apply.SQL["lock_shared"]


def _memberships_not_locked_in_backfills() -> None:
    """A backfill step doesn't wait for a member who is being added."""
    from sync_worker.enrollment import apply  # noqa: PLC0415 - as above

    cast("Any", apply.SQL)["memberships_lock"] = "select cardinality(%(users)s::uuid[])"
    cast("Any", apply.SQL)["backfill_lock"] = "select %(segment)s::uuid, %(users)s::uuid[]"


def _facts_and_rows_in_one_snapshot() -> None:
    """The rule reads the rows as they were before the facts waited for their locks, as one statement for both would."""
    from sync_worker.database.arrays import uuids  # noqa: PLC0415 - as above
    from sync_worker.enrollment import apply, converge  # noqa: PLC0415 - as above

    put, plain = apply._put_memberships, converge.SQL["converge"]
    look_up = "from enrollment e where e.course_id = m.course_id and e.user_id = f.user_id offset 0) n"
    if look_up not in plain:
        raise LookupError("converge looks rows up another way now")
    stale = plain.replace(look_up, look_up.replace("from enrollment e", "from seen e"))
    seen = """create temporary table seen on commit drop as
        select e.course_id, e.user_id, e.sources from unnest(%(segments)s::uuid[], %(users)s::uuid[]) t(segment_id, user_id)
        join sync_worker.method m on m.segment_id = t.segment_id
        join sync_worker.enrollment e on e.course_id = m.course_id and e.user_id = t.user_id"""
    # Named in full: the session's search_path ends with pg_temp, and a prepared statement keeps the table it found first.
    stale = stale.replace("from seen e", "from pg_temp.seen e")

    def put_seen(session: Any, facts: Any, *rest: Any, **options: Any) -> Any:
        keys = list(facts.memberships)
        columns = {"segments": uuids([key[:16] for key in keys]), "users": uuids([key[16:] for key in keys])}
        session.execute(seen, columns)
        return put(session, facts, *rest, **options)

    def converge_stale(session: Any, touched: Mapping[str, Any]) -> int:
        if "m_users" not in touched:
            return converge.converge(session, touched)
        rows: int = session.execute(stale, {**converge.NOTHING, **touched}, prepare=False).rowcount
        return rows

    patched = cast("Any", apply)
    patched._put_memberships = put_seen
    patched.converge = converge_stale


def _outbox_by_id() -> None:
    """The relay takes what is above the last id that it saw."""
    from sync_worker.outbox import windows  # noqa: PLC0415 - as above

    inside = """(xid >= pg_snapshot_xmax(%(from)s::pg_snapshot) or xid = any(array(select pg_snapshot_xip(%(from)s::pg_snapshot))))
  and pg_visible_in_snapshot(xid, %(to)s::pg_snapshot) and id > %(last)s"""
    above = "id > greatest(%(last)s, %(seen)s) and %(from)s::text is not null and %(to)s::text is not null"
    _replace(windows.SQL, "window_rows", inside, above)
    chunks = windows.Windows.chunks
    seen = [0]

    def by_id(self: Any, window: Any, after_id: int, rows: int) -> Any:
        execute = self._session.execute

        class Session:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def execute(self, query: Any, parameters: Any = None, **options: Any) -> Any:
                if isinstance(parameters, dict) and "last" in parameters:
                    parameters["seen"] = seen[0]
                return execute(query, parameters, **options)

        inner = self._session
        self._session = Session()
        try:
            for chunk in chunks(self, window, after_id, rows):
                yield chunk
                if chunk:
                    seen[0] = max(seen[0], chunk[-1].id)
        finally:
            self._session = inner

    windows.Windows.chunks = by_id  # type: ignore[method-assign]


def _window_not_stored_first() -> None:
    """A window is written to the database once it is published."""
    from sync_worker.outbox import term, windows  # noqa: PLC0415 - as above

    open_next, publish = windows.Windows.open_next, term.Term.publish

    def only_look(self: Any, number: int, from_: str, system_identifier: str) -> windows.Window:
        (to,) = self._session.execute("select pg_current_snapshot()::text").fetchone()
        return windows.Window(number, from_, to, system_identifier, published=False)

    def publish_then_store(self: Any, window: windows.Window, after_id: int) -> None:
        publish(self, window, after_id)
        if (self._windows.last() or window).number < window.number or self._windows.last() is None:
            open_next(self._windows, window.number, window.from_, window.system_identifier)
            self._windows._session.execute(
                "update relay_window set to_snapshot = %s::pg_snapshot where number = %s", (window.to, window.number)
            )

    windows.Windows.open_next = only_look  # type: ignore[method-assign]
    term.Term.publish = publish_then_store  # type: ignore[method-assign]


def _no_fencing() -> None:
    """Each leader's producer has a transactional id of its own, and nobody asks the lease again before a transaction."""
    from sync_worker.outbox import relay, term  # noqa: PLC0415 - as above

    patched_relay, patched_term = cast("Any", relay), cast("Any", term.Term)
    publisher, init = patched_relay.Publisher, patched_term.__init__
    patched_relay.Publisher = lambda config, group, *rest, **options: publisher(
        config, f"{group}-{uuid4().hex}", *rest, **options
    )
    patched_term.__init__ = lambda self, *arguments: init(self, *arguments[:-1], lambda: None)


def _event_id_of_the_moment() -> None:
    """A change published again carries another id."""
    from sync_worker.outbox import encoding  # noqa: PLC0415 - as above

    encoding.event_id_of = lambda key, version: str(uuid4()).encode()  # noqa: ARG005


def _changes_not_folded() -> None:
    """What one transaction changes for one person twice is two events."""
    from sync_worker.enrollment import converge  # noqa: PLC0415 - as above

    _replace(converge.SQL, "converge", "from written where version > coalesce(old_version, 0)", "from written")


def _removals_counted_without_a_lock() -> None:
    """Two workers remove side by side, and neither sees what the other one counted."""
    from sync_worker.enrollment import breaker  # noqa: PLC0415 - as above

    cast("Any", breaker.SQL)["removals_lock"] = "select 1"


MUTANTS: Sequence[Mutant] = (
    Mutant("position-apart", "the position moves in the transaction that applies", _positions_apart),
    Mutant("no-compare-and-set", "a position only moves from where the batch began", _no_compare_and_set),
    Mutant("end-of-partition-ignored", "a position also moves past control records", _end_of_partition_ignored),
    Mutant("any-version-wins", "an older version is dropped", _any_version_wins),
    Mutant("no-advisory-lock", "the advisory lock", _no_advisory_lock),
    Mutant("methods-shared", "the exclusive mode for methods", _methods_under_the_shared_lock),
    Mutant("backfill-unlocked", "membership locks of a backfill step", _memberships_not_locked_in_backfills),
    Mutant("one-snapshot", "rows are a later statement than facts", _facts_and_rows_in_one_snapshot),
    Mutant("outbox-by-id", "the outbox is read by snapshot", _outbox_by_id),
    Mutant("window-afterwards", "a window is stored before it is published", _window_not_stored_first),
    Mutant("no-fencing", "one transactional id fences former leaders", _no_fencing),
    Mutant("random-event-id", "an event's id follows from key and version", _event_id_of_the_moment),
    Mutant("unchanged-published", "only visible changes are published", _changes_not_folded),
    Mutant("breaker-unlocked", "removals are counted under a lock", _removals_counted_without_a_lock, holds=True),
)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
