"""Which page is made by what, and which of them no longer say what the code says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs.generate import cli, metrics, schemas, settings

FOLDER: Final = Path(__file__).parents[1] / "reference"
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings.page,
    "metrics.md": metrics.page,
    "cli.md": cli.page,
    "schemas.md": schemas.page,
}


def stale() -> dict[str, str]:
    """The pages that differ, by name, with what they should be."""
    made = {name: make() for name, make in PAGES.items()}
    return {name: text for name, text in made.items() if _present(name) != text}


def _present(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text("utf-8") if path.is_file() else None
