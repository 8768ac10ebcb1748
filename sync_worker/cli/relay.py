"""`relay show` and `relay adopt`. Words and tables; the work is operations/relaying.py's."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sync_worker.cli.asking import ask
from sync_worker.cli.console import FOUND, print_json, print_table, say, settings_for
from sync_worker.cli.progress import Bar, progress_bar

if TYPE_CHECKING:
    from sync_worker.operations.published import OnProgress
    from sync_worker.operations.relaying import RelayState
    from sync_worker.outbox.adopt import Differences

app = typer.Typer(help="How far the output is published, and whose it is.", no_args_is_help=True, rich_markup_mode=None)

_NEEDED = {"kafka_bootstrap_servers", "database_url"}
_MEANINGS: Final = {
    "published": "enrollments: the topic tells something else than what is; an event says what is",
    "repeated": "enrollments: the topic lost their last events; an event says what is",
    "renumbered": "enrollments: they take the topic's version; nothing is published",
    "waiting": "enrollments: their events wait and follow what the topic holds; they stay",
    "foreign": "enrollments: another consumer group's; left alone",
    "dropped": "waiting events: told already, or replaced; they go",
}


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False) -> None:
    """The database's last windows, the lease, Kafka's cursor, whether they belong together, and what to do if not."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.relaying import show as look  # noqa: PLC0415 - heavy, and not for --help

    state = look(settings)
    document = _document(state)
    if as_json:
        print_json(document, indent=2)
        return
    columns = ("number", "from_snapshot", "to_snapshot", "published", "system_identifier", "opened_at")
    print_table("Windows in the database", columns, [[row[name] for name in columns] for row in document["windows"]])
    cursor, leader = document["cursor"] or {}, document["leader"] or {}
    print_table(
        "State",
        ("what", "value"),
        [
            ("database system", document["system_identifier"]),
            ("unpublished rows", document["unpublished"]),
            *((f"cursor {name.replace('_', ' ')}", cursor.get(name)) for name in _CURSOR),
            *((f"lease {name.replace('_', ' ')}", leader.get(name)) for name in _LEADER),
        ],
    )
    say(document["misfit"] or "database and Kafka belong together")
    say(document["next"])


@app.command()
def adopt(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; exit code 3, as there is something to do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False,
) -> None:
    """Accept a database that is another one or went back, or a Kafka that is: stop all workers first.

    Reads all of the output topic, then gives each enrollment on which the two differ a version above the topic's, and lets
    the difference be published. Interrupted at any point, it can be run again. docs/recovery.md says what comes before and after.
    """
    settings = settings_for(_NEEDED)
    from sync_worker.operations.relaying import Adopting  # noqa: PLC0415 - heavy, and not for --help

    with closing(Adopting(settings)) as adopting:
        with _reading() as on_progress:
            differences = adopting.plan(on_progress)
        if not as_json:
            _show_differences("What it does", differences)
        if not dry_run:
            ask("Adopt this database?", yes=yes)
            with _reading() as on_progress:
                differences = adopting.adopt(on_progress)
    if as_json:
        print_json({"dry_run": dry_run, "differences": asdict(differences)}, indent=2)
    elif not dry_run:
        _show_differences("What it did", differences)
        say("adopted. Where the database lost transactions, set the inputs back before you start the workers:")
        say(
            "`sync-worker positions reset --to database`; then `sync-worker run`, and in the end `sync-worker reconcile`"
        )
    if dry_run:
        raise typer.Exit(FOUND)


_CURSOR: Final = ("window", "last_id", "complete", "system_identifier")
_LEADER: Final = ("holder", "since", "expires_at", "leads")


def _document(state: "RelayState") -> dict[str, Any]:
    windows = [
        {
            "number": kept.window.number,
            "from_snapshot": kept.window.from_,
            "to_snapshot": kept.window.to,
            "published": kept.window.published,
            "system_identifier": kept.window.system_identifier,
            "opened_at": kept.created_at.isoformat(),
        }
        for kept in state.windows
    ]
    leader = None
    if state.leader is not None:
        leader = {
            "holder": state.leader.holder,
            "since": state.leader.since.isoformat(),
            "expires_at": state.leader.expires_at.isoformat(),
            "leads": state.leader.leads,
        }
    return {
        "fits": state.misfit is None,
        "misfit": state.misfit,
        "next": _what_next(state),
        "system_identifier": state.system_identifier,
        "windows": windows,
        "leader": leader,
        "cursor": None if state.cursor is None else {name: getattr(state.cursor, name) for name in _CURSOR},
        "unpublished": state.unpublished,
    }


def _what_next(state: "RelayState") -> str:
    if state.misfit is None:
        return "nothing to do"
    return (
        "stop all workers, see what `sync-worker relay adopt --dry-run` says, and read docs/recovery.md for what comes "
        "before and after `sync-worker relay adopt`"
    )


def _show_differences(title: str, differences: "Differences") -> None:
    found = asdict(differences)
    print_table(title, ("", "number", ""), [(name, found[name], meaning) for name, meaning in _MEANINGS.items()])


@contextmanager
def _reading() -> "Iterator[OnProgress]":
    """A bar for each topic that is read, once its size is known."""
    with ExitStack() as stack:
        bar = Bar(lambda _: None)

        def on_progress(done: int, total: int) -> None:
            nonlocal bar
            if done == 0:
                stack.close()
                bar = stack.enter_context(progress_bar("reading what was published", total))
            bar.reach(done)

        yield on_progress
