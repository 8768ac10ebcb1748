"""What a run of `reconcile` finds and comes to; its counts survive an interruption as JSON. Counts only: names are the report's."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sync_worker.enrollment.reconcile import Difference, Look


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference as it is reported. repaired: None in a dry run."""

    difference: Difference
    repaired: bool | None


@dataclass(slots=True)
class Counts:
    """What a run came to so far, with the part before an interruption. found, repaired: by kind; events: of the repairs.

    pending: contributions whose backfill is under way, looked at by nobody. suspended, hand_made: what depends on the past.
    """

    looked_at: int = 0
    found: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    events: int = 0
    pending: int = 0
    suspended: int = 0
    hand_made: int = 0

    def add(self, look: Look) -> None:
        self.looked_at += look.looked_at
        self.pending += look.pending
        self.suspended += look.suspended
        self.hand_made += look.hand_made

    def note(self, finding: Finding) -> None:
        self.found[finding.difference.kind.value] += 1
        if finding.repaired:
            self.repaired[finding.difference.kind.value] += 1

    @property
    def left(self) -> int:
        """How many are still as they were found."""
        return self.found.total() - self.repaired.total()

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "looked_at": self.looked_at,
            "found": dict(self.found),
            "repaired": dict(self.repaired),
            "events": self.events,
            "pending": self.pending,
            "suspended": self.suspended,
            "hand_made": self.hand_made,
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "Counts":
        fields = dict(document)
        return cls(**fields | {name: Counter(fields[name]) for name in ("found", "repaired")})
