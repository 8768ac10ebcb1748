"""How publishers put their events into bytes: single-object encoding, or Confluent framing with ids of the registry.

Schemas are registered before the traffic begins, several for each record, and come into use one after the other, so that
workers meet ids they don't know all through a run. By fastavro alone.
"""

from __future__ import annotations

import json
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from tests.faults.sending import Garbage, Sending
from tests.model.events import to_record
from tests.support.wire import SCHEMAS, encode, prefix

_RECORDS = (
    "SegmentMemberAdded", "SegmentMemberRemoved", "EnrollmentMethodChanged", "EnrollmentSourceChanged", "CourseSuspensionChanged",
)  # fmt: skip
SLICE_S = 4.0


class Framer:
    """Encodes what is sent. Without a registry everything is in single-object encoding."""

    def __init__(self, registry_url: str | None = None, run: str = "", duration_s: float = 0.0) -> None:
        self._ids: dict[str, list[int]] = {}
        if registry_url is not None:
            with SchemaRegistryClient({"url": registry_url}) as client:
                slices = int(duration_s / SLICE_S) + 1
                self._ids = {name: [register(client, name, run, n) for n in range(slices)] for name in _RECORDS}

    def encode(self, sending: Sending) -> bytes | None:
        content = sending.content
        if content is None:
            return None
        if isinstance(content, Garbage):
            return content.value
        name, fields = to_record(content)
        whole = encode(name, fields)
        if sending.framing == "single" or not self._ids:
            return whole
        ids = self._ids[name]
        return (
            b"\0" + ids[min(int(sending.at_s / SLICE_S), len(ids) - 1)].to_bytes(4, "big") + whole[len(prefix(name)) :]
        )


def register(client: SchemaRegistryClient, name: str, run: str, number: int) -> int:
    """The record's schema under a subject of its own, with other words in it, so that its id is new."""
    raw: dict[str, Any] = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
    raw["doc"] = f"{raw.get('doc', '')} (run {run}, slice {number})"
    return client.register_schema(f"faults-{run}-{number}-{name}", Schema(json.dumps(raw), "AVRO"))
