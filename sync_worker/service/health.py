"""Whether the worker lives and whether it is ready: what `/livez` and `/readyz` say (contract §6, design §6).

The loops report here; nothing is asked for. Must never do I/O: a probe has to be answered while everything else hangs.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple


class Check(NamedTuple):
    """One named part of an answer."""

    name: str
    ok: bool
    detail: str


class Checks(NamedTuple):
    """An answer to a probe: fine only if every part is."""

    ok: bool
    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return self.ok


class _Loop:
    __slots__ = ("last_beat", "max_silence_s")

    def __init__(self, max_silence_s: float, last_beat: float) -> None:
        self.max_silence_s = max_silence_s
        self.last_beat = last_beat


class Health:
    """Collects beats and conditions from any thread. `clock` is monotonic, in seconds."""

    def __init__(self, conditions: Collection[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """`conditions` are not met until somebody says so: a worker that has checked nothing is not ready."""
        self._clock = clock
        self._lock = threading.Lock()
        self._loops: dict[str, _Loop] = {}
        self._conditions: dict[str, tuple[bool, str]] = dict.fromkeys(conditions, (False, "not known yet"))

    def register(self, loop: str, max_silence_s: float) -> None:
        """A loop that will call `beat` at least every `max_silence_s` seconds, counted from now."""
        with self._lock:
            self._loops[loop] = _Loop(max_silence_s, self._clock())

    def beat(self, loop: str) -> None:
        """The loop made progress, or is waiting for something on purpose and knows it. KeyError if not registered."""
        self._loops[loop].last_beat = self._clock()

    def finish(self, loop: str) -> None:
        """The loop ended as it should: its silence means nothing from now on."""
        with self._lock:
            self._loops.pop(loop, None)

    def set_ready(self, condition: str, ok: bool, reason: str = "") -> bool:
        """Say whether a condition is met, and why not; True if that is news, so that the caller may log it once."""
        with self._lock:
            before = self._conditions.get(condition)
            self._conditions[condition] = (ok, reason)
            return before is None or before[0] != ok

    def live(self, now: float | None = None) -> Checks:
        """False when a loop has been silent for longer than it may: then only a restart helps."""
        now = self._clock() if now is None else now
        with self._lock:
            silences = [(name, now - loop.last_beat, loop.max_silence_s) for name, loop in self._loops.items()]
        return _checks(
            Check(name, silence <= allowed, f"last progress {max(0.0, silence):.1f} s ago, allowed {allowed:g} s")
            for name, silence, allowed in silences
        )

    def ready(self) -> Checks:
        """False when a condition is not met: work waits, and goes on by itself."""
        with self._lock:
            conditions = list(self._conditions.items())
        return _checks(Check(name, ok, reason) for name, (ok, reason) in conditions)


def _checks(checks: Iterable[Check]) -> Checks:
    found = tuple(checks)
    return Checks(all(check.ok for check in found), found)
