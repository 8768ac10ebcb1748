"""Takes services that run elsewhere, by the addresses in the environment.

It must never start or stop anything.
"""

from __future__ import annotations

import os

from devstack.errors import DevstackError
from devstack.parts import Kafka, Postgres, Registry
from devstack.runner import ExternalRunner

KAFKA_VARIABLE = "DEVSTACK_KAFKA_BOOTSTRAP_SERVERS"
POSTGRES_VARIABLE = "DEVSTACK_DATABASE_URL"
REGISTRY_VARIABLE = "DEVSTACK_SCHEMA_REGISTRY_URL"


def kafka() -> Kafka:
    """The brokers that DEVSTACK_KAFKA_BOOTSTRAP_SERVERS names."""
    return Kafka(ExternalRunner("kafka"), _address(KAFKA_VARIABLE))


def postgres() -> Postgres:
    """The server that DEVSTACK_DATABASE_URL names, with an account that may create databases."""
    return Postgres(ExternalRunner("postgres"), _address(POSTGRES_VARIABLE))


def registry() -> Registry:
    """The registry that DEVSTACK_SCHEMA_REGISTRY_URL names."""
    return Registry(ExternalRunner("registry"), _address(REGISTRY_VARIABLE).rstrip("/"))


def _address(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise DevstackError(f"DEVSTACK=external needs {variable}")
    return value
