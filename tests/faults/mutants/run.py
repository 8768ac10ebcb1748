"""`python -m tests.faults.mutants.run MUTANT run`: a wrong worker, started as the worker is."""

from __future__ import annotations

import sys


def main() -> None:
    from tests.faults.mutants.catalogue import BY_NAME  # noqa: PLC0415 - before the worker's command line is read

    BY_NAME[sys.argv.pop(1)].patch()
    from sync_worker.__main__ import main as worker  # noqa: PLC0415 - patched before it starts

    worker()


if __name__ == "__main__":
    main()
