"""All schemas the worker knows without asking anybody: the current ones, every released version, and SCHEMA_DIR.

Finds the writer schema of a record by the fingerprint it carries (contract §2, "Framing"). Workers are upgraded before
publishers, and SCHEMA_DIR serves where they are not. Must never leave out a file it was given: a broken one is an
error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sync_worker.errors import SettingsError
from sync_worker.events import NAMESPACE, RecordName
from sync_worker.schema.avro import AvroSchema, UnusableSchema, parse

_NAMES = {str(name): name for name in RecordName}
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class SchemaStore:
    """`current` has this version's schema of each record; `by_fingerprint` every known writer schema."""

    current: Mapping[RecordName, AvroSchema]
    by_fingerprint: Mapping[bytes, AvroSchema]


def record_name(schema: AvroSchema) -> RecordName | None:
    """Which record of contract §2 a schema describes, by its full name; None when it is none of them."""
    namespace, _, name = schema.full_name.rpartition(".")
    return _NAMES.get(name) if namespace == NAMESPACE else None


def schema_folder() -> Path:
    """Where the released .avsc files are: inside the installed package, or at the top of a checkout."""
    packaged = _PACKAGE / "schemas"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "schemas"


def load_schemas(schema_dir: Path | None = None) -> SchemaStore:
    """Load the schemas that belong to the worker, and those of SCHEMA_DIR if it is set (contract §4).

    Raises SettingsError that names every file in SCHEMA_DIR which cannot be used.
    """
    folder = schema_folder()
    current = {name: parse((folder / f"{name}.avsc").read_text("utf-8")) for name in RecordName}
    released = [parse(path.read_text("utf-8")) for path in sorted(folder.glob("released/*/*.avsc"))]
    further = [] if schema_dir is None else _load_further(schema_dir)
    # The current ones last: of two schemas that differ in documentation only, they stand.
    return SchemaStore(current, _by_fingerprint([*further, *released, *current.values()]))


def _by_fingerprint(schemas: Iterable[AvroSchema]) -> dict[bytes, AvroSchema]:
    return {schema.fingerprint: schema for schema in schemas}


def _load_further(schema_dir: Path) -> list[AvroSchema]:
    if not schema_dir.is_dir():
        raise SettingsError(f"SYNC_WORKER_SCHEMA_DIR: {schema_dir} is not a folder")
    schemas: list[AvroSchema] = []
    faults: list[str] = []
    for path in sorted(schema_dir.glob("*.avsc")):
        try:
            schemas.append(parse(path.read_text("utf-8")))
        except (UnusableSchema, OSError, UnicodeDecodeError) as fault:
            faults.append(f"SYNC_WORKER_SCHEMA_DIR: {path} cannot be used: {fault}")
    if faults:
        raise SettingsError("\n".join(faults))
    return schemas
