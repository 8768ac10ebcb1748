"""Fills a site's tables with rows that were there before, by SQL: a million take about ten seconds, many millions less each.

They look as if the worker had written them, but for their cause, by which checking.py tells them apart.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from uuid import UUID

import psycopg

from bench.site import BenchSite

_METHODS = """insert into method (method_id, version, course_id, segment_id, kind, name, active, visible, role, on_removal, deleted,
  event_id, occurred_at)
select gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), 'SEGMENT_SYNC', 'Filled', true, true, 'student', 'UNENROLL', false,
       gen_random_uuid(), now() from generate_series(1, {methods})"""
_MEMBERS = """insert into membership (segment_id, user_id, is_member, version, event_id, occurred_at)
select '{segment}', gen_random_uuid(), true, 1, gen_random_uuid(), now() from generate_series(1, {each})"""
_ENROLLED = f"""with members as ({_MEMBERS} returning segment_id, user_id)
insert into enrollment (course_id, user_id, version, sources, cause_type)
select course_id, user_id, 1, active_delta, 'REPUBLISH' from members join method using (segment_id)"""
# Ids are random: beyond what the server caches, each row's place in an index would be read for it. Made afterwards, they are sorted.
_MANY = 2_000_000
# As many as there are processors for, on the smallest machine of all.
_SESSIONS = 2
_INDEXES = (
    ("alter table membership drop constraint membership_pkey", "alter table membership add primary key (segment_id, user_id)"),
    ("alter table enrollment drop constraint enrollment_pkey", "alter table enrollment add primary key (course_id, user_id)"),
    ("drop index enrollment_user", "create index enrollment_user on enrollment (user_id)"),
)  # fmt: skip
_REST = ("vacuum analyze membership, method", "vacuum analyze enrollment", "checkpoint")


def fill_methods(site: BenchSite, methods: int) -> None:
    """Methods of segments without members."""
    site.execute(_METHODS.format(methods=methods), *_REST)


def fill_rows(
    site: BenchSite, rows: int, methods: int = 100, *, analyze: bool = True, say: Callable[[str], None] | None = None
) -> None:
    """Members of methods of their own, enrolled. Without analyze the statistics stay as they were. say: is told how far it is."""
    site.execute(_METHODS.format(methods=methods))
    segments = [segment for (segment,) in site.rows("select segment_id from method where name = 'Filled'")]
    with _indexed_afterwards(site, rows), ThreadPoolExecutor(_SESSIONS) as sessions:
        done = 0
        for filled in sessions.map(partial(_fill, site.database_url, rows // methods), segments):
            if say and done * 10 // rows < (done + filled) * 10 // rows:
                say(f"{done + filled:,} of {rows:,} rows are there")
            done += filled
    site.execute(*(_REST if analyze else ()))


def _fill(database_url: str, each: int, segment: UUID) -> int:
    with psycopg.connect(database_url, options="-c search_path=sync_worker") as session:
        return session.execute(_ENROLLED.format(segment=segment, each=each).encode()).rowcount


@contextmanager
def _indexed_afterwards(site: BenchSite, rows: int) -> Iterator[None]:
    indexes = _INDEXES if rows > _MANY else ()
    site.execute(*(drop for drop, _ in indexes))
    yield
    site.execute("set maintenance_work_mem = '512MB'", *(make for _, make in indexes))


def fill_segment(site: BenchSite, segment: bytes, members: int, *, enrolled: bool) -> None:
    """Members of a segment whose methods, if they are to be enrolled, are there."""
    statement = _ENROLLED if enrolled else _MEMBERS
    with _indexed_afterwards(site, members):
        site.execute(statement.format(segment=UUID(bytes=segment), each=members))
    site.execute(*_REST)
