"""docs/reference/schemas.md, from the Avro schemas in schemas/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fastavro.schema import fingerprint, to_parsing_canonical_form

from docs.generate import markdown
from docs.generate.markdown import code, table
from sync_worker.events import RecordName

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"
Schema = Any


def page() -> str:
    """Every record with its fields, and the records and enumerations within."""
    parts = []
    for name in RecordName:
        schema = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
        prefix = "c301" + fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
        parts += [f"## {name}", schema["doc"], f"First ten bytes in single-object encoding: {code(prefix)}."]
        for record in _records(schema):
            if record is not schema:
                parts += [f"### {record['name']}", record["doc"]]
            parts.append(table(("field", "type", "meaning"), map(_field, record["fields"])))
            parts += [_enumeration(each) for each in _enumerations(record)]
    return markdown.page(
        "Events and their schemas",
        "The Avro schemas are in `schemas/` of the project and in its wheel (`sync_worker/schemas`), beside an AsyncAPI document of "
        "topics, keys and headers (`asyncapi.yaml`). Their namespace is `user_segment_sync.v1`.",
        *parts,
    )


def _field(field: dict[str, Any]) -> tuple[str, str, str]:
    default = f" Default: {code(json.dumps(field['default']))}." if "default" in field else ""
    return code(field["name"]), _type(field["type"]), field["doc"] + default


def _type(schema: Schema) -> str:
    if isinstance(schema, list):
        return " or ".join(map(_type, schema))
    if isinstance(schema, str):
        return schema
    if schema["type"] == "array":
        return f"array of {_type(schema['items'])}"
    return str(schema.get("logicalType") or schema.get("name") or schema["type"])


def _enumeration(schema: dict[str, Any]) -> str:
    return f"**{schema['name']}**: {', '.join(map(code, schema['symbols']))}. {schema['doc']}"


def _records(schema: Schema) -> Iterator[dict[str, Any]]:
    """This record, and those defined within."""
    if isinstance(schema, dict) and schema["type"] == "record":
        yield schema
        for field in schema["fields"]:
            yield from _records(field["type"])
    elif isinstance(schema, dict) and schema["type"] == "array":
        yield from _records(schema["items"])


def _enumerations(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those defined in the record's own fields."""
    for field in record["fields"]:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        yield from (kind for kind in kinds if isinstance(kind, dict) and kind["type"] == "enum")
