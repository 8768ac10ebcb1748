"""Folds the records of a batch to the newest fact per entity, and says where the batch must be cut.

Order of arrival decides, within a batch as between batches (contract §2): a record that says something else under the version
already folded belongs to a later transaction, where the first one stands in the database and the conflict is seen.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sync_worker.events import Event, Membership, Method, Record, Rejection, Source, Suspension

# A transaction that touches more (course, user) pairs would be a long one for everybody else (design §3).
MAX_PAIRS = 20_000
# Each takes its look-ups under the exclusive lock, which stops every other batch.
MAX_METHODS = 50

_Key = TypeVar("_Key", bytes, tuple[bytes, str])

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
    # Records that a newer one of the same batch put aside: never applied, but they may still contradict what is stored.
    displaced: dict[str, list[int]] = field(default_factory=dict)
    # (kind, index, index of the record that it repeats): what becomes of the one becomes of the other.
    repeated: list[tuple[str, int, int]] = field(default_factory=list)
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)
    results: Results = field(default_factory=Counter)
    consumed: int = 0


def memberships_of(records: Sequence[Record]) -> list[Membership]:
    """The memberships among these records, in order."""
    return [record.content for record in records if type(record.content) is Membership]


def fold(  # noqa: PLR0912 - the one loop over nearly all records, spelled out for speed
    records: Sequence[Record], fan_out: Mapping[bytes, int], max_pairs: int = MAX_PAIRS
) -> Facts:
    """The facts of as many records as one transaction may take, at least one.

    fan_out: how many methods each segment has; what is missing counts as none.
    """
    facts = Facts(records)
    memberships = facts.memberships
    pairs = stale = 0
    n = 0
    for n, record in enumerate(records):
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
                facts.displaced.setdefault("membership", []).append(held)
                memberships[key] = n
            elif event.version < first.version:
                stale += 1
            elif event.is_member == first.is_member:
                facts.repeated.append(("membership", n, held))
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
    if stale:
        facts.results["membership", "stale"] += stale
    return facts


def _fold_other(facts: Facts, n: int, event: Event) -> bool:
    """Fold a source, a suspension or a method; False where the batch must be cut before it."""
    if isinstance(event, Method):
        others = facts.memberships or facts.sources or facts.suspensions
        if others or event.method_id in facts.methods or len(facts.methods) >= MAX_METHODS:
            return False
        facts.methods[event.method_id] = n
        return True
    if facts.methods:
        return False
    if isinstance(event, Source):
        return _fold_into(facts, "source", facts.sources, (event.course_id + event.user_id, event.source), n)
    if isinstance(event, Suspension):
        return _fold_into(facts, "suspension", facts.suspensions, event.course_id + event.user_id, n)
    raise TypeError(f"a {type(event).__name__} is folded by the caller")


def _fold_into(facts: Facts, kind: str, held: dict[_Key, int], key: _Key, n: int) -> bool:
    if key not in held:
        held[key] = n
        return True
    event: Any = facts.records[n].content
    first: Any = facts.records[held[key]].content
    if event.version > first.version:
        facts.displaced.setdefault(kind, []).append(held[key])
        held[key] = n
    elif event.version < first.version:
        facts.results[kind, "stale"] += 1
    elif _content(event) == _content(first):
        facts.repeated.append((kind, n, held[key]))
    else:
        return False
    return True


def _content(event: Source | Suspension) -> object:
    """What two events of one version must agree on, beside their entity (contract §2)."""
    return (event.status, event.role) if isinstance(event, Source) else event.suspended
