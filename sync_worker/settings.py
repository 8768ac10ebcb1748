"""Every setting of the worker: what it may be, and what is said when it is wrong (contract §4).

All faults are found before anything connects and reported together, by the names that an operator typed. A secret must
never leave this module in a message or a repr, which is why libpq's own complaints, which quote it, are not passed on.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sync_worker.environment import Environment, Unusable, environment_name, values, warnings_about_names
from sync_worker.errors import SettingsError
from sync_worker.kafka import properties

ENV_FILE: Final = ".env"
KAFKA: Final = frozenset({"kafka_bootstrap_servers"})
DATABASE: Final = frozenset({"database_url"})
KAFKA_AND_DATABASE: Final = KAFKA | DATABASE
TOPICS: Final = (
    "membership_topic", "methods_topic", "sources_topic", "changes_topic", "dead_letters_topic", "cursor_topic",
)  # fmt: skip


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _topic(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in {".", ".."}:
        raise ValueError(f"{name!r} is not a topic name")
    return name


def _group(name: str) -> str:
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise ValueError(f"{name!r} is not a group's name")
    return name


def _bootstrap_servers(value: str) -> str:
    servers = value.split(",") if value else []
    for number, server in enumerate(servers, start=1):
        address = r"(?:[A-Z_]+://)?(?:\[[0-9a-fA-F:.%]+\]|[\w.-]+)(?::(\d{1,5}))?"
        found = re.fullmatch(address, server.strip(), re.ASCII)
        if not found or not 1 <= int(found[1] or 9092) <= 65535:
            raise ValueError(f"server {number} of {len(servers)} is not host:port")
    return value


def _database_url(secret: SecretStr) -> SecretStr:
    from psycopg import ProgrammingError  # noqa: PLC0415 - not every command has a database
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - as above

    url = secret.get_secret_value().strip()
    if not url:
        return SecretStr("")
    if not url.startswith(("postgresql://", "postgres://")):
        driver = re.match(r"postgres\w*(\+\w+)://", url)
        raise ValueError(f"libpq knows no {driver[1]} in the scheme" if driver else "is not a postgresql:// URL")
    try:
        conninfo_to_dict(url)
    except ProgrammingError:  # its text quotes parts of the URL, the password among them
        raise ValueError(
            "libpq cannot read it: a parameter it doesn't know, or something not percent-encoded"
        ) from None
    return SecretStr(url)


def _registry_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = not value or (parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not a http:// or https:// URL")
    if "@" in parts.netloc:
        raise ValueError(
            "holds a user or password, which have settings of their own: SYNC_WORKER_SCHEMA_REGISTRY_USER, …"
        )
    return value


def _folder(path: Path) -> Path:
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        raise ValueError(f"{path} is not a folder that can be read")
    return path


def _file(path: Path) -> Path:
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"{path} is not a file that can be read")
    return path


Topic = Annotated[str, AfterValidator(_topic)]
Folder = Annotated[Path, AfterValidator(_folder)]
File = Annotated[Path, AfterValidator(_file)]
_A_TOPIC: Final = "1 to 249 of a-z A-Z 0-9 . _ -"
_A_FILE: Final = "the path of a PEM file"


class Settings(BaseSettings):
    """The settings of contract §4. `Settings.load` reads them; made directly, it reads the environment but no `.env`.

    The description of a field says what is allowed. Empty text and None both mean "not set".
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)

    kafka_bootstrap_servers: Annotated[str, AfterValidator(_bootstrap_servers)] = Field(
        default="", description="host:port, several separated by commas"
    )
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = Field(
        default=SecretStr(""), description="a postgresql:// URL as libpq reads it"
    )

    membership_topic: Topic = Field(default="segments.membership", description=_A_TOPIC)
    methods_topic: Topic = Field(default="enrollment.methods", description=_A_TOPIC)
    sources_topic: Literal[""] | Topic = Field(
        default="enrollment.sources", description=f"{_A_TOPIC}; empty = not read"
    )
    changes_topic: Topic = Field(default="enrollment.changes", description=_A_TOPIC)
    dead_letters_topic: Topic = Field(default="sync-worker.dead-letters", description=_A_TOPIC)
    cursor_topic: Topic = Field(default="sync-worker.cursor", description=_A_TOPIC)
    consumer_group: Annotated[str, AfterValidator(_group)] = Field(
        default="sync-worker", description="1 to 200 printable characters"
    )
    group_protocol: Annotated[Literal["classic", "consumer"], BeforeValidator(_lower)] = Field(
        default="classic", description="classic or consumer (KIP-848)"
    )

    schema_registry_url: Annotated[str, AfterValidator(_registry_url)] = Field(
        default="", description="a http:// or https:// URL without user and password"
    )
    schema_registry_user: str = Field(default="", description="text")
    schema_registry_password: SecretStr = Field(default=SecretStr(""), description="text")
    schema_dir: Folder | None = Field(default=None, description="a folder of .avsc files")

    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = Field(default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"], BeforeValidator(_upper)
    ] = Field(default="", description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER")
    kafka_sasl_username: str = Field(default="", description="text")
    kafka_sasl_password: SecretStr = Field(default=SecretStr(""), description="text")
    kafka_ssl_ca_location: File | None = Field(default=None, description=_A_FILE)
    kafka_ssl_certificate_location: File | None = Field(default=None, description=_A_FILE)
    kafka_ssl_key_location: File | None = Field(default=None, description=_A_FILE)
    kafka_ssl_key_password: SecretStr = Field(default=SecretStr(""), description="text")
    kafka_properties: Annotated[dict[str, str], BeforeValidator(properties.parse)] = Field(
        default={}, description='a JSON object of librdkafka properties, as {"socket.timeout.ms": 10000}', repr=False
    )

    http_host: str = Field(default="0.0.0.0", min_length=1, description="an address of this machine")  # noqa: S104 - a pod's port
    http_port: int = Field(default=8080, ge=-1, le=65535, description="0 to 65535 (0 = any free), or -1 = off")
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)] = Field(
        default="info", description="debug, info, warning, error or critical"
    )
    log_format: Annotated[Literal["json", "console"] | None, BeforeValidator(_lower)] = Field(
        default=None, description="json or console"
    )
    batch_max_records: int = Field(default=2000, ge=1, le=10_000, description="1 to 10000 records")
    drain_timeout_s: float = Field(
        default=20.0, gt=0, le=3600, allow_inf_nan=False, description="more than 0, up to 3600 seconds"
    )
    removal_hold_min: int = Field(default=1000, ge=0, description="0 or more members; 0 = never hold")
    removal_hold_percent: float = Field(
        default=50.0, ge=0, le=100, allow_inf_nan=False, description="0 to 100 percent of the members; 0 = never hold"
    )
    rejection_pause: bool = Field(default=True, description="true or false")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings calls with these names
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then our own reading of the environment; `load` gives all that it reads as arguments."""
        return init_settings, Environment(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _readable(cls, value: object) -> object:
        if isinstance(value, Unusable):
            raise ValueError(value.fault)  # noqa: TRY004 - pydantic makes faults of ValueError
        return value

    @classmethod
    def load(cls, require: Collection[str] = KAFKA_AND_DATABASE, *, env_file: str | None = ENV_FILE) -> Self:
        """The settings as environment and `.env` file give them; `require` names what the command needs.

        Raises SettingsError with every fault there is, by environment name: what is wrong and what is allowed.
        """
        faults: dict[str, str] = {}
        given = values(cls.model_fields, env_file)
        try:
            settings = cls(**given)
        except ValidationError as error:
            faults = {str(fault["loc"][0]): _words(cls, fault) for fault in error.errors(include_url=False)}
            defaults = {name: cls.model_fields[name].get_default() for name in faults}
            settings = cls(**{**given, **defaults})
        for name in sorted(set(require) - faults.keys()):
            if not _is_set(getattr(settings, name)):
                faults[name] = f"required, but not set; allowed: {cls.model_fields[name].description}"
        wrong = set(faults)  # a contradiction with these would be one with their defaults
        for name, words, others in settings.contradictions():
            if not wrong & {name, *others}:
                faults[name] = f"{faults[name]}; {words}" if name in faults else words
        if faults:
            lines = [f"  {environment_name(name)}: {faults[name]}" for name in cls.model_fields if name in faults]
            count = "1 setting" if len(lines) == 1 else f"{len(lines)} settings"
            raise SettingsError("\n".join([f"{count} cannot be used:", *lines]))
        return settings

    @classmethod
    def warnings(cls, *, env_file: str | None = ENV_FILE) -> list[str]:
        """What is set but not read, with a guess at what was meant; `run` logs it when it starts."""
        return warnings_about_names(cls.model_fields, env_file)

    @property
    def input_topics(self) -> tuple[str, ...]:
        """The topics that are read, without `sources_topic` where that is empty."""
        return tuple(topic for topic in (self.membership_topic, self.methods_topic, self.sources_topic) if topic)

    def secrets(self) -> frozenset[str]:
        """Every text that must not appear in a log, an error or `status`; for the redaction of logs."""
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - not every command has a database

        url = self.database_url.get_secret_value()
        found = {url, *properties.secrets_in(self.kafka_properties)}
        if url:
            parts = conninfo_to_dict(url)
            found |= {str(parts[name]) for name in ("password", "sslpassword") if parts.get(name)}
        for secret in (self.kafka_sasl_password, self.kafka_ssl_key_password, self.schema_registry_password):
            found.add(secret.get_secret_value())
        return frozenset((found | {quote(secret, safe="") for secret in found}) - {""})

    def kafka_client_config(self) -> dict[str, Any]:
        """What every Kafka client of the worker starts from: address, security and the operator's own properties."""
        ours = {
            "bootstrap.servers": self.kafka_bootstrap_servers,
            "security.protocol": self.kafka_security_protocol,
            "sasl.mechanism": self.kafka_sasl_mechanism,
            "sasl.username": self.kafka_sasl_username,
            "sasl.password": self.kafka_sasl_password.get_secret_value(),
            "ssl.ca.location": str(self.kafka_ssl_ca_location or ""),
            "ssl.certificate.location": str(self.kafka_ssl_certificate_location or ""),
            "ssl.key.location": str(self.kafka_ssl_key_location or ""),
            "ssl.key.password": self.kafka_ssl_key_password.get_secret_value(),
        }
        return {"client.id": "sync-worker", **self.kafka_properties, **{name: v for name, v in ours.items() if v}}

    def contradictions(self) -> "list[Contradiction]":
        """Faults of fields that are right by themselves."""
        return [*_of_topics(self), *_of_security(self), *_of_registry(self), *_of_kafka(self)]


