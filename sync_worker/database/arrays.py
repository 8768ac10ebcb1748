"""Columns of a batch, packed as PostgreSQL's binary arrays by hand: a third of the driver's own cost per value.

An array is one-dimensional; its values are packed exactly, and nothing is checked here that intake has checked before.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import ClassVar

import psycopg
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

from sync_worker.database.sessions import Session

_BOOL, _INT4, _INT8, _TEXT, _TIMESTAMPTZ, _UUID = 16, 23, 20, 25, 1184, 2950
_UUID_SIZE = struct.pack(">i", 16)
_NULL = struct.pack(">i", -1)
_TRUE, _FALSE = struct.pack(">i?", 1, True), struct.pack(">i?", 1, False)
# PostgreSQL counts from 2000-01-01.
_EPOCH_US = 946_684_800_000_000


class PackedArray(bytes):
    """An array in PostgreSQL's binary form. Subclasses say of what."""


class UuidArray(PackedArray): ...


class BoolArray(PackedArray): ...


class Int4Array(PackedArray): ...


class Int8Array(PackedArray): ...


class TextArray(PackedArray): ...


class TimestamptzArray(PackedArray): ...


def uuids(ids: Sequence[bytes]) -> UuidArray:
    """ids: 16 bytes each."""
    if not ids:
        return UuidArray(_empty(_UUID))
    return UuidArray(_header(_UUID, len(ids)) + _UUID_SIZE + _UUID_SIZE.join(ids))


def bools(values: Sequence[bool]) -> BoolArray:
    if not values:
        return BoolArray(_empty(_BOOL))
    return BoolArray(_header(_BOOL, len(values)) + b"".join([_TRUE if value else _FALSE for value in values]))


def int4s(values: Sequence[int]) -> Int4Array:
    if not values:
        return Int4Array(_empty(_INT4))
    return Int4Array(_header(_INT4, len(values)) + _fixed(">" + "ii" * len(values), 4, values))


def int8s(values: Sequence[int]) -> Int8Array:
    if not values:
        return Int8Array(_empty(_INT8))
    return Int8Array(_header(_INT8, len(values)) + _fixed(">" + "iq" * len(values), 8, values))


def timestamps(values: Sequence[int]) -> TimestamptzArray:
    """values: microseconds since 1970, UTC."""
    if not values:
        return TimestamptzArray(_empty(_TIMESTAMPTZ))
    packed = _fixed(">" + "iq" * len(values), 8, [value - _EPOCH_US for value in values])
    return TimestamptzArray(_header(_TIMESTAMPTZ, len(values)) + packed)


def texts(values: Sequence[str | None]) -> TextArray:
    if not values:
        return TextArray(_empty(_TEXT))
    # Traces are mostly absent: a column of nothing is one multiplication.
    nulls = values.count(None)
    if nulls == len(values):
        return TextArray(_header(_TEXT, nulls, nulls=True) + _NULL * nulls)
    return TextArray(_header(_TEXT, len(values), nulls=nulls > 0) + b"".join(_text_items(values)))


def uuids_of(packed: bytes) -> list[bytes]:
    """The ids of a `uuid[]` without nulls as PostgreSQL sent it in binary."""
    return [packed[start : start + 16] for start in range(24, len(packed), 20)]


def _header(oid: int, length: int, *, nulls: bool = False) -> bytes:
    return struct.pack(">iiIii", 1, nulls, oid, length, 1)


def _empty(oid: int) -> bytes:
    return struct.pack(">iiI", 0, 0, oid)


def _fixed(layout: str, size: int, values: Iterable[int]) -> bytes:
    return struct.pack(layout, *chain.from_iterable(zip(repeat(size), values, strict=False)))


def _text_items(values: Iterable[str | None]) -> Iterable[bytes]:
    for value in values:
        if value is None:
            yield _NULL
        else:
            encoded = value.encode()
            yield struct.pack(">i", len(encoded))
            yield encoded


class _PackedDumper(Dumper):
    format = Format.BINARY
    element: ClassVar[str]

    def dump(self, obj: PackedArray) -> bytes:
        return obj


class _RawLoader(Loader):
    format = Format.BINARY

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)


def register(session: Session) -> None:
    """Let this session send packed arrays, and receive binary uuids and their arrays as plain bytes."""
    for kind, element in (
        (UuidArray, "uuid"),
        (BoolArray, "bool"),
        (Int4Array, "int4"),
        (Int8Array, "int8"),
        (TextArray, "text"),
        (TimestamptzArray, "timestamptz"),
    ):
        info: TypeInfo = psycopg.adapters.types[element]
        dumper = type(f"{kind.__name__}Dumper", (_PackedDumper,), {"oid": info.array_oid})
        session.adapters.register_dumper(kind, dumper)
    for oid in (psycopg.adapters.types["uuid"].oid, psycopg.adapters.types["uuid"].array_oid):
        session.adapters.register_loader(oid, _RawLoader)
