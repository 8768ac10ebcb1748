"""Documents whose commands are run as they stand, in order, and whose output is compared with what they show.

In a Markdown file, a block ```<language> file=NAME is a file in the reader's folder, and a block ```console holds commands
(`$ …`) with what they print: `…` stands for anything within a line, a line of `…` alone for any lines; widths of columns
don't count. A last line `^C` interrupts a command once it has printed what stands before. Nothing else may be needed to
follow the document than what it says, so nothing is done here but waiting where a reader would wait.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>[\w-]*)(?P<rest>.*)$")
_STYLE = re.compile("\x1b\\[[0-9;]*m")
COLUMNS = 150
INTERRUPT = "^C"
UNTIL_TIMEOUT_S = 180.0
# So often a command that only looks is run, until it finds what it is to find.
LOOKS = 5


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A file that the reader is asked to write."""

    name: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, and the lines that it is said to print."""

    text: str
    line: int
    expected: list[str] = field(default_factory=list)


def steps_of(document: Path) -> Iterator[FileBlock | Command]:
    """What a reader does, in order."""
    block: list[str] | None = None
    language = rest = ""
    start = 0
    for number, line in enumerate(document.read_text("utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if block is None and fence:
            block, language, rest, start = [], fence["language"], fence["rest"].strip(), number
        elif block is not None and line == "```":
            if rest.startswith("file="):
                yield FileBlock(rest.removeprefix("file="), "\n".join(block) + "\n", start)
            elif language == "console":
                yield from _commands(block, start)
            block = None
        elif block is not None:
            block.append(line)


def _commands(lines: list[str], start: int) -> Iterator[Command]:
    command: Command | None = None
    for number, line in enumerate(lines, start + 1):
        if line.startswith("$ "):
            if command is not None:
                yield command
            command = Command(line[2:], number)
        elif command is None:
            raise ValueError(f"line {number}: output without a command")
        else:
            command.expected.append(line)
    if command is not None:
        yield command


def follow(
    document: Path,
    folder: Path,
    environment: Mapping[str, str],
    *,
    instead: Mapping[str, Callable[[], None]],
    settle: Callable[[], None],
    looks: Collection[str] = (),
) -> int:
    """Do what the document says, in a folder; how many commands were run.

    instead: what to do for a command that doesn't end by itself, by its text. settle: called before each command, where a
    reader has read on meanwhile. looks: commands that only look, at what may be another thing while a worker stands still; a reader
    would look again. Raises AssertionError that shows where the document and the world differ.
    """
    commands = 0
    for step in steps_of(document):
        if isinstance(step, FileBlock):
            (folder / step.name).write_text(step.text, "utf-8")
            continue
        commands += 1
        if step.text in instead:
            instead[step.text]()
            continue
        goes_on = step.expected[-1:] == [INTERRUPT]
        expected = step.expected[:-1] if goes_on else step.expected
        for _ in range(LOOKS if step.text in looks else 1):
            settle()
            printed = run_on_a_terminal(step.text, folder, environment, until=expected if goes_on else None)
            if (problem := difference(expected, printed)) is None:
                break
        assert problem is None, f"{document.name}:{step.line}: $ {step.text}\n{problem}\n--- it printed\n" + "\n".join(
            printed
        )
    return commands


def run_on_a_terminal(
    command: str, folder: Path, environment: Mapping[str, str], until: list[str] | None = None
) -> list[str]:
    """What a shell command prints where stdout is a terminal, then what it said to stderr; trailing space removed.

    until: what it prints before it is interrupted, as somebody with Ctrl-C would; None: it ends by itself.
    """
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # no carriage returns
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    # A terminal without abilities would be taken to be 80 columns wide.
    shown = {**environment, "COLUMNS": str(COLUMNS), "TERM": "xterm", "NO_COLOR": "1"}
    output = b""
    with subprocess.Popen(
        # Where all this runs in the background, Ctrl-C is ignored, and so it would be by whatever is started here.
        ["env", "--default-signal=INT", "bash", "-c", command],
        cwd=folder,
        env=shown,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        said: list[bytes] = []
        assert process.stderr is not None
        stream = process.stderr
        reader = threading.Thread(target=lambda: said.append(stream.read()))
        reader.start()
        patience = threading.Timer(UNTIL_TIMEOUT_S, os.killpg, (process.pid, signal.SIGINT))
        if until is not None:
            patience.start()
        # Linux ends a terminal whose other end is closed with an error.
        with suppress(OSError):
            while part := os.read(ours, 65536):
                output += part
                if until is not None and difference(until, _lines(output)) is None:
                    os.killpg(process.pid, signal.SIGINT)
                    until = None
        patience.cancel()
        os.close(ours)
        reader.join()
    return _lines(output + said[0])


def _lines(output: bytes) -> list[str]:
    return [line.rstrip() for line in _STYLE.sub("", output.decode("utf-8", "replace")).splitlines()]


def difference(expected: list[str], printed: list[str]) -> str | None:
    """Where what was printed isn't what was expected; None where it is. Blank lines at either end don't count."""
    want, have = _trimmed([_same(line) for line in expected]), _trimmed([_same(line) for line in printed])
    n = 0
    for position, line in enumerate(want):
        if line.strip() == "…":
            following = want[position + 1] if position + 1 < len(want) else None
            if following is None:
                return None
            while n < len(have) and not _matches(following, have[n]):
                n += 1
            continue
        if n >= len(have):
            return f"expected: {line}\nprinted:  nothing more"
        if not _matches(line, have[n]):
            return f"expected: {line}\nprinted:  {have[n]}"
        n += 1
    return None if n == len(have) else f"expected: nothing more\nprinted:  {have[n]}"


def _matches(expected: str, printed: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in expected.split("…")), printed) is not None


def _same(line: str) -> str:
    """A line of a table without the widths of its columns, which follow from what differs each time."""
    return re.sub("─+", "─", re.sub(" +", " ", line)).strip()


def _trimmed(lines: list[str]) -> list[str]:
    start, end = 0, len(lines)
    while start < end and not lines[start]:
        start += 1
    while end > start and not lines[end - 1]:
        end -= 1
    return lines[start:end]
