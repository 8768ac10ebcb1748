"""A worker that can't close what it has open, or hangs while it starts, ends all the same; its exit code says whether it had failed."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEVER_CLOSED = """
import sys, threading
from sync_worker import worker
from sync_worker.settings import Settings

worker.EXIT_S = 0.1
failed = sys.argv[1] == "failed"
with worker.Worker(Settings(kafka_bootstrap_servers="nowhere:1", database_url="postgresql://nowhere/lms"))._bounded(failed=failed):
    threading.Event().wait()
"""


HANGS_AT_ITS_START = """
import ctypes, os, signal
from sync_worker import worker
from sync_worker.settings import Settings

def hang(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        ctypes.CDLL(None).pause()  # outside Python, as a client's call is

worker.EXIT_S = 0.1
worker.expect_revision = hang
worker.Worker(Settings(kafka_bootstrap_servers="nowhere:1", database_url="postgresql://nowhere/lms", http_port=0)).run()
"""


@pytest.mark.parametrize(("state", "code"), [("failed", 1), ("stopped", 0)])
def test_what_never_closes_is_left_behind(state: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEVER_CLOSED, state], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert "exit_forced" in done.stdout + done.stderr


def test_a_start_that_hangs_ends_when_it_is_told_to() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS_AT_ITS_START], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "exit_forced" in done.stdout + done.stderr
