"""Writes values.schema.json of the chart: `python -m deploy.chart.values_schema`.

The worker's settings are taken from the worker, so that the chart knows each of them, what it may be, and no other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from sync_worker.environment import SECRETS
from sync_worker.settings import Settings

CHART: Final = Path(__file__).with_name("user-segment-sync")
FILE: Final = CHART / "values.schema.json"

_NAME: Final = {"type": "string", "pattern": "^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
_TEXT: Final = {"type": "string"}
_FLAG: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_ANYTHING: Final = {"type": "object"}
_SECRET_NAMES: Final = sorted(name.upper() for name in SECRETS)


def _whole(least: int, most: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


def _closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"required": list(required)} if required else {}),
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _settings() -> dict[str, Any]:
    """Each setting that is no secret; numbers and truths as such, everything else as text."""
    said = Settings.model_json_schema()["properties"]
    properties = {}
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        known = said[name] if said[name].get("type") in {"integer", "number", "boolean"} else {"type": "string"}
        kept = ("type", "minimum", "maximum", "exclusiveMinimum")
        properties[name.upper()] = {
            **{key: known[key] for key in kept if key in known},
            "description": field.description,
        }
    properties["KAFKA_BOOTSTRAP_SERVERS"]["minLength"] = 1
    # Jobs and probes come by the network, at a port that is known before.
    properties["HTTP_PORT"]["minimum"] = 1024
    return _closed(("KAFKA_BOOTSTRAP_SERVERS",), **properties)


_SECRETS: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"type": "string", "minLength": 1} for name in _SECRET_NAMES},
}


def document() -> dict[str, Any]:
    """The schema, JSON Schema draft 7, as Helm reads it."""
    amounts = _closed(requests=_ANYTHING, limits=_ANYTHING)
    source = {"name": {"type": "string", "pattern": "^[a-z0-9-]{1,40}$"}, "secret": _NAME, "configMap": _NAME}
    properties: dict[str, Any] = {
        "global": _ANYTHING,
        "image": _closed(
            ("repository",),
            repository={"type": "string", "minLength": 1},
            tag=_TEXT,
            digest={"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
        ),
        "imagePullSecrets": _list(_closed(("name",), name=_NAME)),
        "nameOverride": _NAME,
        "fullnameOverride": _NAME,
        "commonLabels": _TEXTS,
        "settings": _settings(),
        "secrets": _closed(
            existingSecret=_NAME,
            keys={**_list({"enum": _SECRET_NAMES}), "contains": {"const": "DATABASE_URL"}, "uniqueItems": True},
            create=_SECRETS,
            asFiles=_FLAG,
        ),
        "mounts": _list(
            {
                **_closed(("name",), **source),
                "oneOf": [{"required": ["secret"]}, {"required": ["configMap"]}],
            }
        ),
        "migration": _closed(
            enabled=_FLAG, pre=_FLAG, existingSecret=_NAME, key={"type": "string", "minLength": 1}, databaseUrl=_TEXT
        ),
        "topics": _closed(create=_FLAG, replicationFactor=_whole(1, 32767)),
        "partitions": _whole(1),
        "replicas": _whole(0),
        "autoscaling": _closed(
            kind={"enum": ["none", "hpa", "keda"]},
            minReplicas=_whole(1),
            maxReplicas=_whole(1),
            cpuPercent=_whole(1, 100),
            keda=_closed(serverAddress=_TEXT, lagPerReplica=_whole(1)),
        ),
        "reconcile": _closed(enabled=_FLAG, schedule={"type": "string", "minLength": 1}, repair=_FLAG),
        "resources": amounts,
        "jobResources": amounts,
        "podAnnotations": _TEXTS,
        "nodeSelector": _TEXTS,
        "tolerations": _list(_ANYTHING),
        "priorityClassName": _NAME,
        "podDisruptionBudget": _closed(enabled=_FLAG),
        "networkPolicy": _closed(
            enabled=_FLAG,
            ingressFrom=_list(_ANYTHING),
            egressPorts={**_list(_whole(1, 65535)), "minItems": 1},
            egressTo=_list(_ANYTHING),
        ),
        "serviceMonitor": _closed(
            enabled=_FLAG, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}, labels=_TEXTS
        ),
        "prometheusRule": _closed(enabled=_FLAG, labels=_TEXTS, runbookUrl={"type": "string", "minLength": 1}),
        "dashboard": _closed(enabled=_FLAG, labels=_TEXTS),
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_closed(("image", "settings"), **properties)}


if __name__ == "__main__":
    FILE.write_text(json.dumps(document(), indent=2) + "\n", encoding="utf-8")
