"""Publishes the members of segments from a file of CSV, to fill a new installation: `members import` (contract §5).

Interrupted or killed, it goes on behind the lines that the broker has acknowledged. Until the end all of a file has one
time, and so one version where the file gives none: a line that is sent twice is the same event twice. Must never leave
out a line without naming it.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sync_worker.errors import SyncWorkerError
from sync_worker.operations.bookmark import Bookmark, Step, event_id
from sync_worker.operations.members_file import MemberLines, Rejects
from sync_worker.operations.memberships import encoder_of
from sync_worker.operations.publishing import InvalidLine, wall_clock_micros
from sync_worker.operations.sending import Sender
from sync_worker.settings import Settings


class MemberImport:
    """One import: `sent` lines are acknowledged, in this run; the rejects know how many can't be used.

    version: that of lines which give none. None: the time of the import in microseconds, as contract §2 has it for
    publishers that don't count. One that counts must give its own, or its next events would all be older than this.
    progress: the file that remembers how far it has come; None remembers nothing.
    """

    def __init__(self, settings: Settings, rejects: Rejects, version: int | None, progress: Path | None) -> None:
        self.sent = 0
        self.resumed_at = 0
        self._settings = settings
        self._rejects = rejects
        self._version = version
        self._progress = progress
        self._fault: SyncWorkerError | None = None

    def check(self, lines: Iterable[bytes]) -> int:
        """How many records `send` would send; rejects what can't be used, as it would."""
        members = MemberLines(lines)
        self._rejects.begin()
        return sum(self._usable(members, number, line) for number, line in enumerate(members.lines, start=1))

    def send(self, lines: Iterable[bytes]) -> None:
        """Send them all. Raises RetryableError or FatalError where that can't go on; run again, it goes on behind what arrived."""
        members = MemberLines(lines)
        sender = Sender(self._settings)
        sender.require(self._settings.membership_topic)
        purpose = f"import into {self._settings.membership_topic}, version {self._version or 'by time'}"
        bookmark = Bookmark(self._progress, purpose, wall_clock_micros())
        mark = bookmark.mark
        self.resumed_at = mark.lines
        self._rejects.begin(mark.rejected, mark.rejects_bytes)
        encoder = encoder_of(self._settings, mark.started_at)
        version = self._version or mark.started_at
        with sender.open():
            for number, line in bookmark.remaining(members.lines, self._rejects.state):
                try:
                    member = members.member(number, line)
                except InvalidLine as error:
                    self._rejects.add(number, str(error), line)
                    continue
                if member is None:
                    continue
                record = encoder.encode(
                    event_id(mark.run, number), member.segment_id, member.user_id, member.version or version, joins=True
                )
                sender.send(*record, partial(self._arrived, bookmark, bookmark.record()))
                if self._fault is not None:
                    break
        if self._fault is not None:
            raise self._fault
        bookmark.finish()

    def _arrived(self, bookmark: Bookmark, step: Step, error: SyncWorkerError | None) -> None:
        if error is None:
            self.sent += 1
            bookmark.arrived(step)
        elif self._fault is None:
            self._fault = error

    def _usable(self, members: MemberLines, number: int, line: bytes) -> bool:
        try:
            return members.member(number, line) is not None
        except InvalidLine as error:
            self._rejects.add(number, str(error), line)
            return False
