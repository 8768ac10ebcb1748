"""A worker in a container of the image, as a cluster would run it: a user without rights, a root that can't be written.

It is started by testcontainers, on the host's network, and seen from outside alone: its log, its port, its exit code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from testcontainers.core.container import DockerContainer

from tests.support.site import wait_for

USER = "65532:65532"


class ContainerWorker:
    """`docker run --read-only --cap-drop=ALL --user=65532:65532 … sync-worker …`, with the settings of a site."""

    def __init__(self, environment: Mapping[str, str], *arguments: str) -> None:
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # Its image can't be pulled everywhere; `remove` is called.
        settings = {name: value for name, value in environment.items() if name.startswith("SYNC_WORKER_")}
        container = DockerContainer(
            os.environ["SYNC_WORKER_IMAGE"],
            network_mode="host",
            read_only=True,
            cap_drop=["ALL"],
            user=USER,
            security_opt=["no-new-privileges"],
        )
        for name, value in settings.items():
            container.with_env(name, value)
        if arguments:
            container.with_command(list(arguments))
        self._container = container.start()
        self.engine = container.get_wrapped_container()

    def log(self) -> str:
        text: bytes = self.engine.logs()
        return text.decode(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of one event so far; the last one may still be being written."""
        whole, _, _ = self.log().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def wait_for_event(self, name: str, timeout_s: float = 120.0) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_for(lambda: self.events(name), timeout_s, f"the log event {name}")
        return found[-1]

    def wait(self, timeout_s: float = 120.0) -> int:
        """The exit code, once it has ended."""
        return int(self.engine.wait(timeout=timeout_s)["StatusCode"])

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.engine.kill(signal="SIGTERM")
        return self.wait()

    def run_inside(self, *command: str) -> tuple[int, str]:
        """`docker exec`: the exit code and what was said."""
        code, output = self.engine.exec_run(list(command))
        return int(code), output.decode(errors="replace")

    def remove(self) -> None:
        self._container.stop(force=True)
