"""Where settings are read from: the process environment, a `.env` file, and the mounted files that secrets live in.

It knows names and text, not what a value may be; that is settings.py's. It must never put a secret into a message.
"""

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from sync_worker.errors import SettingsError

PREFIX: Final = "SYNC_WORKER_"
FROM_FILE: Final = "_FILE"
SECRETS: Final = frozenset(
    {"database_url", "kafka_properties", "kafka_sasl_password", "kafka_ssl_key_password", "schema_registry_password"}
)
# Contract §1: an empty SOURCES_TOPIC says "not read", so it is not the same as an unset one.
EMPTY_HAS_MEANING: Final = frozenset({"sources_topic"})


class Unusable:
    """A value that could not even be read, and why; validation turns it into a fault beside the others."""

    def __init__(self, fault: str) -> None:
        self.fault = fault


class Environment(PydanticBaseSettingsSource):
    """The process environment as a source for pydantic-settings.

    Its own neither knows `<NAME>_FILE` nor tells an empty topic from an unset one, and reports only the first fault.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads all fields together."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        return values(self.settings_cls.model_fields, None)


def environment_name(field: str) -> str:
    """The name that an operator types for a field of `Settings`."""
    return PREFIX + field.upper()


def values(fields: Collection[str], env_file: str | None) -> dict[str, Any]:
    """What is set of these fields, as text or Unusable: by the environment, else by the `.env` file.

    In each of the two, a secret may also be the name of a file that holds it.
    """
    found: dict[str, Any] = {}
    for layer in reversed(list(_layers(env_file))):
        read = {field: _read(layer, field) for field in fields}
        found |= {field: value for field, value in read.items() if value is not None}
    return found


def warnings_about_names(fields: Collection[str], env_file: str | None) -> list[str]:
    """Names with our prefix that nothing reads, each with what may have been meant; a typo is no reason to stop."""
    known = {environment_name(field) for field in fields}
    known |= {environment_name(field) + FROM_FILE for field in SECRETS & set(fields)}
    names = {name for layer in _layers(env_file) for name in layer if name.upper().startswith(PREFIX)}
    warnings = []
    for name in sorted(names - known):
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
        warnings.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return warnings


def _layers(env_file: str | None) -> Iterator[Mapping[str, str]]:
    yield os.environ
    if env_file is not None and Path(env_file).is_file():
        try:
            yield {name: value or "" for name, value in dotenv_values(env_file, interpolate=False).items()}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{env_file} cannot be read: {_why(error)}") from None


def _read(layer: Mapping[str, str], field: str) -> str | Unusable | None:
    name = environment_name(field)
    value = layer.get(name)
    file = layer.get(name + FROM_FILE, "").strip() if field in SECRETS else ""
    if file:
        if value:
            return Unusable(f"set together with {name}{FROM_FILE}: set one of the two")
        return _read_file(file, name + FROM_FILE)
    if value is None or (not value.strip() and field not in EMPTY_HAS_MEANING):
        return None
    return value if field in SECRETS else value.strip()


def _read_file(file: str, name: str) -> str | Unusable:
    try:
        content = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        return Unusable(f"{name} names {file}, which cannot be read: {_why(error)}")
    return content or Unusable(f"{name} names {file}, which is empty")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
