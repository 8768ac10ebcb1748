"""`holds list` and `holds release`. Words and tables; the work is operations/holds.py's."""

from typing import Annotated
from uuid import UUID

import typer

from sync_worker.cli.asking import ask
from sync_worker.cli.console import print_json, print_table, say, settings_for
from sync_worker.cli.progress import progress_bar
from sync_worker.events import text_of

app = typer.Typer(help="Segments whose removals the breaker holds back.", no_args_is_help=True, rich_markup_mode=None)

_NEEDED = {"database_url"}


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False) -> None:
    """Which segments are held, since when, how many removals wait, and whose."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.holds import Holds  # noqa: PLC0415 - heavy, and not for --help

    operation = Holds(settings)
    try:
        held = operation.list()
    finally:
        operation.close()
    if as_json:
        print_json(
            {
                "holds": [
                    {
                        "segment_id": text_of(hold.segment_id),
                        "since": hold.since.isoformat(),
                        "members": hold.members,
                        "removed": hold.removed,
                        "held": hold.held,
                        "sample": [text_of(user) for user in hold.sample],
                    }
                    for hold in held
                ]
            },
            indent=2,
        )
        return
    if not held:
        say("no segment is held")
        return
    print_table(
        "Held segments",
        ("segment", "since", "members it had", "left before", "removals held", "some of them"),
        [
            (
                text_of(hold.segment_id),
                hold.since.isoformat(timespec="seconds"),
                hold.members,
                hold.removed,
                hold.held,
                " ".join(text_of(user) for user in hold.sample) or None,
            )
            for hold in held
        ],
    )
    say("right after all? `sync-worker holds release SEGMENT`; if not, let the publisher add the members again first")


@app.command()
def release(
    segment: Annotated[UUID, typer.Argument(help="The segment's id, as `holds list` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """End a hold: whoever is still removed loses what the segment gave, in steps; events are published for each.

    Whoever was added again meanwhile keeps everything. Interrupted, the workers finish it.
    """
    settings = settings_for(_NEEDED)
    from sync_worker.operations.holds import Holds  # noqa: PLC0415 - heavy, and not for --help

    operation = Holds(settings)
    try:
        waiting = {hold.segment_id: hold.held for hold in operation.list()}
        if segment.bytes in waiting:
            ask(f"Apply the {waiting[segment.bytes]} removals held of segment {segment}?", yes=yes)
        ended = operation.end(segment)
        with progress_bar("removals", ended.total) as bar:
            for progress in operation.follow(ended):
                bar.reach(progress.done)
    finally:
        operation.close()
    say(f"the hold of segment {segment} is over; {ended.total} removals were applied")
