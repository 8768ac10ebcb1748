"""Alerts and dashboard speak of what /metrics has, and of what the runbook explains."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from deploy.observability import dashboard
from sync_worker.events import Partition
from sync_worker.service.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "deploy" / "observability"
# Of kube-state-metrics: the chart's Job of reconcile ends before anybody could scrape it.
FOREIGN = {"kube_job_failed": {"namespace", "job_name", "condition"}}
# What a scrape adds to each series.
SCRAPED = {"namespace", "job", "pod"}
_WORDS = re.compile(r"\b((?:sync_worker|kube)_\w+)(?:\{([^}]*)\})?")


def _metrics() -> dict[str, set[str]]:
    """Every series that a worker can show, with the names of its labels."""
    metrics = Metrics(CollectorRegistry())
    metrics.expect_topics("segments.membership")
    metrics.set_partition(Partition("segments.membership", 0), 1, 2)
    return {
        sample.name: set(sample.labels) | SCRAPED for family in metrics.registry.collect() for sample in family.samples
    }


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def _queries() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]
    document = json.loads(dashboard.FILE.read_text("utf-8"))
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in document["templating"]["list"][1:]:
        yield variable["name"], variable["query"]


@pytest.mark.parametrize(("place", "query"), list(_queries()))
def test_each_query_names_metrics_and_labels_that_exist(place: str, query: str) -> None:
    known = _metrics() | FOREIGN
    named = _WORDS.findall(query)
    assert named
    for name, selector in named:
        assert name in known, f"{place}: no metric {name}"
        assert set(re.findall(r"(\w+)\s*=~?", selector)) <= known[name], f"{place}: {name} has no such label"
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(",")}
    assert grouped <= set.union(*(known[name] for name, _ in named)), f"{place}: no such label to group by"


def test_every_metric_of_the_worker_is_in_the_dashboard() -> None:
    shown = {name for _, query in _queries() for name, _ in _WORDS.findall(query)}
    # Of a histogram the buckets are drawn; position and window are for those who look at one worker.
    expected = {
        name
        for name in _metrics()
        if not name.endswith(("_count", "_sum")) and not name.startswith("sync_worker_process_")
    }
    assert expected - shown == {"sync_worker_position", "sync_worker_relay_window"}


def test_the_dashboard_is_what_its_code_makes() -> None:
    assert json.loads(dashboard.FILE.read_text("utf-8")) == dashboard.document(), (
        "stale: python -m deploy.observability.dashboard"
    )


def test_panels_lie_beside_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.document()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_each_alert_leads_to_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "runbook.md").read_text("utf-8"), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in _rules():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/runbook.md"
        assert anchor in anchors, f"{rule['alert']}: the runbook has no section {anchor}"


def test_each_alert_has_a_test_that_it_fires_and_one_that_it_stays_quiet() -> None:
    cases = yaml.safe_load((FOLDER / "rules.test.yaml").read_text("utf-8"))["tests"]
    asked = [(part["alertname"], bool(part["exp_alerts"])) for case in cases for part in case["alert_rule_test"]]
    assert {name for name, fires in asked if fires} == {rule["alert"] for rule in _rules()}
    assert {name for name, fires in asked if not fires} == {rule["alert"] for rule in _rules()}
