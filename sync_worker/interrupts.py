"""Ctrl-C, kept out of librdkafka's calls: an exception raised in one of its callbacks is lost, and the call fails for no reason.

It must never swallow an interrupt: one that came inside a shielded call is delivered right behind it, to whoever handled
interrupts before.
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
        self._before: object = signal.default_int_handler

    @contextmanager
    def installed(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """An interrupt that comes inside is delivered at the end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
            if self._noted:
                self._noted = False
                self._deliver(None)

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if self._shielded:
            self._noted = True
        else:
            self._deliver(frame)

    def _deliver(self, frame: FrameType | None) -> None:
        if callable(self._before):
            self._before(signal.SIGINT, frame)
        elif self._before == signal.SIG_DFL:
            raise KeyboardInterrupt
