"""What was published is counted key by key; what is lost, doubled or out of order is no figure's ground."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import NAMESPACE_DNS, uuid5

import pytest

from bench.checking import Chains
from bench.errors import WrongResult

KEY = "00000000-0000-4000-8000-000000000001:00000000-0000-4000-8000-000000000002"


@dataclass(frozen=True, slots=True)
class Published:
    """As much of a Kafka message as is looked at."""

    version: int

    def key(self) -> bytes:
        return KEY.encode()

    def headers(self) -> list[tuple[str, bytes]]:
        event_id = uuid5(uuid5(NAMESPACE_DNS, "user-segment-sync"), f"{KEY}:{self.version}")
        return [("ce_id", str(event_id).encode())]


def _take(*versions: int) -> Chains:
    chains = Chains()
    chains.take([Published(version) for version in versions], decoded=False)  # type: ignore[misc]  # see Published
    return chains


def test_versions_in_order_are_counted_per_key() -> None:
    assert _take(1, 2, 3).versions == {KEY.encode(): 3}


@pytest.mark.parametrize(
    "versions", [(1, 1), (1, 3), (2, 1), (1, 2, 2, 3)], ids=["doubled", "lost", "reordered", "repeated"]
)
def test_a_change_that_is_not_the_next_version_of_its_key_is_refused(versions: tuple[int, ...]) -> None:
    with pytest.raises(WrongResult, match="lost, doubled or out of order"):
        _take(*versions)
