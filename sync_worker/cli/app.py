"""The tree of commands; one file for each group. Must stay a list: what a command does is in its file."""

from typing import Annotated

import typer

from sync_worker import __version__
from sync_worker.cli import (
    dlq,
    erase,
    events,
    explain,
    holds,
    members,
    positions,
    preview,
    reconcile,
    relay,
    republish,
    schema,
    status,
    topics,
    versions,
    worker,
)

app = typer.Typer(
    name="sync-worker",
    help="Keeps course enrollments in step with user segments: Kafka in, PostgreSQL, Kafka out.",
    epilog="Settings come from SYNC_WORKER_… in the environment or in a .env file. "
    "Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage or settings, 3 a check found something.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sync-worker {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(short_help="Make or upgrade the schema.")(schema.migrate)
app.add_typer(topics.app, name="topics")
app.add_typer(positions.app, name="positions")
app.add_typer(relay.app, name="relay")
app.add_typer(holds.app, name="holds")
app.add_typer(dlq.app, name="dlq")
app.add_typer(members.app, name="members")
app.command(short_help="The worker.")(worker.run)
app.command(short_help="JSON lines to the input topics.")(events.publish)
app.command(short_help="EnrollmentChanged as JSON lines.")(events.tail)
app.command(short_help="Lag, outbox, backfills, leader.")(status.status)
app.command(short_help="Why a person is in a course, or not.")(explain.explain)
app.command(short_help="What a method would do.")(preview.preview)
app.command(short_help="Compare with the facts, and repair.")(reconcile.reconcile)
app.command(short_help="Remove a person.")(erase.erase)
app.add_typer(versions.app, name="versions")
app.command(short_help="The present state once more.")(republish.republish)
