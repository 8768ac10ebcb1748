"""Reads what a run came to: topics through the broker, tables through SQL, both directly and by nobody's word.

It must never import the worker's code, nor repair what it reads.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.faults.history import Input, Leftovers, Tables
from tests.faults.publishing import Book
from tests.support.kafka import read_all

INPUTS = ("membership", "methods", "sources")


def read_inputs(bootstrap_servers: str, topics: dict[str, str], book: Book) -> list[Input]:
    """Every committed record of the input topics with its meaning. Bytes that nobody sent raise KeyError."""
    inputs = []
    for name in INPUTS:
        for record in read_all(bootstrap_servers, topics[name]):
            sending = book.meaning[name, record.value]
            inputs.append(Input(record._replace(topic=name), sending.content))
    return inputs


def read_tables(database_url: str) -> Tables:
    """Tables and views in one snapshot."""
    with psycopg.connect(database_url, row_factory=dict_row, options="-c search_path=sync_worker") as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def rows(statement: str) -> list[dict[str, Any]]:
            return session.execute(statement.encode()).fetchall()

        tables = Tables()
        for row in rows("select segment_id::text, user_id::text, is_member, version from membership where version > 0"):
            tables.memberships[row["segment_id"], row["user_id"]] = (row["is_member"], row["version"])
        for row in rows("""
            select method_id::text, version, course_id::text, segment_id::text, segment_name, kind, name, active, visible, role,
                   group_id::text, on_removal, deleted from method"""):
            tables.methods[row.pop("method_id")] = row
        for row in rows("select course_id::text, user_id::text, source, status, role, version from source"):
            key = (row["course_id"], row["user_id"], row["source"])
            tables.sources[key] = (row["status"], row["role"], row["version"])
        for row in rows("""
            select course_id::text, user_id::text, version, sources, hand::text[], suspended, suspension_version, status
            from enrollment"""):
            tables.rows[row.pop("course_id"), row.pop("user_id")] = row
        for row in rows("""
            select course_id::text, user_id::text, status, roles, groups::text[], suspended_in_course, sources, version
            from course_enrollment"""):
            tables.enrollments[row.pop("course_id"), row.pop("user_id")] = row
        for row in rows(
            "select course_id::text, group_id::text, user_id::text, managed, methods::text[] from course_group_member"
        ):
            tables.members.add((
                row["course_id"], row["group_id"], row["user_id"], row["managed"], tuple(sorted(row["methods"])),
            ))  # fmt: skip
        for row in rows("select topic, partition, next_offset from position"):
            tables.positions[row["topic"], row["partition"]] = row["next_offset"]
        for row in rows("select course_id::text, user_id::text, version from outbox where dead_letter_id is null"):
            tables.outbox.append((row["course_id"], row["user_id"], row["version"]))
        return tables


def read_leftovers(database_url: str) -> Leftovers:
    """Sessions and locks of workers, of which there are none any more. Of this database alone."""
    with psycopg.connect(database_url, autocommit=True) as session:
        found = session.execute("""
            select application_name, state from pg_stat_activity
            where datname = current_database() and application_name like 'sync-worker %'""").fetchall()
        locks = session.execute("""
            select count(*) from pg_locks
            where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())""").fetchone()
        idle = session.execute("""
            select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'""").fetchone()
    assert locks is not None
    assert idle is not None
    return Leftovers([f"{name} ({state})" for name, state in found], locks[0], idle[0])
