"""Quix Streams with its PostgreSQL sink: each event becomes a raw row, in batches of the worker's size. No logic, no event out."""

import sys
from urllib.parse import urlsplit

from quixstreams import Application  # type: ignore[import-not-found]  # of the peers' own environment
from quixstreams.sinks.community.postgresql import PostgreSQLSink  # type: ignore[import-not-found]  # as above

from bench.peers.decoding import decode

_BATCH = 2000


def main(servers: str, topic: str, group: str, database_url: str) -> None:
    parts = urlsplit(database_url)
    sink = PostgreSQLSink(
        host=parts.hostname, port=parts.port, dbname=parts.path[1:], user=parts.username, password=parts.password or "",
        schema_name="peer", table_name="raw", primary_key_columns="event_id", upsert_on_primary_key=True,
    )  # fmt: skip
    app = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_every=_BATCH,
        commit_interval=0.2,
    )
    app.dataframe(app.topic(topic, value_deserializer="bytes")).apply(decode).sink(sink)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
