"""A consumer as most teams would write it first: a transaction per event, SQL per event, an outbox row per change, then the offset.

The offset is committed without waiting for the answer, which is the faster way. Nothing publishes the outbox.
"""

import json
import sys
from typing import Any

import psycopg
from confluent_kafka import Consumer

from bench.peers.decoding import decode

_MEMBERSHIP = """insert into peer.membership as m (segment_id, user_id, is_member, version)
values (%(segment_id)s, %(user_id)s, %(is_member)s, %(version)s)
on conflict (segment_id, user_id) do update set is_member = excluded.is_member, version = excluded.version
where m.version < excluded.version"""
_METHODS = "select course_id, role from peer.method where segment_id = %(segment_id)s and active"
_ENROLL = """insert into peer.enrollment as e (course_id, user_id, status, role, version)
values (%(course)s, %(user)s, %(status)s, %(role)s, 1)
on conflict (course_id, user_id) do update set status = excluded.status, role = excluded.role, version = e.version + 1 returning version"""
_OUTBOX = "insert into peer.outbox (key, payload) values (%s, %s)"


def main(servers: str, topic: str, group: str, database_url: str) -> None:
    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "isolation.level": "read_committed",
    })  # fmt: skip
    consumer.subscribe([topic])
    with psycopg.connect(database_url, autocommit=True) as session:
        while True:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            with session.transaction():
                apply(session, decode(message.value() or b""))
            consumer.commit(message=message, asynchronous=True)


def apply(session: psycopg.Connection[Any], event: dict[str, Any]) -> None:
    if session.execute(_MEMBERSHIP, event).rowcount == 0:
        return  # stale, or said before
    status = "ACTIVE" if event["is_member"] else "ABSENT"
    for course, role in session.execute(_METHODS, event).fetchall():
        enrollment = {"course": course, "user": event["user_id"], "status": status, "role": role}
        row = session.execute(_ENROLL, enrollment).fetchone()
        assert row is not None, "an upsert returns its row"
        payload = {**enrollment, "course": str(course), "version": row[0], "cause": event["event_id"]}
        session.execute(_OUTBOX, (f"{course}:{event['user_id']}", json.dumps(payload)))


if __name__ == "__main__":
    main(*sys.argv[1:])
