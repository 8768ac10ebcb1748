"""The tables as SQLAlchemy knows them, for the ordinary queries; the migrations make them, and a test compares the two.

The hot statements are plain SQL beside the code that runs them. Generated columns are described only where they are read.
"""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Double, Integer, LargeBinary, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData(schema="sync_worker")


class _PostgresType(UserDefinedType[Any]):
    """A type of PostgreSQL or of ours that SQLAlchemy has no name for; read and written as text."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: object) -> str:
        return self.name


_TIME = DateTime(timezone=True)
_CAUSE_TYPE = _PostgresType("sync_worker.cause_type")
_SNAPSHOT = _PostgresType("pg_snapshot")

input_topic = Table(
    "input_topic",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("topic_id", Text, nullable=False),
    Column("cluster_id", Text, nullable=False),
    Column("first_seen_at", _TIME, nullable=False),
)
position = Table(
    "position",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("updated_at", _TIME, nullable=False),
)
membership = Table(
    "membership",
    metadata,
    Column("segment_id", Uuid, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("is_member", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("event_id", Uuid),
    Column("occurred_at", _TIME),
    Column("hold", BigInteger),
)
method = Table(
    "method",
    metadata,
    Column("method_id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("course_id", Uuid, nullable=False),
    Column("segment_id", Uuid, nullable=False),
    Column("segment_name", Text),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("visible", Boolean, nullable=False),
    Column("role", Text),
    Column("group_id", Uuid),
    Column("on_removal", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("occurred_at", _TIME, nullable=False),
    Column("traceparent", Text),
    Column("enabled", Boolean, nullable=False),
    Column("active_delta", JSONB, nullable=False),
    Column("suspended_delta", JSONB, nullable=False),
    Column("none_delta", JSONB, nullable=False),
)
source = Table(
    "source",
    metadata,
    Column("course_id", Uuid, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("role", Text),
    Column("version", BigInteger, nullable=False),
    Column("event_id", Uuid),
    Column("occurred_at", _TIME),
)
enrollment = Table(
    "enrollment",
    metadata,
    Column("course_id", Uuid, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("suspension_version", BigInteger, nullable=False),
    Column("sources", JSONB, nullable=False),
    Column("hand", ARRAY(Uuid), nullable=False),
    Column("updated_at", _TIME, nullable=False),
    Column("cause_type", _CAUSE_TYPE, nullable=False),
    Column("cause_event_id", Uuid),
    Column("cause_method_id", Uuid),
    Column("traceparent", Text),
    Column("status", Text, nullable=False),
)
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, nullable=False),
    Column("xid", _PostgresType("xid8"), nullable=False),
    Column("recorded_at", _TIME, nullable=False),
    Column("course_id", Uuid),
    Column("user_id", Uuid),
    Column("version", BigInteger),
    Column("before_sources", JSONB),
    Column("before_hand", ARRAY(Uuid)),
    Column("before_suspended", Boolean),
    Column("sources", JSONB),
    Column("hand", ARRAY(Uuid)),
    Column("suspended", Boolean),
    Column("cause_type", _CAUSE_TYPE),
    Column("cause_event_id", Uuid),
    Column("cause_method_id", Uuid),
    Column("traceparent", Text),
    Column("dead_letter_id", BigInteger),
)
dead_letter = Table(
    "dead_letter",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("record_timestamp_ms", BigInteger),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("header_names", ARRAY(Text), nullable=False),
    Column("header_values", ARRAY(LargeBinary), nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("recorded_at", _TIME, nullable=False),
)
dead_letter_count = Table(
    "dead_letter_count",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("records", BigInteger, nullable=False),
    Column("last_at", _TIME, nullable=False),
)
relay_window = Table(
    "relay_window",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("from_snapshot", _SNAPSHOT, nullable=False),
    Column("to_snapshot", _SNAPSHOT, nullable=False),
    Column("system_identifier", BigInteger, nullable=False),
    Column("published", Boolean, nullable=False),
    Column("created_at", _TIME, nullable=False),
)
relay_lease = Table(
    "relay_lease",
    metadata,
    Column("one", Boolean, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("since", _TIME, nullable=False),
    Column("expires_at", _TIME, nullable=False),
)
backfill = Table(
    "backfill",
    metadata,
    Column("method_id", Uuid, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("after_user", Uuid, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("created_at", _TIME, nullable=False),
)
removal_count = Table(
    "removal_count",
    metadata,
    Column("segment_id", Uuid, primary_key=True),
    Column("minute", _TIME, primary_key=True),
    Column("removed", Integer, nullable=False),
    Column("touched_at", _TIME, nullable=False),
)
removal_hold = Table(
    "removal_hold",
    metadata,
    Column("segment_id", Uuid, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("since", _TIME, nullable=False),
    Column("members", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False),
)
hold_release = Table(
    "hold_release",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("segment_id", Uuid, nullable=False),
    Column("after_user", Uuid, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("created_at", _TIME, nullable=False),
)
intervention = Table(
    "intervention",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("at", _TIME, nullable=False),
    Column("by", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
)
reconcile_run = Table(
    "reconcile_run",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("part", Text, nullable=False),
    Column("next_first", Uuid, nullable=False),
    Column("next_second", Uuid, nullable=False),
    Column("counts", JSONB, nullable=False),
    Column("started_at", _TIME, nullable=False),
    Column("updated_at", _TIME, nullable=False),
)
worker = Table(
    "worker",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("since", _TIME, nullable=False),
    Column("seen_at", _TIME, nullable=False),
    Column("partitions", JSONB, nullable=False),
    Column("records_per_s", Double, nullable=False),
    Column("published_per_s", Double, nullable=False),
)
dead_letter_replay = Table(
    "dead_letter_replay",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("record_offset", BigInteger, primary_key=True),
    Column("topic_id", Text, nullable=False),
    Column("replayed_at", _TIME, nullable=False),
)
schema_support = Table(
    "schema_support",
    metadata,
    Column("single", Boolean, primary_key=True),
    Column("oldest_worker", Text, nullable=False),
)
alembic_version = Table("alembic_version", metadata, Column("version_num", Text, primary_key=True))
