"""One Avro record schema, parsed for the worker's use: without logical types, with its fingerprint, known to be safe.

Logical types are stripped because ids are then read as strings and times as integers, half again as fast; their form is
checked once, by the worker itself. A schema that could make a small record use unbounded time, memory or stack must
never get past here: the decoder beneath trusts what it is given.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from fastavro.schema import SchemaParseException, fingerprint, parse_schema, to_parsing_canonical_form

from sync_worker.errors import SyncWorkerError
from sync_worker.schema.wire import SINGLE_OBJECT_MAGIC

_MAX_DEPTH = 64  # of the JSON; the parser recurses without a limit of its own
_MAX_NODES = 1000  # of the schema with every named type written out where it is used

_PRIMITIVE_WIDTHS = {
    "null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1,
}  # fmt: skip
_REPRODUCIBLE = frozenset({"null", "boolean", "int", "long", "string"})
_TYPE_KEYS = ("type", "items", "values")

# What fastavro raises for JSON that is not a schema; only the first two are documented.
_PARSE_FAULTS = (SchemaParseException, ValueError, KeyError, TypeError, AttributeError, IndexError)


class UnusableSchema(SyncWorkerError):
    """A text that is not an Avro record schema, or one that the worker does not decode with; says why, on one line."""

    def __init__(self, why: str) -> None:
        # It quotes names out of the schema, which may be anything.
        super().__init__(why.encode("unicode_escape").decode("ascii")[:400])


@dataclass(frozen=True, slots=True, eq=False)
class AvroSchema:
    """A parsed writer or reader schema.

    `fingerprint` is CRC-64-AVRO in the byte order of the wire (little endian). `reproducible` says that a datum has one
    encoding only, so that writing it again must give the bytes that were read; `checkable` says that there is
    something to gain by doing so: fastavro takes a negative index of an enum or union and any non-zero boolean.
    """

    full_name: str
    text: str = field(repr=False)
    parsed: dict[str, Any] = field(repr=False)
    fingerprint: bytes
    reproducible: bool
    checkable: bool

    @property
    def single_object_prefix(self) -> bytes:
        """What stands before a datum of this schema in Avro single-object encoding."""
        return SINGLE_OBJECT_MAGIC + self.fingerprint


def parse(text: str) -> AvroSchema:
    """Parse an .avsc text. Raises UnusableSchema."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise UnusableSchema(f"it is not JSON: {fault}") from fault
    if not isinstance(raw, dict) or raw.get("type") != "record" or not isinstance(raw.get("fields"), list):
        raise UnusableSchema("it is not an Avro record schema")
    _check_depth(raw)
    try:
        parsed = parse_schema(_without_logical_types(raw))
        # Already in the order of the wire.
        crc = bytes.fromhex(fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO"))
    except _PARSE_FAULTS as fault:
        raise UnusableSchema(f"it is not an Avro schema: {type(fault).__name__}: {fault}") from fault
    if not isinstance(parsed, dict):  # a record always is; said for the type checker
        raise UnusableSchema("it is not an Avro record schema")
    survey = _Survey(parsed.get("__named_schemas", {}))
    survey.measure(parsed)
    return AvroSchema(
        full_name=parsed["name"],
        text=text,
        parsed=parsed,
        fingerprint=crc,
        reproducible=survey.reproducible,
        checkable=survey.checkable,
    )


def _check_depth(raw: Any) -> None:
    level = [raw]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise UnusableSchema(f"it is nested more than {_MAX_DEPTH} levels deep")


def _without_logical_types(node: Any) -> Any:
    """The schema without `logicalType`, looking only where schemas stand: a default or a doc may be any JSON."""
    if isinstance(node, list):
        return [_without_logical_types(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    stripped = {key: value for key, value in node.items() if key != "logicalType"}
    for key in _TYPE_KEYS:
        if key in stripped:
            stripped[key] = _without_logical_types(stripped[key])
    if isinstance(stripped.get("fields"), list):
        stripped["fields"] = [_without_logical_types(each) for each in stripped["fields"]]
    return stripped


class _Survey:
    """Walks a parsed schema once: the fewest bytes a datum takes, and what makes a schema unsafe to decode with."""

    def __init__(self, named: dict[str, Any]) -> None:
        self.reproducible = True
        self.checkable = False
        self._named = named
        self._nodes = 0

    def measure(self, node: Any, inside: tuple[str, ...] = ()) -> int:
        """The fewest bytes that a datum of this schema takes. Raises UnusableSchema."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise UnusableSchema(f"written out it has more than {_MAX_NODES} types")
        if isinstance(node, str) and node in _PRIMITIVE_WIDTHS:
            self.reproducible &= node in _REPRODUCIBLE
            self.checkable |= node == "boolean"
            return _PRIMITIVE_WIDTHS[node]
        if isinstance(node, str):
            if node in inside:
                raise UnusableSchema(f"{node} contains itself; the worker does not decode recursive records")
            if node not in self._named:
                raise UnusableSchema(f"{node} is not defined")
            return self.measure(self._named[node], inside)
        if isinstance(node, list):
            return self._union(node, inside)
        return self._complex(node, inside)

    def _union(self, branches: list[Any], inside: tuple[str, ...]) -> int:
        self.checkable = True
        # With two branches besides null, writing might choose another one than was read.
        self.reproducible &= len([branch for branch in branches if branch != "null"]) == 1
        if not branches:
            raise UnusableSchema("a union has no branch")
        return 1 + min(self.measure(branch, inside) for branch in branches)

    def _complex(self, node: dict[str, Any], inside: tuple[str, ...]) -> int:
        kind = node["type"]
        if kind in ("record", "error"):
            return sum(self.measure(each["type"], (*inside, node["name"])) for each in node["fields"])
        if kind == "enum":
            self.checkable = True
            return 1
        if kind == "fixed":
            self.reproducible = False
            if not isinstance(node["size"], int) or node["size"] < 0:
                raise UnusableSchema(f"{node['name']} has no usable size")
            return node["size"]
        if kind in ("array", "map"):
            self.reproducible = False  # may come in several blocks
            width = self.measure(node["items"] if kind == "array" else node["values"], inside)
            if kind == "array" and width == 0:
                raise UnusableSchema(
                    "it has an array of items without bytes: a few bytes could declare billions of them"
                )
            return 1
        return self.measure(kind, inside)  # a primitive written as {"type": "string"}
