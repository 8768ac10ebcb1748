"""What comes back with every attempt is said at once, then every half minute with how often it came; another kind at once."""

from __future__ import annotations

from sync_worker.database.sessions import ConnectionLost, Contention
from sync_worker.service.recurring import EVERY_S, Recurring


def test_a_lasting_trouble_is_said_once_and_then_now_and_then_with_how_often_it_came() -> None:
    now = [100.0]
    recurring = Recurring(lambda: now[0])
    said = []
    for attempt in range(130):
        now[0] = 100.0 + attempt * 0.5
        said.append(recurring.count(ConnectionLost(f"attempt {attempt}")))
    assert {attempt: times for attempt, times in enumerate(said) if times} == {0: 1, 60: 60, 120: 60}


def test_a_trouble_of_another_kind_is_said_at_once_and_hides_nothing_of_the_first() -> None:
    now = [0.0]
    recurring = Recurring(lambda: now[0])
    assert recurring.count(ConnectionLost("away")) == 1
    assert recurring.count(ConnectionLost("away")) == 0
    assert recurring.count(Contention("a lock")) == 1
    now[0] = EVERY_S
    assert recurring.count(ConnectionLost("away")) == 2
