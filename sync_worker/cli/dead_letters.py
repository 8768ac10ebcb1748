"""How a dead letter is shown, to people and as JSON, and what can be done about each reason. Words only."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sync_worker.cli.console import print_table, say
from sync_worker.errors import RejectionReason

if TYPE_CHECKING:
    from sync_worker.operations.dead_letters import DeadLetter
    from sync_worker.operations.inspecting import Inspection

_ADVICE: Final[Mapping[str, str]] = {
    RejectionReason.UNDECODABLE: "Its bytes are no event: mend the publisher, and have it send the event once more. "
    "A replay helps only where a newer worker can read them.",
    RejectionReason.UNKNOWN_SCHEMA: "Register its schema, or put the .avsc into the folder of SYNC_WORKER_SCHEMA_DIR and "
    "restart the workers; then replay it.",
    RejectionReason.INVALID_EVENT: "What it says breaks a rule of the contract: mend the publisher, and have it send the event "
    "corrected. A replay helps only where a newer worker takes it.",
    RejectionReason.VERSION_CONFLICT: "Another event with this version said something else before, and stands. Have the publisher "
    "send the present state with a higher version; a replay comes back here.",
    RejectionReason.REJECTED_BY_DATABASE: "The database refused what it says, as the detail tells. Mend that, then replay it.",
}


def entry_of(letter: "DeadLetter", replayed_at: datetime | None) -> dict[str, Any]:
    """What `dlq list` says of one; the keys are stable."""
    origin = letter.origin
    return {
        "address": str(letter.address),
        "partition": letter.address.partition,
        "offset": letter.address.offset,
        "rejected_at": _iso(letter.at_ms),
        "reason": letter.reason,
        "detail": letter.detail,
        "from": None
        if origin is None
        else {
            "topic": origin.topic,
            "partition": origin.partition,
            "offset": origin.offset,
            "at": None if origin.timestamp_ms is None else _iso(origin.timestamp_ms),
        },
        "key": text_of_bytes(letter.key),
        "value_bytes": None if letter.value is None else len(letter.value),
        "truncated": letter.truncated,
        "replayed_at": None if replayed_at is None else replayed_at.astimezone(UTC).isoformat(timespec="seconds"),
    }


def document_of(
    letter: "DeadLetter", whole: "DeadLetter", replayed_at: datetime | None, inspection: "Inspection | None"
) -> dict[str, Any]:
    """What `dlq show` says of one; the keys are stable. `whole`: with what the topic had no room for, where that is kept."""
    flaw = inspection.flaw if inspection else None
    return {
        **entry_of(letter, replayed_at),
        "key": text_of_bytes(whole.key),
        "headers": [[name, text_of_bytes(value)] for name, value in whole.headers],
        "value": None if whole.value is None else base64.b64encode(whole.value).decode("ascii"),
        "value_bytes": None if whole.value is None else len(whole.value),
        "framing": inspection.framing if inspection else None,
        "schema": inspection.schema if inspection else None,
        "fields": inspection.fields if inspection else {},
        "flaw": None if flaw is None else {"begin": flaw.begin, "end": flaw.end, "field": flaw.field, "why": flaw.why},
        "verdict": inspection.verdict if inspection else None,
        "readable": inspection is not None and inspection.verdict is None,
        "advice": _ADVICE.get(letter.reason, "No worker put it there, so it can't be sent back."),
    }


def print_document(document: Mapping[str, Any]) -> None:
    """The same for people."""
    facts = {
        "rejected at": document["rejected_at"],
        "reason": document["reason"],
        "detail": document["detail"],
        "from": shown_origin(document["from"]),
        "key": document["key"],
        "value": "not kept" if document["value"] is None else f"{document['value_bytes']} bytes",
        "framing": document["framing"],
        "schema": document["schema"],
        "sent back": document["replayed_at"],
    }
    print_table(f"Dead letter {document['address']}", ("", ""), facts.items())
    if document["headers"]:
        print_table("Its headers", ("name", "value"), document["headers"])
    if document["fields"]:
        print_table("What can be read", ("field", "value"), document["fields"].items())
    if flaw := document["flaw"]:
        field = f", field {flaw['field']}" if flaw["field"] else ""
        say(f"At byte {flaw['begin']}{field}: {flaw['why']}")
        for line in flaw["bytes"]:
            say(f"  {line}")
        say("")
    if document["readable"]:
        say("This version, with these settings, can read it now.")
    elif document["verdict"]:
        say(f"This version, with these settings, would reject it: {document['verdict']}")
    say(document["advice"])


def shown_origin(origin: Mapping[str, Any] | None) -> str | None:
    """Where it came from, in a cell."""
    return None if origin is None else f"{origin['topic']}[{origin['partition']}] offset {origin['offset']}"


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def text_of_bytes(value: bytes | None) -> str | None:
    """Bytes as text, those that are not UTF-8 escaped."""
    return None if value is None else value.decode("utf-8", "backslashreplace")
