"""Sessions of the worker's own code that a test drives by hand, to force the interleaving that would break it.

A session can be stopped before a named statement and be given another statement in its place, so that a test can show
that it catches the obvious way. Facts come as the model's events: the same ones go to the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from sync_worker.database import arrays
from sync_worker.database.sessions import Session, apply_session
from sync_worker.enrollment import apply, backfill, methods
from sync_worker.enrollment.apply import SQL as APPLY
from sync_worker.enrollment.apply import Applied
from sync_worker.enrollment.breaker import SQL as BREAKER
from tests.model.events import Event, HandEdit, MethodChanged
from tests.model.model import Model
from tests.support.check import assert_rows_equal_model
from tests.support.facts import facts_of
from tests.support.site import Site, wait_for

_T = TypeVar("_T")
WAIT_S = 55.0
SQL = APPLY | BREAKER


class Writer:
    """A worker's session that applies what it is told, in a thread of its own, and can be stopped on the way.

    `instead` replaces statements by name: what would happen if the worker did it another way. Waits are long by default,
    since what is waited for is the test's; `patient=False` leaves the worker's own limits.
    """

    def __init__(self, url: str, *, instead: Mapping[str, str] | None = None, patient: bool = True) -> None:
        self.session = apply_session(url, "apply")
        arrays.register(self.session)
        texts: dict[str, str] = {}
        if patient:
            self.session.execute("set lock_timeout = '60s'; set idle_in_transaction_session_timeout = '120s'")
            texts = {name: SQL[name].replace("'15s'", "'60s'") for name in ("lock_shared", "lock_exclusive")}
        self.pid = self.session.info.backend_pid
        self._instead = {SQL[name]: text for name, text in {**texts, **(instead or {})}.items()}
        self._stop_before = ""
        self._stopped = threading.Event()
        self._go_on = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[Any] = Future()

    # what the worker's code uses of a session

    def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        if query == self._stop_before:
            self._stopped.set()
            assert self._go_on.wait(WAIT_S), "nobody told this session to go on"
        return self.session.execute(self._instead.get(query, query), *arguments, **options)

    def transaction(self) -> AbstractContextManager[Any]:
        return self.session.transaction()

    # what a test tells it

    def start(self, work: Callable[[Session], _T], *, stop_before: str = "") -> Future[_T]:
        """Do it in this session's thread. `stop_before`: the name of a statement."""
        self._stopped.clear()
        self._go_on.clear()
        self._stop_before = SQL[stop_before] if stop_before else ""
        running = self._running = self._thread.submit(work, cast("Session", self))
        return running

    def start_batch(self, *events: Event, stop_before: str = "") -> Future[Applied]:
        """Apply events in a transaction."""
        return self.start(lambda session: apply_batch(session, *events), stop_before=stop_before)

    def start_step(self, people: int = 1000, *, stop_before: str = "") -> Future[backfill.Step | None]:
        """Take a backfill step."""
        return self.start(lambda session: backfill.step(session, people), stop_before=stop_before)

    def batch(self, *events: Event) -> Applied:
        return self.start_batch(*events).result(WAIT_S)

    def begin(self, *events: Event) -> Applied:
        """Apply events in a transaction that stays open until `commit`."""

        def work(session: Session) -> Applied:
            self.session.execute("begin")
            return _apply(session, events)

        return self.start(work).result(WAIT_S)

    def commit(self) -> None:
        self.start(lambda _session: self.session.execute("commit")).result(WAIT_S)

    def start_backfills(self, people: int = 1000) -> Future[int]:
        """Take steps until there are none; how many people."""

        def work(session: Session) -> int:
            total = 0
            while (step := backfill.step(session, people)) is not None:
                total += step.people
            return total

        return self.start(work)

    def finish_backfills(self, people: int = 1000) -> int:
        return self.start_backfills(people).result(WAIT_S)

    def wait_until_stopped(self) -> None:
        """Until the statement before which it was to stop is reached."""
        wait_for(lambda: self._stopped.is_set() or self.ended(), WAIT_S, "the statement")
        assert self._stopped.is_set(), "it ended without the statement"

    def ended(self) -> bool:
        """Whether what it was told is done; raises what that raised."""
        if self._running.done():
            self._running.result()
            return True
        return False

    def go_on(self) -> None:
        self._go_on.set()

    def close(self) -> None:
        self._go_on.set()
        self.session.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def apply_batch(session: Session, *events: Event) -> Applied:
    with session.transaction():
        return _apply(session, events)


def _apply(session: Session, events: Iterable[Event], max_people: int = methods.MAX_PEOPLE_AT_ONCE) -> Applied:
    facts = facts_of(events)
    if facts.methods:
        return methods.apply_methods(session, facts, max_people)
    return apply.apply_people(session, facts, familiar=apply.survey(session, facts.records).familiar)


def change_method_in_steps(session: Session, event: MethodChanged) -> Applied:
    """A method event as if it touched too many people for one transaction: its effect becomes a backfill."""
    with session.transaction():
        return _apply(session, [event], max_people=0)


def wait_until_blocked(site: Site, writer: Writer) -> None:
    """Until PostgreSQL says that this session waits for another one."""
    with site.connect() as observer:

        def blocked() -> bool:
            row = observer.execute("select cardinality(pg_blocking_pids(%s)) as n", (writer.pid,)).fetchone()
            return row is not None and row["n"] > 0

        wait_for(lambda: blocked() or writer.ended(), WAIT_S, "waiting for another session")
        assert not writer.ended(), "it went through without waiting"


def model_of(*batches: Sequence[Event] | HandEdit) -> Model:
    """The model after these batches and edits."""
    model = Model()
    model.play([batch if isinstance(batch, HandEdit) else list(batch) for batch in batches])
    return model


def assert_ends_as(site: Site, *batches: Sequence[Event] | HandEdit) -> None:
    """The rows are the model's after these batches, and the outbox is a chain."""
    assert_rows_equal_model(site, model_of(*batches))
    chain_in_outbox(site)


def chain_in_outbox(site: Site) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The outbox per (course, user) in the order of ids, checked: versions 1..n, each before the previous after, the last the row."""
    rows = site.query("""
        select course_id::text, user_id::text, version, before_sources, before_hand::text[], before_suspended, sources, hand::text[],
               suspended, cause_type::text, cause_event_id::text, cause_method_id::text
        from outbox where dead_letter_id is null order by id""")
    chains: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        chain = chains.setdefault((row["course_id"], row["user_id"]), [])
        assert row["version"] == len(chain) + 1, f"version {row['version']} where {len(chain) + 1} was due"
        if chain:
            assert _shown(row, "before_") == _shown(chain[-1], "")
        chain.append(row)
    versions = {
        (row["course_id"], row["user_id"]): row["version"]
        for row in site.query("select course_id::text, user_id::text, version from enrollment where version > 0")
    }
    assert versions == {key: len(chain) for key, chain in chains.items()}
    return chains


def _shown(row: Mapping[str, Any], prefix: str) -> tuple[Any, ...]:
    sources = row[f"{prefix}sources"]
    if not any(source["kind"] != "SEGMENT_GROUP" for source in sources.values()):
        return ()
    return sources, row[f"{prefix}hand"], row[f"{prefix}suspended"]
