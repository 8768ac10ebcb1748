"""`reconcile`: each difference between what is and what the facts say, and what became of it. The work is operations/reconciling.py's."""

import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from sync_worker.cli.console import ERROR, FOUND, print_json, print_table, say, settings_for, warn
from sync_worker.cli.progress import progress_bar
from sync_worker.errors import RetryableError
from sync_worker.events import text_of

if TYPE_CHECKING:
    from sync_worker.operations.reconciling import Reconciliation
    from sync_worker.operations.tally import Counts, Finding

_SHOWN: Final = 200
_ADVICE: Final = {
    "unknown_method": "nothing is known of these methods, not even that they were deleted: let enrollment.methods be read again "
    "(`positions reset --to earliest --topic …`), or publish them with deleted = true; then reconcile again",
    "version_went_back": "their versions are below what consumers know: `sync-worker relay adopt`, with the workers stopped",
    "unreadable": "their column `sources` is no object: set it to '{}' by hand, then reconcile again",
}


def reconcile(
    course: Annotated[UUID | None, typer.Option(help="Only this course.")] = None,
    segment: Annotated[UUID | None, typer.Option(help="Only methods of this segment.")] = None,
    method: Annotated[UUID | None, typer.Option(help="Only this method.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report; 3 if there is anything to report.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew where a run was interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, stable (docs/reference/reconcile.md).")] = False,
) -> None:
    """Compare enrollments with what memberships, methods and other sources say, and repair what differs.

    Workers may run beside it. Repairs go the way of events, with the cause RECONCILE. A run that was interrupted within the
    last day goes on where it stopped. What the facts can't settle is reported, and the exit code is 1 then.
    """
    settings = settings_for({"database_url"} if dry_run else {"database_url", "kafka_bootstrap_servers"})
    from sync_worker.enrollment.reconcile import Scope  # noqa: PLC0415 - heavy, and not for --help
    from sync_worker.operations.reconciling import Reconciliation  # noqa: PLC0415 - as above

    started = time.monotonic()
    shown: list[Finding] = []
    more = 0

    def report(finding: "Finding") -> None:
        nonlocal more
        if as_json:
            print_json({"type": "difference", **_document(finding)})
        elif len(shown) < _SHOWN:
            shown.append(finding)
        else:
            more += 1

    scope = Scope(course, segment, method)
    with closing(Reconciliation(settings, scope, dry_run=dry_run, restart=restart)) as run:
        if run.resumed is not None:
            warn(f"going on where a run stopped at {run.resumed.isoformat(timespec='seconds')}; --restart begins anew")
        try:
            with progress_bar("reconciling", run.total()) as bar:
                counts = run.run(report, bar.reach)
        except RetryableError as error:
            again = "run it again" if dry_run else "run it again, it goes on where it stopped"
            raise RetryableError(f"{error}; {again}") from error
    if as_json:
        ids = {"course_id": course, "segment_id": segment, "method_id": method}
        print_json(_summary(run, counts, ids, dry_run=dry_run, seconds=time.monotonic() - started))
    else:
        _show(shown, more, counts)
    if dry_run and counts.left:
        raise typer.Exit(FOUND)
    if counts.left:
        for kind in (kind for kind in counts.found if kind in _ADVICE):
            warn(f"{counts.found[kind]} {kind}: {_ADVICE[kind]}")
        warn(f"{counts.left} differences are still there")
        raise typer.Exit(ERROR)


def _document(finding: "Finding") -> dict[str, Any]:
    difference = finding.difference
    return {
        "kind": difference.kind.value,
        "course_id": text_of(difference.key.course),
        "user_id": text_of(difference.key.user),
        "source": difference.key.source or None,
        "is": difference.now,
        "should_be": difference.should_be,
        "repaired": finding.repaired,
    }


def _summary(
    run: "Reconciliation", counts: "Counts", ids: Mapping[str, UUID | None], *, dry_run: bool, seconds: float
) -> dict[str, Any]:
    return {
        "type": "summary",
        "scope": {name: None if id_ is None else str(id_) for name, id_ in ids.items()},
        "dry_run": dry_run,
        "resumed": run.resumed is not None,
        "looked_at": counts.looked_at,
        "found": dict(sorted(counts.found.items())),
        "repaired": dict(sorted(counts.repaired.items())),
        "left": counts.left,
        "events": counts.events,
        "pending": counts.pending,
        "not_known_by_facts": {"suspended_contributions": counts.suspended, "hand_made_groups": counts.hand_made},
        "seconds": round(seconds, 3),
    }


def _show(shown: list["Finding"], more: int, counts: "Counts") -> None:
    # Lines, not a table: a terminal would cut the ids short.
    for finding in shown:
        say(_line(finding))
    if more:
        say(f"and {more} more; --json lists each")
    print_table(
        "Compared",
        ("what", "number"),
        [
            ("looked at", counts.looked_at),
            *((f"found {kind}", number) for kind, number in sorted(counts.found.items())),
            ("repaired", counts.repaired.total()),
            ("events", counts.events),
            ("not looked at: a backfill is pending", counts.pending),
            ("SUSPENDED by the past, which no fact knows", counts.suspended),
            ("groups by hand, which no fact knows", counts.hand_made),
        ],
    )
    if not counts.found:
        say("everything is as the facts say")


def _line(finding: "Finding") -> str:
    row = _document(finding)
    where = f"{row['kind']}: user {row['user_id']} in course {row['course_id']}"
    if row["source"] is not None:
        where += f" by {row['source']}: {_shown(row['is'])}, should be {_shown(row['should_be'])}"
    return where + {None: "", True: "; repaired", False: "; still there"}[finding.repaired]


def _shown(contribution: Any) -> str:
    if contribution is None:
        return "nothing"
    if isinstance(contribution, Mapping):
        return " ".join(
            f"{name}={str(part).lower() if isinstance(part, bool) else part}"
            for name, part in sorted(contribution.items())
        )
    return str(contribution)
