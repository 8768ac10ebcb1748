"""One batch, one transaction: positions, facts, rows, outbox, dead letters, all or nothing (design §3, §4).

The order of the steps is the protocol. A batch is cut into several transactions where one would be too large or would
have to decide between two records of one version; each of them moves the positions by what it applied.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sync_worker.database.sessions import DataRejected, Session, transaction, translated
from sync_worker.enrollment import apply, methods
from sync_worker.enrollment.breaker import Breaker, Guard, Reconsider
from sync_worker.enrollment.folding import Facts, Results, fold
from sync_worker.errors import FatalError, RejectionReason
from sync_worker.events import Partition, Record, Rejection
from sync_worker.failpoints import reach
from sync_worker.intake import dead_letters, positions
from sync_worker.intake.positions import Move


@dataclass(slots=True)
class Outcome:
    """What committed transactions came to."""

    results: Results = field(default_factory=Counter)
    rejected: list[tuple[Record, Rejection]] = field(default_factory=list)
    records: int = 0
    changes: int = 0
    transactions: int = 0


def commit(
    session: Session,
    records: Sequence[Record],
    before: Mapping[Partition, int],
    outcome: Outcome,
    between: Callable[[], None] = lambda: None,
    breaker: Breaker | None = None,
) -> None:
    """Apply records in order, in as few transactions as the rules allow; `outcome` grows with each one that commits.

    before: where the partitions stand. between: called before each transaction, where a long batch reports progress or, by
    raising, is given up. breaker: of removals; without one nobody is held anew. Raises positions.PositionsMoved where they
    don't, RetryableError in an outage; what was not committed by then can be tried again.
    """
    at = dict(before)
    breaker = breaker or Breaker()
    while records:
        between()
        with translated():
            survey = apply.survey(session, records)
        facts = fold(records, survey.fan_out)
        part = records[: facts.consumed]
        after = {record.partition: record.next_offset for record in part}
        moves = {partition: Move(at[partition], offset) for partition, offset in after.items()}
        try:
            _guarded(session, facts, moves, outcome, breaker, survey, between)
        except DataRejected as refused:
            _isolate(session, part, at, outcome, between, refused, breaker)
        at |= after
        records = records[facts.consumed :]


def _guarded(
    session: Session,
    facts: Facts,
    moves: Mapping[Partition, Move],
    outcome: Outcome,
    breaker: Breaker,
    survey: apply.Survey,
    between: Callable[[], None],
) -> None:
    """The transaction, taken again for as long as the breaker finds that it knew too little (semantics §5)."""
    guard = breaker.guard(survey.holds)
    while True:
        try:
            _transaction(session, facts, moves, outcome, guard, familiar=survey.familiar)
        except Reconsider as found:
            between()
            with translated():
                breaker.reconsider(session, guard, found)
        else:
            breaker.committed(guard)
            return


def _transaction(
    session: Session,
    facts: Facts,
    moves: Mapping[Partition, Move],
    outcome: Outcome,
    guard: Guard,
    *,
    familiar: bool,
) -> None:
    with translated(), transaction(session):
        # 1. Whoever doesn't own the partitions any more stops here, before it holds up anybody.
        positions.advance(session, moves)
        reach("after_positions")
        # 2. Facts, then rows, then outbox; methods under the exclusive lock, people under the shared one.
        applied = (
            methods.apply_methods(session, facts)
            if facts.methods
            else apply.apply_people(session, facts, guard, familiar=familiar)
        )
        reach("after_rows")
        # 3. What can't be applied is kept with what could.
        rejected = facts.rejected + applied.rejected
        dead_letters.keep(session, rejected)
        reach("before_commit")
    reach("after_commit")
    outcome.records += facts.consumed
    outcome.changes += applied.changes
    outcome.transactions += 1
    outcome.rejected += rejected
    outcome.results += facts.results + applied.results


def _isolate(
    session: Session,
    records: Sequence[Record],
    at: Mapping[Partition, int],
    outcome: Outcome,
    between: Callable[[], None],
    refused: DataRejected,
    breaker: Breaker,
) -> None:
    """PostgreSQL refused the batch for its data: halve it until the record is alone, and reject that one (design §6)."""
    if len(records) == 1:
        (record,) = records
        if record.message is None or isinstance(record.content, Rejection):
            raise FatalError(
                f"PostgreSQL refuses to store even the rejection of {record.partition}: {refused}"
            ) from refused
        verdict = Rejection(RejectionReason.REJECTED_BY_DATABASE, str(refused))
        rejected = Record(record.partition, record.next_offset, verdict, record.message, record.headers)
        commit(session, [rejected], at, outcome, between, breaker)
        return
    middle = len(records) // 2
    commit(session, records[:middle], at, outcome, between, breaker)
    moved = dict(at) | {record.partition: record.next_offset for record in records[:middle]}
    commit(session, records[middle:], moved, outcome, between, breaker)
