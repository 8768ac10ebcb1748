"""The plan of the topics where one broker can't show it: what replicas ask for."""

from dataclasses import replace

import pytest

from sync_worker.operations.topics import config_differences, planned_inputs, planned_outputs
from sync_worker.settings import Settings


@pytest.mark.parametrize(("factor", "wanted"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_two_replicas_must_agree_where_there_are_three(factor: int, wanted: str | None) -> None:
    settings = Settings()
    planned = [*planned_inputs(settings, 6, factor), *planned_outputs(settings, 6, factor, 1)]
    assert [topic.config.get("min.insync.replicas") for topic in planned] == [wanted] * 6


def test_replicas_of_a_topic_that_exists_decide_what_is_asked_of_it() -> None:
    topic = planned_inputs(Settings(), 6, 1)[0]
    found = {"cleanup.policy": "delete", "min.insync.replicas": "1"}
    assert config_differences(topic, found, found_factor=1) == []
    assert config_differences(topic, found, found_factor=3) == ["min.insync.replicas is 1, should be 2"]
    assert config_differences(topic, {**found, "min.insync.replicas": "3"}, found_factor=4) == []
    planned_for_three = replace(topic, config={**topic.config, "min.insync.replicas": "2"})
    assert config_differences(planned_for_three, found, found_factor=1) == []
