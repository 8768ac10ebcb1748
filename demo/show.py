"""How the story looks: a heading, a sentence, and input, table and changes side by side, or below one another.

On a terminal a scene fills up as things happen; anywhere else it is plain text, printed once, without colours or cursor
tricks. Must never decide whether something is right.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from demo.check import in_words
from demo.observe import Change, Key, Tables, state_of

_SIDE_BY_SIDE: Final = 110
_PLAIN_WIDTH: Final = 120


@dataclass(slots=True)
class View:
    """What there is to see of a scene so far."""

    steps: list[list[str]] = field(default_factory=list)
    tables: Tables | None = None
    touched: Collection[Key] = ()
    changes: Sequence[Change] = ()
    dead_letters: Sequence[str] = ()
    settled: bool = False


class Screen:
    """Where the demo speaks. `pause_s` is how long a scene stands on a terminal before the next begins."""

    def __init__(self, stream: TextIO | None = None, *, pause_s: float = 0.5) -> None:
        stream = stream or sys.stdout
        self.terminal = stream.isatty()
        self._console = Console(
            file=stream,
            force_terminal=self.terminal,
            width=None if self.terminal or os.environ.get("COLUMNS") else _PLAIN_WIDTH,
            color_system="auto" if self.terminal else None,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._pause_s = pause_s if self.terminal else 0.0

    def say(self, text: str = "", style: str = "") -> None:
        """A paragraph."""
        self._console.print(Text(text, style))

    def command(self, text: str) -> None:
        """A line to be copied: never broken, however narrow the screen is."""
        self._console.print(Text(f"  {text}", "cyan"), soft_wrap=True)

    @contextmanager
    def scene(self, heading: str, why: str, view: View) -> Iterator[Callable[[], None]]:
        """Show a scene while it happens; `view` is what there is to see of it, as it is at each call of what this gives."""
        self._console.rule(Text(heading, "bold"), align="left", characters="-")
        self.say(why)
        if self.terminal:
            with Live(self._picture(view), console=self._console, auto_refresh=False) as live:
                yield lambda: live.update(self._picture(view), refresh=True)
            time.sleep(self._pause_s)
        else:
            try:
                yield lambda: None
            finally:  # what was seen before a failure says most about it
                self._console.print(self._picture(view))
        self.say()

    def _picture(self, view: View) -> RenderableType:
        parts = {
            "INPUT": _inputs(view),
            "TABLE": _tables(view),
            "EnrollmentChanged": _changes(view),
        }
        if self._console.width < _SIDE_BY_SIDE:
            return Group(
                *(Group(Text(name, "bold"), Padding(part, (0, 0, 1, 2), expand=False)) for name, part in parts.items())
            )
        beside = Table(box=box.SQUARE if self.terminal else box.ASCII, expand=True, pad_edge=True)
        for name, ratio in zip(parts, (34, 42, 40), strict=True):
            beside.add_column(name, ratio=ratio)
        beside.add_row(*parts.values())
        return beside


def _inputs(view: View) -> RenderableType:
    lines: list[RenderableType] = []
    for number, step in enumerate(view.steps):
        if number:
            lines.append(Text("then", "dim"))
        for shown in step:
            head, _, body = shown.partition("\n")
            lines += [Text(head, "cyan"), _indented(body)]
    return Group(*lines)


def _tables(view: View) -> RenderableType:
    if view.tables is None:
        return Text("...")
    parts: list[RenderableType] = []
    for course in sorted({course for course, _ in view.tables.rows}, reverse=True):
        enrollments = Table.grid(padding=(0, 1))
        for key, row in sorted(view.tables.rows.items()):
            if key[0] == course:
                mark, style = ("*", "bold") if key in view.touched else ("", "")
                cells = (mark, key[1], f"v{view.tables.versions[key]}", in_words(state_of(row)))
                enrollments.add_row(*(Text(cell, style) for cell in cells))
        parts += [Text(f"course_enrollment of {course}", "cyan"), enrollments]
    people: dict[tuple[str, str], list[str]] = defaultdict(list)
    for member in view.tables.members:
        people[member.group, "managed" if member.managed else "by hand"].append(member.person)
    groups = Table.grid(padding=(0, 1))
    for (group, how), names in sorted(people.items()):
        groups.add_row("", group, Text(how, "yellow" if how == "by hand" else ""), ", ".join(names))
    if people:
        parts += [Text("course_group_member", "cyan"), groups]
    return Group(*parts) if parts else Text("(no rows)")


def _changes(view: View) -> RenderableType:
    lines: list[RenderableType] = []
    for change in view.changes:
        course, person = change.key
        lines.append(Text(f"{person} {change.kind} v{change.version} ({course})", "green"))
        lines.append(_indented(f"{in_words(change.before)} -> {in_words(change.after)}"))
    for shown in view.dead_letters:
        head, _, body = shown.partition("\n")
        lines += [Text(head, "red"), _indented(body)]
    if not lines:
        lines.append(Text("(nothing)" if view.settled else "..."))
    return Group(*lines)


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)
