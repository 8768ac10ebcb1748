"""Did workers end as they were told, without a defect? Is nothing of them left?"""

from __future__ import annotations

import signal
from collections.abc import Iterator

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.history import History

# The workers' drain limit is 8 s; a busy machine takes its time to end a process, or stands still meanwhile.
TERMINATION_MAX_S = 60.0
THREADS_MAX = 90
_STARTED = '"worker_starts"'
_DEFECTS = ("this is a bug", "Traceback (most recent call last)", "stopped_by_defect", "Segmentation fault")


def check_workers(history: History, _expected: Expected) -> Iterator[Violation]:
    for end in history.ends:
        # Until Python has started, SIGTERM does what it does to any process.
        terminated = 0 if _STARTED in end.log else -signal.SIGTERM
        expected = {"killed": -signal.SIGKILL, "terminated": terminated}.get(end.told)
        if expected is None:
            yield Violation("workers", "worker", end.worker, f"ended by itself with {end.code}: {end.log[-1500:]}")
        elif end.code != expected:
            yield Violation(
                "workers", "worker", end.worker, f"{end.told}, and ended with {end.code}: {end.log[-1500:]}"
            )
        if end.told == "terminated" and end.seconds > TERMINATION_MAX_S:
            yield Violation("workers", "worker", end.worker, f"took {end.seconds:.1f} s to end")
        for defect in _DEFECTS:
            if (at := end.log.find(defect)) >= 0:
                yield Violation(
                    "workers", "worker", end.worker, f"its log has {defect!r}: {end.log[max(0, at - 1500) : at + 1500]}"
                )
    for worker, threads in history.seen.threads_max.items():
        if threads > THREADS_MAX:
            yield Violation("workers", "leak", worker, f"had {threads} threads, more than {THREADS_MAX}")


def check_leftovers(history: History, _expected: Expected) -> Iterator[Violation]:
    left = history.leftovers
    for what, found in (
        ("sessions of workers", list(left.sessions)),
        ("advisory locks", left.advisory_locks),
        ("sessions idle in a transaction", left.idle_in_transaction),
        ("processes", list(left.processes)),
    ):
        if found:
            yield Violation("leftovers", "leak", what, f"after the workers stopped: {found}")
