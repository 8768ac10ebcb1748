"""Ctrl-C, kept out of librdkafka's calls: an exception raised in one of its callbacks is lost, and the call fails for no reason.

It must never swallow an interrupt: one that came inside a shielded call is raised right behind it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """SIGINT of the main thread while `installed`; elsewhere nothing is changed."""

    def __init__(self) -> None:
        self._shielded = False
        self._noted = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """An interrupt that comes inside is raised at the end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
            if self._noted:
                self._noted = False
                raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._shielded:
            raise KeyboardInterrupt
        self._noted = True
