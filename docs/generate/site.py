"""What MkDocs does beside Markdown: a block that is a file in the reader's folder (```json file=NAME) shows its name.

It runs in the environment of the site alone, so it must import nothing of the project.
"""

import re
from typing import Any

_FILE = re.compile(r"^```(\S+) file=(\S+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The Markdown of a page, as MkDocs calls for it."""
    return _FILE.sub(r'```\1 title="\2"', markdown)
