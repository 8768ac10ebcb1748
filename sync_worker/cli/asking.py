"""The question before a command that can't be taken back."""

import sys

import typer

from sync_worker.cli.console import USAGE, warn


def ask(question: str, *, yes: bool) -> None:
    """Return if the answer is yes: given as --yes, or by a person at a terminal; else the command ends here.

    Asked on stderr, so that stdout holds the result alone.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        warn("not done: say --yes, as nobody can be asked here")
        raise typer.Exit(USAGE)
    typer.confirm(question, abort=True, err=True)
