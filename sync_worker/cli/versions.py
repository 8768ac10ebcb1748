"""`versions show`, `versions find` and `versions lower`. Words and tables; the work is operations/versions.py's."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sync_worker.cli.asking import ask
from sync_worker.cli.console import ERROR, FOUND, print_json, print_table, say, settings_for, warn
from sync_worker.errors import FatalError, SettingsError
from sync_worker.operations.entities import Kind, key_of

if TYPE_CHECKING:
    from sync_worker.operations.versions import Standing, Versions

app = typer.Typer(
    help="What version an entity stands at, and lowering one that takes no event any more.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_NEEDED: Final = {"database_url"}
_SHOWN_AT_MOST: Final = 50


_KIND = typer.Argument(metavar="KIND", help="What the version is of.")
_IDS: Final = "membership: SEGMENT USER; method: METHOD; source: COURSE USER NAME; suspension: COURSE USER."
_JSON = typer.Option("--json", help="As JSON, stable.")


@app.command()
def show(
    kind: Annotated[Kind, _KIND],
    ids: Annotated[list[str], typer.Argument(metavar="ID", help=_IDS)],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """The newest version of an entity, and the event that said it. Events of a version that isn't higher change nothing."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.versions import Versions, absurd_from  # noqa: PLC0415 - heavy, and not for --help

    standing = _known(Versions(settings), kind, ids)
    absurd = standing.version > absurd_from(datetime.now(UTC))
    if as_json:
        print_json({**_document(standing), "absurd": absurd}, indent=2)
        return
    _print_standings("Stored", [standing])
    if absurd:
        say("this version is beyond the time in microseconds; `versions lower` lets the publisher's next event through")


@app.command()
def find(
    kind: Annotated[Kind | None, _KIND] = None,
    above: Annotated[
        int | None, typer.Option(min=0, help="Versions above this; unless given, the time in microseconds, and a day.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Entities with a version that can't be meant. Reads whole tables, and holds nobody up."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.versions import FOUND_AT_MOST, Versions, absurd_from  # noqa: PLC0415 - as above

    limit = absurd_from(datetime.now(UTC)) if above is None else above
    versions = Versions(settings)
    found = {name: versions.find(name, limit) for name in ([kind] if kind else Kind)}
    standings = [standing for each in found.values() for standing in each]
    if as_json:
        print_json({"above": limit, "entities": [_document(standing) for standing in standings]}, indent=2)
    elif standings:
        _print_standings(f"Above {limit}", standings)
    else:
        say(f"no version is above {limit}")
    for name, each in found.items():
        if len(each) == FOUND_AT_MOST:
            warn(f"there may be more than these {FOUND_AT_MOST} of kind {name}")


@app.command()
def lower(
    kind: Annotated[Kind, _KIND],
    to: Annotated[int, typer.Option(min=0, help="The version to set; the publisher's next must be higher.")],
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help=f"{_IDS} Or none, with --above.")] = None,
    above: Annotated[
        int | None, typer.Option(min=0, help="Instead of ids: every entity of the kind whose version is above this.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; exit code 3 if there is anything to do.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Let an entity take events again whose publisher once sent an absurdly high version. On record, in `intervention`.

    What that version said stays until the next event. Choose the last version that was meant: the publisher's next is
    higher then, and what is read again from before is still stale. The same version with other content stays a conflict.
    """
    if (above is None) == (not ids):
        raise SettingsError("give the ids of one entity, or --above for all that are above a version")
    settings = settings_for(_NEEDED)
    from sync_worker.operations.versions import Versions  # noqa: PLC0415 - as above

    versions = Versions(settings)
    standings = _chosen(versions, kind, ids or (), to) if above is None else versions.find(kind, max(above, to))
    if standings and not as_json:
        _print_standings(f"{'Would be' if dry_run else 'To be'} lowered to {to}", standings)
    lowered: list[Standing] = []
    if standings and not dry_run:
        ask(f"Lower {len(standings)} to {to}?", yes=yes)
        for some in versions.lower(standings, to):
            lowered += some
    if as_json:
        documents = [_document(each) for each in (standings if dry_run else lowered)]
        print_json({"dry_run": dry_run, "to": to, "lowered": documents}, indent=2)
    elif not dry_run:
        say(f"{len(lowered)} lowered to {to}")
    if dry_run and standings:
        raise typer.Exit(FOUND)
    if not dry_run and len(lowered) < len(standings):
        warn(f"{len(standings) - len(lowered)} left alone: an event was applied to them meanwhile")
        raise typer.Exit(ERROR)


def _chosen(versions: "Versions", kind: Kind, ids: Sequence[str], to: int) -> "list[Standing]":
    standing = _known(versions, kind, ids)
    if standing.version <= to:
        raise SettingsError(f"--to {to}: the stored version is {standing.version}, and versions are only lowered")
    return [standing]


def _known(versions: "Versions", kind: Kind, ids: Sequence[str]) -> "Standing":
    standing = versions.show(kind, key_of(kind, ids))
    if standing is None:
        raise FatalError(
            f"nothing was ever said of {kind} {' '.join(ids)}: no version is in the way of its first event"
        )
    return standing


def _print_standings(title: str, standings: "Sequence[Standing]") -> None:
    rows = [
        (each.kind, " ".join(each.ids.values()), each.version, each.event_id, each.occurred_at)
        for each in standings[:_SHOWN_AT_MOST]
    ]
    print_table(title, ("kind", "ids", "version", "event", "occurred at"), rows)
    if len(standings) > _SHOWN_AT_MOST:
        say(f"and {len(standings) - _SHOWN_AT_MOST} more; --json shows all")


def _document(standing: "Standing") -> dict[str, Any]:
    return {
        "kind": standing.kind,
        **standing.ids,
        "version": standing.version,
        "event_id": standing.event_id,
        "occurred_at": standing.occurred_at and standing.occurred_at.isoformat(),
    }
