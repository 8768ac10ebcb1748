"""`publish` and `tail`: events as JSON lines, in and out. The work is producing.py's and tailing.py's."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from sync_worker.cli.console import ERROR, print_json, reader_gone, settings_for, warn


def publish(
    file: Annotated[Path | None, typer.Argument(help="JSON lines; - or nothing is stdin.", allow_dash=True)] = None,
) -> None:
    """Send JSON lines to the input topics, as {"type": "SegmentMemberAdded", "segment_id": …, "user_id": …}.

    event_id, occurred_at and version are filled in where they are missing. A bad line is named as FILE:LINE on stderr,
    the lines after it are sent, and the exit code is 1.
    """
    name = "-" if file is None else str(file)
    with _opened(name) as stream:
        settings = settings_for({"kafka_bootstrap_servers"})
        from sync_worker.operations.producing import Publisher  # noqa: PLC0415 - heavy, and not for --help

        shown = "stdin" if name == "-" else name
        publisher = Publisher(settings, lambda number, fault: warn(f"{shown}:{number}: {fault}"))
        try:
            with _progress(name, stream) as lines:
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


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise typer.BadParameter(f"{name} can't be read: {error.strerror}", param_hint="FILE") from error
        yield stream


@contextmanager
def _progress(name: str, stream: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """The lines of the stream, with a bar for a file on a terminal."""
    size = Path(name).stat().st_size if name != "-" else 0
    if not (size and sys.stderr.isatty()):
        yield iter(stream)
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("publishing", total=size)

        def lines() -> Iterator[bytes]:
            for line in stream:
                yield line
                bar.advance(task, len(line))

        yield lines()
