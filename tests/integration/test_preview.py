"""What `preview` says is what then happens: to everybody, in every state that a history can leave, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from devstack import Stack
from sync_worker.enrollment import backfill
from sync_worker.operations.previewing import preview_document, read_method
from sync_worker.operations.publishing import InvalidLine
from sync_worker.settings import Settings
from tests.model.events import HandEdit, MethodChanged, to_record
from tests.model.histories import SEGMENTS, BeforeMethod, histories_before_a_method_event
from tests.support.engine import Engine
from tests.support.sessions import change_method_in_steps

_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def engine(stack: Stack, template: str) -> Iterator[Engine]:
    """One database for all examples; each of them empties it first."""
    url = stack.postgres.create_database("preview_properties", template=template)
    running = Engine(url)
    yield running
    running.close()
    stack.postgres.drop_database("preview_properties")


@pytest.fixture(scope="module")
def configured(stack: Stack, engine: Engine) -> Settings:
    return Settings.model_validate({"database_url": stack.postgres.url("preview_properties")})


def _file(changed: MethodChanged) -> bytes:
    """The event as a file that `preview` and `publish` take."""
    name, fields = to_record(changed)
    return json.dumps({"type": name, **fields}).encode()


def _make(engine: Engine, before: BeforeMethod, held: set[str], steps: int) -> None:
    """A state of the real database: by batches, hand edits, held segments, and a backfill that is not through."""
    engine.reset()
    engine.lms.execute("truncate removal_hold, removal_count, hold_release")
    for number, batch in enumerate(before.batches):
        if number == len(before.batches) // 2:
            for segment in held:
                engine.lms.execute(
                    "insert into removal_hold (segment_id, members, removed) values (%s, 10, 5)", (segment,)
                )
        if isinstance(batch, HandEdit):
            engine.edit(batch)
        else:
            engine.apply(batch)
    if before.begun is not None:
        change_method_in_steps(engine.session, before.begun)
        for _ in range(steps):
            backfill.step(engine.session, 1)


def _said(document: dict[str, Any]) -> dict[str, tuple[str, Any, Any]]:
    """By person, what the document says; each person of a change must be among its samples."""
    people = {}
    for effect, change in document["changes"].items():
        assert len(change["sample"]) == change["people"] == sum(change["status_after"].values())
        for one in change["sample"]:
            assert one["user_id"] not in people
            people[one["user_id"]] = (effect, _plain(one["before"]), _plain(one["after"]))
    assert len(people) == document["events"]
    return people


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in state.items()}


@settings(max_examples=200, suppress_health_check=_FIXTURE)
@given(
    before=histories_before_a_method_event(),
    held=st.sets(st.sampled_from(SEGMENTS[:2])),
    steps=st.integers(0, 3),
    in_steps=st.booleans(),
)
def test_what_is_previewed_is_what_then_happens(
    engine: Engine, configured: Settings, before: BeforeMethod, held: set[str], steps: int, in_steps: bool
) -> None:
    _make(engine, before, held, steps)
    try:
        document = preview_document(configured, read_method(configured, _file(before.event)))
    except InvalidLine as fault:
        document = {"verdict": "invalid_event", "detail": str(fault), "changes": {}, "events": 0}
    event(document["verdict"])
    people = _said(document)
    published = len(engine.changes())

    outcome = engine.apply([before.event], steps=1 if in_steps else 1000)

    happened = {
        change["user_id"]: (change["change"], change["before"], change["after"])
        for change in engine.changes()[published:]
    }
    if document["verdict"] in {"stale", "repeated"}:
        # Nothing comes of the event; what comes is the rest of the backfill before it, which is not its doing.
        assert not people
        assert outcome.results["method", document["verdict"]] == 1
    elif document["verdict"] != "applied":
        assert not people
        ((_, rejection),) = outcome.rejected
        assert (rejection.reason, rejection.detail) == (document["verdict"], document["detail"])
    else:
        assert people == happened
        for effect in {effect for effect, _, _ in people.values()}:
            event(effect)
