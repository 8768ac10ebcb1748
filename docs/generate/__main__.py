"""`python -m docs.generate` writes the pages that differ from the code; `--check` names them and ends with 3."""

from __future__ import annotations

import sys

from docs.generate.pages import FOLDER, stale


def main() -> int:
    """The exit code."""
    checking = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not checking:
        sys.stderr.write("usage: python -m docs.generate [--check]\n")
        return 2
    different = stale()
    for name, text in different.items():
        if not checking:
            (FOLDER / name).write_text(text, "utf-8")
        sys.stdout.write(f"docs/{name}: {'stale, run `make reference`' if checking else 'written'}\n")
    return 3 if checking and different else 0


if __name__ == "__main__":
    raise SystemExit(main())
