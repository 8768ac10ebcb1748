"""`members import`: segments' members from a file. Words; the work is importing.py's and replacing.py's."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from sync_worker.cli.console import ERROR, FOUND, opened, say, settings_for, warn
from sync_worker.cli.progress import lines_of, progress_bar

if TYPE_CHECKING:
    from sync_worker.operations.members_file import Rejects
    from sync_worker.operations.replacing import Comparison
    from sync_worker.settings import Settings

app = typer.Typer(help="Members of segments, from files.", no_args_is_help=True, rich_markup_mode=None)

_NAMED: Final = 20
_MAX_VERSION: Final = 2**63 - 1


@app.callback()
def _group() -> None:
    """Members of segments, from files."""


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV: segment_id,user_id[,version]; - is stdin.", allow_dash=True)],
    replace: Annotated[
        UUID | None,
        typer.Option(metavar="SEGMENT", help="The file has all members of this segment: who isn't in it is removed."),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, max=_MAX_VERSION, help="The version of lines that give none. See above for the default."),
    ] = None,
    progress: Annotated[
        Path | None, typer.Option(help="Where to remember how far it has come. Default: FILE.progress.", dir_okay=False)
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Where to write lines that can't be used. Default: FILE.rejected.csv.", dir_okay=False),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="With --replace: the file may name nobody.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; exit code 3 if anything.")
    ] = False,
) -> None:
    """Publish members of segments as SegmentMemberAdded, from CSV with or without a header.

    A line that can't be used is named and written to FILE.rejected.csv, those after it are sent, and the exit code is 1.
    Interrupted or killed, the same command goes on behind what has arrived.

    The version of a line that gives none is the time of the import in microseconds, as for every publisher that doesn't count.
    One that counts must give its versions in the file, or say --version 1: later events of lower versions count for nothing.

    With --replace, only differences from what the workers know are sent, SegmentMemberRemoved for who isn't in the file. Their
    version is what stands plus one, so that whatever the publisher says next counts. Nobody is removed while a line
    is rejected, as it may name that person. Many removals may be held by the breaker: see `sync-worker holds list`.
    """
    if replace is not None and progress is not None:
        raise typer.BadParameter(
            "not with --replace, which needs none: run again, it sends what is still different", param_hint="--progress"
        )
    name = str(file)
    beside = None if name == "-" else file
    rejected = rejects or (beside and beside.with_name(f"{beside.name}.rejected.csv"))
    with opened(name) as stream:
        settings = settings_for({"kafka_bootstrap_servers"} | ({"database_url"} if replace else set()))
        with (
            _rejects(name, rejected) as refused,
            lines_of("reading" if replace else "importing", name, stream) as lines,
        ):
            if replace is not None:
                found = _replace(settings, refused, replace, version, lines, allow_empty=allow_empty, dry_run=dry_run)
            else:
                remembered = progress or (beside and beside.with_name(f"{beside.name}.progress"))
                found = _add(settings, refused, version, remembered, lines, dry_run=dry_run)
    if refused.count:
        where = f", see {rejected}" if rejected else ""
        warn(f"{refused.count} lines can't be used{where}")
        raise typer.Exit(ERROR)
    if dry_run and found:
        raise typer.Exit(FOUND)


def _add(
    settings: "Settings",
    rejects: "Rejects",
    version: int | None,
    progress: Path | None,
    lines: Iterator[bytes],
    *,
    dry_run: bool,
) -> int:
    from sync_worker.operations.importing import MemberImport  # noqa: PLC0415 - heavy, and not for --help

    members = MemberImport(settings, rejects, version, progress)
    if dry_run:
        count = members.check(lines)
        say(f"{count} would be sent")
        return count
    try:
        members.send(lines)
    finally:
        resumed = f", going on behind line {members.resumed_at}" if members.resumed_at else ""
        say(f"{members.sent} sent{resumed}")
    return members.sent


def _replace(
    settings: "Settings",
    rejects: "Rejects",
    segment: UUID,
    version: int | None,
    lines: Iterator[bytes],
    *,
    allow_empty: bool,
    dry_run: bool,
) -> int:
    from sync_worker.operations.replacing import Replacement  # noqa: PLC0415 - heavy, and not for --help

    with closing(Replacement(settings, rejects, segment, version)) as replacement:
        comparison = replacement.compare(lines, may_be_empty=allow_empty)
        _say_comparison(comparison)
        total = comparison.added + comparison.removed
        if not dry_run:
            try:
                with progress_bar("sending", total) as bar:
                    replacement.send(bar.advance)
            finally:
                say(f"{replacement.sent} of {total} sent")
        return total


def _say_comparison(comparison: "Comparison") -> None:
    say(
        f"the file names {comparison.named}, the segment has {comparison.members} members: {comparison.added} to be added,"
        f" {comparison.removed} to be removed"
    )
    if comparison.withheld:
        warn(
            f"{comparison.withheld} who aren't in the file stay, as a line that can't be used may name them; mend those lines, and"
            " run it again"
        )
    if 2 * comparison.removed > comparison.members:
        warn("more than half of the members are removed: the workers may hold that; `sync-worker holds list` tells")


@contextmanager
def _rejects(name: str, path: Path | None) -> Iterator["Rejects"]:
    """Names the first lines that can't be used on stderr; the file has all."""
    from sync_worker.operations.members_file import Rejects  # noqa: PLC0415 - heavy, and not for --help

    shown = "stdin" if name == "-" else name
    named = 0

    def note(number: int, reason: str) -> None:
        nonlocal named
        named += 1
        if path is None or named <= _NAMED:
            warn(f"{shown}:{number}: {reason}")

    with Rejects(path, note) as rejects:
        yield rejects
