"""`python -m tests.support.screenshots`: a picture of the page in each state, for docs/images (`make screenshots`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser

from tests.support.browsing import browsing
from tests.support.scenes import SCENES, Scene, served

FOLDER = Path(__file__).parents[2] / "docs" / "images"
Scheme = Literal["light", "dark"]
# Each state once as it is read at a desk; where a phone or the dark shows something else, that too.
PICTURES: tuple[tuple[str, Scheme, int], ...] = (
    ("quiet", "light", 1120),
    ("quiet", "dark", 1120),
    ("quiet", "light", 360),
    ("busy", "light", 1120),
    ("busy", "dark", 360),
    ("backfill", "light", 1120),
    ("outage", "light", 1120),
    ("outage", "dark", 360),
    ("hold", "light", 1120),
    ("hold", "light", 360),
    ("stopped", "dark", 1120),
)


def take(browser: Browser, scene: Scene, scheme: Scheme, width: int, target: Path) -> None:
    """The whole page, at twice the resolution on a phone."""
    phone = width < 600
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 640}, device_scale_factor=2 if phone else 1
    )
    with served(scene) as told:
        page = context.new_page()
        page.goto(told.url)
        page.screenshot(path=target, full_page=True)
    context.close()
    # A third of the bytes, and nobody sees it.
    Image.open(target).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        for state, scheme, width in PICTURES:
            name = f"page-{state}" + ("-dark" if scheme == "dark" else "") + ("-phone" if width < 600 else "")
            take(browser, SCENES[state], scheme, width, FOLDER / f"{name}.png")
            sys.stdout.write(f"docs/images/{name}.png\n")


if __name__ == "__main__":
    main()
