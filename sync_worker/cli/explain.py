"""`explain COURSE USER`. Words and tables; the work is operations/explaining.py's and history.py's."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from sync_worker.cli.console import print_json, print_table, say, settings_for, warn
from sync_worker.cli.preview import state_words
from sync_worker.cli.progress import progress_bar

if TYPE_CHECKING:
    from sync_worker.operations.history import History
    from sync_worker.settings import Settings


def explain(
    course: Annotated[UUID, typer.Argument(help="The course's id.")],
    user: Annotated[UUID, typer.Argument(help="The person's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="The document as JSON, stable.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Also what was published, read from the topic.")] = False,
) -> None:
    """Why a person is, or is not, in a course: each method and other source, the facts behind it, and what is missing."""
    settings = settings_for({"database_url", "kafka_bootstrap_servers"} if history else {"database_url"})
    from sync_worker.operations.explaining import explain_document  # noqa: PLC0415 - heavy, and not for --help

    document = explain_document(settings, course, user)
    if history:
        document["history"] = _history(settings, document)
    if as_json:
        print_json(document, indent=2)
    else:
        show(document)


def _history(settings: "Settings", document: Mapping[str, Any]) -> dict[str, Any]:
    from sync_worker.operations.history import read_history  # noqa: PLC0415 - heavy, and not for --help

    key = f"{document['course_id']}:{document['user_id']}"
    with progress_bar("reading the topic", 100) as bar:
        found: History = read_history(
            settings, key, document["version"], lambda done, total: bar.reach(100 * done // max(total, 1))
        )
    for fault in found.unreadable:
        warn(fault)
    return {
        "changes": found.changes,
        "complete": found.complete,
        "erased": found.erased,
        "unreadable": found.unreadable,
        "partitions": found.partitions,
    }


def show(document: Mapping[str, Any]) -> None:
    """Print the document as tables."""
    say(f"{document['status']}: {document['summary']}")
    suspension = document["suspension_version"]
    if suspension is not None:
        said = "suspended" if document["suspended_in_course"] else "not suspended any more"
        say(f"{said} in the course: version {suspension} of that fact")
    if document["version"]:
        _enrollment(document)
    if document["sources"]:
        rows = [
            (_name(each), _given(each["gives"]), each["why"] if each["differs"] is None else f"{each['why']} (differs)")
            for each in document["sources"]
        ]
        print_table("Sources", ("source", "gives", "why"), rows)
    for each in document["sources"]:
        if each["differs"] is not None:
            say(f"differs, by {each['differs']['by']}: {each['differs']['why']}")
    if document["group_members"]:
        print_table(
            "Groups", ("group", "through"), [(each["group_id"], _through(each)) for each in document["group_members"]]
        )
    if "history" in document:
        _changes(document["history"], document["version"])


def _enrollment(document: Mapping[str, Any]) -> None:
    cause = document["cause"]
    by = [cause["type"], cause["event_id"], f"through method {cause['method_id']}" if cause["method_id"] else None]
    print_table(
        "Enrollment",
        ("version", "since", "roles", "groups", "last change by"),
        [
            (
                document["version"],
                document["updated_at"],
                _list(document["roles"]),
                _list(document["groups"]),
                " ".join(part for part in by if part),
            )
        ],
    )


def _changes(history: Mapping[str, Any], version: int | None) -> None:
    changes = history["changes"]
    print_table(
        "History",
        ("version", "at", "change", "then", "by"),
        [
            (each["version"], each["occurred_at"], each["change"], state_words(each["after"]), _cause(each["cause"]))
            for each in changes
        ],
    )
    if history["erased"]:
        say("the person was erased from this course; what was before is not shown")
    if not history["complete"]:
        say(
            "the beginning, or something between, is no longer in the topic: after 7 days it keeps the last record of a key alone"
        )
    if version and (not changes or changes[-1]["version"] < version):
        say(f"version {version} is not published yet: a running worker does it")


def _cause(cause: Mapping[str, Any]) -> str:
    return " ".join(part for part in (cause["type"], cause["event_id"]) if part)


def _name(source: Mapping[str, Any]) -> str:
    method = source["method"]
    return f"{method['name']} ({source['source']})" if method and method["name"] else source["source"]


def _given(given: Mapping[str, Any] | None) -> str | None:
    if given is None:
        return None
    return _list([given["status"], given["role"], given["group_id"] and f"group {given['group_id']}"])


def _through(member: Mapping[str, Any]) -> str:
    methods = [method["name"] or method["method_id"] for method in member["managed_by"]]
    return ", ".join([*methods, *(["hand-made"] if member["hand_made"] else [])])


def _list(parts: Sequence[str | None]) -> str | None:
    return ", ".join(part for part in parts if part) or None
