"""Folds the records of a batch to the newest fact per entity, and says where the batch must be cut.

Order of arrival decides, within a batch as between batches (contract §2): a record that says something else under the version
already folded belongs to a later transaction, where the first one stands in the database and the conflict is seen.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sync_worker.events import Event, Membership, Method, Record, Rejection, Source, Suspension

# A transaction that touches more (course, user) pairs would be a long one for everybody else (design §3).
MAX_PAIRS = 20_000

Results = Counter[tuple[str, str]]
"""How many records of a kind (membership, source, suspension, method, any) had a result; see service/metrics.py."""


@dataclass(slots=True)
class Facts:
    """The newest facts of the first `consumed` of `records`: either methods, or the other three kinds.

    Entity keys are ids joined to bytes, which sort as PostgreSQL sorts the columns; values are indexes into `records`.
    """

    records: Sequence[Record]
    memberships: dict[bytes, int] = field(default_factory=dict)
    sources: dict[tuple[bytes, str], int] = field(default_factory=dict)
    suspensions: dict[bytes, int] = field(default_factory=dict)
    methods: dict[bytes, int] = field(default_factory=dict)
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)
    results: Results = field(default_factory=Counter)
    consumed: int = 0


def segments_of(records: Sequence[Record]) -> list[bytes]:
    """The segments that memberships of these records are in."""
    return list({record.content[0] for record in records if type(record.content) is Membership})


def fold(records: Sequence[Record], fan_out: Mapping[bytes, int], max_pairs: int = MAX_PAIRS) -> Facts:
    """The facts of as many records as one transaction may take, at least one.

    fan_out: how many methods each segment has; what is missing counts as none.
    """
    facts = Facts(records)
    memberships = facts.memberships
    pairs = repeated = superseded = 0
    n = 0
    for n, record in enumerate(records):  # noqa: B007 - where it stops is the result
        event = record.content
        if type(event) is Membership:  # nearly all records: spelled out
            key = event[0] + event[1]
            held = memberships.get(key)
            if held is None:
                pairs += fan_out.get(event[0], 0)
                if facts.methods or (pairs > max_pairs and n):
                    break
                memberships[key] = n
                continue
            first: Any = records[held].content
            if event.version > first.version:
                memberships[key] = n
                superseded += 1
            elif event.version < first.version:
                superseded += 1
            elif event.is_member == first.is_member:
                repeated += 1
            else:
                break
        elif event is None:
            continue
        elif type(event) is Rejection:
            facts.rejected.append((record, event))
        elif not _fold_other(facts, n, event):  # type: ignore[arg-type]  # type() doesn't narrow the union
            break
    else:
        n = len(records)
    facts.consumed = n
    if repeated:
        facts.results["membership", "repeated"] += repeated
    if superseded:
        facts.results["membership", "superseded"] += superseded
    return facts


def _fold_other(facts: Facts, n: int, event: Event) -> bool:
    """Fold a source, a suspension or a method; False where the batch must be cut before it."""
    if isinstance(event, Method):
        if facts.memberships or facts.sources or facts.suspensions or event.method_id in facts.methods:
            return False
        facts.methods[event.method_id] = n
        return True
    if facts.methods:
        return False
    held: dict[Any, int]
    key: object
    if isinstance(event, Source):
        kind, held, key, content = (
            "source",
            facts.sources,
            (event.course_id + event.user_id, event.source),
            _source_content,
        )
    elif isinstance(event, Suspension):
        kind, held, key, content = "suspension", facts.suspensions, event.course_id + event.user_id, _suspension_content
    else:
        raise TypeError(f"a {type(event).__name__} is folded by the caller")
    if key not in held:
        held[key] = n
        return True
    first: Any = facts.records[held[key]].content
    if event.version > first.version:
        held[key] = n
        facts.results[kind, "superseded"] += 1
    elif event.version < first.version:
        facts.results[kind, "superseded"] += 1
    elif content(event) == content(first):
        facts.results[kind, "repeated"] += 1
    else:
        return False
    return True


def _source_content(event: Any) -> object:  # noqa: ANN401 - a Source, chosen together with its kind
    return event.status, event.role


def _suspension_content(event: Any) -> object:  # noqa: ANN401 - a Suspension, chosen together with its kind
    return event.suspended
