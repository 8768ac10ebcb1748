"""What the probes are told: loops that go on or hang, and conditions that are met or not."""

import threading

import pytest

from sync_worker.service.health import Check, Health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_without_loops_lives() -> None:
    assert Health().live()


def test_a_loop_may_be_silent_for_as_long_as_it_said() -> None:
    clock = Clock()
    health = Health(clock=clock)
    health.register("intake", max_silence_s=10)
    clock.now += 10
    assert health.live()
    clock.now += 0.1
    assert not health.live()
    health.beat("intake")
    assert health.live()
    assert not health.live(now=clock.now + 11)


def test_one_silent_loop_is_enough_and_is_named() -> None:
    clock = Clock()
    health = Health(clock=clock)
    health.register("intake", max_silence_s=10)
    health.register("relay", max_silence_s=60)
    clock.now += 30
    live = health.live()
    assert not live
    assert live.checks == (
        Check("intake", False, "last progress 30.0 s ago, allowed 10 s"),
        Check("relay", True, "last progress 30.0 s ago, allowed 60 s"),
    )


def test_a_loop_that_ended_as_it_should_is_not_missed() -> None:
    clock = Clock()
    health = Health(clock=clock)
    health.register("backfill", max_silence_s=1)
    health.finish("backfill")
    health.finish("backfill")
    clock.now += 100
    assert health.live()


def test_a_beat_of_a_loop_that_nobody_registered_is_a_defect() -> None:
    with pytest.raises(KeyError):
        Health().beat("intake")


def test_a_worker_is_ready_when_every_condition_is_met() -> None:
    health = Health(["database", "broker"])
    assert not health.ready(), "nothing has been checked yet"
    health.set_ready("database", ok=True)
    health.set_ready("broker", ok=False, reason="connection refused")
    ready = health.ready()
    assert not ready
    assert ready.checks == (Check("database", True, ""), Check("broker", False, "connection refused"))
    health.set_ready("broker", ok=True)
    assert health.ready()


def test_a_condition_that_comes_up_later_counts() -> None:
    health = Health(["database"])
    health.set_ready("database", ok=True)
    health.set_ready("rejections", ok=False, reason="segments.membership[3] is paused")
    assert not health.ready()


def test_only_a_change_is_news() -> None:
    health = Health(["database"])
    assert health.set_ready("database", ok=True)
    assert not health.set_ready("database", ok=True)
    assert health.set_ready("database", ok=False, reason="refused")
    assert not health.set_ready("database", ok=False, reason="timeout")
    assert health.ready().checks[0].detail == "timeout"
    assert health.set_ready("new", ok=True)


def test_loops_and_probes_may_come_from_many_threads() -> None:
    health = Health(["database"])
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(300):
                health.register(f"loop-{number}", 10)
                health.beat(f"loop-{number}")
                health.set_ready(f"condition-{number}", ok=turn % 2 == 0)
                health.live()
                health.ready()
                health.finish(f"loop-{number}")
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
