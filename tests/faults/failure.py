"""Says what went wrong in a run so that somebody can begin to look: seed, faults, and the smallest difference with its history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.checkers import Violation
from tests.faults.checkers.changes import by_key
from tests.faults.history import History
from tests.faults.run import Result
from tests.model.events import MembershipChanged, MethodChanged, SourceChanged, SuspensionChanged

_SHOWN_OF_EACH = 4


def describe(result: Result) -> str:
    """The whole story of a failed run."""
    return "\n".join(_lines(result))


def write(result: Result) -> Path:
    """Into the run's directory, beside the workers' logs."""
    path = result.directory / "failure.txt"
    path.write_text(describe(result) + "\n", "utf-8")
    return path


def _lines(result: Result) -> Iterator[str]:
    plan = result.plan
    again = f'make faults SEED={plan.seed} ARGS="--seconds {plan.options.duration_s:g} --faults {len(plan.faults)}"'
    yield f"seed {plan.seed}: {len(result.violations)} violations; run it again with `{again}`"
    yield f"workers {plan.workers}, {plan.protocol} protocol, batches of {plan.batch_max_records}, registry {plan.registry}"
    yield f"logs: {result.directory}"
    yield ""
    yield "faults:"
    yield from (f"  {entry}" for entry in sorted(result.faults, key=lambda entry: entry.began_s))
    yield ""
    yield f"violations (the first {_SHOWN_OF_EACH} of each kind):"
    yield from (f"  {violation}" for violation in _some_of_each(result.violations))
    smallest = smallest_of(result)
    if smallest is not None:
        yield ""
        yield f"the smallest difference: {smallest}"
        yield from (f"  {line}" for line in story_of(result.history, smallest.key))


def _some_of_each(violations: Sequence[Violation]) -> Iterator[Violation]:
    """Of each kind and checker: thousands of one must not hide the one of another that explains them."""
    seen: Counter[tuple[str, str]] = Counter()
    for violation in violations:
        seen[violation.kind, violation.checker] += 1
        if seen[violation.kind, violation.checker] <= _SHOWN_OF_EACH:
            yield violation


def smallest_of(result: Result) -> Violation | None:
    """Of the violations about an enrollment, the one whose story is the shortest."""
    about = [violation for violation in result.violations if violation.key.count(":") == 1]
    return min(about, key=lambda violation: sum(1 for _ in story_of(result.history, violation.key)), default=None)


def story_of(history: History, key: str) -> Iterator[str]:
    """All input that bears on this course and user, the row, and what was published of it."""
    course, user = key.split(":")
    methods = {
        each.content.method_id
        for each in history.inputs
        if isinstance(each.content, MethodChanged) and each.content.course_id == course
    }
    segments = {
        each.content.segment_id
        for each in history.inputs
        if isinstance(each.content, MethodChanged) and each.content.method_id in methods
    }
    for each in history.inputs:
        if _bears_on(each.content, course, user, segments, methods):
            yield f"in  {each.record.topic}/{each.record.partition}@{each.record.offset}  {each.content}"
    yield f"row {history.tables.rows.get((course, user))}"
    for change in by_key(history.changes).get(key, []):
        event = change.event
        where = f"{change.record.partition}@{change.record.offset}"
        yield f"out {where}  version {event['version']} {event['change']}: {event['after']}; {event['cause']}"


def _bears_on(content: object, course: str, user: str, segments: set[str], methods: set[str]) -> bool:
    if isinstance(content, MembershipChanged):
        return content.user_id == user and content.segment_id in segments
    if isinstance(content, MethodChanged):
        return content.method_id in methods
    if isinstance(content, SourceChanged | SuspensionChanged):
        return (content.course_id, content.user_id) == (course, user)
    return False
