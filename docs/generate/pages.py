"""Which page or picture is made by what, and which of them no longer say what the code says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs.generate import cli, metrics, pictures, schemas, settings

FOLDER: Final = Path(__file__).parents[1]
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/settings.md": settings.page,
    "reference/metrics.md": metrics.page,
    "reference/cli.md": cli.page,
    "reference/schemas.md": schemas.page,
    "images/architecture.svg": pictures.architecture,
    "images/exactly-once.svg": pictures.exactly_once,
}


def stale() -> dict[str, str]:
    """The files that differ, by their path in docs/, with what they should be."""
    made = {name: make() for name, make in PAGES.items()}
    return {name: text for name, text in made.items() if _present(name) != text}


def _present(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text("utf-8") if path.is_file() else None
