"""A Docker engine for building and testing the image: the one that answers, else one of our own, started and ended here.

Our own needs no network of containers and no firewall: builds and containers use the host's. It listens where nobody else
looks, so that stacks of other tests don't take it for an engine that could pull their images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from devstack.docker_stack import docker_answers
from devstack.fetch import cache_directory

_START_TIMEOUT_S = 60


class ImageError(Exception):
    """What is missing or failed, and what to do."""


@contextmanager
def engine() -> Iterator[None]:
    """While it lasts, DOCKER_HOST names an engine that answers."""
    if docker_answers():
        yield
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise ImageError(
            "no Docker engine answers, and none can be started: that takes root and dockerd (Debian: docker.io)"
        )
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "docker.lock"), tempfile.TemporaryDirectory(prefix="dockerd-") as folder:
        yield from _own(Path(folder), cache / "docker")


def client() -> str:
    """A docker command that can build with secrets: one with buildx, or one that had no need of it yet (before 23)."""
    for command in (shutil.which("docker"), "/usr/bin/docker"):
        if command is not None and Path(command).exists():
            said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
            old = int(said.split()[2].split(".")[0]) < 23
            if old or subprocess.run([command, "buildx", "version"], capture_output=True, check=False).returncode == 0:
                return command
    raise ImageError("no docker command that can build with BuildKit: install docker.io, or docker-buildx")


def _own(folder: Path, data: Path) -> Iterator[None]:
    host = f"unix://{folder}/docker.sock"
    before = os.environ.get("DOCKER_HOST")
    log = folder / "log"
    with log.open("wb") as stream:
        daemon = subprocess.Popen(
            [
                "dockerd", "--host", host, "--data-root", str(data), "--exec-root", str(folder / "exec"),
                "--pidfile", str(folder / "pid"), "--iptables=false", "--ip6tables=false", "--bridge=none",
            ],
            stdout=stream,
            stderr=stream,
        )  # fmt: skip
    os.environ["DOCKER_HOST"] = host
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not docker_answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise ImageError(f"dockerd did not come up:\n{log.read_text('utf-8', 'replace')[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)
        # A mount that the daemon leaves behind once a container has used the host's network.
        if (left := folder / "exec" / "netns" / "default").exists():
            subprocess.run(["umount", "--lazy", left], check=True)
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
