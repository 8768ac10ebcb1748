"""The removal breaker: a segment that loses too many members at once is held (semantics §5, design §6).

It is decided inside the transaction that removes, under a lock, so that workers side by side can't cross the limit; a
transaction that finds it would cross is rolled back and taken again with the hold. Additions are never held.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from sync_worker.database.arrays import int4s, int8s, timestamps, uuids, uuids_of
from sync_worker.database.sessions import Session, transaction, translated
from sync_worker.database.statements import load
from sync_worker.events import text_of

SQL = load("sync_worker.enrollment", "breaker.sql")

MINUTE_US = 60_000_000
# How long a count of a large segment's members may be used to see that the limit is far; to hold, they are counted anew.
_SIZE_KEPT_S = 60.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)

log = structlog.get_logger(__name__)


def minute_of(time_: datetime) -> int:
    """The minute that a time is in, as µs since 1970."""
    return (time_ - _EPOCH) // _MINUTE * MINUTE_US


@dataclass(frozen=True, slots=True)
class Limits:
    """More than `members` removals, and more than `percent` of the members there were, within five minutes. 0: never hold."""

    members: int
    percent: float

    @property
    def never(self) -> bool:
        return not (self.members and self.percent)


NEVER = Limits(0, 0)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A segment that crosses the limit: the members it had before the five minutes up to this one, in which they leave."""

    members: int
    minute: datetime


class Reconsider(Exception):
    """The transaction must be taken again, knowing more: holds that are there, or ended, or due; sizes that must be counted."""

    def __init__(
        self,
        *,
        holds: Mapping[bytes, int] | None = None,
        ended: Iterable[bytes] = (),
        crossing: Mapping[bytes, Crossing] | None = None,
        count: Mapping[bytes, datetime] | None = None,
    ) -> None:
        super().__init__("the transaction is taken again")
        self.holds = holds or {}
        self.ended = ended
        self.crossing = crossing or {}
        self.count = count or {}


@dataclass(slots=True)
class Guard:
    """What one transaction knows of holds before it removes anybody."""

    limits: Limits = NEVER
    # segment → the hold's number
    holds: dict[bytes, int] = field(default_factory=dict)
    # segments that this transaction has to hold
    crossing: dict[bytes, Crossing] = field(default_factory=dict)
    # segment → members it had, counted for this very transaction; and what was counted within the last minute
    counted: dict[bytes, int] = field(default_factory=dict)
    sizes: Mapping[bytes, tuple[int, float]] = field(default_factory=dict)
    # segment that this transaction has held → how many members had left by then
    set_here: dict[bytes, int] = field(default_factory=dict)
    marked: Counter[bytes] = field(default_factory=Counter)

    def concerns(self, removing: Iterable[bytes]) -> set[bytes]:
        """Those of these segments that are held, as far as is known, or are to be."""
        if not (self.holds or self.crossing):
            return set()
        return {segment for segment in removing if segment in self.holds or segment in self.crossing}

    def enter(self, session: Session, removing: Iterable[bytes]) -> None:
        """Set the holds that are due, and keep those that are there from ending before this transaction does."""
        self.set_here.clear()
        self.marked.clear()
        concerned = self.concerns(removing)
        if not concerned:
            return
        if due := sorted(self.crossing):
            columns = {
                "segments": uuids(due),
                "members": int8s([self.crossing[segment].members for segment in due]),
            }
            rows = session.execute(SQL["hold_put"], columns, prepare=True, binary=True).fetchall()
            self.set_here.update({segment: 0 for (segment,) in rows})
        locked = session.execute(SQL["hold_lock"], {"segments": uuids(sorted(concerned))}, prepare=True, binary=True)
        standing: dict[bytes, int] = dict(locked.fetchall())
        if ended := concerned - standing.keys():
            raise Reconsider(ended=ended)
        self.holds.update(standing)

    def settle(self, session: Session, unsure: Iterable[bytes]) -> None:
        """Marks of segments that we know no hold of: it was released, or set since we looked, which raises Reconsider."""
        if segments := sorted(unsure):
            locked = session.execute(SQL["hold_lock"], {"segments": uuids(segments)}, prepare=True, binary=True)
            standing: dict[bytes, int] = dict(locked.fetchall())
            if standing:
                raise Reconsider(holds=standing)

    def mark(self, session: Session, lost: Sequence[tuple[bytes, bytes]]) -> None:
        """Mark memberships, by (segment, user), as removed under their segment's hold."""
        columns = {
            "segments": uuids([segment for segment, _ in lost]),
            "users": uuids([user for _, user in lost]),
            "numbers": int8s([self.holds[segment] for segment, _ in lost]),
        }
        session.execute(SQL["hold_mark"], columns, prepare=True)
        self.marked.update(segment for segment, _ in lost)

    def count(self, session: Session, deltas: Mapping[tuple[bytes, int], int]) -> None:
        """Count removals, and returns as negative ones, by (segment, minute in µs since 1970). The last step before the commit.

        Raises Reconsider where a segment has crossed the limit, or somebody else has held it.
        """
        if self.limits.never or not (deltas or self.set_here):
            return
        session.execute(SQL["removals_lock"], prepare=True)
        if deltas:
            self._add(session, deltas)
        if self.set_here:
            self._say_who_had_left(session)

    def _add(self, session: Session, deltas: Mapping[tuple[bytes, int], int]) -> None:
        keys = sorted(deltas)
        columns = {
            "segments": uuids([segment for segment, _ in keys]),
            "minutes": timestamps([minute for _, minute in keys]),
            "numbers": int4s([deltas[key] for key in keys]),
        }
        session.execute(SQL["removals_count"], columns, prepare=True)
        spans: dict[bytes, tuple[int, int]] = {}
        for segment, minute in keys:
            if deltas[segment, minute] > 0:
                spans[segment] = (spans.get(segment, (minute, minute))[0], minute)
        if spans:
            self._judge(session, spans)

    def _say_who_had_left(self, session: Session) -> None:
        """Complete the holds of this transaction. Others may have removed since it found the limit crossed; none can any more."""
        columns = {
            "segments": uuids(sorted(self.set_here)),
            "minutes": [self.crossing[segment].minute for segment in sorted(self.set_here)],
        }
        self.set_here.update(session.execute(SQL["hold_count"], columns, prepare=True, binary=True).fetchall())

    def _judge(self, session: Session, spans: Mapping[bytes, tuple[int, int]]) -> None:
        columns = {
            "segments": uuids(list(spans)),
            "since": timestamps([first for first, _ in spans.values()]),
            "until": timestamps([last for _, last in spans.values()]),
            "minimum": self.limits.members,
        }
        holds: dict[bytes, int] = {}
        crossing: dict[bytes, Crossing] = {}
        count: dict[bytes, datetime] = {}
        for segment, removed, minute, hold in session.execute(
            SQL["removals_window"], columns, prepare=True, binary=True
        ):
            if hold is not None:
                holds[segment] = hold
                continue
            had = self._size(segment)
            exceeded = had is not None and removed * 100 > self.limits.percent * had
            if had is None or (exceeded and segment not in self.counted):
                count[segment] = minute
            elif exceeded:
                crossing[segment] = Crossing(had, minute)
        if holds or crossing or count:
            raise Reconsider(holds=holds, crossing=crossing, count=count)

    def _size(self, segment: bytes) -> int | None:
        if segment in self.counted:
            return self.counted[segment]
        kept = self.sizes.get(segment)
        return kept[0] if kept is not None and time.monotonic() - kept[1] < _SIZE_KEPT_S else None


