"""Renders the chart for each file of ci/ into deploy/manifests/, for those without Helm and for reviews by diff.

What is there is never edited by hand: `make manifests` writes it, and `make chart` says when it is stale.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.chart.values_schema import CHART

VALUES: Final = sorted((CHART / "ci").glob("*.yaml"))
MANIFESTS: Final = Path(__file__).parents[1] / "manifests"
KUBERNETES: Final = "1.31.0"
_RELEASE: Final = ("sync", str(CHART), "--namespace", "lms", "--kube-version", KUBERNETES)


def manifest(values: Path) -> Path:
    """Where the rendering for a file of values is kept."""
    return MANIFESTS / values.name


def rendered(helm: Path, values: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `helm template` says."""
    return subprocess.run(
        [helm, "template", *_RELEASE, "--values", values, *options], capture_output=True, text=True, check=False
    )


def write(helm: Path) -> None:
    """Write each manifest anew."""
    MANIFESTS.mkdir(exist_ok=True)
    for values in VALUES:
        done = rendered(helm, values)
        if done.returncode:
            raise SystemExit(f"{values.name}: {done.stderr}")
        manifest(values).write_text(done.stdout, encoding="utf-8")


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a rendering."""
    return [document for document in yaml.safe_load_all(text) if document]
