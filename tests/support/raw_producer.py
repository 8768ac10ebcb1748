"""A producer that writes what Python's client can't: a header whose name isn't UTF-8. Calls the same librdkafka by ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka

_END, _TOPIC, _PARTITION, _VALUE, _FLAGS, _HEADER = 0, 1, 3, 4, 7, 9
_COPY = 2
_PRODUCER = 0


def produce(
    bootstrap_servers: str, topic: str, value: bytes, header: tuple[bytes, bytes], *, partition: int = 0
) -> None:
    """Write one record and wait for it."""
    (library,) = (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")
    rdkafka = ctypes.CDLL(str(library))
    rdkafka.rd_kafka_conf_new.restype = ctypes.c_void_p
    rdkafka.rd_kafka_new.restype = ctypes.c_void_p
    error = ctypes.create_string_buffer(512)
    configuration = ctypes.c_void_p(rdkafka.rd_kafka_conf_new())
    address = ctypes.c_char_p(bootstrap_servers.encode())
    rdkafka.rd_kafka_conf_set(configuration, b"bootstrap.servers", address, error, ctypes.c_size_t(512))
    client = ctypes.c_void_p(rdkafka.rd_kafka_new(_PRODUCER, configuration, error, ctypes.c_size_t(512)))
    assert client.value, error.value
    try:
        name, content = header
        failed = rdkafka.rd_kafka_producev(
            client,
            ctypes.c_int(_TOPIC), ctypes.c_char_p(topic.encode()),
            ctypes.c_int(_PARTITION), ctypes.c_int(partition),
            ctypes.c_int(_FLAGS), ctypes.c_int(_COPY),
            ctypes.c_int(_VALUE), ctypes.c_char_p(value), ctypes.c_size_t(len(value)),
            ctypes.c_int(_HEADER), ctypes.c_char_p(name), ctypes.c_char_p(content), ctypes.c_ssize_t(len(content)),
            ctypes.c_int(_END),
        )  # fmt: skip
        assert failed == 0
        assert rdkafka.rd_kafka_flush(client, ctypes.c_int(120_000)) == 0
    finally:
        rdkafka.rd_kafka_destroy(client)
