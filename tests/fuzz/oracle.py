"""What a record's bytes come to, told a second time: by the Avro specification and contract §2, and nothing of the worker.

Plain and slow on purpose: a reader of bytes that follows the specification's text, schema resolution as far as the schemas
of the tests need it, and the contract's rules one by one. Must never import from sync_worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NAMESPACE = "user_segment_sync.v1"
TOPICS: Mapping[str, frozenset[str]] = {
    "segments.membership": frozenset({"SegmentMemberAdded", "SegmentMemberRemoved"}),
    "enrollment.methods": frozenset({"EnrollmentMethodChanged"}),
    "enrollment.sources": frozenset({"EnrollmentSourceChanged", "CourseSuspensionChanged"}),
}
MOST_VALUES = 100_000
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_KINDS = {"SEGMENT_SYNC", "SEGMENT_GROUP"}
_POLICIES = {"UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES"}
_STATUSES = {"ACTIVE", "SUSPENDED", "ABSENT"}


class Verdict(NamedTuple):
    """The reason of the dead letter, or the event: the record's name and its fields, ids in lower case."""

    reason: str = ""
    name: str = ""
    fields: tuple[tuple[str, Any], ...] = ()


class NoDatum(Exception):
    """The bytes are not a datum of the schema."""


class NotOurs(Exception):
    """The datum can't be read as the reader's schema."""


