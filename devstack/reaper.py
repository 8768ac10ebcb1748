"""Ends the processes of a run directory: from within (`down`, closing) and, run as a script, when the parent dies.

As a script it watches the process that started it, so it uses the standard library only and stands alone. It must
never signal a process whose command line does not name the run directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PIDS = "pids"
"""Directory, inside the run directory, with a file for each process started there."""
_PROC = Path("/proc/self/stat")


def process_table() -> dict[int, tuple[int, str]]:
    """Every process that is not a zombie: pid → (parent's pid, state letter)."""
    if not _PROC.exists():
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,state="], check=True, capture_output=True, text=True
        ).stdout
        rows = [line.split() for line in listing.splitlines()]
        return {int(pid): (int(parent), state[0]) for pid, parent, state in rows if state[0] != "Z"}
    table: dict[int, tuple[int, str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while we looked.
        # The command name is in parentheses and may hold blanks and parentheses itself.
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            table[int(entry)] = (int(parent), state)
    return table


def tree(root: int) -> list[int]:
    """The process and its descendants, parents before children. Empty when it is gone.

    A process group is not enough: each PostgreSQL backend makes a session and group of its own.
    """
    table = process_table()
    if root not in table:
        return []
    found = [root]
    for pid in found:
        found.extend(child for child, (parent, _) in table.items() if parent == pid)
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process; one that is already gone is what a signal to it wanted anyway."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def stop_tree(root: int) -> list[int]:
    """SIGSTOP the process and all its descendants, and return them: from then on none can fork."""
    stopped: list[int] = []
    while new := [pid for pid in tree(root) if pid not in stopped]:
        for pid in new:
            send(pid, signal.SIGSTOP)
        stopped.extend(new)
    return stopped


def continue_tree(root: int) -> None:
    """SIGCONT the process and all its descendants, children first: the parent finds them awake."""
    for pid in reversed(tree(root)):
        send(pid, signal.SIGCONT)


def kill_tree(root: int) -> list[int]:
    """SIGKILL the process and all its descendants at once, as a power cut would."""
    pids = stop_tree(root)
    for pid in pids:
        send(pid, signal.SIGKILL)
    return pids


def wait_gone(pids: list[int], timeout_s: float) -> bool:
    """Wait until none of them runs (a zombie does not run). False when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not process_table().keys().isdisjoint(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def end_run(directory: Path, *, gently: bool) -> None:
    """End every process of the run directory. Gently: with a clean shutdown, for a directory that will live on."""
    pids = directory / PIDS
    ended = directory / f"{PIDS}.ended"
    # From here on nothing more can register. No such folder: another reaper came first and died halfway.
    with contextlib.suppress(FileNotFoundError):
        pids.rename(ended)
    running: list[int] = []
    for file in sorted(ended.glob("*")):
        pid = _read_pid(file)
        if pid is None or not _belongs(pid, directory):
            continue
        running.extend(tree(pid))
        continue_tree(pid)
        # PostgreSQL always gets the chance to give back its shared memory; SIGQUIT is its immediate shutdown.
        if file.name == "postgres":
            send(pid, signal.SIGINT if gently else signal.SIGQUIT)
        else:
            send(pid, signal.SIGTERM if gently else signal.SIGKILL)
    if not wait_gone(running, timeout_s=30 if gently else 5):
        for pid in running:
            kill_tree(pid)
        wait_gone(running, timeout_s=5)
    shutil.rmtree(ended, ignore_errors=True)


def remove(directory: Path, timeout_s: float = 15) -> None:
    """Remove a run directory; something that was preparing it may still be writing for a moment."""
    _free_shared_memory(directory / "postgres" / "data" / "postmaster.pid")
    deadline = time.monotonic() + timeout_s
    while directory.exists():
        try:
            shutil.rmtree(directory)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _free_shared_memory(postmaster: Path) -> None:
    """Free the System V segment of a server that was killed: the system never would, and only allows so many."""
    if not postmaster.exists():
        return  # It was shut down, or never started.
    lines = postmaster.read_text().splitlines()
    if len(lines) > 6 and lines[6].strip():
        # The seventh line holds the segment's key and id; 0 is IPC_RMID. It may be gone already, which is as well.
        ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), 0, None)


def _read_pid(file: Path, timeout_s: float = 2) -> int | None:
    """The pid in the file, waiting a moment for a process that has just been forked to write it."""
    deadline = time.monotonic() + timeout_s
    while not (text := file.read_text().strip()):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)
    return int(text)


def _belongs(pid: int, directory: Path) -> bool:
    """Whether the pid is still the process we started and not another one that was given its number."""
    file = Path(f"/proc/{pid}/cmdline")
    if _PROC.exists():
        try:
            command = os.fsdecode(file.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        command = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], check=False, capture_output=True, text=True
        ).stdout
    return str(directory) in command


def watch(parent: int, directory: Path, *, temporary: bool) -> None:
    """Wait for the parent's end, then end the run and remove its directory (or leave it, shut down cleanly)."""
    while os.getppid() == parent:
        time.sleep(0.2)
    end_run(directory, gently=not temporary)
    if temporary:
        remove(directory)


if __name__ == "__main__":
    watch(int(sys.argv[1]), Path(sys.argv[2]), temporary=sys.argv[3] == "temporary")
