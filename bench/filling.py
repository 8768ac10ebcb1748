"""Fills a site's tables with rows that were there before, by SQL: a million take about ten seconds, many millions less each.

They look as if the worker had written them, but for their cause, by which checking.py tells them apart.
"""

from uuid import UUID

from bench.site import BenchSite

_METHODS = """insert into method (method_id, version, course_id, segment_id, kind, name, active, visible, role, on_removal, deleted,
  event_id, occurred_at)
select gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), 'SEGMENT_SYNC', 'Filled', true, true, 'student', 'UNENROLL', false,
       gen_random_uuid(), now() from generate_series(1, {methods})"""
_MEMBERS = """insert into membership (segment_id, user_id, is_member, version, event_id, occurred_at)
select segment_id, gen_random_uuid(), true, 1, gen_random_uuid(), now() from method, generate_series(1, {each}) where {which}"""
_ROWS = """insert into enrollment (course_id, user_id, version, sources, cause_type)
select course_id, user_id, 1, active_delta, 'REPUBLISH' from membership join method using (segment_id) where {which}"""
# Ids are random: beyond what the server caches, each row's place in an index would be read for it. Made afterwards, they are sorted.
_MANY = 2_000_000
_INDEXES = (
    ("alter table membership drop constraint membership_pkey", "alter table membership add primary key (segment_id, user_id)"),
    ("alter table enrollment drop constraint enrollment_pkey", "alter table enrollment add primary key (course_id, user_id)"),
    ("drop index enrollment_user", "create index enrollment_user on enrollment (user_id)"),
)  # fmt: skip
_REST = ("vacuum analyze membership, method", "vacuum analyze enrollment", "checkpoint")


def fill_methods(site: BenchSite, methods: int) -> None:
    """Methods of segments without members."""
    site.execute(_METHODS.format(methods=methods), *_REST)


def fill_rows(site: BenchSite, rows: int, methods: int = 100, *, analyze: bool = True) -> None:
    """Members of methods of their own, enrolled. Without analyze the statistics stay as they were."""
    which = "name = 'Filled'"
    members = _MEMBERS.format(each=rows // methods, which=which)
    dropped = _INDEXES if rows > _MANY else ()
    site.execute(
        "set maintenance_work_mem = '512MB'",
        *(drop for drop, _ in dropped), _METHODS.format(methods=methods), members, _ROWS.format(which=which),
        *(make for _, make in dropped), *(_REST if analyze else ()),
    )  # fmt: skip


def fill_segment(site: BenchSite, segment: bytes, members: int, *, enrolled: bool) -> None:
    """Members of a segment whose methods, if they are to be enrolled, are there."""
    which = f"segment_id = '{UUID(bytes=segment)}'"
    if enrolled:
        site.execute(_MEMBERS.format(each=members, which=which), _ROWS.format(which=which), *_REST)
    else:
        site.execute(
            f"""insert into membership (segment_id, user_id, is_member, version, event_id, occurred_at)
            select '{UUID(bytes=segment)}', gen_random_uuid(), true, 1, gen_random_uuid(), now() from generate_series(1, {members})""",
            *_REST,
        )  # fmt: skip
