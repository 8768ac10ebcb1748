"""What a part of the stack runs in: the border behind which a process, a container or somebody else's server sits.

A runner knows how to start, stop and torment one service, not what the service is. It must never wait for the
service to be usable: that is the part's business.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path

from devstack.errors import DevstackError


class Runner(ABC):
    """Controls one running service."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it runs (a paused one does). Not whether it answers."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process id; DevstackError when it does not run here."""

    @property
    @abstractmethod
    def log_path(self) -> Path:
        """The file with its output."""

    @abstractmethod
    def start(self) -> None:
        """Start it, preparing its data the first time. Does nothing when it runs."""

    @abstractmethod
    def stop(self, number: signal.Signals, timeout_s: float) -> None:
        """Ask it to end with this signal and wait; DevstackError when it does not in time. Nothing if it is down."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL for every process of it; returns when all are gone."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze it; its connections stay open and silent."""

    @abstractmethod
    def resume(self) -> None:
        """Undo `pause`."""

    @abstractmethod
    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its output."""

    @abstractmethod
    def discard(self) -> None:
        """End it in the quickest way: its data will not be needed again."""

    def failure(self, what: str) -> DevstackError:
        """An error that says what failed, with the end of the log."""
        return DevstackError(f"{self.name}: {what}\n--- end of its log ---\n{self.log_tail() or '(empty)'}")


class ExternalRunner(Runner):
    """A server that others run: it is taken to be up, and can't be controlled."""

    @property
    def running(self) -> bool:
        return True

    @property
    def pid(self) -> int:
        raise self._refusal("tell the process id of")

    @property
    def log_path(self) -> Path:
        raise self._refusal("read the log of")

    def start(self) -> None:
        """Nothing to do: it runs already, or waiting for it will tell."""

    def stop(self, number: signal.Signals, timeout_s: float) -> None:  # noqa: ARG002
        raise self._refusal("stop")

    def kill(self) -> None:
        raise self._refusal("kill")

    def pause(self) -> None:
        raise self._refusal("pause")

    def resume(self) -> None:
        raise self._refusal("resume")

    def log_tail(self, lines: int = 30) -> str:  # noqa: ARG002
        return "(an external service: its log is elsewhere)"

    def discard(self) -> None:
        """Not ours to end."""

    def _refusal(self, action: str) -> DevstackError:
        return DevstackError(
            f"cannot {action} {self.name}: the stack is `external`, its services belong to somebody else "
            "(DEVSTACK=native or DEVSTACK=docker runs its own)"
        )
