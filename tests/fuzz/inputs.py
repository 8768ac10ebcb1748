"""Inputs for the targets, made by somebody who knows Avro: records nearly right, and mutations that keep most of it right.

Bytes at random are refused at the first length; what finds faults is a record that is wrong in one place. All from the
`Random` that is given.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.fuzz.oracle import load
from tests.fuzz.writers import WRITERS

SCHEMAS_FROM = 232  # of the first byte's values, a tenth is for schemas

LONGEST = 4096
_PARSED = [load(writer.text) for writer in WRITERS]
_NUMBERS = (
    0, 1, -1, 2, 7, 63, 64, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**53, 253_402_300_799_999_999, 253_402_300_800_000_000,
    1_750_000_000_000_000, 2**60, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
_TEXTS = (
    "", "student", "manual", "é" * 255, "x" * 255, "x" * 256, "𝄞" * 255, "a\0b", "\u202e\u2028\x1b[2J", "'; drop table x; --",
    "%s{}{0}", "aaaaaaaa-0000-4000-8000-000000000002", "{aaaaaaa-0000-4000-8000-000000000002}", "\ufeff", " ",
)  # fmt: skip


def zigzag(number: int) -> bytes:
    """A number as Avro writes it."""
    number = (number << 1 ^ number >> 63) & (2**64 - 1)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def text(content: str) -> bytes:
    """A text as Avro writes it."""
    encoded = content.encode()
    return zigzag(len(encoded)) + encoded


def record(random: Random) -> bytes:
    """An input of the target `records`: topic and framing, writer, and a datum of it, mostly valid."""
    writer = random.randrange(len(WRITERS))
    framing = random.randrange(5)
    head = bytes([framing * 3 + _topic_of(writer) if random.random() < 0.95 else random.randrange(256), writer])
    return (head + datum(random, *_PARSED[writer]))[:LONGEST]


def _topic_of(writer: int) -> int:
    name = _PARSED[writer].root["name"]
    return 0 if name.startswith("Segment") else 1 if name == "EnrollmentMethodChanged" else 2


def fresh(random: Random) -> bytes:
    """An input of either target, with the byte that says which."""
    if random.random() < 0.1:
        return bytes([random.randint(SCHEMAS_FROM, 255)]) + schema(random)
    return bytes([random.randrange(SCHEMAS_FROM)]) + record(random)


def datum(random: Random, schema: Any, named: Mapping[str, Any], field: str = "") -> bytes:  # noqa: PLR0911 - one for each type
    """A datum of a schema; `field` says what it is for."""
    if isinstance(schema, list):
        branch = random.randrange(len(schema))
        return zigzag(branch) + datum(random, schema[branch], named, field)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind in named:
        return datum(random, named[kind], named, field)
    if kind == "record":
        return b"".join(datum(random, each["type"], named, each["name"]) for each in schema["fields"])
    if kind == "enum":
        return zigzag(random.randrange(len(schema["symbols"])))
    if kind in ("array", "map"):
        return _blocks(random, schema, named)
    if kind in ("int", "long"):
        return _number(random, field, 31 if kind == "int" else 63)
    if kind == "string":
        return text(_text(random, field))
    if kind == "bytes":
        return text(_text(random, field))
    sizes = {"null": 0, "boolean": 1, "float": 4, "double": 8}
    if kind == "boolean":
        return bytes([random.randrange(2)])
    return random.randbytes(sizes[kind] if kind in sizes else schema["size"])


def _number(random: Random, field: str, bits: int) -> bytes:
    if random.random() < 0.9:
        return zigzag(1_750_000_000_000_000 if field == "occurred_at" and bits == 63 else random.randint(1, 2000))
    return zigzag(random.choice(_NUMBERS))


def _text(random: Random, field: str) -> str:
    if field.endswith("_id") and random.random() < 0.97:
        digits = f"{random.getrandbits(128):032x}"
        canonical = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        return canonical.upper() if random.random() < 0.05 else canonical
    return random.choice(_TEXTS) if random.random() < 0.2 else "student"


def _blocks(random: Random, schema: Any, named: Mapping[str, Any]) -> bytes:
    out = b""
    for _ in range(random.randrange(3)):
        count = random.randint(1, 3)
        body = b"".join(
            (text("k") if schema["type"] == "map" else b"")
            + datum(random, schema.get("items", schema.get("values")), named)
            for _ in range(count)
        )
        sized = random.random() < 0.5
        out += (zigzag(-count) + zigzag(len(body)) if sized else zigzag(count)) + body
    return out + zigzag(0)


def mutated(random: Random, data: bytes) -> bytes:
    """An input with one to three things changed, as an attacker or a broken publisher would change them."""
    value = bytearray(data or b"\0")
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(value))
        match random.randrange(9):
            case 0:
                value[at] = random.randrange(256)
            case 1:
                value[at] ^= 1 << random.randrange(8)
            case 2:
                value[at:at] = random.randbytes(random.randint(1, 4))
            case 3:
                value[at : at + 1] = zigzag(random.choice(_NUMBERS))
            case 4:
                # The same number in more bytes than it needs.
                value[at : at + 1] = bytes(
                    [value[at] | 0x80, *b"\x80" * random.randrange(12), random.choice((0, 0, 1, 0x7F))]
                )
            case 5:
                del value[at : at + random.randint(1, 40)]
            case 6:
                value[at:at] = text(random.choice(_TEXTS))
            case 7:
                other = random.randrange(len(value))
                value[at:at] = value[other : other + random.randint(1, 60)]
            case _:
                value += random.randbytes(random.randint(1, 8))
        if not value:
            value = bytearray(b"\0")
    return bytes(value[:LONGEST])


_TYPES: tuple[Any, ...] = (
    "null", "boolean", "int", "long", "float", "double", "bytes", "string", "Nobody", "record", 7, None, [], ["null"], {}, True,
    ["null", "string"], ["int", "string", "null", "bytes"], {"type": "string", "logicalType": "uuid"}, {"type": {"type": "int"}},
    {"type": "array", "items": "null"}, {"type": "array", "items": "string"}, {"type": "map", "values": "null"},
    {"type": "fixed", "name": "F1", "size": 2**40}, {"type": "fixed", "name": "F2", "size": -1}, {"type": "fixed", "name": "F3", "size": 0},
    {"type": "enum", "name": "E1", "symbols": []}, {"type": "enum", "name": "E2", "symbols": ["A", "A"]},
    {"type": "record", "name": "Empty", "fields": []}, {"type": "array", "items": {"type": "record", "name": "Z", "fields": []}},
    {"type": "record", "name": "Self", "fields": [{"name": "s", "type": ["null", "Self"]}]},
    {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": "int"}}},
    {"type": "array", "items": {"type": "record", "name": "Wide", "fields": [{"name": f"f{n}", "type": "null"} for n in range(50)] + [
        {"name": "one", "type": "boolean"}]}},
)  # fmt: skip
_KEYS = (
    "type",
    "name",
    "namespace",
    "fields",
    "items",
    "values",
    "symbols",
    "size",
    "default",
    "aliases",
    "doc",
    "order",
)


def schema(random: Random) -> bytes:
    """An input of the target `schemas`: the length of a schema's JSON in two bytes, the JSON, and bytes to be read with it."""
    node = json.loads(random.choice(WRITERS).text)
    for _ in range(random.randint(1, 4)):
        node = _changed(random, node)
    try:
        body = datum(random, *load(json.dumps(node)))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, MemoryError, OverflowError):
        body = random.randbytes(random.randrange(200))  # a schema that has no data
    written = json.dumps(node).encode()[: LONGEST * 2]
    return struct.pack(">H", len(written)) + written + body[:LONGEST]


def _changed(random: Random, node: Any) -> Any:
    """The JSON with one place changed."""
    if random.random() < 0.25 or not isinstance(node, dict | list) or not node:
        wrapped = {"type": "array", "items": node}
        return random.choice((random.choice(_TYPES), wrapped, {"type": "map", "values": node}, ["null", node]))
    if isinstance(node, list):
        at = random.randrange(len(node))
        changed = [*node]
        if random.random() < 0.2:
            changed.insert(at, node[at])
        else:
            changed[at] = _changed(random, node[at])
        return changed
    if random.random() < 0.1:
        return {**node, random.choice(_KEYS): random.choice(_TYPES)}
    key = random.choice([*node])
    if random.random() < 0.1:
        return {other: item for other, item in node.items() if other != key}
    return {**node, key: _changed(random, node[key])}
