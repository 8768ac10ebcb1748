"""The Confluent-compatible schema registry: writer schemas by id or GUID, and the registration of what we write.

Tells an outage (wait) from a schema that is not known yet (wait a minute) from one that never will be (dead letter;
contract §2). Must never sleep or retry by itself, never take an outage for a verdict, and never show a password.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import UUID

from sync_worker.errors import FatalError, InvalidRecord, RejectionReason, RetryableError, SettingsError
from sync_worker.schema.avro import AvroSchema, UnusableSchema, parse
from sync_worker.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

TIMEOUT_S = 3.0
UNKNOWN_FOR_S = 60.0  # contract §2: an id the registry doesn't know is retried for a minute
ASK_AGAIN_S = 3.0
ASK_AFTER_OUTAGE_S = 1.0
_MAX_UNKNOWN = 1000
_MAX_ID = 2**31 - 1  # ids are positive Java ints; a registry may answer anything else with a server error
Answer = TypeVar("Answer")

_NOT_FOUND_CODES = frozenset({40401, 40402, 40403})


class RegistryUnavailable(RetryableError):
    """The registry does not answer as a registry would: an outage or a wrong setting, not the record's fault."""


class SchemaNotYetKnown(RetryableError):
    """The registry does not know the schema; a publisher may just be registering it."""


class _NotFound(Exception):
    pass


@dataclass(slots=True)
class _Unknown:
    first_seen: float
    asked: float


