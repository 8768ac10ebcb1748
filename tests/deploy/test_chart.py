"""The chart's renderings, as they lie in deploy/manifests: what must hold of each, whatever the values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.chart import values_schema
from deploy.chart.rendering import VALUES, documents, manifest
from sync_worker import __version__
from sync_worker.environment import SECRETS
from sync_worker.settings import Settings

CHART = values_schema.CHART
each_values = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
Document = dict[str, Any]


def _objects(values: Path, *kinds: str) -> list[Document]:
    found = documents(manifest(values).read_text("utf-8"))
    return [document for document in found if not kinds or document["kind"] in kinds]


def _pods(values: Path) -> Iterator[tuple[str, Document]]:
    """The pod of every object that makes one, by the object's name."""
    for document in _objects(values):
        spec = document.get("spec", {})
        if document["kind"] == "Pod":
            yield document["metadata"]["name"], spec
        elif document["kind"] in {"Deployment", "Job"}:
            yield document["metadata"]["name"], spec["template"]["spec"]
        elif document["kind"] == "CronJob":
            yield document["metadata"]["name"], spec["jobTemplate"]["spec"]["template"]["spec"]


def _environment(pod: Document) -> dict[str, Any]:
    (container,) = pod["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", ())}


def test_there_is_a_manifest_for_each_file_of_values_and_no_other() -> None:
    assert {path.name for path in VALUES} == {path.name for path in manifest(VALUES[0]).parent.glob("*.yaml")}


@each_values
def test_every_pod_meets_the_restricted_standard(values: Path) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    for name, pod in _pods(values):
        assert not any(pod.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")), name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] != 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert {key for volume in pod.get("volumes", ()) for key in volume} <= {"name", "secret", "configMap"}, name
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert not context["privileged"], name
            assert not any("hostPort" in port for port in container.get("ports", ())), name
            # Beyond the standard.
            assert context["readOnlyRootFilesystem"] is True, name
            assert {"requests", "limits"} <= container["resources"].keys(), name


@each_values
def test_no_pod_has_a_token_for_the_cluster(values: Path) -> None:
    assert all(pod["automountServiceAccountToken"] is False for _, pod in _pods(values))
    (account,) = _objects(values, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


@each_values
def test_a_pod_is_given_longer_than_the_worker_takes_to_drain(values: Path) -> None:
    (deployment,) = _objects(values, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    limit_s = float(
        _environment(pod).get("SYNC_WORKER_DRAIN_TIMEOUT_S", Settings.model_fields["drain_timeout_s"].default)
    )
    assert pod["terminationGracePeriodSeconds"] >= limit_s + 10


@each_values
def test_the_owner_migrates_before_and_no_worker_has_the_owners_secret(values: Path) -> None:
    owners = [
        _environment(pod)["SYNC_WORKER_DATABASE_URL"]["secretKeyRef"]
        for name, pod in _pods(values)
        if name.endswith("-migrate")
    ]
    for secret in owners:
        for name, pod in _pods(values):
            if not name.endswith("-migrate"):
                assert secret["name"] not in json.dumps(pod) or secret["key"] not in json.dumps(pod), name
    for job in _objects(values, "Job"):
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


@each_values
def test_the_settings_of_every_pod_are_settings_that_the_worker_reads(values: Path) -> None:
    known = {f"SYNC_WORKER_{name.upper()}" for name in Settings.model_fields}
    known |= {f"SYNC_WORKER_{name.upper()}_FILE" for name in SECRETS}
    for name, pod in _pods(values):
        assert _environment(pod).keys() <= known, name


@each_values
def test_settings_arrive_as_the_worker_understands_them(values: Path) -> None:
    (deployment,) = _objects(values, "Deployment")
    rendered = _environment(deployment["spec"]["template"]["spec"])
    asked = {
        name: value
        for name, value in yaml.safe_load(values.read_text("utf-8"))["settings"].items()
        if not name.endswith(("_LOCATION", "_DIR"))  # which must exist where the settings are read
    }
    given = {name: rendered[f"SYNC_WORKER_{name}"] for name in asked}
    assert all(isinstance(value, str) for value in given.values())
    assert Settings(**{name.lower(): value for name, value in given.items()}) == Settings(
        **{name.lower(): value for name, value in asked.items()}
    )


@each_values
def test_selectors_choose_the_workers_and_nothing_else(values: Path) -> None:
    (deployment,) = _objects(values, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    chosen = [deployment["spec"]["selector"]["matchLabels"]]
    chosen += [service["spec"]["selector"] for service in _objects(values, "Service")]
    chosen += [budget["spec"]["selector"]["matchLabels"] for budget in _objects(values, "PodDisruptionBudget")]
    for selector in chosen:
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == "worker"


@each_values
def test_an_autoscaler_never_asks_for_more_workers_than_partitions(values: Path) -> None:
    asked = {**yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), **yaml.safe_load(values.read_text("utf-8"))}
    (deployment,) = _objects(values, "Deployment")
    scalers = _objects(values, "HorizontalPodAutoscaler", "ScaledObject")
    assert ("replicas" in deployment["spec"]) != bool(scalers)
    most = [scaler["spec"].get("maxReplicas", scaler["spec"].get("maxReplicaCount")) for scaler in scalers]
    assert all(number <= asked["partitions"] for number in most or [deployment["spec"]["replicas"]])


def test_the_production_rendering_brings_rules_and_dashboard_as_they_are() -> None:
    production = CHART / "ci" / "production.yaml"
    (rule,) = _objects(production, "PrometheusRule")
    text = (
        (CHART / "files" / "rules.yaml")
        .read_text("utf-8")
        .replace("docs/runbook.md", "https://docs.example.com/runbook/")
    )
    assert rule["spec"] == yaml.safe_load(text)
    (board,) = _objects(production, "ConfigMap")
    (content,) = board["data"].values()
    assert json.loads(content) == json.loads((CHART / "files" / "dashboard.json").read_text("utf-8"))


def test_the_chart_has_the_workers_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_schema_of_values_is_what_its_code_makes() -> None:
    assert json.loads(values_schema.FILE.read_text("utf-8")) == values_schema.document(), "stale: make manifests"


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": "two"},
        {"settings": {"KAFKA_BOOTSTRAP_SERVERS": "kafka", "BATCH_MAX_RECORDS": 0}},
        {"settings": {"KAFKA_BOOTSTRAP_SERVERS": "kafka", "HTTP_PORT": 0}},
        {"settings": {"KAFKA_BOOTSTRAP_SERVERS": "kafka", "SASL": "x"}},
        {"settings": {}},
        {"secrets": {"keys": []}},
        {"secrets": {"create": {"PASSWORD": "x"}}},
        {"mounts": [{"name": "a"}]},
        {"mounts": [{"name": "a", "secret": "s", "configMap": "c"}]},
        {"serviceMonitor": {"interval": "often"}},
        {"unheard": 1},
    ],
    ids=str,
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    schema = values_schema.document()
    right = {
        **yaml.safe_load((CHART / "values.yaml").read_text("utf-8")),
        "settings": {"KAFKA_BOOTSTRAP_SERVERS": "kafka"},
    }
    jsonschema.validate(right, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**right, **change}, schema)
