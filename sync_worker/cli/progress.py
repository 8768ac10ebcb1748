"""Progress bars, on stderr and on a terminal only. Must never hold up what they show, nor change it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Bar:
    """How far something has come. `show` is told that number; without a terminal it is nobody."""

    def __init__(self, show: Callable[[int], object]) -> None:
        self._show = show
        self._done = 0

    def reach(self, done: int) -> None:
        """So much is done by now, of the total."""
        self._done = done
        self._show(done)

    def advance(self, steps: int) -> None:
        """So much more is done."""
        self.reach(self._done + steps)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Bar]:
    """A bar that ends at `total`. Without a terminal, or with nothing to do, none is shown."""
    if not (total and sys.stderr.isatty()):
        yield Bar(lambda _: None)
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield Bar(lambda done: shown.update(task, completed=done))


@contextmanager
def lines_of(what: str, name: str, stream: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """The lines of an opened file, with a bar by its bytes; stdin, `-`, has none, as nobody knows its size."""
    size = Path(name).stat().st_size if name != "-" else 0
    with progress_bar(what, size) as bar:

        def lines() -> Iterator[bytes]:
            for line in stream:
                yield line
                bar.advance(len(line))

        yield lines()
