"""The one sentence that stands above everything else: settled, working, waiting, held or stopped, and why.

For `status` and the page alike. Reads a status document and the worker's health; must never know more than they say.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sync_worker.service.health import Check


class State(StrEnum):
    """What a look at the worker comes to."""

    SETTLED = "settled"
    WORKING = "working"
    HELD = "held"
    WAITING = "waiting"
    STOPPED = "stopped"


class Verdict(NamedTuple):
    """A state, in a few words and in a sentence."""

    state: State
    headline: str
    detail: str


_AWAITED: Final = {
    "database": "the database",
    "broker": "Kafka",
    "assignment": "its partitions",
    "relay": "the relay",
    "registry": "the schema registry",
    "rejections": "somebody to look at rejected records",
}
_SERVICES: Final = frozenset({"database", "broker", "registry"})


def verdict(document: Mapping[str, Any], *, silent: Collection[Check] = (), unready: Collection[Check] = ()) -> Verdict:
    """silent: loops that hang; unready: conditions of this worker that are not met. The worst comes first."""
    if silent:
        names = _and([check.name for check in silent])
        return Verdict(State.STOPPED, "Stopped", f"This worker hangs ({names}) and has to be restarted.")
    if unready:
        return _waiting(unready)
    settled = document.get("settled") is True
    if not settled and "workers" in document and not any(worker["present"] for worker in document["workers"]):
        return Verdict(State.STOPPED, "Stopped", f"No worker runs. {_left(document)}.")
    if holds := document.get("holds"):
        removals = sum(hold["held"] for hold in holds)
        wait = "waits" if removals == 1 else "wait"
        detail = f"{_count(removals, 'removal')} of {_count(len(holds), 'segment')} {wait} for a decision."
        return Verdict(State.HELD, "Removals held", detail + ("" if settled else f" {_left(document)}."))
    if settled:
        return Verdict(State.SETTLED, "Settled", "Every input is applied, and every change is published.")
    return Verdict(State.WORKING, "Working", f"{_left(document)}.")


def unreadable(error: str, unready: Collection[Check] = ()) -> Verdict:
    """Where there is no document: what is away, if the worker's health knows."""
    return _waiting(unready) if unready else Verdict(State.WAITING, "Waiting for an answer", f"{error}.")


def _waiting(unready: Collection[Check]) -> Verdict:
    # Whatever else waits then waits for one of these.
    unready = [check for check in unready if check.name in _SERVICES] or unready
    names = _and([_AWAITED.get(check.name, check.name) for check in unready])
    reasons = dict.fromkeys(check.detail for check in unready if check.detail)
    return Verdict(State.WAITING, f"Waiting for {names}", "; ".join(reasons))


def _left(document: Mapping[str, Any]) -> str:
    """What there is to do, as a sentence without its full stop."""
    lag = sum(entry.get("lag") or 0 for entry in document.get("lag", ()))
    unpublished = document.get("outbox", {}).get("unpublished") or 0
    parts = [
        _count(lag, "record") + " to apply" if lag else "",
        _count(unpublished, "event") + " to publish" if unpublished else "",
        _count(len(document.get("backfills", ())), "backfill") + " to finish" if document.get("backfills") else "",
        _count(len(document.get("releases", ())), "release") + " to finish" if document.get("releases") else "",
    ]
    return _and([part for part in parts if part]) or "The last window is being acknowledged"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _and(parts: Collection[str]) -> str:
    *most, last = [*parts] or [""]
    return f"{', '.join(most)} and {last}" if most else last
