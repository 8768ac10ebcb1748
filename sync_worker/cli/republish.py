"""`republish`. Words alone; the work is operations/republishing.py's."""

from contextlib import closing
from typing import Annotated
from uuid import UUID

import typer

from sync_worker.cli.console import FOUND, print_json, say, settings_for
from sync_worker.cli.progress import progress_bar


def republish(
    course: Annotated[UUID | None, typer.Option(help="Only the enrollments of this course.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many; exit code 3 if there are any.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False,
) -> None:
    """Write the present state of every enrollment once more, for consumers that lost something.

    Each gets an event of its next version with cause REPUBLISH, which says that nothing changed: before and after are the
    same. Workers go on meanwhile; one has to, as it publishes them. Interrupted, it can be run again from the beginning.
    """
    settings = settings_for({"database_url"})
    from sync_worker.operations.republishing import Republication  # noqa: PLC0415 - heavy, and not for --help

    with closing(Republication(settings, course)) as republication:
        total, done = republication.count(), 0
        if not dry_run:
            with progress_bar("republishing", total) as bar:
                for done in republication.run():
                    bar.reach(done)
    where = "" if course is None else f" of course {course}"
    if as_json:
        print_json({"dry_run": dry_run, "enrollments": total if dry_run else done})
    elif dry_run:
        say(f"{total} enrollments{where} would be published once more")
    else:
        say(
            f"{done} enrollments{where} are in the outbox once more, and published as it empties (`sync-worker status`)"
        )
    if dry_run and total:
        raise typer.Exit(FOUND)
