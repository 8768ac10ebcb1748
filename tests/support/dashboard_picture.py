"""`python -m tests.support.dashboard_picture`: two workers under traffic, scraped by Prometheus, and each panel drawn from its queries.

For docs/images/dashboard.png. It stands in for Grafana, which no registry serves here: colours and layout are ours, queries and
answers are those that Grafana would ask and get. A query that Prometheus refuses, or a panel without an answer, ends it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib.pyplot as plt
import yaml
from PIL import Image

from deploy.chart.tools import prometheus
from deploy.observability.dashboard import ROWS, Panel, Row
from devstack import Stack
from devstack.ports import HOST, kept_ports
from sync_worker.database.migrate import migrate
from sync_worker.settings import TOPICS, Settings
from tests.model.traffic import random_history
from tests.support.site import Site, WorkerProcess, wait_for

TARGET: Final = Path(__file__).parents[2] / "docs" / "images" / "dashboard.png"
_PARTS: Final = 24
_EVENTS: Final = 24_000
_INTERVAL_S: Final = 2.0
# By their ordinary names: the stack is of this picture alone.
_TOPICS: Final = {f"SYNC_WORKER_{name.upper()}": str(Settings.model_fields[name].default) for name in TOPICS}
_ANY: Final = 'namespace=~".*", job=~".*"'


class Line(NamedTuple):
    """One series of a panel."""

    legend: str
    times: Sequence[float]
    values: Sequence[float]


def main() -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="dashboard-") as folder, Stack.start(durable=False) as stack:
        url = stack.postgres.create_database("dashboard")
        migrate(url)
        site = Site(
            stack,
            url,
            Path(folder),
            {"SYNC_WORKER_REMOVAL_HOLD_MIN": "20", "SYNC_WORKER_REMOVAL_HOLD_PERCENT": "10", **_TOPICS},
        )
        site.create_topics(6)
        workers = [site.start_worker(), site.start_worker()]
        try:
            with _scraping(Path(folder), workers) as address:
                _traffic(site)
                site.wait_settled(180)
                wait_for(lambda: _asked(address, "sum(sync_worker_lag)", begun), what="a scrape")
                _draw([(row, [(panel, _lines(address, panel, begun)) for panel in row.panels]) for row in ROWS])
        finally:
            for worker in workers:
                worker.terminate()
            site.close()
    sys.stdout.write(f"{TARGET}\n")


def _traffic(site: Site) -> None:
    """Parts with a pause after each, so that there is something to see: people come and go, methods change, some bytes are junk."""
    history = random_history(7, events=_EVENTS, segments=8, users=400, methods_per_segment=2, courses=10)
    size = len(history) // _PARTS
    now = int(time.time() * 1_000_000)
    for number in range(_PARTS):
        part = history[number * size : (number + 1) * size]
        site.produce(replace(event, occurred_at=now) for event in part)
        if number % 6 == 3:
            for _ in range(number):
                site.produce_raw("membership", b"junk")
        time.sleep(_INTERVAL_S)


@contextmanager
def _scraping(folder: Path, workers: Sequence[WorkerProcess]) -> Iterator[str]:
    (port,) = kept_ports(folder, 1)
    targets = [
        {"targets": [f"127.0.0.1:{worker.http_port}"], "labels": {"namespace": "lms", "pod": f"worker-{number}"}}
        for number, worker in enumerate(workers)
    ]
    settings = {
        "global": {"scrape_interval": f"{_INTERVAL_S:g}s"},
        "scrape_configs": [{"job_name": "sync-worker", "static_configs": targets}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [
        str(prometheus()),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield f"http://{HOST}:{port}"
        finally:
            server.terminate()


def _lines(address: str, panel: Panel, begun: float) -> list[Line]:
    found = []
    for legend, query in panel.queries.items():
        asked = query.format(of=_ANY).replace("$__rate_interval", f"{_INTERVAL_S * 4:g}s")
        for series in _asked(address, asked, begun):
            words = legend
            for label, value in series["metric"].items():
                words = words.replace("{{" + label + "}}", value)
            times, values = zip(*((at - begun, float(value)) for at, value in series["values"]), strict=True)
            found.append(Line(words, times, values))
    if not found:
        raise SystemExit(f"{panel.title}: Prometheus knows nothing of {list(panel.queries.values())}")
    return found


def _asked(address: str, query: str, begun: float) -> list[dict[str, Any]]:
    options = urllib.parse.urlencode({"query": query, "start": begun, "end": time.time(), "step": _INTERVAL_S})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query_range?{options}", timeout=30) as answer:  # noqa: S310 - our own server
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except urllib.error.HTTPError as error:
        raise SystemExit(f"Prometheus refuses {query}: {error.read().decode()}") from error
    except urllib.error.URLError:
        return []  # It is starting; who needs an answer asks again.


def _draw(rows: list[tuple[Row, list[tuple[Panel, list[Line]]]]]) -> None:
    lines: list[tuple[str, int, list[tuple[Panel, list[Line]]]]] = []
    for row, panels in rows:
        columns = panels[0][0].columns
        starts = range(0, len(panels), columns)
        lines += [("" if start else row.title, columns, panels[start : start + columns]) for start in starts]
    heights = [0.45 if line[0][0].kind == "stat" else 1 for _, _, line in lines]
    plt.rcParams |= {
        "font.size": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
    }
    figure = plt.figure(figsize=(14, 2.3 * sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(len(lines), 1, height_ratios=heights)
    for part, (title, columns, line) in zip(parts, lines, strict=True):
        part.suptitle(title, x=0.005, ha="left", fontweight="bold", fontsize=9)
        for axes, (panel, drawn) in zip(part.subplots(1, columns, squeeze=False)[0], line, strict=False):
            _draw_panel(axes, panel, drawn)
        for axes in part.axes[len(line) :]:
            axes.axis("off")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=90)
    # A third of the bytes, and nobody sees it.
    Image.open(TARGET).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)


def _draw_panel(axes: Any, panel: Panel, drawn: list[Line]) -> None:
    axes.set_title(panel.title if panel.unit in {"none", "short"} else f"{panel.title} ({panel.unit})", loc="left")
    if panel.kind == "stat":
        axes.axis("off")
        axes.text(0.0, 0.4, _shown(drawn[0].values), fontsize=18, color="#2f6f4f", transform=axes.transAxes)
        return
    for series in drawn:
        axes.plot(series.times, series.values, label=series.legend, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.3)
    axes.set_xlabel("seconds")
    if len(drawn) <= 8:
        axes.legend(loc="upper left", fontsize=5, frameon=False, ncols=4)


def _shown(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]  # nothing waits, and nothing comes
    return f"{known[-1]:g}" if known else "none"


if __name__ == "__main__":
    main()
