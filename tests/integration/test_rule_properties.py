"""The rule in PostgreSQL against the sequential model: any history, in any batching, ends each step in the model's whole state.

The model was written from semantics.md alone; where the two differ, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from devstack import Stack
from tests.model.events import Batch, Event, HandEdit
from tests.model.histories import batched_histories, interleavings, settled_histories
from tests.model.model import Change, Model
from tests.support.check import shown
from tests.support.engine import Engine

_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def engine(stack: Stack, template: str) -> Iterator[Engine]:
    """One database for all examples; each of them empties it first."""
    url = stack.postgres.create_database("rule_properties", template=template)
    running = Engine(url)
    yield running
    running.close()
    stack.postgres.drop_database("rule_properties")


def state(value: Any) -> dict[str, Any]:
    """A model's EnrollmentState as the event carries it."""
    return {
        "status": str(value.status),
        "roles": list(value.roles),
        "groups": list(value.groups),
        "suspended_in_course": value.suspended_in_course,
        "sources": [
            {
                "source": source.source, "kind": str(source.kind), "status": str(source.status), "role": source.role,
                "group_id": source.group_id, "member": source.member,
            }
            for source in value.sources
        ],
    }  # fmt: skip


def by_pair(changes: list[Change]) -> dict[tuple[str, str], list[Change]]:
    found: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        found.setdefault((change.course_id, change.user_id), []).append(change)
    return found


def assert_same(engine: Engine, model: Model) -> None:
    """Everything that can be seen: both views, and every event."""
    expected = {
        pair: {**shown(enrollment), "version": enrollment.version} for pair, enrollment in model.enrollments.items()
    }
    assert engine.enrollments() == expected
    members = {(m.course_id, m.group_id, m.user_id, m.managed, tuple(m.methods)) for m in model.group_members}
    assert engine.group_members() == members
    published: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in engine.changes():
        published.setdefault((event["course_id"], event["user_id"]), []).append(event)
    chains = by_pair(model.changes)
    assert published.keys() == chains.keys()
    for pair, chain in chains.items():
        assert len(published[pair]) == len(chain)
        for event, change in zip(published[pair], chain, strict=True):
            assert (event["version"], event["change"]) == (change.version, str(change.change))
            assert event["before"] == state(change.before)
            assert event["after"] == state(change.after)
            assert (event["cause"]["type"], event["cause"]["event_id"]) in change.causes


def play(engine: Engine, model: Model, batch: Batch) -> None:
    if isinstance(batch, HandEdit):
        assert engine.edit(batch) == model.edit(batch)
        return
    result = model.apply_batch(batch)
    outcome = engine.apply(batch)
    assert sorted(str(rejection.reason) for _, rejection in outcome.rejected) == sorted(
        letter.reason for letter in result.dead_letters
    )


@settings(max_examples=150, suppress_health_check=_FIXTURE)
@given(history=batched_histories())
def test_any_history_in_any_batching_is_at_each_step_in_the_models_whole_state(
    engine: Engine, history: list[Batch]
) -> None:
    engine.reset()
    model = Model()
    for batch in history:
        play(engine, model, batch)
        assert_same(engine, model)


@settings(max_examples=60, suppress_health_check=_FIXTURE)
@given(data=settled_histories().flatmap(lambda events: interleavings(events).map(lambda batches: (events, batches))))
def test_any_interleaving_of_a_settled_history_ends_in_the_same_rows(
    engine: Engine, data: tuple[list[Event], list[Batch]]
) -> None:
    events, batches = data
    in_order = Model()
    in_order.apply_batch(events)
    engine.reset()
    for batch in batches:
        assert not isinstance(batch, HandEdit)
        engine.apply(batch)
    assert {pair: {**row, "version": 0} for pair, row in engine.enrollments().items()} == {
        pair: {**shown(enrollment), "version": 0} for pair, enrollment in in_order.enrollments.items()
    }


@settings(max_examples=40, suppress_health_check=_FIXTURE)
@given(history=batched_histories())
def test_the_whole_input_again_writes_nothing(engine: Engine, history: list[Batch]) -> None:
    engine.reset()
    batches = [batch for batch in history if not isinstance(batch, HandEdit)]
    for batch in batches:
        engine.apply(batch)
    rows = engine.lms.execute("select xmin::text, * from enrollment order by course_id, user_id").fetchall()
    changes = len(engine.changes())
    for batch in batches:
        engine.apply(batch)
    assert engine.lms.execute("select xmin::text, * from enrollment order by course_id, user_id").fetchall() == rows
    assert len(engine.changes()) == changes


@settings(max_examples=40, suppress_health_check=_FIXTURE)
@given(history=batched_histories())
def test_backfill_steps_of_one_person_end_where_one_step_for_all_does(engine: Engine, history: list[Batch]) -> None:
    """Every method event through backfill rows, a person at a time, drained before the next batch."""
    engine.reset()
    model = Model()
    for batch in history:
        if isinstance(batch, HandEdit):
            assert engine.edit(batch) == model.edit(batch)
            continue
        model.apply_batch(batch)
        engine.apply(batch, steps=1)
    assert {pair: shown(enrollment) for pair, enrollment in model.enrollments.items()} == {
        pair: {name: value for name, value in row.items() if name != "version"}
        for pair, row in engine.enrollments().items()
    }
