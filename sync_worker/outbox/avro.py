"""Avro's binary forms for one fixed record layout, and what a schema alone decides of them.

By hand, since a row of the outbox is written in the time that a general writer takes for its first field. It must never
guess: an evolved schema gives other bytes, or a FatalError that says what the encoder has to learn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastavro import parse_schema

from sync_worker.errors import FatalError


class Union(NamedTuple):
    """The bytes by which a union of null and string begins: all there is of a null, or what stands before a string."""

    null: bytes
    some: bytes


class SchemaReader:
    """Reads from a schema what it alone decides, the numbers of enum symbols and union branches, and checks the rest.

    An evolved schema then gives other bytes, or a FatalError that says what the encoder has to learn.
    """

    def __init__(self, schema: Any) -> None:
        self._named: dict[str, Any] = {}
        self.root = parse_schema(schema, named_schemas=self._named)

    def resolve(self, type_: Any) -> Any:
        """The definition behind a name, or the type itself."""
        return self._named.get(type_, type_) if isinstance(type_, str) else type_

    def record(self, type_: Any, path: str, names: Sequence[str]) -> dict[str, Any]:
        record = self._kind(type_, path, "record")
        found = [field["name"] for field in record["fields"]]
        if found != list(names):
            raise unknown_layout(path, f"fields {', '.join(found)}", f"{', '.join(names)}")
        return {field["name"]: field["type"] for field in record["fields"]}

    def enum(self, type_: Any, path: str, symbols: Sequence[str]) -> dict[str, bytes]:
        found = self._kind(type_, path, "enum")["symbols"]
        if missing := set(symbols) - set(found):
            raise unknown_layout(path, f"an enum of {', '.join(found)}", f"also {', '.join(sorted(missing))}")
        return {symbol: long(found.index(symbol)) for symbol in symbols}

    def optional(self, type_: Any, path: str) -> Union:
        branches = [_primitive_of(branch) for branch in type_] if isinstance(type_, list) else []
        if sorted(map(str, branches)) != ["null", "string"]:
            raise unknown_layout(path, type_, "a union of null and string")
        return Union(long(branches.index("null")), long(branches.index("string")))

    def items(self, type_: Any, path: str) -> Any:
        return self._kind(type_, path, "array")["items"]

    def primitive(self, type_: Any, path: str, expected: str) -> None:
        if _primitive_of(type_) != expected:
            raise unknown_layout(path, type_, expected)

    def _kind(self, type_: Any, path: str, expected: str) -> dict[str, Any]:
        definition = self.resolve(type_)
        if not isinstance(definition, dict) or definition["type"] != expected:
            raise unknown_layout(path, type_, expected)
        return definition


def _primitive_of(type_: Any) -> Any:
    """A type without its logical type, which changes no byte."""
    return type_["type"] if isinstance(type_, dict) else type_


def unknown_layout(path: str, found: object, expected: str) -> FatalError:
    return FatalError(
        f"schema of EnrollmentChanged: {path} is {found}, and the encoder writes {expected}; "
        "schema and encoder must change together"
    )


def long(number: int) -> bytes:
    """Avro's long: zigzag, then seven bits to a byte, lowest first."""
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{number} is no 64-bit integer")
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def string(text: str) -> bytes:
    encoded = text.encode()
    return long(len(encoded)) + encoded


def uuid(branch: Union, id_: str) -> bytes:
    if len(id_) != 36:
        raise ValueError(f"{id_} is not a canonical uuid")
    return branch.some + b"H" + id_.encode("ascii")  # H: the length 36


def boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def array(items: list[bytes]) -> bytes:
    """Avro's array as one block, and the empty block that ends it."""
    return long(len(items)) + b"".join(items) + b"\0" if items else b"\0"
