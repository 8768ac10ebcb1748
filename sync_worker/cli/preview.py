"""`preview FILE`. Words and tables; the work is operations/previewing.py's."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from sync_worker.cli.console import FOUND, opened, print_json, print_table, say, settings_for

_CHANGES: Final = {
    "ENROLLED": "enrolled",
    "UNENROLLED": "unenrolled",
    "SUSPENDED": "suspended",
    "REACTIVATED": "re-activated",
    "UPDATED": "updated: other roles, groups or sources",
}
_UNTOUCHED: Final = {
    "as_they_are": "keep what they have",
    "nothing_given": "members who get nothing, as the method isn't enabled",
    "not_seen": "would be in the group, but nothing enrolls them",
    "others": "in the course by others, not touched",
}


def preview(
    file: Annotated[str, typer.Argument(help="JSON of one EnrollmentMethodChanged, as publish takes it; - is stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="The document as JSON, stable.")] = False,
) -> None:
    """What a method would do, if it were published now: how many people, and some of them. Writes nothing.

    Exit code 3 if the worker would not apply it: a dead letter, or stale.
    """
    with opened(file) as stream:
        text = stream.read()
    settings = settings_for({"database_url"})
    from sync_worker.operations.previewing import preview_document, read_method  # noqa: PLC0415 - heavy, and not for --help

    document = preview_document(settings, read_method(settings, text))
    if as_json:
        print_json(document, indent=2)
    else:
        show(document)
    if document["verdict"] not in {"applied", "repeated"}:
        raise typer.Exit(FOUND)


def show(document: Mapping[str, Any]) -> None:
    """Print the document as tables."""
    method, stored = document["method"], document["stored"]
    say(
        f"{method['kind']} method {method['name'] or method['method_id']} ({method['method_id']}), version {method['version']}"
    )
    if stored is not None:
        changed = [name for name in stored if name != "version" and stored[name] != method[name]]
        say(f"stored is version {stored['version']}; other than there: {', '.join(changed) or 'nothing'}")
    if document["detail"]:
        rejected = document["verdict"] not in {"applied", "stale", "repeated"}
        say(
            f"it would become a dead letter, {document['verdict']}: {document['detail']}"
            if rejected
            else document["detail"]
        )
    if document["verdict"] != "applied":
        return
    if document["backfill"]:
        say(_backfill(document["backfill"]))
    say(f"{document['events']} EnrollmentChanged would be published")
    _numbers(document)
    _samples(document["changes"])


def _backfill(pending: Mapping[str, Any]) -> str:
    progress = f"{pending['done']} of {pending['total'] if pending['total'] is not None else 'an unknown number of'} people done"
    if pending["continues"]:
        return (
            f"the backfill of version {pending['version']} ({progress}) goes on, and its rest is what is counted here"
        )
    return f"the backfill of version {pending['version']} ({progress}) would be taken over by a new one"


def _numbers(document: Mapping[str, Any]) -> None:
    changes, untouched = document["changes"], document["untouched"]
    rows = [
        (
            words,
            changes[effect]["people"],
            changes[effect]["roles_changed"],
            changes[effect]["groups_changed"],
            _statuses(changes[effect]),
        )
        for effect, words in _CHANGES.items()
    ]
    print_table("What happens", ("", "people", "other roles", "other groups", "then"), rows)
    print_table(
        "What doesn't",
        ("", "people", "some of them"),
        [
            (words, untouched[effect]["people"], " ".join(untouched[effect]["sample"]) or None)
            for effect, words in _UNTOUCHED.items()
        ],
    )


def _statuses(change: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{people} {status}" for status, people in change["status_after"].items()) or None


def _samples(changes: Mapping[str, Any]) -> None:
    rows = [
        (words.partition(":")[0], one["user_id"], state_words(one["before"]), state_words(one["after"]))
        for effect, words in _CHANGES.items()
        for one in changes[effect]["sample"]
    ]
    if rows:
        print_table("Some of them", ("", "user", "before", "after"), rows)


def state_words(state: Mapping[str, Any]) -> str:
    """An EnrollmentState in a cell: its status, roles and groups."""
    parts = [state["status"], *state["roles"], *(f"group {group}" for group in state["groups"])]
    return ", ".join([*parts, "suspended in the course"] if state["suspended_in_course"] else parts)
