"""A run of `reconcile`: all of a scope, in short steps, gentle on what goes on beside it (contract §5).

A run that repairs can be killed anywhere and goes on there; one that is dry writes nothing, not even how far it came. Rows
that are gone are put back as the topic last told them, so that their versions never go back (docs/reference/reconcile.md).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeVar, cast
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from sync_worker.database import arrays
from sync_worker.database.sessions import Contention, DataRejected, apply_session, transaction, translated
from sync_worker.enrollment import reconcile
from sync_worker.enrollment.reconcile import REPAIRABLE, SQL, STEP, Difference, Key, Kind, Lane, Part, Scope
from sync_worker.enrollment.repair import Repair, Said, last_in_outbox, repair, restore
from sync_worker.errors import FatalError
from sync_worker.failpoints import reach
from sync_worker.operations.last_said import last_said
from sync_worker.operations.operator import operator
from sync_worker.operations.tally import Counts, Finding
from sync_worker.settings import Settings

_T = TypeVar("_T")

# So many times as long as a step took it rests before the next: two thirds of a session's time are left to others.
PAUSE_PER_STEP: Final = 2.0
SAVE_EVERY_S: Final = 1.0
# How many rows that are gone are remembered until the topic is asked about them, once for all.
MAX_GONE: Final = 20_000
_GONE_PER_STEP: Final = 500
_ATTEMPTS: Final = 60
_WAIT_S: Final = 0.5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run stands: the part, and the first key of it that is still to be looked at."""

    part: Part
    key: bytes

    @property
    def order(self) -> tuple[int, bytes]:
        return list(Part).index(self.part), self.key


@dataclass(frozen=True, slots=True)
class _Record:
    """What this process has put on record."""

    id: int | None = None
    repaired: Counter[str] = field(default_factory=Counter)
    events: int = 0


