"""Where `sync-worker` and `python -m sync_worker` begin. Holds no command and no logic: both are in cli/."""

import sys


def main() -> None:
    """Run the command line and exit with its code (contract §5)."""
    from sync_worker.cli.app import app  # noqa: PLC0415 - importing this module must not import the commands
    from sync_worker.cli.console import run  # noqa: PLC0415 - as above

    sys.exit(run(app))


if __name__ == "__main__":
    main()
