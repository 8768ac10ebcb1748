"""Which librdkafka properties an operator may set (KAFKA_PROPERTIES, contract §4), and which are the worker's own.

What exactly-once or co-partitioning stands on must never be overridable from outside (design §4, §5).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

# Properties that have a setting of their own: two places for one thing would contradict each other some day.
SETTING_OF: Final = {
    "bootstrap.servers": "kafka_bootstrap_servers",
    "metadata.broker.list": "kafka_bootstrap_servers",
    "group.id": "consumer_group",
    "group.protocol": "group_protocol",
    "security.protocol": "kafka_security_protocol",
    "sasl.mechanism": "kafka_sasl_mechanism",
    "sasl.mechanisms": "kafka_sasl_mechanism",
    "sasl.username": "kafka_sasl_username",
    "sasl.password": "kafka_sasl_password",
    "ssl.ca.location": "kafka_ssl_ca_location",
    "ssl.certificate.location": "kafka_ssl_certificate_location",
    "ssl.key.location": "kafka_ssl_key_location",
    "ssl.key.password": "kafka_ssl_key_password",
}
OWNED: Final = frozenset({
    "acks", "allow.auto.create.topics", "auto.commit.enable", "auto.offset.reset", "enable.auto.commit",
    "enable.auto.offset.store", "enable.gapless.guarantee", "enable.idempotence", "enable.partition.eof",
    "group.instance.id", "group.remote.assignor", "isolation.level", "message.send.max.retries",
    "partition.assignment.strategy", "partitioner", "request.required.acks", "retries", "transaction.timeout.ms",
    "transactional.id",
})  # fmt: skip
_SECRET: Final = re.compile(r"password|secret|jaas|\.pem$|oauthbearer\.config|\.passphrase|token$", re.IGNORECASE)


def parse(value: object) -> dict[str, str]:
    """KAFKA_PROPERTIES as text by name; raises ValueError naming every property that is wrong, without its value."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("is not JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - pydantic makes faults of ValueError
    faults = []
    for name, item in value.items():
        if name in SETTING_OF:
            faults.append(f"{name} has a setting of its own, SYNC_WORKER_{SETTING_OF[name].upper()}")
        elif name in OWNED:
            faults.append(f"{name} is the worker's own: exactly-once or co-partitioning depends on it")
        elif not isinstance(item, str | int | float):
            faults.append(f"{name} is neither text, number nor true/false")
    if faults:
        raise ValueError("; ".join(faults))
    return {name: str(item).lower() if isinstance(item, bool) else str(item) for name, item in value.items()}


def secrets_in(properties: Mapping[str, str]) -> set[str]:
    """The values that must not be shown, by their names."""
    return {value for name, value in properties.items() if _SECRET.search(name) and value}


def faults_of(config: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """What librdkafka says about these of our properties: unknown names, values that it does not take.

    A client is made for it, without an address to connect to. `config` is what it would be used with.
    """
    from confluent_kafka import Consumer, KafkaException  # noqa: PLC0415 - only where properties are set

    trial = {**config, "bootstrap.servers": "", "group.id": "settings", "logger": _silent()}
    faults = []
    while True:
        try:
            Consumer(trial).close()
        except KafkaException as error:
            text = error.args[0].str()
            named = [name for name in names if name in trial and f'"{name}"' in text]
            faults.append(f"{named[0]}: {_said(text)}" if named else _said(text))
            if not named:
                return faults
            del trial[named[0]]
        else:
            return faults


def _said(text: str) -> str:
    """Of librdkafka's complaint what quotes no value."""
    if text.startswith("No such"):
        return "no such librdkafka property"
    return (
        "a value that librdkafka does not take" if "value" in text else text.removeprefix("Failed to create consumer: ")
    )


def _silent() -> Any:
    import logging  # noqa: PLC0415 - as above

    logger = logging.Logger("settings")  # noqa: LOG001 - belongs to no hierarchy, so that nothing comes out
    logger.addHandler(logging.NullHandler())
    return logger
