"""Commands, options, settings, metrics and log events that the documents name exist; alerts name sections that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry

from sync_worker.cli.app import app
from sync_worker.environment import FROM_FILE, SECRETS, environment_name
from sync_worker.service.metrics import Metrics
from sync_worker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md"), ROOT / "README.md"])
COMMANDS: Any = typer.main.get_command(app)


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


def fault_of(words: list[str]) -> str | None:
    """What is wrong with `sync-worker …`; None if nothing."""
    command = COMMANDS
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return f"there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    faults = []
    for said in re.findall(r"(?:^|[`$ ])sync-worker ((?:[a-z]+ ?)(?:[^`\n#|;&>(]*))", text, re.MULTILINE):
        words = re.findall(r"--[a-z-]+|[^\s\[\]]+", said)
        if re.fullmatch(r"[a-z]+", words[0]) and (fault := fault_of(words)):
            faults.append(f"sync-worker {said.strip()}: {fault}")
    assert faults == []


def test_a_command_that_is_not_there_is_found() -> None:
    assert fault_of(["erase", "USER", "--softly"]) == "erase has no --softly"
    assert fault_of(["holds", "forget"]) == "there is no command forget"
    assert fault_of(["holds", "release", "SEGMENT", "--yes"]) is None


@pytest.mark.parametrize("page", named(PAGES))
def test_settings_and_metrics_are_there(page: Path) -> None:
    settings = {environment_name(name) for name in Settings.model_fields}
    settings |= {environment_name(name) + FROM_FILE for name in SECRETS}
    metrics = {definition.name for definition in Metrics(CollectorRegistry()).definitions}
    text = page.read_text("utf-8")
    assert (
        set(re.findall(r"\bSYNC_WORKER_[A-Z_]*[A-Z]\b", text))
        - settings
        - {"SYNC_WORKER_KAFKA_SASL", "SYNC_WORKER_KAFKA_SSL"}
        == set()
    )
    roles = {"sync_worker_app", "sync_worker_reader", "sync_worker_group_editor", "sync_worker_process"}
    assert {name for name in re.findall(r"\bsync_worker_[a-z_]*[a-z]\b", text) if name not in roles} - metrics == set()


def test_each_alert_has_its_section_in_the_runbook() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "observability" / "rules.yaml").read_text("utf-8"))
    sections = {
        rule["annotations"]["runbook_url"].partition("#")[2] for group in rules["groups"] for rule in group["rules"]
    }
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.MULTILINE)
    assert sections - {heading.lower().replace(" ", "-") for heading in headings} == set()
    assert len(sections) >= 8


def test_log_events_of_the_runbook_are_logged() -> None:
    said = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", (ROOT / "docs" / "runbook.md").read_text("utf-8")))
    logged = {
        event
        for path in (ROOT / "sync_worker").rglob("*.py")
        for event in re.findall(r"\blog\.\w+\(\s*\"([a-z_]+)\"", path.read_text("utf-8"))
    }
    assert "intake_paused" in said
    others = {
        "synchronous_commit",
        "version_conflict",
        "invalid_event",
        "unknown_schema",
        "rejected_by_database",
        "pg_upgrade",
        "read_committed",
    }
    assert {event for event in said if not event.startswith("sync_worker")} - others - logged == set()
