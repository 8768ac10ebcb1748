"""`migrate`. Words only; the work is database/migrate.py's."""

from typing import Annotated

import typer

from sync_worker.cli.console import say, settings_for, warn


def migrate(
    pre: Annotated[
        bool,
        typer.Option(
            "--pre", help="Only what workers of the version before can go on beside; the rest once they are gone."
        ),
    ] = False,
) -> None:
    """Make or upgrade the database schema, as its owner; may run again and again."""
    settings = settings_for({"database_url"})
    from sync_worker.database.migrate import migrate as bring_up  # noqa: PLC0415 - heavy, and not for --help

    report = bring_up(settings.database_url.get_secret_value(), pre=pre)
    if report.before == report.after:
        say(f"schema sync_worker is at revision {report.after}, nothing to do")
    else:
        say(f"schema sync_worker: revision {report.before or 'none'} -> {report.after}")
    if report.roles:
        say(f"roles granted: {', '.join(report.roles)}")
    if report.roles_missing:
        warn(
            f"roles not made, as this user may not: {', '.join(report.roles_missing)}; "
            "only needed where worker, readers and group editors are users of their own"
        )
