"""`dlq list`, `dlq show` and `dlq replay`. Words and tables; the work is dead_letters.py's, inspecting.py's and replaying.py's."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sync_worker.cli.console import ERROR, FOUND, print_json, print_table, reader_gone, say, settings_for, warn
from sync_worker.cli.dead_letters import document_of, entry_of, print_document, shown_origin, text_of_bytes
from sync_worker.errors import RejectionReason

if TYPE_CHECKING:
    from sync_worker.operations.dead_letters import Selection
    from sync_worker.operations.replaying import Replay, Skipped

app = typer.Typer(
    help="Records that can never be applied: look at them, send them back.", no_args_is_help=True, rich_markup_mode=None
)

_NEEDED: Final = {"kafka_bootstrap_servers", "database_url"}
_SHOWN: Final = 100
_NAMED: Final = 20
_Reasons = Annotated[list[RejectionReason] | None, typer.Option("--reason", help="Only these; may be given again.")]
_Topics = Annotated[list[str] | None, typer.Option("--topic", help="Only from this input topic; may be given again.")]
_Since = Annotated[str, typer.Option(help="Only rejected at or after this time, as 2026-01-31T12:00:00Z.")]
_Until = Annotated[str, typer.Option(help="Only rejected before this time.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON, stable.")]


@app.command("list")
def list_(
    reason: _Reasons = None,
    topic: _Topics = None,
    since: _Since = "",
    until: _Until = "",
    limit: Annotated[
        int | None, typer.Option(min=0, help=f"Only the newest so many; 0 is all. Default: {_SHOWN}, with --json all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines by partition and offset, stable.")] = False,
) -> None:
    """Count the dead letters by reason and topic, and list them."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.dead_letters import DeadLetters  # noqa: PLC0415 - heavy, and not for --help

    letters = DeadLetters(settings)
    replayed = letters.replayed()
    counts: Counter[tuple[str, str]] = Counter()

    def entries() -> Iterable[dict[str, Any]]:
        for letter in letters.find(_selection(reason, topic, since, until)):
            counts[letter.reason, letter.origin.topic if letter.origin else ""] += 1
            yield entry_of(letter, replayed.get(letter.address))

    if as_json:
        kept = _newest(entries(), limit) if limit else entries()
        try:
            for entry in sorted(kept, key=_place) if limit else kept:
                print_json(entry)
        except BrokenPipeError:
            reader_gone()
        return
    newest = sorted(_newest(entries(), _SHOWN if limit is None else limit), key=_time)
    if not counts:
        say("no dead letters")
        return
    print_table("Dead letters", ("reason", "topic", "records"), [(*key, n) for key, n in sorted(counts.items())])
    print_table(
        "The newest" if len(newest) < counts.total() else "All of them",
        ("address", "rejected at", "reason", "from", "key", "bytes", "sent back", "detail"),
        [
            (
                entry["address"],
                entry["rejected_at"],
                entry["reason"],
                shown_origin(entry["from"]),
                entry["key"],
                entry["value_bytes"],
                entry["replayed_at"],
                entry["detail"],
            )
            for entry in newest
        ],
    )
    say("`sync-worker dlq show ADDRESS` shows one; `sync-worker dlq replay …` sends them back")


