"""docs/reference/settings.md, from sync_worker/settings.py, which knows names, defaults and what is allowed.

What a setting is for is said here; a setting without such a sentence, or a sentence without its setting, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import SecretStr

from docs.generate import markdown
from docs.generate.markdown import code, table
from sync_worker.environment import SECRETS, environment_name
from sync_worker.settings import KAFKA_AND_DATABASE, Settings

GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "Where things are": {
        "kafka_bootstrap_servers": "Brokers to ask first.",
        "database_url": "The database that holds the schema `sync_worker`.",
        "schema_registry_url": "A registry with Confluent's API: its framing is understood in input then, and used in output.",
        "schema_registry_user": "Basic authentication at the registry.",
        "schema_registry_password": "Basic authentication at the registry.",
        "schema_dir": "Further writer schemas, for records of a publisher that is ahead of this version.",
    },
    "Topics and group": {
        "membership_topic": "Input: who joins and leaves segments.",
        "methods_topic": "Input: enrollment methods.",
        "sources_topic": "Input: other ways into courses, and suspensions.",
        "changes_topic": "Output: EnrollmentChanged.",
        "dead_letters_topic": "Output: records that can't be applied.",
        "cursor_topic": "The relay's own.",
        "consumer_group": "Names this installation: its consumer group, its relay, its cursor. Never shared by two databases.",
        "group_protocol": "How the group shares out partitions.",
    },
    "Security towards Kafka": {
        "kafka_security_protocol": "Encryption and authentication.",
        "kafka_sasl_mechanism": "How to log in.",
        "kafka_sasl_username": "Who logs in.",
        "kafka_sasl_password": "With what.",
        "kafka_ssl_ca_location": "Whom to believe; the system's authorities otherwise.",
        "kafka_ssl_certificate_location": "The worker's own certificate.",
        "kafka_ssl_key_location": "Its key.",
        "kafka_ssl_key_password": "The key's password.",
        "kafka_properties": "Any other property of librdkafka, for every client. Those that exactly once rests on are refused.",
    },
    "HTTP and logs": {
        "http_host": "Where to listen.",
        "http_port": "The port of the page, `/status.json`, `/livez`, `/readyz` and `/metrics`.",
        "log_level": "The least that is logged, to stderr.",
        "log_format": "`console` on a terminal, else `json`, unless set.",
    },
    "Work": {
        "batch_max_records": "Records in one transaction, at most.",
        "drain_timeout_s": "How long finishing may take after SIGTERM. The process must not be killed earlier.",
        "removal_hold_min": "A segment that loses more members than this within five minutes, and more than the percentage, is held.",
        "removal_hold_percent": "The percentage of its members.",
        "rejection_pause": "Stop a partition most of whose records are rejected.",
    },
}


def page() -> str:
    """Every setting with its default, what is allowed, and what it is for."""
    described = {name for group in GROUPS.values() for name in group}
    if described != set(Settings.model_fields):
        raise ValueError(
            f"docs/generate/settings.py and the settings differ in {described ^ set(Settings.model_fields)}"
        )
    parts = []
    for title, group in GROUPS.items():
        rows = [_row(name, meaning) for name, meaning in group.items()]
        parts += [f"## {title}", table(("setting", "default", "allowed", "what for"), rows)]
    return markdown.page(
        "Settings",
        "Environment variables, or the same names in a `.env` file in the working directory; the environment wins. "
        "Wrong ones are reported by name, all at once, before anything connects. "
        "A secret (**s**) may also be in a file, named by the same name with `_FILE`.",
        *parts,
    )


def _row(name: str, meaning: str) -> tuple[str, str, str, str]:
    field = Settings.model_fields[name]
    shown = code(environment_name(name)) + (" **s**" if name in SECRETS else "")
    default = "**required**" if name in KAFKA_AND_DATABASE else _default(field.get_default())
    return shown, default, field.description or "", meaning


def _default(value: Any) -> str:
    if value is None or value == {}:
        return ""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return code(str(text).lower() if isinstance(text, bool) else text)