class Registry:
    """A client of the registry at `url`, which may carry `user:password@`, as may `user` and `password`.

    Every request is bounded by `timeout_s`. `clock` is monotonic, in seconds. Raises SettingsError
    for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        user: str | None = None,
        password: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # 16 MB, which a worker without a registry does without (ADR 11).
        from confluent_kafka import schema_registry  # noqa: PLC0415 - see above

        self._library = schema_registry
        self.url, credentials = _without_credentials(url)
        if user:
            credentials = f"{user}:{password or ''}"
        configuration: dict[str, object] = {"url": self.url, "timeout": timeout_s, "max.retries": 0}
        if credentials is not None:
            configuration["basic.auth.user.info"] = credentials
        try:
            self._client = schema_registry.SchemaRegistryClient(configuration)
        except (ValueError, OSError) as fault:
            raise SettingsError(f"SYNC_WORKER_SCHEMA_REGISTRY_URL: {self.url} cannot be used: {fault}") from fault
        self._clock = clock
        self._schemas: dict[int | UUID, AvroSchema] = {}
        self._unknown: dict[int | UUID, _Unknown] = {}
        self._registered: dict[tuple[str, bytes], int] = {}
        self._outage: tuple[float, str] | None = None  # when it last didn't answer, and how

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def schema(self, reference: int | UUID) -> AvroSchema:
        """The writer schema with this id or GUID.

        Raises SchemaNotYetKnown for a minute from the first time the registry said that it doesn't know it, then
        InvalidRecord (unknown_schema), which is also raised for a schema that can't be used; RegistryUnavailable during
        an outage. The registry is asked again about an unknown one every few seconds at most.
        """
        known = self._schemas.get(reference)
        if known is not None:
            return known
        if isinstance(reference, int) and not 0 < reference <= _MAX_ID:
            raise _unknown_schema(f"{reference} is not an id that a schema registry gives")
        unknown = self._unknown.get(reference)
        if unknown is not None and self._clock() - unknown.asked < ASK_AGAIN_S:
            raise self._verdict(reference, unknown)
        try:
            found = self._ask(
                f"schema {reference}",
                (lambda: self._client.get_schema(reference))
                if isinstance(reference, int)
                else (lambda: self._client.get_schema_by_guid(str(reference))),
                # Registries without GUIDs have no such path at all, and must not hold up the partition for ever.
                any_not_found=isinstance(reference, UUID),
            )
        except _NotFound:
            if isinstance(reference, UUID):
                # A wrong URL says "not found" in just the same way: make sure that there is a registry at all.
                self._ask("its schema types", self._client.get_schema_types)
            raise self._verdict(reference, self._note_unknown(reference)) from None
        self._unknown.pop(reference, None)
        schema = self._usable(reference, found)
        self._schemas[reference] = schema
        return schema

    def register(self, topic: str, schema: AvroSchema) -> int:
        """The id of a schema we write to `topic`, registered if need be under `subject_name` (TopicRecordName).

        Raises RegistryUnavailable, or FatalError when the registry refuses the schema.
        """
        key = (topic, schema.fingerprint)
        known = self._registered.get(key)
        if known is not None:
            return known
        subject = subject_name(topic, schema)
        wanted = self._library.Schema(schema.text, "AVRO")
        try:
            # A look-up first: writing may be forbidden where schemas are registered by a pipeline.
            registered = self._ask(subject, lambda: self._client.lookup_schema(subject, wanted), any_not_found=True)
            schema_id = registered.schema_id
        except _NotFound:
            schema_id = self._ask(subject, lambda: self._client.register_schema(subject, wanted), registering=True)
        if schema_id is None:
            raise RegistryUnavailable(f"the schema registry at {self.url} answers for {subject} without an id")
        self._registered[key] = schema_id
        return schema_id

    def _ask(
        self, what: str, call: Callable[[], Answer], *, any_not_found: bool = False, registering: bool = False
    ) -> Answer:
        """As `_put`, but a registry that just didn't answer isn't asked again at once.

        A question may take its whole timeout, and many partitions may be asking.
        """
        if self._outage is not None and self._clock() - self._outage[0] < ASK_AFTER_OUTAGE_S:
            raise RegistryUnavailable(self._outage[1])
        try:
            answer = self._put(what, call, any_not_found=any_not_found, registering=registering)
        except RegistryUnavailable as outage:
            self._outage = (self._clock(), str(outage))
            raise
        self._outage = None
        return answer

    def _put(self, what: str, call: Callable[[], Answer], *, any_not_found: bool, registering: bool) -> Answer:
        """Put one request; raises _NotFound (unless registering), RegistryUnavailable, FatalError for a refusal."""
        try:
            return call()
        except self._library.SchemaRegistryError as fault:
            status, code = fault.http_status_code, fault.error_code
            said = f"{fault.error_message} (HTTP {status}, code {code})"[:300]
            if not registering and (
                status in (400, 422) or (status == 404 and (any_not_found or code in _NOT_FOUND_CODES))
            ):
                raise _NotFound from fault
            if registering and status in (403, 409, 422):
                raise FatalError(f"the schema registry at {self.url} refuses to register {what}: {said}") from fault
            hint = {
                401: "; are the credentials right?",
                404: "; does SYNC_WORKER_SCHEMA_REGISTRY_URL have the right path?",
            }
            raise RegistryUnavailable(
                f"the schema registry at {self.url} answers for {what}: {said}{hint.get(status, '')}"
            ) from fault
        except Exception as fault:
            # The client lets through whatever its HTTP library raises, and which library that is depends on what is
            # installed: no answer, half an answer, or one that is not JSON. None of it is the record's fault.
            raise RegistryUnavailable(
                f"the schema registry at {self.url} does not answer for {what}: {type(fault).__name__}: {fault}"[:500]
            ) from fault

    def _note_unknown(self, reference: int | UUID) -> _Unknown:
        now = self._clock()
        unknown = self._unknown.setdefault(reference, _Unknown(first_seen=now, asked=now))
        unknown.asked = now
        while len(self._unknown) > _MAX_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        return unknown

    def _verdict(self, reference: int | UUID, unknown: _Unknown) -> Exception:
        waited = self._clock() - unknown.first_seen
        if waited < UNKNOWN_FOR_S:
            return SchemaNotYetKnown(
                f"the schema registry at {self.url} does not know schema {reference} yet; asking again for"
                f" {UNKNOWN_FOR_S - waited:.0f} s more before the record becomes a dead letter"
            )
        return _unknown_schema(
            f"the schema registry at {self.url} does not know schema {reference}, for {waited:.0f} s by now"
        )

    def _usable(self, reference: int | UUID, found: "Schema") -> AvroSchema:
        if found.schema_type not in (None, "AVRO") or found.schema_str is None:
            raise _unknown_schema(f"schema {reference} of the registry is of type {found.schema_type}, not AVRO")
        if found.references:
            raise _unknown_schema(
                f"schema {reference} of the registry refers to other subjects, which is not followed;"
                " register it with its types written out"
            )
        try:
            return parse(found.schema_str)
        except UnusableSchema as fault:
            raise _unknown_schema(f"schema {reference} of the registry cannot be used: {fault}"[:480]) from fault


def registry_of(settings: Settings) -> Registry | None:
    """The schema registry of the settings, if there is one."""
    if not settings.schema_registry_url:
        return None
    password = settings.schema_registry_password.get_secret_value()
    return Registry(settings.schema_registry_url, settings.schema_registry_user or None, password or None)


def subject_name(topic: str, schema: AvroSchema) -> str:
    """The subject of a record's schema on a topic, by the strategy TopicRecordName (contract §2)."""
    return f"{topic}-{schema.full_name}"


def _unknown_schema(detail: str) -> InvalidRecord:
    return InvalidRecord(RejectionReason.UNKNOWN_SCHEMA, detail)


def _without_credentials(url: str) -> tuple[str, str | None]:
    """The URL without user and password, which so can't get into a message, and `user:password` if it had them."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, f"{unquote(parts.username)}:{unquote(parts.password or '')}"
