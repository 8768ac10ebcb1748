"""What the machine is, what it did meanwhile: CPU time by service, and how noisy it is by itself.

Reads counters only; must never take noticeable time of its own while a clock runs.
"""

import os
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
import psutil
import psycopg

from devstack import Stack
from devstack.errors import DevstackError
from devstack.parts import Part


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU time of the services, user and system together."""

    postgres: float
    kafka: float
    workers: float

    def since(self, before: "CpuSeconds") -> "CpuSeconds":
        return CpuSeconds(self.postgres - before.postgres, self.kafka - before.kafka, self.workers - before.workers)

    def us_per(self, events: int) -> dict[str, float]:
        """Microseconds per event by service, and their sum."""
        parts = {name: seconds / events * 1e6 for name, seconds in asdict(self).items()}
        return {**parts, "all": sum(parts.values())}


def cpu_seconds(stack: Stack, workers: Sequence[int]) -> CpuSeconds:
    """workers: process ids. Not a number for services that run on another machine."""
    return CpuSeconds(_of_service(stack.postgres), _of_service(stack.kafka), sum(_tree(pid) for pid in workers))


def _of_service(part: Part) -> float:
    try:
        return _tree(part.pid)
    except DevstackError:
        return float("nan")


def _tree(pid: int) -> float:
    """With children that live, and those that ended and were waited for."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended between the two calls: counted with its parent next time
            its = child.cpu_times()
            total += its.user + its.system
    return float(total)


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a process by its threads' names as the system has them: the first 15 letters, without numbers."""
    found: defaultdict[str, float] = defaultdict(float)
    for thread in psutil.Process(pid).threads():
        with suppress(FileNotFoundError):  # ended between the two calls
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text("utf-8").strip()
            found[_NUMBERS.sub("", name)] += thread.user_time + thread.system_time
    return found


_NUMBERS = re.compile(r"[-# ]*\d+")
_SHOWN = (
    "server_version",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_compression",
    "max_wal_size",
)


def card(stack: Stack) -> dict[str, Any]:
    """What the figures were measured on."""
    with psycopg.connect(stack.postgres.url(), autocommit=True) as session:
        rows = session.execute(
            "select name, current_setting(name) from unnest(%s::text[]) name", (list(_SHOWN),)
        ).fetchall()
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processors": os.cpu_count(),
        "processor": names[0] if names else platform.processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "librdkafka": confluent_kafka.libversion()[0],
        "services": str(stack.kind),
        "postgresql": dict(rows),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return []


@dataclass(frozen=True, slots=True)
class Noise:
    """The same little work again and again: on a quiet machine the slowest is close to the fastest."""

    cpu_ms: tuple[float, float, float]  # min, median, max of a fixed computation
    fsync_ms: tuple[float, float, float]  # min, median, 99th percentile of 8 KiB written and synced
    wake_ms: tuple[float, float, float]  # the same of how late a sleep of 1 ms ends
    load: float  # of the last minute


def calibrate() -> Noise:
    """About a second."""
    return Noise(
        _three([_computation() for _ in range(15)], 1.0), _three(_syncs(100), 0.99), _three([_late() for _ in range(200)], 0.99),
        os.getloadavg()[0],
    )  # fmt: skip


def _three(samples: list[float], upper: float) -> tuple[float, float, float]:
    ordered = sorted(sample * 1e3 for sample in samples)
    high = ordered[min(len(ordered) - 1, int(upper * len(ordered)))]
    return round(ordered[0], 2), round(statistics.median(ordered), 2), round(high, 2)


def _computation() -> float:
    started = time.perf_counter()
    sum(n * n for n in range(200_000))
    return time.perf_counter() - started


def _syncs(number: int) -> list[float]:
    samples = []
    with tempfile.TemporaryDirectory() as folder, Path(folder, "sync").open("wb", buffering=0) as file:
        for _ in range(number):
            started = time.perf_counter()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            samples.append(time.perf_counter() - started)
    return samples


def _late() -> float:
    started = time.perf_counter()
    time.sleep(0.001)
    return time.perf_counter() - started - 0.001
