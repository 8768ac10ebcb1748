"""Named SQL statements, kept in .sql files beside the code that runs them.

A file is a sequence of `-- :name x` sections; the comments under a name say why the statement is right. Parameters are
psycopg's `%(x)s`, so a literal % is doubled.
"""

import re
from importlib.resources import files
from typing import LiteralString, cast

_NAME = re.compile(r"^-- :name (\w+)$", re.MULTILINE)


def load(package: str, file: str) -> dict[str, LiteralString]:
    """The statements of a .sql file by name."""
    text = (files(package) / file).read_text("utf-8")
    parts = _NAME.split(text)[1:]
    named = dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    if len(named) * 2 != len(parts):
        raise ValueError(f"{file} names a statement twice")
    # Read from this package's own files: as trustworthy as a literal in the code.
    return cast("dict[str, LiteralString]", named)
