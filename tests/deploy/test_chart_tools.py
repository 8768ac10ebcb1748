"""The chart judged by Helm, kubernetes-validate and kube-score, the alerts by promtool: `make chart` brings the tools and comes here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.chart.rendering import VALUES, documents, manifest, rendered
from deploy.chart.values_schema import CHART
from deploy.observability import dashboard

pytestmark = pytest.mark.chart_tools
MINIMAL = CHART / "ci" / "minimal.yaml"
RULES = dashboard.FILE.parent
# The oldest that Chart.yaml allows, and the newest that the validator knows.
KUBERNETES = ("1.27", "1.37")
# Images are named by version or digest, which never change; pods are spread by topologySpreadConstraints; how many there are
# at first is the autoscaler's affair.
NOT_OURS = ("container-image-pull-policy", "deployment-has-host-podantiaffinity", "deployment-replicas")
# What bare.yaml leaves to others, as it says.
BARE = ("pod-networkpolicy", "deployment-has-poddisruptionbudget")
each_values = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[:3]}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _helm() -> Path:
    return Path(os.environ["CHART_HELM"])


@each_values
def test_helm_lint_has_nothing_to_say(values: Path) -> None:
    _run(_helm(), "lint", "--strict", CHART, "--values", values)


@each_values
def test_the_manifest_is_what_the_chart_renders(values: Path) -> None:
    done = rendered(_helm(), values)
    assert done.returncode == 0, done.stderr
    assert done.stdout == manifest(values).read_text("utf-8"), f"{manifest(values)} is stale: make manifests"


@each_values
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_validate_knows_every_field(values: Path, version: str, tmp_path: Path) -> None:
    own = [
        document
        for document in documents(manifest(values).read_text("utf-8"))
        if not document["apiVersion"].startswith(("monitoring.coreos.com/", "keda.sh/"))
    ]
    assert own
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump_all(own), "utf-8")
    validate = Path(sys.prefix) / "chart" / "bin" / "kubernetes-validate"
    _run(validate, "--strict", "--no-warn", "-k", version, file)


@each_values
def test_kube_score_finds_nothing(values: Path) -> None:
    ignored = NOT_OURS + (BARE if values.stem == "bare" else ())
    options = [option for check in ignored for option in ("--ignore-test", check)]
    _run(os.environ["CHART_KUBE_SCORE"], "score", "--exit-one-on-warning", *options, manifest(values))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("settings.BATCH_MAX_RECORDS=many", "BATCH_MAX_RECORDS"),
        ("settings.BATCH_MAX_RECORD=5", "BATCH_MAX_RECORD"),
        ("settings.DATABASE_URL=postgresql://db/lms", "DATABASE_URL"),
        ("settings.KAFKA_BOOTSTRAP_SERVERS=", "KAFKA_BOOTSTRAP_SERVERS"),
        ("replicaCount=3", "replicaCount"),
        ("replicas=-1", "replicas"),
        ("replicas=7", "7 workers for 6 partitions"),
        ("autoscaling.kind=vpa", "kind"),
        ("image.digest=latest", "digest"),
        ("secrets.existingSecret=", "the worker's DATABASE_URL is missing"),
        ("migration.existingSecret=", "the owner's database URL is missing"),
        ("secrets.create.DATABASE_URL=postgresql://db/lms", "set one of the two"),
        ("autoscaling.kind=keda", "serverAddress"),
    ],
)
def test_wrong_values_are_refused_by_name(option: str, words: str) -> None:
    done = rendered(_helm(), MINIMAL, "--set", option)
    assert done.returncode != 0
    assert words in done.stderr


def test_more_replicas_than_partitions_are_refused_for_an_autoscaler_too() -> None:
    done = rendered(_helm(), CHART / "ci" / "hpa.yaml", "--set", "autoscaling.maxReplicas=7")
    assert done.returncode != 0
    assert "7 workers for 6 partitions" in done.stderr


def test_promtool_accepts_the_alerts_and_their_tests() -> None:
    promtool = os.environ["CHART_PROMTOOL"]
    _run(promtool, "check", "rules", RULES / "rules.yaml")
    _run(promtool, "test", "rules", RULES / "rules.test.yaml")
