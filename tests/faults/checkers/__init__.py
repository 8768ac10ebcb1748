"""The checkers: each looks at a history and says what in it can't be, independent of the worker's code.

They compare with the sequential model of tests/model and with the rules that hold in every order. A checker must never
pass over what it doesn't understand.
"""

from collections.abc import Callable, Iterator, Mapping

from tests.faults.checkers.changes import check_causes, check_chains, check_followers
from tests.faults.checkers.dead_letters import check_dead_letters
from tests.faults.checkers.expected import Expected, expect
from tests.faults.checkers.facts import check_facts
from tests.faults.checkers.hand_made import check_hand_made
from tests.faults.checkers.inputs import check_inputs
from tests.faults.checkers.progress import check_outbox, check_positions, check_settled
from tests.faults.checkers.remains import check_leftovers, check_workers
from tests.faults.checkers.rows import check_rows
from tests.faults.checkers.violation import Violation
from tests.faults.history import History

__all__ = ["CHECKERS", "Violation", "judge"]

CHECKERS: Mapping[str, Callable[[History, Expected], Iterator[Violation]]] = {
    "inputs": check_inputs,
    "settled": check_settled,
    "facts": check_facts,
    "rows": check_rows,
    "chains": check_chains,
    "causes": check_causes,
    "followers": check_followers,
    "hand_made": check_hand_made,
    "dead_letters": check_dead_letters,
    "positions": check_positions,
    "outbox": check_outbox,
    "workers": check_workers,
    "leftovers": check_leftovers,
}


def judge(history: History) -> list[Violation]:
    """What every checker found."""
    expected = expect(history)
    return [violation for checker in CHECKERS.values() for violation in checker(history, expected)]