class Contradiction(NamedTuple):
    """The field to name, what is wrong with it, and the other fields that this depends on."""

    name: str
    words: str
    others: Collection[str]


def _of_topics(settings: Settings) -> Iterator[Contradiction]:
    seen: dict[str, str] = {}
    for name in TOPICS:
        topic = getattr(settings, name)
        if topic and (first := seen.setdefault(topic, name)) != name:
            yield Contradiction(name, f"is the same topic as {environment_name(first)}; each needs its own", {first})


def _of_security(settings: Settings) -> Iterator[Contradiction]:
    protocol, mechanism = settings.kafka_security_protocol, settings.kafka_sasl_mechanism
    says = f"as {environment_name('kafka_security_protocol')} is {protocol}"
    decides = {"kafka_security_protocol", "kafka_sasl_mechanism"}
    sasl = {name: _is_set(getattr(settings, f"kafka_sasl_{name}")) for name in ("mechanism", "username", "password")}
    ssl = [f"kafka_ssl_{name}" for name in ("ca_location", "certificate_location", "key_location", "key_password")]
    useless = [] if protocol.startswith("SASL") else [f"kafka_sasl_{name}" for name in sasl if sasl[name]]
    useless += [] if protocol.endswith("SSL") else [name for name in ssl if _is_set(getattr(settings, name))]
    for name in useless:
        yield Contradiction(name, f"has no effect, {says}", decides)
    if protocol.startswith("SASL"):
        needed = {"username", "password"} if mechanism in {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} else set()
        for name in sorted((needed | {"mechanism"}) - {name for name in sasl if sasl[name]}):
            yield Contradiction(
                f"kafka_sasl_{name}", f"required, {says}" + f" with {mechanism}" * bool(mechanism), decides
            )


