"""A segment's members as lines of CSV, segment_id,user_id[,version], and the file of those lines that can't be used.

Each line stands for itself: one that is wrong, an open quote in it even, never takes the next with it.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from sync_worker.errors import FatalError
from sync_worker.intake.validation import MAX_VERSION, shown, uuid_bytes
from sync_worker.operations.publishing import InvalidLine

COLUMNS: Final = ("segment_id", "user_id", "version")
_REQUIRED: Final = 2
_BOM: Final = b"\xef\xbb\xbf"

OnReject = Callable[[int, str], object]
"""Called with a line's number, from 1, and what is wrong with it."""


class Member(NamedTuple):
    """What a line says; ids in lower case. version: None where it leaves that to us."""

    segment_id: str
    user_id: str
    version: int | None


class MemberLines:
    """The lines of a file, of which the first may name the columns, in any order. segment: the only one they may be of."""

    def __init__(self, lines: Iterable[bytes], segment: str | None = None) -> None:
        """Raises FatalError for a first line that is neither a header nor has an id.

        It may be a header with other names, and then nobody knows which column is which.
        """
        rest = iter(lines)
        begun: list[bytes] = []
        self._columns: tuple[str, ...] = COLUMNS
        self._header = 0
        self._segment = segment
        for line in rest:
            begun.append(line)
            if line.removeprefix(_BOM).strip():
                self._look_at_first(len(begun), line)
                break
        self.lines: Iterator[bytes] = chain(begun, rest)
        """All lines, the header too."""

    def member(self, number: int, line: bytes) -> Member | None:
        """What the line says; None for the header and for blank lines. Raises InvalidLine."""
        if number == self._header:
            return None
        cells = _cells(number, line)
        if not any(cells):
            return None
        least = _REQUIRED if not self._header else len(self._columns)
        if not least <= len(cells) <= len(self._columns):
            raise InvalidLine(f"it has {len(cells)} fields; they must be {','.join(self._columns)}")
        fields = dict(zip(self._columns, cells, strict=False))
        member = Member(_id(fields, "segment_id"), _id(fields, "user_id"), _version(fields.get("version", "")))
        if self._segment is not None and member.segment_id != self._segment:
            raise InvalidLine(f"segment_id: {member.segment_id} is not {self._segment}, whose members are replaced")
        return member

    def _look_at_first(self, number: int, line: bytes) -> None:
        try:
            cells = _cells(number, line)
        except InvalidLine:
            return  # it will be rejected as a line
        names = tuple(cell.lower() for cell in cells)
        if set(names) <= set(COLUMNS) and len(set(names)) == len(names) and {*COLUMNS[:_REQUIRED]} <= set(names):
            self._columns, self._header = names, number
        elif all(uuid_bytes(cell) is None for cell in cells):
            raise FatalError(
                f"line {number} is neither a member nor a header of segment_id,user_id and perhaps version, in any order: "
                f"{shown(line.strip())}"
            )


def _cells(number: int, line: bytes) -> list[str]:
    if number == 1:
        line = line.removeprefix(_BOM)
    try:
        rows = list(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
    except UnicodeDecodeError as error:
        raise InvalidLine(f"it is not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise InvalidLine(f"it is not CSV: {error}") from error
    return [cell.strip() for cell in rows[0]] if rows else []


def _id(fields: dict[str, str], name: str) -> str:
    text = fields[name]
    if uuid_bytes(text) is None:
        raise InvalidLine(f"{name}: {shown(text)} is not a uuid in the 8-4-4-4-12 form")
    return text.lower()


def _version(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or not 1 <= int(text) <= MAX_VERSION:
        raise InvalidLine(f"version: {shown(text)} is not a whole number between 1 and 2^63-1")
    return int(text)


class Rejects:
    """The lines that can't be used, counted, told to `on_reject`, and written to a file: number, reason, the line.

    path: None writes none. The file is made with the first of them, in place of one of an earlier run.
    """

    def __init__(self, path: Path | None, on_reject: OnReject) -> None:
        self.count = 0
        self.path = path
        self._on_reject = on_reject
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, count: int = 0, size: int = 0) -> None:
        """Begin, or go on behind so many that took so many bytes: what an interrupted run wrote after them comes again."""
        self.count, self._bytes = count, size
        if self.path is None:
            return
        with self._writing(self.path):
            if size and self.path.exists():
                os.truncate(self.path, size)
            else:
                self.path.unlink(missing_ok=True)

    def add(self, number: int, reason: str, line: bytes) -> None:
        """Raises FatalError where it can't be written."""
        self.count += 1
        self._on_reject(number, reason)
        if self.path is None:
            return
        row = StringIO()
        writer = csv.writer(row, lineterminator="\n")
        if not self._bytes:
            writer.writerow(("line", "reason", "text"))
        writer.writerow((number, reason, line.decode("utf-8", "backslashreplace").rstrip("\r\n")))
        with self._writing(self.path):
            self._file = self._file or self.path.open("ab")
            self._bytes += self._file.write(row.getvalue().encode())

    def state(self) -> tuple[int, int]:
        """How many there are, and how long the file is, which holds them all now."""
        if self._file is not None and self.path is not None:
            with self._writing(self.path):
                self._file.flush()
        return self.count, self._bytes

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FatalError(f"{path} can't be written ({error.strerror}); --rejects names another place") from error
