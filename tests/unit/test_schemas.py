"""The .avsc files say what contract §2 says, are safe to decode with, and evolve FULL_TRANSITIVE."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker
from fastavro import parse_schema
from fastavro.schema import fingerprint, to_parsing_canonical_form

from sync_worker.errors import SettingsError
from sync_worker.events import NAMESPACE, RecordName
from sync_worker.schema.avro import UnusableSchema, parse
from sync_worker.schema.store import load_schemas, record_name, schema_folder
from tests.records import SCHEMAS, schema_of

Schema = dict[str, Any]
Evolution = Callable[[Schema], object]

UUID = {"type": "string", "logicalType": "uuid"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
NULLABLE_STRING = ["null", "string"]
NULLABLE_UUID = ["null", UUID]

# Contract §2, in its order; a tuple is an enum's symbols.
CONTRACT: dict[RecordName, list[tuple[str, Any]]] = {
    RecordName.MEMBER_ADDED: [("segment_id", UUID), ("user_id", UUID), ("version", "long")],
    RecordName.MEMBER_REMOVED: [("segment_id", UUID), ("user_id", UUID), ("version", "long")],
    RecordName.METHOD_CHANGED: [
        ("method_id", UUID),
        ("version", "long"),
        ("course_id", UUID),
        ("segment_id", UUID),
        ("segment_name", NULLABLE_STRING),
        ("kind", ("SEGMENT_SYNC", "SEGMENT_GROUP")),
        ("name", "string"),
        ("active", "boolean"),
        ("visible", "boolean"),
        ("role", NULLABLE_STRING),
        ("group_id", NULLABLE_UUID),
        ("on_removal", ("UNENROLL", "SUSPEND", "SUSPEND_WITHOUT_ROLES")),
        ("deleted", "boolean"),
    ],
    RecordName.SOURCE_CHANGED: [
        ("course_id", UUID),
        ("user_id", UUID),
        ("source", "string"),
        ("version", "long"),
        ("status", ("ACTIVE", "SUSPENDED", "ABSENT")),
        ("role", NULLABLE_STRING),
    ],
    RecordName.SUSPENSION_CHANGED: [
        ("course_id", UUID),
        ("user_id", UUID),
        ("version", "long"),
        ("suspended", "boolean"),
    ],
    RecordName.ENROLLMENT_CHANGED: [
        ("course_id", UUID),
        ("user_id", UUID),
        ("version", "long"),
        ("change", ("ENROLLED", "UNENROLLED", "SUSPENDED", "REACTIVATED", "UPDATED")),
        ("before", "record"),
        ("after", "EnrollmentState"),
        ("cause", "record"),
    ],
}
RELEASED = sorted(SCHEMAS.glob("released/*/*.avsc"))


def fields_of(schema: Schema) -> list[tuple[str, Any]]:
    def brief(type_: Any) -> Any:
        if isinstance(type_, dict) and type_["type"] == "enum":
            return tuple(type_["symbols"])
        return type_["type"] if isinstance(type_, dict) and type_["type"] == "record" else type_

    return [(field["name"], brief(field["type"])) for field in schema["fields"]]


@pytest.mark.parametrize("name", RecordName)
def test_a_record_has_the_fields_of_the_contract_in_its_order(name: RecordName) -> None:
    schema = schema_of(name)
    assert (schema["name"], schema["namespace"]) == (name, NAMESPACE)
    assert fields_of(schema) == [("event_id", UUID), ("occurred_at", MICROS), *CONTRACT[name]]


def test_the_contracts_defaults_are_the_only_ones_of_inputs() -> None:
    defaults = {
        (name, field["name"]): field["default"]
        for name in RecordName
        for field in schema_of(name)["fields"]
        if "default" in field
    }
    assert defaults == {
        (RecordName.METHOD_CHANGED, "segment_name"): None,
        (RecordName.METHOD_CHANGED, "on_removal"): "UNENROLL",
        (RecordName.METHOD_CHANGED, "deleted"): False,
    }


def test_the_state_and_cause_of_an_enrollment_change_are_the_contracts() -> None:
    fields = {field["name"]: field["type"] for field in schema_of(RecordName.ENROLLMENT_CHANGED)["fields"]}
    state = {field["name"]: field["type"] for field in fields["before"]["fields"]}
    assert list(state) == ["status", "roles", "groups", "suspended_in_course", "sources"]
    assert state["status"]["symbols"] == ["ABSENT", "ACTIVE", "SUSPENDED"]
    assert (state["roles"], state["groups"]) == ({"type": "array", "items": "string"}, {"type": "array", "items": UUID})
    assert fields_of(state["sources"]["items"]) == [
        ("source", "string"),
        ("kind", ("SEGMENT_SYNC", "SEGMENT_GROUP", "OTHER")),
        ("status", "EnrollmentStatus"),
        ("role", NULLABLE_STRING),
        ("group_id", NULLABLE_UUID),
        ("member", "boolean"),
    ]
    assert fields_of(fields["cause"]) == [("type", "string"), ("event_id", NULLABLE_UUID), ("method_id", NULLABLE_UUID)]


def types_within(node: Any) -> list[Schema]:
    """Every schema object inside, fields included."""
    if isinstance(node, list):
        return [each for child in node for each in types_within(child)]
    if not isinstance(node, dict):
        return []
    return [node, *(each for key in ("type", "items", "fields") if key in node for each in types_within(node[key]))]


@pytest.mark.parametrize("name", RecordName)
def test_every_field_and_named_type_is_documented(name: RecordName) -> None:
    undocumented = [node for node in types_within(schema_of(name)) if "name" in node and not node.get("doc")]
    assert undocumented == []


@pytest.mark.parametrize("name", RecordName)
def test_enums_have_a_default_in_what_consumers_read_and_none_in_what_the_worker_reads(name: RecordName) -> None:
    enums = [node for node in types_within(schema_of(name)) if node.get("type") == "enum"]
    assert all(("default" in enum) == (name is RecordName.ENROLLMENT_CHANGED) for enum in enums)


# CRC-64-AVRO as the Avro specification words it, to hold fastavro's and ours against.


def spec_fingerprint(text: bytes) -> int:
    empty = 0xC15D213AA4D7A795
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = (entry >> 1) ^ (empty if entry & 1 else 0)
        table.append(entry)
    crc = empty
    for byte in text:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        ('"null"', 0x63DD24E7CC258F8A),
        ('"int"', 0x7275D51A3F395C8F),
        ('"string"', 0x8F014872634503C7),
    ],
)
def test_the_specs_fingerprints_come_out_of_fastavro_in_the_order_of_the_wire(canonical: str, expected: int) -> None:
    assert spec_fingerprint(canonical.encode()) == expected
    assert bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")) == expected.to_bytes(8, "little")


@pytest.mark.parametrize("path", [*SCHEMAS.glob("*.avsc"), *RELEASED], ids=lambda path: str(path.relative_to(SCHEMAS)))
def test_a_schema_parses_alone_and_has_the_specs_fingerprint_with_or_without_logical_types(path: Path) -> None:
    text = path.read_text("utf-8")
    canonical = to_parsing_canonical_form(parse_schema(json.loads(text)))
    assert parse(text).fingerprint == spec_fingerprint(canonical.encode()).to_bytes(8, "little")


def test_the_released_schemas_are_the_ones_that_were_released() -> None:
    assert {
        f"{path.parent.name}/{path.stem}": parse(path.read_text("utf-8")).fingerprint.hex() for path in RELEASED
    } == PINNED


# What is on the wire somewhere, for as long as a topic keeps it. Add to this; never change it.
PINNED = {
    "0.1.0/CourseSuspensionChanged": "4ab97c12134f6e1c",
    "0.1.0/EnrollmentChanged": "9202e930b9e7c985",
    "0.1.0/EnrollmentMethodChanged": "2ba9292594e0dc6f",
    "0.1.0/EnrollmentSourceChanged": "5d148fd2d2d4c768",
    "0.1.0/SegmentMemberAdded": "d7665eb5e015db68",
    "0.1.0/SegmentMemberRemoved": "2fa7ace19683b8ef",
}


def test_the_store_knows_every_current_and_released_schema_by_fingerprint() -> None:
    store = load_schemas()
    assert set(store.current) == set(RecordName)
    assert {record_name(schema) for schema in store.current.values()} == set(RecordName)
    for path in RELEASED:
        assert parse(path.read_text("utf-8")).fingerprint in store.by_fingerprint
    for schema in store.current.values():
        assert store.by_fingerprint[schema.fingerprint] is schema
        assert schema.single_object_prefix == b"\xc3\x01" + schema.fingerprint


def test_a_checkout_loads_the_schemas_at_its_top() -> None:
    assert schema_folder() == SCHEMAS


def member_with(**changes: Any) -> Schema:
    return {**schema_of(RecordName.MEMBER_ADDED), **changes}


def test_schema_dir_adds_writer_schemas(tmp_path: Path) -> None:
    newer = member_with()
    newer["fields"] = [*newer["fields"], {"name": "reason", "type": "string", "default": ""}]
    (tmp_path / "newer.avsc").write_text(json.dumps(newer), "utf-8")
    store = load_schemas(tmp_path)
    added = parse(json.dumps(newer))
    assert store.by_fingerprint[added.fingerprint].full_name == f"{NAMESPACE}.SegmentMemberAdded"
    assert store.current[RecordName.MEMBER_ADDED].fingerprint != added.fingerprint


def test_every_broken_file_in_schema_dir_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.avsc").write_text("{", "utf-8")
    (tmp_path / "b.avsc").write_bytes(b"\xff")
    (tmp_path / "c.avsc").write_text('{"type": "record", "name": "C"}', "utf-8")
    (tmp_path / "fine.avsc").write_text(json.dumps(member_with()), "utf-8")
    (tmp_path / "notes.txt").write_text("not read", "utf-8")
    with pytest.raises(SettingsError) as caught:
        load_schemas(tmp_path)
    lines = str(caught.value).splitlines()
    assert [Path(line.split(": ")[1].split(" ")[0]).name for line in lines] == ["a.avsc", "b.avsc", "c.avsc"]
    assert all(line.startswith("SYNC_WORKER_SCHEMA_DIR: ") for line in lines)


def test_a_schema_dir_that_is_no_folder_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"SYNC_WORKER_SCHEMA_DIR: .* is not a folder"):
        load_schemas(tmp_path / "none")


def record(*types: Any) -> str:
    fields = [{"name": f"f{number}", "type": type_} for number, type_ in enumerate(types)]
    return json.dumps({"type": "record", "name": "R", "fields": fields})


def doubling(levels: int) -> Any:
    """Records that each hold the next one twice: a few lines that mean 2^levels fields, all without a byte."""
    node: Any = {"type": "record", "name": "R0", "fields": []}
    for level in range(1, levels):
        fields = [{"name": "a", "type": node}, {"name": "b", "type": f"R{level - 1}"}]
        node = {"type": "record", "name": f"R{level}", "fields": fields}
    return node


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (record(["null", "R"]), "contains itself"),
        (record({"type": "array", "items": "R"}), "contains itself"),
        (record({"type": "array", "items": "null"}), "items without bytes"),
        (record({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}), "items without bytes"),
        (record({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}), "items without bytes"),
        (json.dumps(doubling(15)), "more than 1000 types"),
        (record({"type": "fixed", "name": "F", "size": -1}), "no usable size"),
        (record({"type": "fixed", "name": "F", "size": "x"}), "no usable size"),
        (record([]), "a union has no branch"),
        ('"string"', "not an Avro record schema"),
        ("[]", "not an Avro record schema"),
        ("5", "not an Avro record schema"),
        ("[" * 100_000, "not JSON"),
        (record(json.loads("[" * 70 + "]" * 70)), "nested more than"),
        (record("Unheard"), "not an Avro schema"),
        (record({"type": ["null"]}), "not an Avro schema"),
        (record({"type": "enum", "name": "E"}), "not an Avro schema"),
        ('{"type": "record", "name": 5, "fields": []}', "not an Avro schema"),
        ('{"type": "record", "name": "R", "fields": 5}', "not an Avro record schema"),
    ],
)
def test_a_schema_that_is_none_or_is_unsafe_to_decode_with_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnusableSchema, match=why):
        parse(text)


def test_an_ordinary_schema_with_arrays_maps_and_nested_records_is_accepted() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "n", "type": ["null", "int", "double"]}]}
    text = record(
        {"type": "array", "items": inner}, {"type": "map", "values": "I"}, {"type": "fixed", "name": "F", "size": 2}
    )
    schema = parse(text)
    assert (schema.full_name, schema.reproducible) == ("R", False)


def test_a_default_that_looks_like_a_logical_type_is_left_alone() -> None:
    field = {"name": "m", "type": {"type": "map", "values": "string"}, "default": {"logicalType": "x"}}
    schema = parse(json.dumps({"type": "record", "name": "R", "fields": [field]}))
    assert schema.parsed["fields"][0]["default"] == {"logicalType": "x"}


# The evolution gate (contract §2: FULL_TRANSITIVE).


def incompatibilities(reader: Schema, writer: Schema) -> list[str]:
    """Why `reader` cannot read what `writer` wrote; the library looks at resolution, we at what it leaves out."""
    for schema in (reader, writer):
        parse_schema(copy.deepcopy(schema))  # defaults that are no value of their type
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    result = checker.get_compatibility(avro.schema.parse(json.dumps(reader)), avro.schema.parse(json.dumps(writer)))
    faults = sorted(result.messages)
    if reader.get("namespace") != writer.get("namespace"):
        faults.append(f"namespace: {reader.get('namespace')} is not {writer.get('namespace')}")
    meanings, others = logical_types(reader), logical_types(writer)
    faults += [
        f"{path}: means another logical type" for path in meanings if meanings[path] != others.get(path, meanings[path])
    ]
    return faults


def logical_types(node: Any, path: str = "") -> dict[str, str | None]:
    """Path of each field to its logical type: a time in milliseconds resolves as one in microseconds, to nonsense."""
    if isinstance(node, list):
        return {place: type_ for each in node for place, type_ in logical_types(each, path).items()}
    if not isinstance(node, dict):
        return {path: None} if node != "null" else {}
    found = {path: node.get("logicalType")} if node["type"] in ("string", "long", "int", "bytes") else {}
    for field in node.get("fields", []):
        found |= logical_types(field["type"], f"{path}.{field['name']}")
    if "items" in node:
        found |= logical_types(node["items"], f"{path}[]")
    return found


def gate(old: Schema, new: Schema) -> list[str]:
    """What hinders a change from `old` to `new`, in both directions."""
    return [
        *(f"new readers of old records: {fault}" for fault in incompatibilities(new, old)),
        *(f"old readers of new records: {fault}" for fault in incompatibilities(old, new)),
    ]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: str(path.relative_to(SCHEMAS)))
def test_every_current_schema_is_fully_compatible_with_every_released_version(path: Path) -> None:
    released = json.loads(path.read_text("utf-8"))
    assert gate(released, schema_of(RecordName(path.stem))) == []


def test_no_record_that_was_released_is_gone() -> None:
    assert {path.stem for path in RELEASED} <= set(RecordName)
    assert RELEASED, "the gate compares with nothing"


def field_of(schema: Schema, name: str) -> Schema:
    found: Schema = next(field for field in schema["fields"] if field["name"] == name)
    return found


def without(name: str) -> Callable[[Schema], None]:
    return lambda schema: schema["fields"].remove(field_of(schema, name))


def with_field(**field: Any) -> Callable[[Schema], None]:
    return lambda schema: schema["fields"].append(field)


def retyped(name: str, type_: Any) -> Callable[[Schema], None]:
    return lambda schema: field_of(schema, name).update(type=type_)


def symbols(name: str, *values: str) -> Callable[[Schema], None]:
    return lambda schema: field_of(schema, name)["type"].update(symbols=list(values))


def renamed(name: str, new: str) -> Callable[[Schema], None]:
    return lambda schema: field_of(schema, name).update(name=new)


BAD: dict[str, tuple[RecordName, Evolution]] = {
    "a field without default removed": (RecordName.METHOD_CHANGED, without("role")),
    "a field without default added": (RecordName.MEMBER_ADDED, with_field(name="reason", type="string")),
    "a field renamed": (RecordName.MEMBER_ADDED, renamed("user_id", "person_id")),
    "a type changed": (RecordName.MEMBER_ADDED, retyped("version", "string")),
    "a type narrowed": (RecordName.MEMBER_ADDED, retyped("version", "int")),
    "a type widened": (RecordName.MEMBER_ADDED, retyped("version", "double")),
    "a field made nullable": (RecordName.METHOD_CHANGED, retyped("name", ["null", "string"])),
    "a nullable field made required": (RecordName.METHOD_CHANGED, retyped("role", "string")),
    "an input symbol renamed": (RecordName.METHOD_CHANGED, symbols("on_removal", "UNENROLL", "SUSPEND", "KEEP")),
    "an input symbol removed": (RecordName.SOURCE_CHANGED, symbols("status", "ACTIVE", "SUSPENDED")),
    "an input symbol added": (RecordName.SOURCE_CHANGED, symbols("status", "ACTIVE", "SUSPENDED", "ABSENT", "WAITING")),
    "the record renamed": (RecordName.MEMBER_ADDED, lambda schema: schema.update(name="MemberAdded")),
    "the namespace changed": (RecordName.MEMBER_ADDED, lambda schema: schema.update(namespace="user_segment_sync.v2")),
    "an enum renamed": (RecordName.METHOD_CHANGED, lambda schema: field_of(schema, "kind")["type"].update(name="Kind")),
    "a time's unit changed": (
        RecordName.MEMBER_ADDED,
        retyped("occurred_at", {"type": "long", "logicalType": "timestamp-millis"}),
    ),
    "a nested field added without default": (
        RecordName.ENROLLMENT_CHANGED,
        lambda schema: field_of(schema, "before")["type"]["fields"].append({"name": "note", "type": "string"}),
    ),
    "an array's items changed": (
        RecordName.ENROLLMENT_CHANGED,
        lambda schema: field_of(field_of(schema, "before")["type"], "roles")["type"].update(items="long"),
    ),
    "an output's enum loses its default and a symbol": (
        RecordName.ENROLLMENT_CHANGED,
        lambda schema: (
            field_of(schema, "change")["type"].pop("default"),
            field_of(schema, "change")["type"]["symbols"].remove("REACTIVATED"),
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_gate_refuses(case: str) -> None:
    name, change = BAD[case]
    new = schema_of(name)
    change(new)
    assert gate(schema_of(name), new) != []


GOOD: dict[str, tuple[RecordName, Evolution]] = {
    "nothing": (RecordName.METHOD_CHANGED, lambda _: None),
    "a field with default added": (RecordName.MEMBER_ADDED, with_field(name="reason", type="string", default="")),
    "a field with default removed": (RecordName.METHOD_CHANGED, without("segment_name")),
    "documentation changed": (RecordName.MEMBER_ADDED, lambda schema: schema.update(doc="Otherwise put.")),
    "an output symbol added where the enum has a default": (
        RecordName.ENROLLMENT_CHANGED,
        symbols("change", "ENROLLED", "UNENROLLED", "SUSPENDED", "REACTIVATED", "UPDATED", "MOVED"),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_gate_lets_pass(case: str) -> None:
    name, change = GOOD[case]
    new = schema_of(name)
    change(new)
    assert gate(schema_of(name), new) == []


def test_the_gate_refuses_a_default_that_is_no_value_of_its_type() -> None:
    new = member_with()
    new["fields"] = [*new["fields"], {"name": "reason", "type": "string", "default": 5}]
    with pytest.raises(Exception, match="Default value"):
        gate(member_with(), new)
