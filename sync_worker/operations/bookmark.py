"""Remembers how far the lines of a file have arrived, in a small file of its own, so that a run that was killed goes on there.

What a line becomes depends on the run and the line's number alone, and both are remembered before anything is sent: a
line that is sent twice is the same event twice. Must never move past a line that isn't acknowledged.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from sync_worker import failpoints
from sync_worker.errors import FatalError

STEP_LINES: Final = 5000
_NEWEST_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What is remembered. `digest` is the SHA-256 of the lines done, which tells whether this is still the same file.

    run: names the run, in event ids; started_at: microseconds since 1970; purpose: what is done with the file, as it must
    be the same; rejected, rejects_bytes: of the lines done, and how long the file of rejects was then.
    """

    run: str
    started_at: int
    purpose: str
    lines: int = 0
    digest: str = hashlib.sha256().hexdigest()
    rejected: int = 0
    rejects_bytes: int = 0
    format: int = _NEWEST_FORMAT


def event_id(run: str, number: int) -> str:
    """The id of the event that a line of a run becomes: a uuid of version 8, the run's random digits and the number."""
    digits = run.replace("-", "")
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-8{digits[17:20]}-{number:012x}"


class Step:
    """Some lines in a row; done when all of its records have arrived."""

    __slots__ = ("end", "on_the_way")

    def __init__(self) -> None:
        self.on_the_way = 0
        self.end: Mark | None = None  # None while lines are still added


class Bookmark:
    """The place in one file of lines. `path` None: nothing is remembered."""

    def __init__(self, path: Path | None, purpose: str, now: int, run: UUID | None = None) -> None:
        """Begin, or go on where `path` says. Raises FatalError where it can't be read or written, or is of another run."""
        self._path = path
        found = None if path is None else _read(path)
        if found is not None and found.purpose != purpose:
            raise FatalError(f"{path} is of another run ({found.purpose}, not {purpose}); remove it to begin anew")
        self.mark = found or Mark(str(run or uuid4()), now, purpose)
        self.resumed = found is not None and found.lines > 0
        self._steps: deque[Step] = deque()
        self._write(self.mark)

    def remaining(
        self, lines: Iterable[bytes], state: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> Iterator[tuple[int, bytes]]:
        """The lines that are not done, with their numbers from 1; `state` gives rejected and rejects_bytes of the moment.

        Raises FatalError where the lines done are not what they were.
        """
        digest = hashlib.sha256()
        done, number = self.mark, 0
        self._steps.append(Step())
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            if number > done.lines:
                yield number, line
                if number % STEP_LINES == 0:
                    self._end_step(number, digest.hexdigest(), state())
            elif number == done.lines and digest.hexdigest() != done.digest:
                raise FatalError(f"{self._changed()}; remove {self._path} to begin anew")
        if number < done.lines:
            raise FatalError(f"{self._changed()}: it has {number} lines only; remove {self._path} to begin anew")
        self._end_step(number, digest.hexdigest(), state())

    def record(self) -> Step:
        """A record of the line that `remaining` gave last is on its way; `arrived` takes what this returns."""
        step = self._steps[-1]
        step.on_the_way += 1
        return step

    def arrived(self, step: Step) -> None:
        """One of the step's records is acknowledged. One that isn't must never be reported: the bookmark stays before it."""
        step.on_the_way -= 1
        self._move()

    def finish(self) -> None:
        """Forget it: everything is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _changed(self) -> str:
        return f"the file is not the one of which the first {self.mark.lines} lines were sent"

    def _end_step(self, lines: int, digest: str, state: tuple[int, int]) -> None:
        self._steps[-1].end = replace(self.mark, lines=lines, digest=digest, rejected=state[0], rejects_bytes=state[1])
        self._steps.append(Step())
        self._move()

    def _move(self) -> None:
        moved = False
        while self._steps and self._steps[0].end is not None and not self._steps[0].on_the_way:
            self.mark = self._steps.popleft().end or self.mark
            moved = True
        if moved:
            self._write(self.mark)
            failpoints.reach("bookmark_moved")

    def _write(self, mark: Mark) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.write_text(json.dumps(asdict(mark)) + "\n", "utf-8")
            os.replace(beside, self._path)  # at once, or not at all
        except OSError as error:
            raise FatalError(
                f"{self._path} can't be written ({error.strerror}); --progress names another place"
            ) from error


def _read(path: Path) -> Mark | None:
    try:
        fields: Any = json.loads(path.read_text("utf-8"))
        if fields["format"] != _NEWEST_FORMAT:
            raise FatalError(f"{path} is of another version of sync-worker; remove it to begin anew")
        return Mark(**fields)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FatalError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise FatalError(
            f"{path} does not say how far a run has come; remove it, or name another with --progress"
        ) from error
