"""docs/reference/cli.md, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from docs.generate import markdown
from docs.generate.markdown import code, table
from sync_worker.cli.app import app

# Typer carries a copy of Click without public types.
Command = Any
Context = Any


def page() -> str:
    """Every command with its arguments and options."""
    command: Command = typer.main.get_command(app)
    context = command.make_context("sync-worker", [], resilient_parsing=True)
    return markdown.page(
        "Commands",
        f"{command.help} `python -m sync_worker` is the same as `sync-worker`; `--help` after any command says what is here.",
        command.epilog,
        *_sections(command, context),
    )


def _sections(command: Command, context: Context) -> Iterator[str]:
    for name in command.list_commands(context):
        each = command.commands[name]
        within = type(context)(each, info_name=name, parent=context)
        if hasattr(each, "commands"):
            yield from _sections(each, within)
        else:
            yield f"## {within.command_path.removeprefix('sync-worker ')}"
            yield f"```text\n{each.get_usage(within).removeprefix('Usage: ')}\n```"
            yield str(each.help)
            if rows := [_row(parameter, within) for parameter in each.params]:
                yield table(("", "", "default"), rows)


def _row(parameter: Command, context: Context) -> tuple[str, str, str]:
    default = parameter.get_default(context, call=False)
    shown = "" if default in {None, False, ""} or callable(default) else code(default)
    name = (
        (parameter.metavar or parameter.name.upper())
        if parameter.param_type_name == "argument"
        else ", ".join(parameter.opts)
    )
    if not parameter.help and parameter.param_type_name == "option":
        raise ValueError(f"{context.command_path} {name} has no help")
    return code(name), str(parameter.help or "see above"), shown
