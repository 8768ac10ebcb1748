"""`status`: the document of /status.json as tables. Must show what a newer worker adds, too, if only by name."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from sync_worker.cli.console import FOUND, print_json, print_table, say, settings_for

_LISTS: Final = {
    "lag": ("Lag", ("topic", "partition", "position", "end", "lag")),
    "backfills": ("Backfills", ("method_id", "course_id", "segment_id", "version", "done", "total")),
}


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The document as JSON, stable.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 unless everything is settled.")] = False,
) -> None:
    """Lag, outbox, backfills, dead letters and leader; settled when every input is applied and published."""
    settings = settings_for({"kafka_bootstrap_servers", "database_url"})
    from sync_worker.operations.status import read_status  # noqa: PLC0415 - heavy, and not for --help

    document = read_status(settings)
    if as_json:
        print_json(document, indent=2)
    else:
        show(document)
    if check and document.get("settled") is not True:
        raise typer.Exit(FOUND)


def show(document: Mapping[str, Any]) -> None:
    """Print the document as tables; parts that are missing are left out, parts unknown here are listed by name."""
    say("settled" if document.get("settled") is True else "not settled")
    facts = [
        pair for key, value in document.items() if key != "settled" and key not in _LISTS for pair in _facts(key, value)
    ]
    print_table("State", ("what", "value"), facts)
    for key, (title, columns) in _LISTS.items():
        rows = document.get(key)
        if isinstance(rows, Sequence) and rows:
            print_table(title, columns, [[row.get(column) for column in columns] for row in rows])


def _facts(name: str, value: object) -> list[tuple[str, object]]:
    """A value as lines; of something nested each part under its own name."""
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _facts(f"{name} {key}", part)] or [
            (name.replace("_", " "), None)
        ]
    if isinstance(value, list):
        return [pair for number, part in enumerate(value) for pair in _facts(f"{name} {number}", part)]
    return [(name.replace("_", " "), value)]
