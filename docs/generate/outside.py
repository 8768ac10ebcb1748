"""`python -m docs.generate.outside SITE`: what the pages of the built site would fetch from elsewhere; exit code 1 if anything.

Links that a reader follows are no matter; scripts, styles, pictures and fonts are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_ELSEWHERE = re.compile(r"^(https?:)?//")
_IN_STYLE = re.compile(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(_FETCHED.get(tag, "")) or ""
        if _ELSEWHERE.match(address):
            self.found.append(address)


def fetched_from_elsewhere(site: Path) -> Iterator[tuple[Path, str]]:
    """The file, and the address."""
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text("utf-8"))
        yield from ((path, address) for address in page.found)
    for path in sorted(site.rglob("*.css")):
        yield from ((path, address) for address in _IN_STYLE.findall(path.read_text("utf-8")))


def main() -> int:
    """The exit code."""
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        sys.stderr.write(f"{site} holds no index.html: build the site first\n")
        return 2
    found = list(fetched_from_elsewhere(site))
    for path, address in found:
        sys.stderr.write(f"{path}: fetches {address}\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
