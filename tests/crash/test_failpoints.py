"""Workers killed in pairs at two different places of one history; `make failpoints` kills at every pair, many times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash.conftest import SHORT_SESSION
from tests.crash.ground import SETTINGS, Ground
from tests.crash.places import PLACES, in_the_code
from tests.support.site import Site

# Of up to 200 rounds for each pair, and of waits for the end.
pytestmark = pytest.mark.timeout(900)
PAIRS = {
    1: [("before_commit", "relay_committed"), ("release_before_commit", "backfill_before_commit")],
    2: [("on_lost", "relay_window_opened"), ("on_revoke", "release_after_commit")],
}


def test_every_failpoint_of_the_worker_is_one_that_is_killed_at() -> None:
    assert in_the_code() == set(PLACES)


@pytest.mark.parametrize("seed", PAIRS)
def test_workers_killed_at_two_places_lose_and_repeat_nothing(make_site: Callable[..., Site], seed: int) -> None:
    ground = Ground(make_site(kafka_properties=SHORT_SESSION, **SETTINGS), seed)
    for pair in PAIRS[seed]:
        ground.kill(*pair)
    assert ground.check() > 100
