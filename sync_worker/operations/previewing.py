"""`preview`: a file with one EnrollmentMethodChanged, and the document of what it would do (docs/reference/preview.md).

The event is read as `publish` reads it, so what is previewed is what would be published. Must never publish or write.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from sync_worker.enrollment.methods import Stored
from sync_worker.enrollment.preview import CHANGES, UNTOUCHED, Case, Preview, preview
from sync_worker.errors import SyncWorkerError
from sync_worker.events import Event, Method, RecordName, Rejection, text_of
from sync_worker.operations.publishing import LineEncoder
from sync_worker.operations.snapshot import snapshot
from sync_worker.schema.store import load_schemas
from sync_worker.schema.wire import rfc3339
from sync_worker.settings import Settings

SAMPLE: Final = 5


def read_method(settings: Settings, text: bytes) -> Method:
    """The event in a file. Raises InvalidLine as `publish` says it, SyncWorkerError for another record."""
    encoder = LineEncoder(load_schemas(settings.schema_dir), {RecordName.METHOD_CHANGED: settings.methods_topic})
    event: Event = encoder.event_of(text.removeprefix(b"\xef\xbb\xbf"), RecordName.METHOD_CHANGED)
    if not isinstance(event, Method):
        raise SyncWorkerError(f"type: preview takes an {RecordName.METHOD_CHANGED}, nothing else")
    return event


def preview_document(settings: Settings, event: Method) -> dict[str, Any]:
    """What the event would do, by the database as it is. Raises RetryableError while that is away."""
    with snapshot(settings, "preview") as session:
        found = preview(session, event, SAMPLE)
    return document_of(event, found)


def document_of(event: Method, found: Preview) -> dict[str, Any]:
    """The document, stable."""
    effects = {effect: [case for case in found.cases if case.effect == effect] for effect in (*CHANGES, *UNTOUCHED)}
    return {
        "verdict": str(found.verdict.reason) if isinstance(found.verdict, Rejection) else found.verdict,
        "detail": _detail(event, found),
        "method": _method(event),
        "stored": None if found.stored is None else _stored(found.stored),
        "backfill": None if found.pending is None else asdict(found.pending),
        "events": sum(_people(effects[effect]) for effect in CHANGES),
        "changes": {effect: _change(effects[effect]) for effect in CHANGES},
        "untouched": {
            effect: {"people": _people(effects[effect]), "sample": [user for user, _ in _sample(effects[effect])]}
            for effect in UNTOUCHED
        },
    }


def _detail(event: Method, found: Preview) -> str | None:
    """Why nothing is applied, in the worker's words where it has some."""
    verdict, stored, method = found.verdict, found.stored, text_of(event.method_id)
    if isinstance(verdict, Rejection):
        return verdict.detail
    if verdict == "stale" and stored is not None:
        return f"version {event.version} of method {method} is stale: version {stored.version} is applied, so it would be skipped"
    if verdict == "repeated":
        return f"version {event.version} of method {method} is applied already, with the same content: nothing would happen"
    if stored is not None and stored.reads_alike(event):
        return "nothing in it bears on what people get: only the method itself would be other"
    return None


def _change(cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "people": _people(cases),
        "roles_changed": _people(case for case in cases if case.before.roles != case.after.roles),
        "groups_changed": _people(case for case in cases if case.before.groups != case.after.groups),
        "status_after": dict(sorted(_status_after(cases).items())),
        "sample": [
            {"user_id": user, "before": asdict(case.before), "after": asdict(case.after)}
            for user, case in _sample(cases)
        ],
    }


def _status_after(cases: Sequence[Case]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for case in cases:
        counted[case.after.status] += case.people
    return counted


def _people(cases: Iterable[Case]) -> int:
    return sum(case.people for case in cases)


def _sample(cases: Sequence[Case]) -> list[tuple[str, Case]]:
    """A few people, of as many cases as there is room for, the most frequent ones first."""
    ordered = sorted(cases, key=lambda case: -case.people)
    longest = max((len(case.examples) for case in cases), default=0)
    turns = [(case.examples[n], case) for n in range(longest) for case in ordered if n < len(case.examples)]
    return turns[:SAMPLE]


def _method(event: Method) -> dict[str, Any]:
    fields = {name: text_of(value) if isinstance(value, bytes) else value for name, value in event._asdict().items()}
    return fields | {"occurred_at": rfc3339(event.occurred_at)}


def _stored(stored: Stored) -> dict[str, Any]:
    fields = {name: getattr(stored, name) for name in stored.__slots__}
    return {name: text_of(value) if isinstance(value, bytes) else value for name, value in fields.items()}
