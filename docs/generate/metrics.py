"""docs/reference/metrics.md, from the definitions in sync_worker/service/metrics.py."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from docs.generate import markdown
from docs.generate.markdown import code, table
from sync_worker.service.metrics import Definition, Label, Metrics


def page() -> str:
    """Every metric with its type, unit, labels and meaning."""
    definitions = Metrics(CollectorRegistry()).definitions
    return markdown.page(
        "Metrics",
        "What `/metrics` of a worker says, in the text format of Prometheus. Labels take closed sets of values or a partition, "
        "never an id. "
        "Each worker tells of its own partitions and its own work, so sums over workers are right; `outbox_*`, `segments_held` and "
        "`removals_held` are the database's, the same from each worker: take the maximum.",
        table(
            ("metric", "type", "unit", "meaning"),
            [(code(each.name), each.type, each.unit, each.meaning) for each in definitions],
        ),
        "Of a histogram there are `_bucket`, `_sum` and `_count`. "
        "`sync_worker_process_*` tell of the process: processor, memory, open files, start.",
        "## Labels",
        table(("metric", "label", "values"), _labels(definitions)),
    )


def _labels(definitions: list[Definition]) -> list[tuple[str, str, str]]:
    return [
        (code(each.name), code(label), _values(values)) for each in definitions for label, values in each.labels.items()
    ]


def _values(label: Label) -> str:
    return label if isinstance(label, str) else ", ".join(code(value.value) for value in label)
