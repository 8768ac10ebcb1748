"""What all commands share: settings and logs at the start, errors as exit codes at the end, and tables between.

Must never show a traceback for an error that was expected, nor a secret for any. Tables and colour are for terminals;
elsewhere the same comes as plain lines with tabs.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import typer

from sync_worker.errors import SettingsError, SyncWorkerError
from sync_worker.service.redaction import Redactor

if TYPE_CHECKING:
    from sync_worker.settings import Settings

ERROR: Final = 1
USAGE: Final = 2
FOUND: Final = 3
_INTERRUPTED: Final = 130  # typer's, not one of the contract's

_redactor = Redactor()


def run(command: Callable[[], object]) -> int:
    """Run the command line; its exit code (contract §5), with a word to stderr where that isn't 0."""
    try:
        command()
    except SettingsError as error:
        return _failed(str(error), USAGE)
    except SyncWorkerError as error:
        return _failed(str(error), ERROR)
    except SystemExit as end:  # typer's way to end, of wrong usage (2) and an interrupt (130), too
        return _failed("interrupted", ERROR) if end.code == _INTERRUPTED else int(end.code or 0)
    except Exception:  # noqa: BLE001 - the outermost border: a defect, told with its traceback but without secrets
        sys.stderr.write(_redactor.text(traceback.format_exc()))
        return _failed("this is a defect of sync-worker; please report it with the lines above", ERROR)
    return 0


def settings_for(require: Collection[str], *, kafka_logs: bool = False) -> "Settings":
    """The settings that a command needs, with logs set up by them; `kafka_logs` shows what librdkafka says."""
    from sync_worker.service.logging import configure  # noqa: PLC0415 - not for --help
    from sync_worker.settings import Settings  # noqa: PLC0415 - as above

    global _redactor  # noqa: PLW0603 - the one state of the command line: what its last words must not show
    settings = Settings.load(require)
    secrets = settings.secrets()
    _redactor = Redactor(secrets)
    configure(settings.log_level, settings.log_format, secrets, kafka=kafka_logs)
    return settings


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """A file to be read, or stdin for `-`. A file that can't be read is wrong usage."""
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise typer.BadParameter(f"{name} can't be read: {error.strerror}", param_hint="FILE") from error
        yield stream


def say(text: str) -> None:
    """A line of the result, to stdout."""
    sys.stdout.write(_redactor.line(text) + "\n")


def warn(text: str) -> None:
    """A line about the result, to stderr."""
    sys.stderr.write(_redactor.line(text) + "\n")


def print_json(document: Mapping[str, Any], *, indent: int | None = None) -> None:
    """A document to stdout at once; ASCII only, so that no name in it can steer a terminal."""
    sys.stdout.write(json.dumps(document, indent=indent, default=str) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal, else lines with tabs under a line of names. None is shown as a dash."""
    cells = [[_redactor.line("-" if cell is None else str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        lines = ["\t".join(columns), *("\t".join(row) for row in cells)]
        sys.stdout.write(f"{title}\n" + "\n".join(lines) + "\n\n")
        return
    from rich import box  # noqa: PLC0415 - only on a terminal
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def reader_gone() -> None:
    """Whoever read stdout has seen enough (`| head`): drop what is still buffered, or it fails once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(message: str, code: int) -> int:
    lines = _redactor.text(message).splitlines() or ["failed"]
    sys.stderr.write("\n".join(_redactor.line(line) for line in ["error: " + lines[0], *lines[1:]]) + "\n")
    return code