def _of_registry(settings: Settings) -> Iterator[Contradiction]:
    user, password = "schema_registry_user", "schema_registry_password"
    for name, other in ((user, password), (password, user)):
        if _is_set(getattr(settings, name)) and not _is_set(getattr(settings, other)):
            yield Contradiction(other, f"required together with {environment_name(name)}", {name})
        if _is_set(getattr(settings, name)) and not settings.schema_registry_url:
            words = f"has no effect without {environment_name('schema_registry_url')}"
            yield Contradiction(name, words, {"schema_registry_url"})


def _of_kafka(settings: Settings) -> Iterator[Contradiction]:
    if settings.kafka_properties or settings.kafka_security_protocol != "PLAINTEXT":
        name = "kafka_properties" if settings.kafka_properties else "kafka_security_protocol"
        config = {**settings.kafka_client_config(), "group.protocol": settings.group_protocol}
        others = [field for field in type(settings).model_fields if field.startswith(("kafka_s", "group_"))]
        for words in properties.faults_of(config, settings.kafka_properties):
            yield Contradiction(name, words, others)


def _is_set(value: object) -> bool:
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _words(settings: type[Settings], fault: Any) -> str:
    name = str(fault["loc"][0])
    own = isinstance(fault.get("ctx", {}).get("error"), ValueError)
    # A value of another field is shown as it was typed; where the words are our own, they say what may be shown.
    said = str(fault["ctx"]["error"]) if own else f"{fault['input']!r:.80} cannot be used"
    return f"{said}; allowed: {settings.model_fields[name].description}"
