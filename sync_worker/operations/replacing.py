"""Makes a segment's members those of a file: `members import --replace`, the cure for events that upstream lost.

Publishes only differences from what the database holds, through the ordinary path: SegmentMemberAdded for who is missing,
SegmentMemberRemoved for who is too much. Must never remove anybody because of a line that it could not read, nor compare
with a database that is behind the topic.

**Versions.** A difference is sent with the version that stands plus one. That is the weakest claim that still counts.
A publisher that counts goes on from where it is: its next event has that number or a higher one, and where the event we
replace was merely lost, it has our number and our content, which is a repetition. A publisher that gives microseconds
is above it with anything that it has said since. A time of day as version would beat what stands too, but for a
publisher that counts it would be above all its events for ever, and every one of them would be dropped in silence. What is
left: a publisher that counts, and whose next event says the opposite of ours under the same number, is told by a dead
letter (version_conflict). That happens only where the file contradicts upstream rather than repeats it. So too it needs
no memory of its own: run again, whatever was sent and not yet applied is sent with the same version, and what was applied
is no difference any more.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, LiteralString
from uuid import UUID, uuid4

from sync_worker import failpoints
from sync_worker.database.sessions import Session, connect, translated
from sync_worker.database.statements import load
from sync_worker.errors import FatalError, RetryableError, SyncWorkerError
from sync_worker.intake import positions
from sync_worker.kafka.broker import Broker, partitions_of
from sync_worker.operations.bookmark import event_id
from sync_worker.operations.members_file import MemberLines, Rejects
from sync_worker.operations.memberships import encoder_of
from sync_worker.operations.publishing import InvalidLine, wall_clock_micros
from sync_worker.operations.sending import Sender
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

_SQL: Final = load("sync_worker.operations", "replacing.sql")
_PAGE: Final = 5000
_APPLIED_WITHIN_S: Final = 60.0
_POLL_S: Final = 0.2

Row = tuple[int, str, int | None]
"""Line, user and version of a line that can be used."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the file and the database have: users named, members there; and what would be sent.

    withheld: removals that aren't sent, as lines were rejected and may name these very people.
    """

    named: int
    members: int
    added: int
    removed: int
    withheld: int


class Replacement:
    """One comparison and what follows from it. `sent` records are acknowledged; rejects know the lines that can't be used.

    version: for all that is sent, unless its line gives one; None: what stands plus one.
    """

    def __init__(self, settings: Settings, rejects: Rejects, segment: UUID, version: int | None) -> None:
        self.sent = 0
        self._settings = settings
        self._rejects = rejects
        self._segment = str(segment)
        self._version = version
        self._removals = True
        self._fault: SyncWorkerError | None = None
        self._session = self._connect()

    def close(self) -> None:
        self._session.close()

    def compare(self, lines: Iterable[bytes], *, may_be_empty: bool = False) -> Comparison:
        """Read the file and compare. Once only.

        Raises FatalError for a file that names nobody, unless it may, and RetryableError while workers have still to apply
        what is in the topic.
        """
        self._rejects.begin()
        with translated():
            self._copy(self._rows(MemberLines(lines, self._segment)))
        self._wait_until_applied()
        with translated():
            named, members = self._one("wanted_count"), self._one("members")
            if not named and not may_be_empty:
                raise FatalError(
                    f"the file names no member of {self._segment}: nobody is added or removed. If the segment is to be empty,"
                    " say --allow-empty"
                )
            self._removals = not self._rejects.count
            self._execute("compare")
            self._reject_beaten()
            added, removed = self._execute("counts").fetchone() or (0, 0)
        kept = 0 if self._removals else removed
        return Comparison(named, members, added, removed - kept, kept)

    def send(self, advance: Callable[[int], object]) -> None:
        """Send the differences; `advance` is told of each few. Raises RetryableError or FatalError where that can't go on."""
        sender = Sender(self._settings)
        sender.require(self._settings.membership_topic)
        run = str(uuid4())
        encoder = encoder_of(self._settings, wall_clock_micros())
        with sender.open():
            for page in self._pages():
                for position, user, joins, version in page:
                    record = encoder.encode(event_id(run, position), self._segment, user, version, joins=joins)
                    sender.send(*record, self._arrived)
                advance(len(page))
                failpoints.reach("replacement_page")
                if self._fault is not None:
                    break
        if self._fault is not None:
            raise self._fault

    def _arrived(self, error: SyncWorkerError | None) -> None:
        if error is None:
            self.sent += 1
        else:
            self._fault = self._fault or error

    def _rows(self, members: MemberLines) -> Iterator[Row]:
        for number, line in enumerate(members.lines, start=1):
            try:
                member = members.member(number, line)
            except InvalidLine as error:
                self._rejects.add(number, str(error), line)
                continue
            if member is not None:
                yield number, member.user_id, member.version

    def _copy(self, rows: Iterator[Row]) -> None:
        self._session.execute(_SQL["wanted_make"])
        self._session.execute(_SQL["difference_make"])
        # In steps: whoever writes the lines to us may be slow, and a transaction must not last as long.
        while page := list(islice(rows, _PAGE)):
            with self._session.cursor().copy(_SQL["wanted_copy"]) as copy:
                for row in page:
                    copy.write_row(row)

    def _wait_until_applied(self) -> None:
        """Until the workers have applied what the topic holds now: or a removal that is on its way would be missed."""
        topic = self._settings.membership_topic
        broker = Broker(self._settings, logger=kafka_logger())
        partitions = partitions_of(broker.topics([topic]))
        ends, earliest = broker.stable_end(partitions), broker.earliest(partitions)
        deadline = time.monotonic() + _APPLIED_WITHIN_S
        while True:
            with translated():
                applied = positions.read(self._session, partitions)
            left = sum(max(0, ends[each] - applied.get(each, earliest[each])) for each in partitions)
            if not left:
                return
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"{topic} holds {left} records that no worker has applied, and has not for {_APPLIED_WITHIN_S:.0f} s: what the"
                    " database says of the segment is not the newest. See that a worker runs, and start again"
                )
            time.sleep(_POLL_S)

    def _reject_beaten(self) -> None:
        for user, joins, line, version, stored in self._execute("beaten").fetchall():
            reason = f"version: {version} is not above {stored}, with which user {user} {'left' if joins else 'joined'}"
            self._rejects.add(line or 0, reason, f"{self._segment},{user},{version}".encode())

    def _pages(self) -> Iterator[list[tuple[int, str, bool, int]]]:
        after = 0
        while True:
            with translated():
                page: list[Any] = self._session.execute(
                    _SQL["page"], {"after": after, "removals": self._removals, "limit": _PAGE}
                ).fetchall()
            if not page:
                return
            yield page
            after = page[-1][0]

    def _execute(self, name: str) -> Any:
        statement: LiteralString = _SQL[name]
        return self._session.execute(statement, {"segment": self._segment, "version": self._version})

    def _one(self, name: str) -> int:
        row = self._execute(name).fetchone()
        return int(row[0]) if row else 0

    def _connect(self) -> Session:
        session = connect(self._settings.database_url.get_secret_value(), "members import")
        session.execute("set search_path = sync_worker, pg_temp")
        return session
