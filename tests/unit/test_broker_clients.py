"""A broker that stays away costs no more and more: its clients are replaced, and those replaced are gone."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.ports import HOST, free_port
from sync_worker.errors import RetryableError
from sync_worker.events import Partition
from sync_worker.kafka.broker import Broker
from sync_worker.settings import Settings
from tests.support.starting_broker import CLUSTER_ID, starting_broker


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_clients_that_were_replaced_in_an_outage_leave_no_threads() -> None:
    settings = Settings(kafka_bootstrap_servers=f"{HOST}:{free_port()}", kafka_properties={"log_level": "0"})
    broker = Broker(settings, timeout_s=0.2)
    gc.collect()
    gc.disable()  # what only the collector would end, stays
    try:
        for question in (
            lambda: broker.topics(["nothing"]),
            lambda: broker.earliest([Partition("nothing", 0)]),
            broker.cluster_id,
            lambda: broker.members("nobody"),
            lambda: broker.topic_config("nothing"),
        ):
            before = _threads()
            for _ in range(4):
                with pytest.raises(RetryableError):
                    question()
            # One client more than before, while its successor is there already.
            assert _threads() <= before + 5, question
    finally:
        gc.enable()


ASK_FOR_THE_CLUSTER = """
import sys
from sync_worker.errors import RetryableError
from sync_worker.kafka.broker import Broker
from sync_worker.settings import Settings

broker = Broker(Settings(kafka_bootstrap_servers=sys.argv[1], kafka_properties={"log_level": "0"}), timeout_s=5)
try:
    print(broker.cluster_id())
except RetryableError:
    print("away")
"""


@pytest.mark.parametrize("answers_as_one", [0, 1, 2, 3])
def test_a_broker_that_has_just_started_and_names_none_ends_no_process(answers_as_one: int) -> None:
    """In a process of its own, as it is the process that would end: an assertion of the client."""
    with starting_broker(answers_as_one) as address:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_FOR_THE_CLUSTER, address],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == (CLUSTER_ID if answers_as_one else "away")
