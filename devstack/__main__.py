"""`python -m devstack up | down | fetch`: the stack for hands and scripts.

What a shell evaluates goes to stdout, words for people to stderr. No command may leave services running unless
`--keep` asked for it.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from devstack import fetch
from devstack import kept as kept_stack
from devstack.errors import DevstackError
from devstack.stack import Kind, Stack

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command()
def up(
    *,
    registry: Annotated[bool, typer.Option("--registry", help="A schema registry too.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running; `down` ends it.")] = False,
    env_file: Annotated[Path | None, typer.Option(help="Write the addresses here too, as NAME=value.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Keep data and logs here; default: a temporary one.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Where it runs; default: DEVSTACK, or what answers.")] = None,
) -> None:
    """Start the services, print their addresses as shell exports, and wait for Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    if keep and (running := kept_stack.kept()) is not None:
        raise DevstackError(f"a stack is kept already, in {running.directory}: `python -m devstack down` ends it")
    started = time.monotonic()
    with Stack.start(registry=registry, keep=keep, directory=directory, kind=kind) as stack:
        if keep:
            kept_stack.remember(stack, temporary=directory is None)
        _say(f"{stack.kind} stack ready after {time.monotonic() - started:.1f} s, in {stack.directory}")
        _publish(stack, env_file)
        if keep:
            _say("left running: `python -m devstack down` ends it")
        else:
            _say("Ctrl-C ends it")
            _wait(stack)


@app.command()
def down() -> None:
    """End the stack that `up --keep` left running."""
    running = kept_stack.kept()
    if running is None:
        _say("no stack is kept")
        return
    running.end()
    _say(f"ended the {running.kind} stack in {running.directory}")


@app.command(name="fetch")
def fetch_command(*, registry: Annotated[bool, typer.Option(help="The schema registry too.")] = True) -> None:
    """Download what a native stack needs, and check what is there already."""
    fetch.kafka_directory(verify=True)
    if registry:
        fetch.registry_directory()
    _say(f"all there, in {fetch.cache_directory()}")


def _publish(stack: Stack, env_file: Path | None) -> None:
    addresses = stack.environment()
    for name, value in addresses.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.flush()
    if env_file is not None:
        # In one go: a script may be waiting for the file to appear.
        draft = env_file.with_name(f"{env_file.name}.draft")
        draft.write_text("".join(f"{name}={value}\n" for name, value in addresses.items()), encoding="utf-8")
        draft.replace(env_file)


def _wait(stack: Stack) -> None:
    """Until Ctrl-C or SIGTERM; DevstackError when a service ends by itself."""
    try:
        while True:
            stack.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        _say("ending")


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    sys.stderr.write(f"devstack: {text}\n")


def main() -> None:
    """Run the command; a failure of the stack is told without a traceback."""
    try:
        app(prog_name="python -m devstack")
    except DevstackError as error:
        _say(str(error))
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
