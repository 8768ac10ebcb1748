"""Is the input what was published? What Kafka acknowledged is there, what was aborted isn't: or else the run proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.history import History
from tests.faults.publishing import Sent


def check_inputs(history: History, _expected: Expected) -> Iterator[Violation]:
    found = Counter(Sent(each.record.topic, each.record.key, each.record.value) for each in history.inputs)
    for sent, times in history.acknowledged.items():
        if found[sent] < times:
            yield Violation(
                "inputs", "harness", sent.topic, f"acknowledged {times} times, there {found[sent]} times: {sent!r:.200}"
            )
    for sent in found:
        if sent.value in history.aborted:
            yield Violation("inputs", "harness", sent.topic, f"of an aborted transaction, and there: {sent!r:.200}")
