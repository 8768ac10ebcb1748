"""`erase USER`. Words and tables; the work is operations/erasing.py's."""

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from sync_worker.cli.asking import ask
from sync_worker.cli.console import FOUND, print_json, print_table, say, settings_for

if TYPE_CHECKING:
    from sync_worker.enrollment.erase import Traces
    from sync_worker.operations.erasing import Retention

_TABLES: Final = {
    "enrollment": "enrollments, with suspensions in a course and hand-made groups; a tombstone for each",
    "membership": "memberships of user segments",
    "source": "other ways into a course",
    "dead_letter": "rejected records that name the person",
    "progress": "work in steps that stands at this person, and begins anew",
    "intervention": "mentions in what operators did; what they did stays",
}


def erase(
    user: Annotated[UUID, typer.Argument(help="The person's id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is; exit code 3 if there is anything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False,
) -> None:
    """Remove a person from every table, and publish a tombstone for each of their enrollments.

    Stop whatever publishes events about them first: an event that comes later makes new facts. Workers may go on running;
    one has to, as it publishes the tombstones. What topics still hold, and for how long, is said at the end.
    """
    settings = settings_for({"kafka_bootstrap_servers", "database_url"})
    from sync_worker.operations.erasing import Erasure  # noqa: PLC0415 - heavy, and not for --help

    with closing(Erasure(settings, user)) as erasure:
        traces = erasure.find()
        if not as_json and (dry_run or traces.erasable):
            _show_traces("What there is of this person", traces)
        if not dry_run and traces.erasable:
            ask(f"Erase user {user} for good?", yes=yes)
            traces = erasure.erase()
            if not as_json:
                _show_traces("Removed", traces)
        if as_json:
            print_json(_document(user, dry_run, traces, erasure.topics), indent=2)
        else:
            _show_rest(traces, erasure.topics)
    if dry_run and traces.any:
        raise typer.Exit(FOUND)


def _show_traces(title: str, traces: "Traces") -> None:
    rows = [(table, getattr(traces, table), why) for table, why in _TABLES.items() if getattr(traces, table)]
    if rows:
        print_table(title, ("table", "rows", ""), rows)


def _show_rest(traces: "Traces", topics: Sequence["Retention"]) -> None:
    if not traces.any:
        say("the database holds nothing of this person")
    if traces.outbox:
        say(
            f"the outbox: {traces.outbox} rows name the person, tombstones among them; a running worker publishes what is due, "
            "then deletes them. `--dry-run` ends with 0 once nothing is left"
        )
    columns = ("topic", "deletes records", "compacts", "keeps tombstones")
    rows = [
        (each.topic, _after(each.deleted_after_ms), _after(each.compacted_after_ms), _for(each.tombstones_kept_ms))
        for each in topics
    ]
    print_table("What topics hold of this person goes by their settings", columns, rows)
    say(
        "times count from a record's own; a log segment goes as a whole, which can add its "
        f"segment.ms, {_span(max(each.segment_ms for each in topics))}"
    )
    say("an event about this person that comes from now on makes new facts; their enrollments start at version 1 again")
    say(
        "`positions reset` to before their events, or `dlq replay` of them, brings the person back while topics hold these"
    )


def _document(user: UUID, dry_run: bool, traces: "Traces", topics: Sequence["Retention"]) -> dict[str, Any]:
    return {
        "user_id": str(user),
        "dry_run": dry_run,
        "rows": {table: getattr(traces, table) for table in _TABLES},
        "tombstones": traces.enrollment,
        "outbox": traces.outbox,
        "topics": [{name: getattr(each, name) for name in each.__slots__} for each in topics],
    }


def _after(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return "never" if milliseconds < 0 else f"after {_span(milliseconds)}"


def _for(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else f"for {_span(milliseconds)}"


def _span(milliseconds: int) -> str:
    for unit, length in (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000)):
        if milliseconds >= 2 * length:
            return f"{milliseconds / length:.3g} {unit}"
    return f"{milliseconds / 1000:.3g} seconds"
