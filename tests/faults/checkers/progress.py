"""Did positions only ever go forward, and to the end? Is the outbox published, and was it bounded on the way?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.checkers.expected import Expected
from tests.faults.checkers.violation import Violation
from tests.faults.history import History

# Rows of windows that are published go away at least twice a second, in steps of ten thousand while there are as many. What
# waits for a relay is as much as an outage lets come together, and has no bound.
PUBLISHED_ROWS_MAX = 60_000


def check_settled(history: History, _expected: Expected) -> Iterator[Violation]:
    if history.unsettled:
        yield Violation("settled", "unsettled", "site", history.unsettled)


def check_positions(history: History, _expected: Expected) -> Iterator[Violation]:
    highest: dict[str, int] = {}
    window = 0
    for sample in history.seen.samples:
        for partition, next_offset in sample.positions.items():
            if next_offset < highest.get(partition, 0):
                text = f"went from {highest[partition]} back to {next_offset}, {sample.at_s} s into the run"
                yield Violation("positions", "position", partition, text)
            highest[partition] = max(next_offset, highest.get(partition, 0))
        if sample.relay_window < window:
            yield Violation(
                "positions", "position", "relay_window", f"went from {window} back to {sample.relay_window}"
            )
        window = max(window, sample.relay_window)
    for each in history.inputs:
        where = (history.topics[each.record.topic], each.record.partition)
        if history.tables.positions.get(where, 0) <= each.record.offset:
            text = f"stands at {history.tables.positions.get(where)}, there is a record at {each.record.offset}"
            yield Violation("positions", "lost", f"{where[0]}/{where[1]}", text)
            return


def check_outbox(history: History, _expected: Expected) -> Iterator[Violation]:
    published = {(*change.pair, change.event["version"]) for change in history.changes}
    for row in history.tables.outbox:
        if row not in published:
            yield Violation(
                "outbox", "lost", f"{row[0]}:{row[1]}", f"version {row[2]} is still in the outbox, and not published"
            )
    most = max((sample.outbox_published for sample in history.seen.samples), default=0)
    if most > PUBLISHED_ROWS_MAX:
        text = f"it had {most} rows that were published, more than {PUBLISHED_ROWS_MAX}"
        yield Violation("outbox", "outbox", "outbox", text)