class Breaker:
    """The breaker of one applying session: makes the guard of each transaction, and finds out what a guard lacked."""

    def __init__(self, limits: Limits = NEVER) -> None:
        self._limits = limits
        self._sizes: dict[bytes, tuple[int, float]] = {}

    def guard(self, holds: Mapping[bytes, int]) -> Guard:
        """holds: those of the batch's segments that are held, as read before the transaction."""
        return Guard(self._limits, dict(holds), sizes=self._sizes)

    def reconsider(self, session: Session, guard: Guard, found: Reconsider) -> None:
        """Tell the guard what it lacked, for the next attempt. Between transactions: counting members reads a whole segment."""
        for segment, minute in found.count.items():
            row = session.execute(SQL["members_had"], {"segment": UUID(bytes=segment), "minute": minute}, prepare=True)
            (had,) = row.fetchone() or (0,)
            guard.counted[segment] = had
            self._sizes[segment] = (had, time.monotonic())
        guard.holds.update(found.holds)
        guard.crossing.update(found.crossing)
        for segment in found.ended:
            guard.holds.pop(segment, None)

    def committed(self, guard: Guard) -> None:
        """Say, once, which segments this transaction has held."""
        for segment, removed in guard.set_here.items():
            self._sizes.pop(segment, None)
            log.warning(
                "segment_held",
                segment_id=text_of(segment),
                members=guard.crossing[segment].members,
                removed=removed,
                held=guard.marked[segment],
                limit_members=self._limits.members,
                limit_percent=self._limits.percent,
                next=f"see `sync-worker holds list`; `sync-worker holds release {text_of(segment)}` lets them go",
            )


@dataclass(frozen=True, slots=True)
class Hold:
    """A segment that is held. held: removals that wait; sample: some of their users, 16 bytes each."""

    segment_id: bytes
    number: int
    since: datetime
    members: int
    removed: int
    held: int
    sample: list[bytes]


def holds(session: Session, sample: int = 5) -> list[Hold]:
    """Every hold there is, the oldest first."""
    with translated():
        rows = session.execute(SQL["holds"], {"sample": sample}, binary=True).fetchall()
    return [
        Hold(segment, number, since, members, removed, waiting, uuids_of(users))
        for segment, number, since, members, removed, waiting, users in rows
    ]


def held(session: Session) -> tuple[int, int]:
    """How many segments are held, and how many removals are marked, those of a release that is under way included."""
    segments, removals = session.execute(SQL["held"]).fetchone() or (0, 0)
    return segments, removals


def forget(session: Session) -> None:
    """Drop the counts of minutes that nobody has removed in for an hour."""
    with transaction(session):
        session.execute(SQL["removals_lock"], prepare=True)
        session.execute(SQL["removals_forget"], prepare=True)
