"""The entities whose versions publishers count (contract §2), and how a person names one. Imports nothing heavy: usage needs it."""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from sync_worker.errors import SettingsError


class Kind(StrEnum):
    """What `version` counts."""

    MEMBERSHIP = "membership"
    METHOD = "method"
    SOURCE = "source"
    SUSPENSION = "suspension"


KEYS = {
    Kind.MEMBERSHIP: ("segment_id", "user_id"),
    Kind.METHOD: ("method_id",),
    Kind.SOURCE: ("course_id", "user_id", "source"),
    Kind.SUSPENSION: ("course_id", "user_id"),
}
"""What names an entity, in order; all but `source` are uuids."""

Key = tuple[UUID | str, ...]


def key_of(kind: Kind, parts: Sequence[str]) -> Key:
    """The key of an entity by its parts as text. Raises SettingsError where they are too many, too few, or no ids."""
    names = KEYS[kind]
    if len(parts) != len(names):
        raise SettingsError(f"a {kind} is named by {' '.join(names)}: {len(names)} to be given, there are {len(parts)}")
    return tuple(part if name == "source" else _id(name, part) for name, part in zip(names, parts, strict=True))


def _id(name: str, part: str) -> UUID:
    try:
        return UUID(part)
    except ValueError:
        raise SettingsError(f"{name} {part!r} is not a uuid") from None
