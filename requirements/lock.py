"""Renews the pins of this folder: `make lock`. With hashes, without addresses, and with the comment that a file begins with.

What isn't in dev.txt is installed in an environment of its own, so that it can't change what is tested; what both hold is pinned alike.
"""

import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
OPTIONS = (
    "--universal", "--python-version=3.11", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-header",
    "--quiet", "--upgrade",
)  # fmt: skip
LIKE_DEV = "--constraint=requirements/dev.txt"


class Lock(NamedTuple):
    """A file of pins: from which options and files, or from these requirements alone."""

    file: str
    options: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()


LOCKS = (
    Lock("dev", ("--group=dev", "pyproject.toml")),  # first: others follow it
    Lock("run", (LIKE_DEV, "pyproject.toml")),
    Lock("docs", (LIKE_DEV, "--group=docs")),
    Lock("chart", (LIKE_DEV,), ("kubernetes-validate>=1.37",)),
    Lock("image", (LIKE_DEV,), ("cyclonedx-bom>=7", "hatchling>=1.27")),
    Lock("bench", ("bench/peers/requirements.in",)),
    Lock("audit", (), ("pip-audit>=2.10",)),
    Lock("fuzz", (), ("atheris>=3",)),
)


def main() -> int:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        sys.stderr.write("uv is missing beside this Python: `make lock` installs it\n")
        return 1
    for lock in LOCKS:
        target = FOLDER / f"{lock.file}.txt"
        comment = "".join(
            takewhile(lambda line: line.startswith("#"), target.read_text("utf-8").splitlines(keepends=True))
        )
        inputs = ("-",) if lock.requirements else ()
        subprocess.run(
            [uv, "pip", "compile", *OPTIONS, *lock.options, *inputs, "--output-file", target],
            cwd=FOLDER.parent, input="\n".join(lock.requirements), text=True, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        target.write_text(comment + target.read_text("utf-8"), "utf-8")
        sys.stdout.write(f"{target.relative_to(FOLDER.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
