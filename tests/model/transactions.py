"""Where a run of events is cut into transactions, as the worker cuts its batches.

It decides by the events alone, before anything is known of the facts; it must never reorder or drop an event.
"""

from collections.abc import Iterable, Iterator

from tests.model.events import Entity, Event, MethodChanged, entity_of, same_content


def transactions(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Cut events, in order, where the worker cuts a batch.

    That is between method events and others (method events have transactions of their own), before a record of the same
    entity and version with other content, and before a second event of one method.
    """
    current: list[Event] = []
    seen: dict[tuple[Entity, int], Event] = {}
    methods: set[str] = set()
    for event in events:
        identity = (entity_of(event), event.version)
        contradicts = identity in seen and not same_content(seen[identity], event)
        second_of_method = isinstance(event, MethodChanged) and event.method_id in methods
        other_kind = bool(current) and isinstance(event, MethodChanged) != isinstance(current[0], MethodChanged)
        if contradicts or second_of_method or other_kind:
            yield current
            current, seen, methods = [], {}, set()
        current.append(event)
        seen.setdefault(identity, event)
        if isinstance(event, MethodChanged):
            methods.add(event.method_id)
    if current:
        yield current
