"""`positions show` and `positions reset`. Words and tables; the work is repositioning.py's."""

from typing import Annotated, Any

import typer

from sync_worker.cli.asking import ask
from sync_worker.cli.console import FOUND, print_json, print_table, say, settings_for

app = typer.Typer(help="Where the inputs stand.", no_args_is_help=True, rich_markup_mode=None)

_NEEDED = {"kafka_bootstrap_servers", "database_url"}


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="As JSON, stable.")] = False) -> None:
    """Each input partition: the position kept in the database, what Kafka has committed, and what the topic holds."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.positions import Repositioning  # noqa: PLC0415 - heavy, and not for --help

    standings: list[dict[str, Any]] = [
        {
            "topic": each.partition.topic,
            "partition": each.partition.number,
            "position": each.position,
            "committed": each.committed,
            "earliest": each.earliest,
            "end": each.end,
        }
        for each in Repositioning(settings).show()
    ]
    if as_json:
        print_json({"positions": standings}, indent=2)
        return
    columns = ("topic", "partition", "position", "committed", "earliest", "end")
    print_table("Positions", columns, [[each[column] for column in columns] for each in standings])


@app.command()
def reset(
    to: Annotated[
        str, typer.Option(help="earliest, latest, database, an offset, or a time like 2026-01-31T12:00:00Z.")
    ],
    topic: Annotated[list[str] | None, typer.Option(help="Only this input topic; may be given again.")] = None,
    partition: Annotated[list[int] | None, typer.Option(min=0, help="Only this partition; may be given again.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; exit code 3 if anything.")
    ] = False,
) -> None:
    """Set where to go on reading, in the database and in Kafka; refused while a worker is in the group.

    Reading again is always right: what is known changes nothing. Skipping loses what is skipped. `database` is for one that
    went back: it goes on where it stands, and Kafka's commits follow.
    """
    settings = settings_for(_NEEDED)
    from sync_worker.operations.positions import Repositioning  # noqa: PLC0415 - heavy, and not for --help

    repositioning = Repositioning(settings)
    plan = repositioning.plan(to, topic or (), partition or ())
    print_table(
        "What it does",
        ("topic", "partition", "from", "to", ""),
        [
            (each.partition.topic, each.partition.number, each.before, each.after, _meaning(each.records))
            for each in plan
        ],
    )
    if dry_run:
        raise typer.Exit(FOUND if any(each.records for each in plan) else 0)
    ask("Set these positions?", yes=yes)
    repositioning.reset(plan)
    say("done; start the workers")


def _meaning(records: int) -> str:
    if records > 0:
        return f"up to {records} read again"
    return f"up to {-records} SKIPPED" if records < 0 else "no change"