class Reconciliation:
    """One run. `resumed`: when the run that it goes on with was interrupted, None where it begins."""

    def __init__(
        self, settings: Settings, scope: Scope, *, dry_run: bool = False, restart: bool = False, step: int = STEP
    ) -> None:
        """Raises FatalError where a run of this scope is under way, SettingsError for a scope that is none."""
        self.counts = Counts()
        self.resumed: datetime | None = None
        self._settings = settings
        self._scope = scope
        self._dry_run = dry_run
        self._step_size = step
        self._record = _Record()
        self._gone: list[Difference] = []
        self._revived: set[bytes] = set()  # in a dry run: whose row other differences make ENROLLED again
        self._gone_people: set[bytes] = set()
        self._saved_at = time.monotonic()
        self._session = apply_session(settings.database_url.get_secret_value(), "reconcile")
        try:
            with translated():
                self._open(restart=restart)
        except BaseException:
            self._session.close()
            raise

    def _open(self, *, restart: bool) -> None:
        arrays.register(self._session)
        if self._dry_run:
            self._session.execute("set default_transaction_read_only = on")
        self._lanes = reconcile.lanes(self._session, self._scope)
        first = self._lanes[0] if self._lanes else Lane(Part.MEMBERS, bytes(32), bytes(32))
        self._place = _Place(first.part, first.first)
        if not self._dry_run:
            self._begin(restart=restart)

    def close(self) -> None:
        self._session.close()

    def total(self) -> int:
        """About how many keys there are to look at, for a progress bar; 0 where counting would take too long."""
        try:
            with translated(), transaction(self._session):
                if self._scope == Scope():
                    return sum(rows for _, rows in self._session.execute(SQL["rows_about"]).fetchall())
                self._session.execute(SQL["count_briefly"])
                return sum(self._count(part) for part in {lane.part for lane in self._lanes})
        except Contention as error:
            log.info("reconcile_not_counted", reason=str(error))
            return 0

    def run(self, report: Callable[[Finding], None], on_progress: Callable[[int], None] = lambda _: None) -> Counts:
        """Compare, and unless dry repair, all that is left; what it came to, with the part before an interruption.

        report: called with each difference, a repaired one after its commit. on_progress: with how many keys were looked at.
        """
        begin = self._place
        for lane in self._lanes:
            if _Place(lane.part, lane.last).order < begin.order:
                continue
            start: bytes | None = max(lane.first, begin.key) if lane.part is begin.part else lane.first
            while start is not None:
                start = self._step(lane, start, report)
                on_progress(self.counts.looked_at)
                if len(self._gone) >= MAX_GONE:
                    self._restore(report)
            self._restore(report)
        if not self._dry_run:
            with translated():
                self._session.execute(SQL["run_end"], {"scope": str(self._scope)})
        return self.counts

    def _begin(self, *, restart: bool) -> None:
        scope = {"scope": str(self._scope)}
        (alone,) = cast("tuple[bool]", self._session.execute(SQL["run_alone"], scope).fetchone())
        if not alone:
            raise FatalError(f"a reconcile of {self._scope} is under way already; wait for it, or stop it")
        found = None if restart else self._session.execute(SQL["run_interrupted"], scope, binary=True).fetchone()
        if found is None:
            self._save(self.counts, self._place)
            return
        part, first, second, counts, self.resumed = found
        self._place, self.counts = _Place(Part(part), first + second), Counts.of_document(counts)

    def _step(self, lane: Lane, start: bytes, report: Callable[[Finding], None]) -> bytes | None:
        """Take a step; where the next one begins."""
        started = time.monotonic()
        where = f"{lane.part} from {UUID(bytes=start[:16])} {UUID(bytes=start[16:])} on"
        seen = self._patiently(where, lambda: reconcile.look(self._session, lane, start, self._step_size))
        self.counts.add(seen)
        place = _Place(lane.part, seen.next or lane.last)
        if self._dry_run:
            self._tell(report, [Finding(each, None) for each in self._once(seen.differences)])
        else:
            self._tell(report, [Finding(each, False) for each in seen.differences if each.kind not in REPAIRABLE])
            self._repair([each for each in seen.differences if each.kind in REPAIRABLE], place, where, report)
            if not self._gone and time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self._patiently(where, lambda: self._save(self.counts, place))
        time.sleep((time.monotonic() - started) * PAUSE_PER_STEP)
        return seen.next

    def _once(self, differences: list[Difference]) -> Iterator[Difference]:
        """What a repair would find of these: a row that is gone once, and no groups of a row that is to be ENROLLED again."""
        self._revived |= {each.key.person for each in differences if each.kind in {Kind.MISSING, Kind.DIFFERENT}}
        for each in differences:
            person = each.key.person
            if each.kind is Kind.ROW_GONE and person not in self._gone_people:
                self._gone_people.add(person)
                yield Difference(Kind.ROW_GONE, Key(each.key.course, each.key.user, ""))
            elif each.kind is not Kind.ROW_GONE and (
                each.kind is not Kind.HAND_MADE_LEFT or person not in self._revived
            ):
                yield each

    def _repair(
        self, differences: list[Difference], place: _Place, where: str, report: Callable[[Finding], None]
    ) -> None:
        if not differences:
            return
        result = self._commit(where, place, lambda: repair(self._session, differences), report)
        self._gone += result.gone

    def _restore(self, report: Callable[[Finding], None]) -> None:
        """Put back the rows that are gone. Until then the place stays where it was, so that none is forgotten."""
        if not self._gone:
            return
        by_person: dict[bytes, list[Difference]] = {}
        for each in self._gone:
            by_person.setdefault(each.key.person, []).append(each)
        people = sorted(by_person)
        said = self._last_said(people)
        for start in range(0, len(people), _GONE_PER_STEP):
            gone = [each for person in people[start : start + _GONE_PER_STEP] for each in by_person[person]]
            self._commit("rows that are gone", None, partial(restore, self._session, gone, said), report)
        self._gone = []

    def _last_said(self, people: list[bytes]) -> dict[bytes, Said]:
        # First the outbox: what is published and cleaned up by now, the topic has when it is read.
        waiting = self._patiently("the outbox", lambda: last_in_outbox(self._session, people))
        newest = last_said(self._settings, people) | waiting
        return {person: said for person, said in newest.items() if said.version > 0}

    def _commit(
        self, where: str, place: _Place | None, work: Callable[[], Repair], report: Callable[[Finding], None]
    ) -> Repair:
        """Repair in a transaction that also puts it on record and, unless rows that are gone wait, moves on to the place."""

        def step() -> tuple[Repair, list[Finding], Counts, _Record]:
            with transaction(self._session):
                result = work()
                findings = [Finding(each, each.key in result.repaired) for each in result.found]
                counts = Counts.of_document(self.counts.document())
                counts.events += result.changes
                for finding in findings:
                    counts.note(finding)
                record = self._put_on_record(result, findings)
                if place is not None and not (self._gone or result.gone):
                    self._save(counts, place)
                reach("reconcile_before_commit")
            reach("reconcile_after_commit")
            return result, findings, counts, record

        result, findings, self.counts, self._record = self._patiently(where, step)
        for finding in findings:
            report(finding)
        return result

    def _tell(self, report: Callable[[Finding], None], findings: list[Finding]) -> None:
        for finding in findings:
            self.counts.note(finding)
            report(finding)

    def _put_on_record(self, result: Repair, findings: list[Finding]) -> _Record:
        """One row of `intervention` for this process. Who was repaired, the events say; the record names nobody."""
        done = Counter(finding.difference.kind.value for finding in findings if finding.repaired)
        if not done:
            return self._record
        repaired, events = self._record.repaired + done, self._record.events + result.changes
        detail = Jsonb({"scope": str(self._scope), "repaired": dict(repaired), "events": events})
        if self._record.id is not None:
            self._session.execute(SQL["on_record_more"], {"id": self._record.id, "detail": detail})
            return _Record(self._record.id, repaired, events)
        row = self._session.execute(SQL["on_record"], {"by": operator(), "detail": detail}).fetchone()
        (id_,) = cast("tuple[int]", row)
        return _Record(id_, repaired, events)

    def _save(self, counts: Counts, place: _Place) -> None:
        self._session.execute(
            SQL["run_put"],
            {
                "scope": str(self._scope),
                "part": place.part.value,
                "first": UUID(bytes=place.key[:16]),
                "second": UUID(bytes=place.key[16:]),
                "counts": Jsonb(counts.document()),
            },
        )
        self._saved_at = time.monotonic()

    def _count(self, part: Part) -> int:
        firsts = sorted({lane.first[:16] for lane in self._lanes if lane.part is part})
        row = self._session.execute(SQL[f"count_{part.value}"], {"firsts": arrays.uuids(firsts)}).fetchone()
        (rows,) = cast("tuple[int]", row)
        return rows

    def _patiently(self, where: str, work: Callable[[], _T]) -> _T:
        """Try again while others have the locks. What PostgreSQL refuses for its data is told with the place."""
        for attempt in range(_ATTEMPTS):
            try:
                with translated():
                    return work()
            except Contention as error:
                log.info("reconcile_waits", reason=str(error), attempt=attempt + 1)
                time.sleep(_WAIT_S)
            except DataRejected as error:
                raise FatalError(f"{where}: {error}; nothing of this step was changed") from error
        raise Contention(f"{where}: the locks were not to be had in {_ATTEMPTS} attempts")