class Datum:
    """Reads one datum; `at` is where the next value begins."""

    def __init__(self, value: bytes, at: int) -> None:
        self.value = value
        self.at = at
        self.left = MOST_VALUES

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.value):
            raise NoDatum
        self.at += count
        return self.value[self.at - count : self.at]

    def long(self) -> int:
        groups = [self.take(1)[0]]
        while groups[-1] & 0x80:
            if len(groups) == 10:
                raise NoDatum
            groups.append(self.take(1)[0])
        number = sum((group & 0x7F) << 7 * n for n, group in enumerate(groups))
        if number >= 2**64 or (len(groups) > 1 and groups[-1] == 0):
            raise NoDatum
        return -(number + 1) // 2 if number % 2 else number // 2

    def read(self, schema: Any, named: Mapping[str, Any]) -> Any:
        """The value as (schema of it, content); unions are gone, records are dicts."""
        if isinstance(schema, list):
            return self.read(schema[self.index(len(schema))], named)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if isinstance(kind, dict | list):
            return self.read(kind, named)
        if kind in named:
            return self.read(named[kind], named)
        return schema, getattr(self, f"read_{kind}")(schema, named)

    def index(self, count: int) -> int:
        index = self.long()
        if not 0 <= index < count:
            raise NoDatum
        return index

    def spend(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise NoDatum

    def read_null(self, _schema: Any, _named: Any) -> None:
        return None

    def read_boolean(self, _schema: Any, _named: Any) -> bool:
        byte = self.take(1)
        if byte > b"\1":
            raise NoDatum
        return byte == b"\1"

    def read_int(self, _schema: Any, _named: Any) -> int:
        number = self.long()
        if not -(2**31) <= number < 2**31:
            raise NoDatum
        return number

    def read_long(self, _schema: Any, _named: Any) -> int:
        return self.long()

    def read_float(self, _schema: Any, _named: Any) -> bytes:
        return self.take(4)

    def read_double(self, _schema: Any, _named: Any) -> bytes:
        return self.take(8)

    def read_bytes(self, _schema: Any, _named: Any) -> bytes:
        return self.take(self.long())

    def read_string(self, _schema: Any, _named: Any) -> str:
        try:
            return self.take(self.long()).decode("utf-8")
        except UnicodeDecodeError:
            raise NoDatum from None

    def read_fixed(self, schema: Any, _named: Any) -> bytes:
        return self.take(schema["size"])

    def read_enum(self, schema: Any, _named: Any) -> str:
        symbol: str = schema["symbols"][self.index(len(schema["symbols"]))]
        return symbol

    def read_record(self, schema: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        self.spend(len(schema["fields"]))
        return {field["name"]: self.read(field["type"], named) for field in schema["fields"]}

    def read_array(self, schema: Any, named: Mapping[str, Any]) -> None:
        self.blocks(lambda: self.read(schema["items"], named))

    def read_map(self, schema: Any, named: Mapping[str, Any]) -> None:
        def entry() -> None:
            self.spend(2)
            self.read_string(None, named)
            self.read(schema["values"], named)

        self.blocks(entry)

    def blocks(self, item: Any) -> None:
        """What is in arrays and maps is not looked at: no field of ours is one."""
        while (count := self.long()) != 0:
            size = self.long() if count < 0 else None
            begin = self.at
            self.spend(abs(count))
            for _ in range(abs(count)):
                item()
            if size is not None and self.at - begin != size:
                raise NoDatum


class Schema(NamedTuple):
    """A schema's JSON without logical types, which change nothing on the wire, and the types that it names."""

    root: Any
    types: Mapping[str, Any]


def judge(topic: str, value: bytes, start: int, writer: Schema, reader: Mapping[str, Schema]) -> Verdict:
    """The verdict on a record whose datum begins at `start`, by its writer's schema; `reader` has ours by name."""
    namespace, _, name = full_name(writer.root).rpartition(".")
    if namespace != NAMESPACE or name not in TOPICS[topic]:
        return Verdict("invalid_event")
    source = Datum(value, start)
    try:
        _, read = source.read(writer.root, writer.types)
    except NoDatum:
        return Verdict("undecodable")
    if source.at != len(value):
        return Verdict("undecodable")
    try:
        fields = {field["name"]: resolved(field, read) for field in reader[name].root["fields"]}
    except NotOurs:
        return Verdict("invalid_event")
    if not all(valid(name, fields)):
        return Verdict("invalid_event")
    ids = {field: content.lower() for field, content in fields.items() if field.endswith("_id") and content is not None}
    return Verdict("", name, tuple(sorted({**fields, **ids}.items())))


def types_of(schema: Any) -> dict[str, Any]:
    """The types that a schema names, to be referred to elsewhere in it. Without namespaces: the tests need none."""
    if isinstance(schema, list):
        return {name: each for branch in schema for name, each in types_of(branch).items()}
    if not isinstance(schema, dict):
        return {}
    found = {schema["name"]: schema} if schema["type"] in ("record", "enum", "fixed") else {}
    inside = [schema[key] for key in ("type", "items", "values") if key in schema]
    for each in [*inside, *(field["type"] for field in schema.get("fields", ()))]:
        found |= types_of(each)
    return found


def full_name(schema: Any) -> str:
    name, namespace = schema["name"], schema.get("namespace", "")
    return name if "." in name or not namespace else f"{namespace}.{name}"


def resolved(field: Any, read: dict[str, Any]) -> Any:
    """A field of ours out of what was written: the same type, or one that Avro promotes to it."""
    if field["name"] not in read:
        if "default" not in field:
            raise NotOurs
        return field["default"]
    written, content = read[field["name"]]
    wanted = field["type"] if isinstance(field["type"], list) else [field["type"]]
    for branch in wanted:
        kind = branch["type"] if isinstance(branch, dict) else branch
        was = written["type"] if isinstance(written, dict) else written
        if was == kind:
            if kind == "enum" and content not in branch["symbols"]:
                raise NotOurs
            return content
        if (was, kind) == ("int", "long"):
            return content
        if (was, kind) == ("bytes", "string"):
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                raise NotOurs from None
    raise NotOurs


def valid(name: str, fields: Mapping[str, Any]) -> Sequence[bool]:
    """Contract §2, "Valid or not", rule by rule."""
    rules = [
        1 <= fields["version"] < 2**63,
        0 <= fields["occurred_at"] <= 253_402_300_799_999_999,  # until the end of the year 9999
        *(is_uuid(text) for field, text in fields.items() if field.endswith("_id") and text is not None),
        *(
            len(text) <= 255 and "\0" not in text
            for field, text in fields.items()
            if isinstance(text, str) and not field.endswith("_id")
        ),
        fields.get("role") != "",
    ]
    if name == "EnrollmentMethodChanged":
        enrolls = fields["kind"] == "SEGMENT_SYNC"
        rules += [
            fields["kind"] in _KINDS,
            fields["on_removal"] in _POLICIES,
            (fields["role"] is not None) == enrolls,
            enrolls or fields["group_id"] is not None,
        ]
    if name == "EnrollmentSourceChanged":
        rules += [fields["status"] in _STATUSES, fields["source"] != "", not is_uuid(fields["source"])]
    return rules


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text.lower()) is not None and text.isascii()


def load(text: str) -> Schema:
    """The schema of an .avsc."""
    bare = _bare(json.loads(text))
    return Schema(bare, types_of(bare))


def _bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _bare(item) for key, item in node.items() if key != "logicalType"}
    return [_bare(item) for item in node] if isinstance(node, list) else node
