"""`status`: the document of /status.json as tables. Must show what a newer worker adds, too, if only by name."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from sync_worker.cli.console import FOUND, print_json, print_table, say, settings_for

# Lists by where they stand in the document, as tables of their own; everything else is listed by name.
_TABLES: Final[Mapping[tuple[str, ...], tuple[str, tuple[str, ...]]]] = {
    ("holds",): ("Removals held", ("segment_id", "segment_name", "since", "members", "removed", "held")),
    ("releases",): ("Releases", ("segment_id", "segment_name", "number", "done", "total", "since")),
    ("backfills",): (
        "Backfills",
        ("method_id", "name", "course_id", "segment_id", "segment_name", "version", "done", "total", "since"),
    ),
    ("dead_letters", "reasons"): ("Dead letters", ("reason", "topic", "records", "last_at")),
    ("workers",): (
        "Workers",
        ("holder", "present", "version", "since", "seen_at", "records_per_s", "published_per_s", "partitions"),
    ),
    ("lag",): ("Lag", ("topic", "partition", "position", "end", "lag")),
}


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The document as JSON, stable.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 unless everything is settled.")] = False,
) -> None:
    """Lag, outbox, backfills, holds, dead letters, workers and leader; settled when every input is applied and published.

    A hold alone doesn't unsettle: what is held waits for a decision, not for the worker.
    """
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
    from sync_worker.service.verdict import verdict  # noqa: PLC0415 - not for --help

    say("settled" if document.get("settled") is True else "not settled")
    if document:
        say("{1}: {2}".format(*verdict(document)))
    facts = [pair for key, value in document.items() if key != "settled" for pair in _facts((key,), value)]
    print_table("State", ("what", "value"), facts)
    for path, (title, columns) in _TABLES.items():
        if rows := _at(document, path):
            print_table(title, columns, [[_cell(row.get(column)) for column in columns] for row in rows])


def _at(document: Any, path: Sequence[str]) -> list[Mapping[str, Any]]:
    """A list in the document, empty where there is none."""
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, list) else []


def _cell(value: object) -> object:
    """A worker's partitions by topic, in one cell; everything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return "; ".join(f"{topic} {', '.join(map(str, numbers))}" for topic, numbers in value.items()) or None


def _facts(path: tuple[str, ...], value: object) -> list[tuple[str, object]]:
    """A value as lines; of something nested each part under its own name."""
    if path in _TABLES:
        return []
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _facts((*path, key), part)] or [(_name(path), None)]
    if isinstance(value, list):
        return [pair for number, part in enumerate(value) for pair in _facts((*path, str(number)), part)]
    return [(_name(path), value)]


def _name(path: tuple[str, ...]) -> str:
    return " ".join(path).replace("_", " ")
