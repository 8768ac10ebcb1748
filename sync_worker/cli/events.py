"""`publish` and `tail`: events as JSON lines, in and out. The work is producing.py's and tailing.py's."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from sync_worker.cli.console import ERROR, opened, print_json, reader_gone, settings_for, warn
from sync_worker.cli.progress import lines_of


def publish(
    file: Annotated[Path | None, typer.Argument(help="JSON lines; - or nothing is stdin.", allow_dash=True)] = None,
    progress: Annotated[
        Path | None,
        typer.Option(help="Remember in this file how far it has come, and go on there when run again.", dir_okay=False),
    ] = None,
) -> None:
    """Send JSON lines to the input topics, as {"type": "SegmentMemberAdded", "segment_id": …, "user_id": …}.

    event_id, occurred_at and version are filled in where they are missing. A bad line is named as FILE:LINE on stderr,
    the lines after it are sent, and the exit code is 1.

    With --progress an interrupted or killed run, started again with the same FILE, goes on behind the lines that have
    arrived; what it sends twice is the same event. The file is removed when all is done.
    """
    name = "-" if file is None else str(file)
    with opened(name) as stream:
        settings = settings_for({"kafka_bootstrap_servers"})
        from sync_worker.operations.producing import Publisher  # noqa: PLC0415 - heavy, and not for --help

        shown = "stdin" if name == "-" else name
        publisher = Publisher(settings, lambda number, fault: warn(f"{shown}:{number}: {fault}"), progress)
        try:
            with lines_of("publishing", name, stream) as lines:
                publisher.publish(lines)
        finally:
            counts = {"not delivered": publisher.undelivered, "invalid": publisher.invalid}
            bad = "".join(f", {count} {what}" for what, count in counts.items() if count)
            warn(f"{publisher.published} published{bad}")
    if publisher.invalid or publisher.undelivered:
        raise typer.Exit(ERROR)


def tail(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start at the first record kept.")] = False,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the end as it was at the start; else go on until interrupted.")
    ] = False,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Read dead letters: their dlq_ headers; key and value as base64.")
    ] = False,
) -> None:
    """Show EnrollmentChanged as JSON lines, committed ones only, from now on.

    Fields are named as in Avro; occurred_at is ISO 8601 text instead of microseconds. An erased key is shown as
    {"type": "Tombstone", …}. Lines of one key come in their order. A record that can't be read is named on stderr,
    and the exit code is 1 then.
    """
    settings = settings_for({"kafka_bootstrap_servers"}, kafka_logs=True)
    from sync_worker.operations.tailing import Fault  # noqa: PLC0415 - heavy, and not for --help
    from sync_worker.operations.tailing import tail as read  # noqa: PLC0415 - as above

    faults = 0
    found = read(settings, dead_letters=dead_letters, from_beginning=from_beginning, until_end=until_end)
    try:
        with closing(found):
            for one in found:
                if isinstance(one, Fault):
                    faults += 1
                    warn(f"{one.where}: {one.why}")
                else:
                    print_json(one)
    except KeyboardInterrupt:  # how one ends it
        pass
    except BrokenPipeError:
        reader_gone()
    if faults:
        raise typer.Exit(ERROR)
