"""The writers whose records are fuzzed: every schema of this version, and others that publishers may have rolled out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
CURRENT = (
    "SegmentMemberAdded", "SegmentMemberRemoved", "EnrollmentMethodChanged", "EnrollmentSourceChanged", "CourseSuspensionChanged",
    "EnrollmentChanged",
)  # fmt: skip
_INNER = {"type": "record", "name": "Inner", "fields": [{"name": "n", "type": ["null", "int", "double", "string"]}]}


@dataclass(frozen=True, slots=True)
class Writer:
    """A writer's schema."""

    text: str


def current(name: str) -> str:
    """The .avsc of this version."""
    return (SCHEMAS / f"{name}.avsc").read_text("utf-8")


def _evolved(name: str, change: Callable[[list[dict[str, Any]]], object]) -> Writer:
    schema = json.loads(current(name))
    change(schema["fields"])
    return Writer(json.dumps(schema))


def _field(fields: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(field for field in fields if field["name"] == name)


def _without_defaults(fields: list[dict[str, Any]]) -> None:
    fields.insert(3, {"name": "tags", "type": {"type": "array", "items": "string"}})
    fields[:] = [field for field in fields if field["name"] not in ("on_removal", "deleted")]


def _rich(fields: list[dict[str, Any]]) -> None:
    fields[:0] = [
        {"name": "a", "type": {"type": "array", "items": _INNER}},
        {"name": "m", "type": {"type": "map", "values": {"type": "array", "items": "Inner"}}},
        {"name": "f", "type": {"type": "fixed", "name": "F", "size": 3}},
    ]
    fields.append({"name": "d", "type": ["float", "boolean", "bytes"]})


def _plain(fields: list[dict[str, Any]]) -> None:
    fields.insert(1, {"name": "note", "type": "string"})


WRITERS: tuple[Writer, ...] = (
    *(Writer(current(name)) for name in CURRENT),
    _evolved("SegmentMemberAdded", _plain),
    _evolved("SegmentMemberAdded", _rich),
    _evolved("SegmentMemberRemoved", lambda fields: _field(fields, "user_id").update(type="bytes")),
    _evolved("CourseSuspensionChanged", lambda fields: _field(fields, "version").update(type="int")),
    _evolved("CourseSuspensionChanged", lambda fields: _field(fields, "suspended").update(type="int")),
    _evolved("EnrollmentMethodChanged", _without_defaults),
    _evolved(
        "EnrollmentMethodChanged", lambda fields: _field(fields, "on_removal")["type"]["symbols"].insert(0, "ARCHIVE")
    ),
    _evolved("EnrollmentSourceChanged", lambda fields: _field(fields, "role").update(type="string")),
    _evolved("EnrollmentSourceChanged", lambda fields: fields.reverse()),
)
"""The first six are this version's. A publisher's next version may add, drop, reorder and widen, and also blunder."""
