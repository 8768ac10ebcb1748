"""Writes dashboard.json, the Grafana dashboard: `python -m deploy.observability.dashboard`.

Panels are told here in the order in which one looks: does it run, does it keep up, what comes out, what went wrong. A test
sees that the file is what this makes and that each query names a metric which /metrics has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).with_name("dashboard.json")
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OF: Final = 'namespace=~"$namespace", job=~"$job"'
_WIDTH: Final = 24
_HEIGHT: Final = 8


class Panel(NamedTuple):
    """A picture: what it answers, in which unit, and its queries by legend. {of} stands for the chosen workers."""

    title: str
    meaning: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    columns: int = 3


class Row(NamedTuple):
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


ROWS: Final = (
    Row(
        "Does it run?",
        (
            Panel("Workers", "Workers that Prometheus reaches.", "none",
                  {"workers": "count(sync_worker_build_info{{{of}}})"}, "stat", 6),
            Panel("Records waiting", "Not applied yet, over all inputs.", "short",
                  {"records": "sum(sync_worker_lag{{{of}}})"}, "stat", 6),
            Panel("Time to catch up", "What waits, at the rate of the last five minutes.", "s",
                  {"time": "sum(sync_worker_lag{{{of}}}) / sum(rate(sync_worker_records_total{{{of}}}[5m]))"}, "stat", 6),
            Panel("Oldest unpublished change", "Age of what the relay has still to publish.", "s",
                  {"age": "max(sync_worker_outbox_oldest_seconds{{{of}}})"}, "stat", 6),
            Panel("Relay leaders", "One, but for a moment at a take-over.", "none",
                  {"leaders": "sum(sync_worker_relay_leader{{{of}}})"}, "stat", 6),
            Panel("Segments held", "Removals wait for somebody's decision.", "none",
                  {"segments": "max(sync_worker_segments_held{{{of}}})"}, "stat", 6),
        ),
    ),
    Row(
        "Does it keep up?",
        (
            Panel("Records by result", "What became of the input.", "ops",
                  {"{{result}}": "sum by (result) (rate(sync_worker_records_total{{{of}}}[$__rate_interval]))"}),
            Panel("Lag by topic", "Records not applied.", "short",
                  {"{{topic}}": "sum by (topic) (sync_worker_lag{{{of}}})"}),
            Panel("Lag by partition", "One that stands out is a hot key or a slow worker.", "short",
                  {"{{topic}} {{partition}}": "sync_worker_lag{{{of}}}"}),
            Panel("Time of a step, p99", "Of each step of the work.", "s",
                  {"{{step}}": "histogram_quantile(0.99, sum by (le, step) "
                               "(rate(sync_worker_step_seconds_bucket{{{of}}}[$__rate_interval])))"}),
            Panel("Batch size, median", "Records applied in one transaction.", "short",
                  {"records": "histogram_quantile(0.5, sum by (le) "
                              "(rate(sync_worker_batch_records_bucket{{{of}}}[$__rate_interval])))"}),
            Panel("Backfill", "People looked at because a method changed.", "ops",
                  {"people": "sum(rate(sync_worker_backfill_people_total{{{of}}}[$__rate_interval]))",
                   "steps": "sum(rate(sync_worker_backfill_steps_total{{{of}}}[$__rate_interval]))"}),
        ),
    ),
    Row(
        "What comes out?",
        (
            Panel("Changes", "EnrollmentChanged, published and committed.", "ops",
                  {"{{change}}": "sum by (change) (rate(sync_worker_changes_total{{{of}}}[$__rate_interval]))"}, columns=4),
            Panel("Published by kind", "All that the relay publishes.", "ops",
                  {"{{kind}}": "sum by (kind) (rate(sync_worker_published_total{{{of}}}[$__rate_interval]))"}, columns=4),
            Panel("Outbox", "Rows that are not published yet.", "short",
                  {"rows": "max(sync_worker_outbox_unpublished{{{of}}})"}, columns=4),
            Panel("Age, p99", "From occurred_at until it was applied, and from there until it was published.", "s",
                  {"{{at}}": "histogram_quantile(0.99, sum by (le, at) "
                             "(rate(sync_worker_age_seconds_bucket{{{of}}}[$__rate_interval])))"}, columns=4),
        ),
    ),
    Row(
        "What went wrong?",
        (
            Panel("Dead letters", "Rejected for good within five minutes.", "short",
                  {"{{reason}}": "sum by (reason) (increase(sync_worker_dead_letters_total{{{of}}}[5m]))"}),
            Panel("Tried again", "By what was in the way.", "ops",
                  {"{{what}}": "sum by (what) (rate(sync_worker_retries_total{{{of}}}[$__rate_interval]))"}),
            Panel("Paused", "Workers that fetch nothing because of an outage.", "none",
                  {"workers": "sum(sync_worker_paused{{{of}}})"}),
            Panel("Rebalances", "What the consumer group did within five minutes.", "short",
                  {"{{kind}}": "sum by (kind) (increase(sync_worker_rebalances_total{{{of}}}[5m]))"}),
            Panel("Removals held", "They wait for `holds release`.", "short",
                  {"removals": "max(sync_worker_removals_held{{{of}}})"}),
            Panel("Memory", "Resident, of each worker.", "bytes",
                  {"{{pod}}": "sync_worker_process_resident_memory_bytes{{{of}}}"}),
            Panel("CPU", "Seconds per second, of each worker.", "none",
                  {"{{pod}}": "rate(sync_worker_process_cpu_seconds_total{{{of}}}[$__rate_interval])"}),
            Panel("Versions", "More than one while an upgrade goes on.", "none",
                  {"{{version}}": "count by (version) (sync_worker_build_info{{{of}}})"}),
        ),
    ),
)  # fmt: skip


def document() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in ROWS:
        panels.append({"type": "row", "title": row.title, "collapsed": False, "panels": [], "id": len(panels) + 1,
                       "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1}})  # fmt: skip
        top += 1
        height = _HEIGHT if row.panels[0].kind == "timeseries" else _HEIGHT // 2
        for number, panel in enumerate(row.panels):
            width = _WIDTH // panel.columns
            line, column = divmod(number, panel.columns)
            place = {"x": column * width, "y": top + line * height, "w": width, "h": height}
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
        top += height * -(-len(row.panels) // row.panels[0].columns)
    return {
        "uid": "user-segment-sync",
        "title": "User segment sync",
        "tags": ["sync-worker"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            _variable("namespace", "label_values(sync_worker_build_info, namespace)"),
            _variable("job", 'label_values(sync_worker_build_info{namespace=~"$namespace"}, job)'),
        ]},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query.format(of=_OF),
                "legendFormat": legend,
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    # ".*" for all, so that workers whose scrape gives them no namespace are shown, too.
    return {"name": name, "label": name, "type": "query", "datasource": _SOURCE, "query": query, "definition": query,
            "includeAll": True, "allValue": ".*", "multi": True, "refresh": 2, "current": {"text": "All", "value": "$__all"}}  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(document(), indent=2) + "\n", encoding="utf-8")
