"""The short way to a membership: the bytes that nearly every record has, read by position instead of field by field.

Members are most of the input, and in this version's own schema all that varies in length is two numbers. Whatever looks
unusual goes the long way (decoding.py), which alone may reject; both must say the same of the same bytes.
"""

from binascii import Error, unhexlify
from typing import Final

from sync_worker.events import Membership, new_tuple
from sync_worker.schema.avro import AvroSchema

FIELDS: Final = (
    ("event_id", "string"),
    ("occurred_at", "long"),
    ("segment_id", "string"),
    ("user_id", "string"),
    ("version", "long"),
)
"""The layout that is read here, by Avro types."""

# From the datum's start. Eight bytes hold any time of the years 1979 to 3111.
_ID_LENGTH = 36 << 1
_DASHES = b"----"
_TIME, _SEGMENT, _USER, _VERSION = 37, 45, 82, 119
# Numbers as Avro writes them: 7 bits per byte, the highest bit says that more follow, the lowest of the whole is the sign.
_SHORT_VERSIONS: Final = {
    bytes([n << 1] if n < 64 else [n << 1 & 127 | 128, n >> 6]): n for n in range(1, 8192)
}  # fmt: skip
_MORE, _LAST = 0x0080808080808080, 0x8080808080808080
_LONG_BYTES = 8


def has_layout(schema: AvroSchema) -> bool:
    """Whether data of this schema has the layout that `membership_at` reads."""
    fields = [(each["name"], each["type"]) for each in schema.parsed["fields"]]
    # A primitive that had a logical type is left as {"type": "string"}.
    return tuple((name, kind["type"] if isinstance(kind, dict) else kind) for name, kind in fields) == FIELDS


def membership_at(value: bytes, start: int, traceparent: str | None, *, is_member: bool) -> Membership | None:
    """The membership whose datum begins at `start` and ends with the value; None for bytes that must go the long way."""
    tail = value[start + _VERSION :]
    version = _SHORT_VERSIONS.get(tail) or _long(tail)
    occurred_at = _long(value[start + _TIME : start + _SEGMENT])
    if (
        version is None
        or occurred_at is None
        or not value[start] == value[start + _SEGMENT] == value[start + _USER] == _ID_LENGTH
    ):
        return None
    event = value[start + 1 : start + _TIME]
    segment = value[start + _SEGMENT + 1 : start + _USER]
    user = value[start + _USER + 1 : start + _VERSION]
    if not event[8:24:5] == segment[8:24:5] == user[8:24:5] == _DASHES:
        return None
    try:
        # Twelve dashes are in their places: with more of them, or anything but digits, it doesn't come to 48 bytes.
        ids = unhexlify((event + segment + user).replace(b"-", b""))
    except Error:
        return None
    if len(ids) != 48:
        return None
    return new_tuple(Membership, (ids[16:32], ids[32:], is_member, version, ids[:16], occurred_at, traceparent))


def _long(encoded: bytes) -> int | None:
    """A number that isn't negative, of exactly eight bytes and written in no more than it needs, eight 7-bit groups at once."""
    if len(encoded) != _LONG_BYTES:
        return None
    bits = int.from_bytes(encoded, "little")
    # The first seven say that more follow; the last doesn't, isn't empty, and the number has no sign.
    if bits & _LAST != _MORE or not bits >> 56 or bits & 1:
        return None
    bits = (bits & 0x007F007F007F007F) | (bits & 0x7F007F007F007F00) >> 1
    bits = (bits & 0x00003FFF00003FFF) | (bits & 0x3FFF00003FFF0000) >> 2
    return ((bits & 0x0FFFFFFF) | (bits & 0x0FFFFFFF00000000) >> 4) >> 1
