"""Whether a datum has the fields and types of a record: asked where no Avro decoder has already made sure of it.

That is after schema resolution, which fastavro does loosely (bytes for a string), and for JSON lines of `publish`.
Must never judge content; that is validation's part.
"""

from typing import Any

from sync_worker.intake.validation import Datum, invalid, shown
from sync_worker.schema.avro import AvroSchema

_PYTHON: dict[str, type] = {"string": str, "long": int, "boolean": bool, "null": type(None)}
_WORDS = {str: "a string", int: "an integer", bool: "true or false", type(None): "null"}


class Shape:
    """The fields of one of our flat input records."""

    def __init__(self, schema: AvroSchema) -> None:
        self.fields: dict[str, tuple[type, ...]] = {}
        self.defaults: dict[str, Any] = {}
        for field in schema.parsed["fields"]:
            branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
            self.fields[field["name"]] = tuple(_python_type(branch) for branch in branches)
            if "default" in field:
                self.defaults[field["name"]] = field["default"]

    def check(self, datum: Datum) -> None:
        """Raise InvalidRecord (invalid_event) that names every field which is missing or of a wrong type."""
        faults = [
            f"{name}: is missing; it must be {_words(types)}"
            if name not in datum
            else f"{name}: {shown(datum[name])} is not {_words(types)}"
            for name, types in self.fields.items()
            if name not in datum or type(datum[name]) not in types
        ]
        if faults:
            raise invalid("; ".join(faults)[:480])


def _python_type(branch: Any) -> type:
    if isinstance(branch, dict):
        return str if branch["type"] == "enum" else _PYTHON[branch["type"]]
    return _PYTHON[branch]


def _words(types: tuple[type, ...]) -> str:
    return " or ".join(_WORDS[each] for each in reversed(types))
