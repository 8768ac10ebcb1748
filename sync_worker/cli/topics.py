"""`topics create`. Words and a table; the work is topics.py's."""

from typing import Annotated

import typer

from sync_worker.cli.console import print_table, settings_for, warn

app = typer.Typer(help="The worker's Kafka topics.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _topics() -> None:
    pass


@app.command()
def create(
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of a new topic; 6 unless given. The cursor topic has one.")
    ] = None,
    replication_factor: Annotated[
        int | None,
        typer.Option(
            min=1, max=32767, help="Copies of a new topic; the broker's default.replication.factor unless given."
        ),
    ] = None,
) -> None:
    """Make the topics that are missing; of those that exist, say what differs, and change nothing."""
    settings = settings_for({"kafka_bootstrap_servers"})
    from sync_worker.operations.topics import create_topics  # noqa: PLC0415 - heavy, and not for --help

    reports = create_topics(settings, partitions, replication_factor)
    print_table(
        "Topics",
        ("topic", "setting", "", "partitions", "replicas"),
        [
            (report.name, report.setting, _word(report.created, report.differences), report.partitions, report.replicas)
            for report in reports
        ],
    )
    for report in reports:
        for difference in report.differences:
            warn(f"warning: {report.name}: {difference}; left as it is")


def _word(created: bool, differences: list[str]) -> str:
    if created:
        return "created"
    return "differs" if differences else "exists"
