"""Shows how far a download is, on stderr: a bar on a terminal, a line now and then anywhere else.

It must never print anything once nothing is being fetched.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_MB = 1_000_000


class Progress:
    """The progress of several files fetched side by side."""

    def __init__(self, title: str, total_bytes: int, *, every_s: float = 3) -> None:
        self._title = title
        self._total = total_bytes
        self._done = 0
        self._every_s = every_s
        self._next_line = 0.0
        self._lock = threading.Lock()
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_bytes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None and not self._console.is_terminal:
            self._line("done")

    @contextlib.contextmanager
    def file(self, _filename: str, _size: int) -> Iterator[Callable[[int], None]]:
        """What the Maven client wants: a context that takes the number of bytes of each piece."""
        yield self._advance

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._bar.advance(self._task, count)
            if not self._console.is_terminal and time.monotonic() > self._next_line:
                self._next_line = time.monotonic() + self._every_s
                self._line(f"{self._done / _MB:.0f} MB")

    def _line(self, state: str) -> None:
        self._console.print(f"{self._title}: {state} of {self._total / _MB:.0f} MB", highlight=False)
