"""What a checker found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "lost",
    "repeated",
    "reordered",
    "wrong",
    "dead_letter",
    "position",
    "outbox",
    "leak",
    "worker",
    "unsettled",
    "harness",
]
KINDS: tuple[Kind, ...] = (
    "lost", "repeated", "reordered", "wrong", "dead_letter", "position", "outbox", "leak", "worker", "unsettled", "harness",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Violation:
    """`key` is "course:user" where it is about an enrollment, else whatever names the thing."""

    checker: str
    kind: Kind
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.checker}) {self.key}: {self.detail}"
