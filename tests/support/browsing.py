"""A real Chromium for the tests of the page, and for its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from devstack.browser import find_browser

# Nothing that the browser does by itself is wanted here; as root it has no sandbox.
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--font-render-hinting=none", "--hide-scrollbars",
]  # fmt: skip


@contextmanager
def browsing() -> Iterator[Browser]:
    """The browser, started; DevstackError says what to do where there is none."""
    found = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(found.program),
            args=_ARGUMENTS,
            env={**os.environ, **found.environment},
            timeout=120_000,
        )
        try:
            yield browser
        finally:
            browser.close()
