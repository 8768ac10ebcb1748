"""Remembers the stack that `up --keep` left running, so that `down` can end it.

There is one at most. It must never forget a stack that may still run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from devstack import docker_stack, reaper
from devstack.fetch import cache_directory
from devstack.stack import Kind, Stack


@dataclass(frozen=True, slots=True)
class Kept:
    """A stack that nobody holds any more."""

    kind: Kind
    directory: Path
    temporary: bool

    def end(self) -> None:
        """End its services, remove its directory if it was a temporary one, and forget it."""
        if self.kind is Kind.DOCKER:
            docker_stack.remove_containers(self.directory)
        if self.kind is Kind.NATIVE:
            reaper.end_run(self.directory, gently=not self.temporary)
        if self.temporary:
            reaper.remove(self.directory)
        _record().unlink()


def remember(stack: Stack, *, temporary: bool) -> None:
    """Write down the stack."""
    record = {"kind": stack.kind, "directory": str(stack.directory), "temporary": temporary}
    _record().parent.mkdir(parents=True, exist_ok=True)
    _record().write_text(json.dumps(record), encoding="utf-8")


def kept() -> Kept | None:
    """The stack that was kept, if there is one."""
    if not _record().exists():
        return None
    record = json.loads(_record().read_text(encoding="utf-8"))
    return Kept(Kind(record["kind"]), Path(record["directory"]), bool(record["temporary"]))


def _record() -> Path:
    return cache_directory() / "kept.json"
