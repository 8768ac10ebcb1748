"""Whether bytes are a datum of a schema, by the letter of the Avro specification, before anything is made of them.

The decoder beneath is lenient: it takes negative indexes, numbers of any length and blocks that lie about their size, so
that one record could be read in two ways. Must never build what it looks at, so that a small record which declares
millions of values costs nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sync_worker.errors import SyncWorkerError

MAX_VALUES = 100_000  # of one record; an event of contract §2 has 15
_MAX_NUMBER_BYTES = 10

Walk = Callable[[bytes, int, "_Budget"], int]
"""From the bytes and where a value begins to where it ends. Raises NotADatum, or IndexError where the bytes end before."""


class NotADatum(SyncWorkerError):
    """Bytes that no writer of the schema would have written; says why."""


class Checker:
    """Checks data of one schema, as `parse` of schema.avro gives it: parsed, and free of recursion."""

    def __init__(self, parsed: Mapping[str, Any]) -> None:
        self._walk = _walk_of(parsed, parsed.get("__named_schemas", {}))

    def check(self, value: bytes, start: int) -> None:
        """One datum from `start` to the end of `value`. Raises NotADatum."""
        try:
            end = self._walk(value, start, _Budget())
        except IndexError:
            raise NotADatum("it is cut short") from None
        if end > len(value):
            raise NotADatum("it is cut short")
        if end < len(value):
            raise NotADatum(f"{len(value) - end} bytes follow it; a record's value is one datum and nothing else")


class _Budget:
    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def spend(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise NotADatum(f"it holds more than {MAX_VALUES} values")


def _walk_of(node: Any, named: Mapping[str, Any]) -> Walk:
    if isinstance(node, list):
        return _union([_walk_of(branch, named) for branch in node])
    if isinstance(node, str):
        return _PRIMITIVES[node] if node in _PRIMITIVES else _walk_of(named[node], named)
    match node["type"]:
        case "record" | "error":
            walk = _record([_walk_of(each["type"], named) for each in node["fields"]])
        case "enum":
            walk = _enum(len(node["symbols"]))
        case "fixed":
            walk = _fixed(node["size"])
        case "array":
            walk = _blocks(_walk_of(node["items"], named))
        case "map":
            walk = _blocks(_record([_text, _walk_of(node["values"], named)]))
        case kind:
            walk = _walk_of(kind, named)
    return walk


def _number(value: bytes, at: int) -> tuple[int, int]:
    """A zig-zag number of 64 bits in as few bytes as it needs, and where it ends."""
    byte = value[at]
    if byte < 0x80:
        return byte >> 1 ^ -(byte & 1), at + 1
    number, shift, begin = byte & 0x7F, 7, at
    while byte >= 0x80:
        at += 1
        byte = value[at]
        number |= (byte & 0x7F) << shift
        shift += 7
        if at - begin >= _MAX_NUMBER_BYTES:
            break
    if byte == 0 or byte >= 0x80 or number >> 64:
        raise NotADatum("a number is not encoded as Avro encodes it")
    return number >> 1 ^ -(number & 1), at + 1


def _null(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001 - a Walk, as those below
    return at


def _boolean(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
    if value[at] > 1:
        raise NotADatum(f"a boolean is {value[at]}, neither 0 nor 1")
    return at + 1


def _int(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
    number, at = _number(value, at)
    if not -(2**31) <= number < 2**31:
        raise NotADatum("an int has more than 32 bits")
    return at


def _long(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
    return _number(value, at)[1]


def _bytes(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
    length, at = _number(value, at)
    if length < 0 or at + length > len(value):
        raise NotADatum(f"a text or bytes of length {length} where {len(value) - at} bytes are left")
    return at + length


def _text(value: bytes, at: int, budget: _Budget) -> int:
    end = _bytes(value, at, budget)
    begin = _number(value, at)[1]
    try:
        value[begin:end].decode()
    except UnicodeDecodeError as fault:
        raise NotADatum(f"a text is not UTF-8: {fault.reason}") from fault
    return end


def _fixed(size: int) -> Walk:
    def walk(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
        if at + size > len(value):
            raise IndexError
        return at + size

    return walk


def _enum(symbols: int) -> Walk:
    def walk(value: bytes, at: int, budget: _Budget) -> int:  # noqa: ARG001
        index, at = _number(value, at)
        if not 0 <= index < symbols:
            raise NotADatum(f"symbol {index} of an enum of {symbols}")
        return at

    return walk


def _union(branches: list[Walk]) -> Walk:
    def walk(value: bytes, at: int, budget: _Budget) -> int:
        index, at = _number(value, at)
        if not 0 <= index < len(branches):
            raise NotADatum(f"branch {index} of a union of {len(branches)}")
        return branches[index](value, at, budget)

    return walk


def _record(fields: list[Walk]) -> Walk:
    def walk(value: bytes, at: int, budget: _Budget) -> int:
        budget.spend(len(fields))
        for field in fields:
            at = field(value, at, budget)
        return at

    return walk


def _blocks(item: Walk) -> Walk:
    """An array or a map: blocks of items until one of none; a negative count is followed by the block's size in bytes."""

    def walk(value: bytes, at: int, budget: _Budget) -> int:
        while True:
            count, at = _number(value, at)
            if count == 0:
                return at
            end = None
            if count < 0:
                size, at = _number(value, at)
                count, end = -count, at + size
            budget.spend(count)
            for _ in range(count):
                at = item(value, at, budget)
            if end is not None and at != end:
                raise NotADatum("a block of an array or map is not as long as it says")

    return walk


_PRIMITIVES: Mapping[str, Walk] = {
    "null": _null,
    "boolean": _boolean,
    "int": _int,
    "long": _long,
    "float": _fixed(4),
    "double": _fixed(8),
    "bytes": _bytes,
    "string": _text,
}