@app.command()
def show(address: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET")], as_json: _Json = False) -> None:
    """Show one dead letter: all its headers, what can be read of it, the place where that ends, and what to do."""
    settings = settings_for(_NEEDED)
    from sync_worker.operations.dead_letters import Address, DeadLetters, Selection  # noqa: PLC0415 - as above
    from sync_worker.operations.inspecting import Inspector, hexdump  # noqa: PLC0415 - as above

    letters = DeadLetters(settings)
    (letter,) = letters.find(Selection(addresses=(Address.parse(address),)))
    whole = letters.whole(letter)
    inspection = None
    if whole is not None and whole.value is not None and whole.origin is not None:
        inspection = Inspector(settings).inspect(whole.origin.topic, whole.value, whole.headers)
    document = document_of(letter, whole or letter, letters.replayed().get(letter.address), inspection)
    if inspection is not None and inspection.flaw is not None and whole is not None:
        document["flaw"]["bytes"] = hexdump(whole.value or b"", inspection.flaw)
    if as_json:
        print_json(document, indent=2)
    else:
        print_document(document)


@app.command()
def replay(
    addresses: Annotated[list[str] | None, typer.Argument(metavar="PARTITION:OFFSET …", help="These alone.")] = None,
    reason: _Reasons = None,
    topic: _Topics = None,
    since: _Since = "",
    until: _Until = "",
    every: Annotated[bool, typer.Option("--all", help="All that the topic holds.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent back before.")] = False,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Also those that would be rejected again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; exit code 3 if anything.")
    ] = False,
) -> None:
    """Send dead letters back to the topics they came from, each once: key, value and headers as they were.

    One header is added, dlq_replayed_from = TOPIC/PARTITION/OFFSET of the dead letter. Mend first what they were rejected
    for: what this version with these settings would only reject again is named and stays. A version conflict, which only the
    facts can tell, comes back as another dead letter.
    """
    chosen = tuple(addresses or ())
    filters = bool(reason or topic or since or until)
    if bool(chosen) + filters + every != 1:
        raise typer.BadParameter(
            "give addresses, or --reason, --topic, --since, --until, or --all", param_hint="dlq replay"
        )
    settings = settings_for(_NEEDED)
    from sync_worker.operations.replaying import Replay, Replaying  # noqa: PLC0415 - heavy, and not for --help

    replaying = Replaying(settings, again=again, unchecked=unchecked)
    plan = replaying.plan(_selection(reason, topic, since, until, chosen))
    skipped = _Skips()
    if dry_run:
        found = [each for each in plan if not skipped.take(each)]
        columns = ("address", "reason", "to", "key", "bytes")
        rows = [
            (each.address, each.reason, each.topic, text_of_bytes(each.key), len(each.value))
            for each in found
            if isinstance(each, Replay)
        ]
        print_table("Would be sent back", columns, rows)
        skipped.say()
        raise typer.Exit(FOUND if rows else ERROR if skipped.impossible else 0)
    try:
        with closing(replaying.replay(plan)) as done:
            for each in done:
                skipped.take(each)
    finally:
        sent = ", ".join(f"{count} {name}" for name, count in sorted(replaying.sent.items()))
        say(f"{replaying.sent.total()} sent back{f' ({sent})' if sent else ''}")
        skipped.say()
    if skipped.impossible:
        raise typer.Exit(ERROR)


class _Skips:
    """What is not sent, for the words at the end."""

    def __init__(self) -> None:
        self.before = 0
        self.impossible = 0

    def take(self, each: "Replay | Skipped") -> bool:
        """Whether it is one that isn't sent; the first of those that can't be are named at once."""
        from sync_worker.operations.replaying import Skipped  # noqa: PLC0415 - heavy, and not for --help

        if not isinstance(each, Skipped):
            return False
        if each.replayed_at is not None:
            self.before += 1
            return True
        self.impossible += 1
        if self.impossible <= _NAMED:
            warn(f"{each.address}: {each.why}")
        return True

    def say(self) -> None:
        if self.before:
            say(f"{self.before} were sent back before and are left out; --again sends them once more")
        if self.impossible:
            more = f", the first {_NAMED} of them named above" if self.impossible > _NAMED else ""
            say(f"{self.impossible} can't be sent back{more}")


def _selection(
    reasons: Collection[str] | None,
    topics: Collection[str] | None,
    since: str,
    until: str,
    addresses: Collection[str] = (),
) -> "Selection":
    from sync_worker.operations.dead_letters import Address, Selection, moment_ms  # noqa: PLC0415 - as above

    return Selection(
        tuple(Address.parse(each) for each in addresses),
        frozenset(str(each) for each in reasons or ()),
        frozenset(topics or ()),
        moment_ms(since) if since else None,
        moment_ms(until) if until else None,
    )


def _newest(entries: Iterable[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The newest so many, 0 for all; no more are held in memory."""
    return heapq.nlargest(limit, entries, key=_time) if limit else list(entries)


def _time(entry: Mapping[str, Any]) -> tuple[str, int, int]:
    return entry["rejected_at"], *_place(entry)


def _place(entry: Mapping[str, Any]) -> tuple[int, int]:
    return entry["partition"], entry["offset"]
