"""An erasure beside whoever else writes of the same person: it comes after them, and takes all, or before, and a new life begins.

Each interleaving is forced by sessions that the test drives by hand (design §3).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from sync_worker import failpoints
from sync_worker.database.sessions import Contention, Session
from sync_worker.enrollment import erase
from sync_worker.enrollment.erase import Traces
from tests.model.events import Event
from tests.support.facts import member, method, new_id, source, suspension
from tests.support.sessions import WAIT_S, Writer, apply_batch, change_method_in_steps, wait_until_blocked
from tests.support.site import Site, wait_for
from tests.support.traces import tables_naming

MakeWriter = Callable[..., Writer]
INSERT = "insert into course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
# An edit sets a limit of ten seconds to its transaction, and a busy machine may need them for the eraser to come.
WITHOUT_LIMIT = "set local idle_in_transaction_session_timeout = 0"


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Only a database: the sessions are the test's own."""
    return make_site(topics=False)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes this process wait at a failpoint until the file is gone."""

    def hold(place: str) -> Path:
        (path := tmp_path / place).touch()
        failpoints.arm(f"{place}=hold:{path}@1")
        return path

    yield hold
    failpoints.arm("")


def erasing(user: str) -> Callable[[Session], Traces]:
    return lambda session: erase.erase_person(session, UUID(user), "a test")


def wait_until_held(path: Path) -> None:
    wait_for(Path(f"{path}.reached").exists, what=f"reaching {path.name}")


def lives_in_outbox(site: Site, course: str, user: str) -> list[list[int]]:
    """Versions of each life of a key, as the outbox has them; a life that has ended ends with a 0."""
    lives: list[list[int]] = []
    for row in site.query(
        "select version from outbox where course_id = %s and user_id = %s order by id", course, user
    ):  # fmt: skip
        if not lives or lives[-1][-1] == 0:
            lives.append([])
        lives[-1].append(row["version"] or 0)
    for life in lives:
        versions = life[:-1] if life[-1] == 0 else life
        assert versions == list(range(1, len(versions) + 1))
    return lives


# ── a batch ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_that_is_being_applied_is_waited_for_and_erased(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), course := new_id())
    one, eraser = writer(), writer()
    one.batch(enabled)
    one.begin(member(segment, user := new_id(), 1), source(course, user, 1), suspension(other := new_id(), user, 1))
    erasure = eraser.start(erasing(user))
    wait_until_blocked(site, eraser)
    one.commit()
    gone = erasure.result(WAIT_S)
    assert (gone.enrollment, gone.membership, gone.source) == (2, 1, 1)
    assert lives_in_outbox(site, course, user) == [[1, 0]]
    assert lives_in_outbox(site, other, user) == [[0]]
    assert set(tables_naming(site, user)) == {"outbox"}


def test_a_batch_that_comes_during_an_erasure_begins_a_new_life(
    site: Site, writer: MakeWriter, held: Callable[[str], Path]
) -> None:
    enabled = method(segment := new_id(), course := new_id())
    one, eraser = writer(), writer()
    one.batch(enabled)
    one.batch(member(segment, user := new_id(), 1), source(course, user, 1))
    place = held("erase_before_commit")
    erasure = eraser.start(erasing(user))
    wait_until_held(place)
    batch = one.start_batch(member(segment, user, 2))
    wait_until_blocked(site, one)
    place.unlink()
    assert erasure.result(WAIT_S).enrollment == 1
    assert batch.result(WAIT_S).changes == 1
    assert lives_in_outbox(site, course, user) == [[1, 0], [1]]
    (row,) = site.enrollments().values()
    assert (row["version"], len(row["sources"])) == (1, 1)


# ── a backfill ──────────────────────────────────────────────────────────────────────────────────────────────────────

WITHOUT_ASKING = """
insert into membership as s (segment_id, user_id, is_member, version)
select %(segment)s::uuid, u, false, 0 from unnest(%(users)s::uuid[]) u order by 1, 2
on conflict (segment_id, user_id) do update set version = s.version where false"""


def erase_between_the_halves_of_a_step(site: Site, step: Writer, eraser: Writer) -> str:
    """The person holds the method's contribution, and is no member of its new segment: the step would make a place to lock."""
    first = method(old := new_id(), course := new_id())
    step.batch(first)
    step.batch(member(old, user := new_id(), 1), member(old, new_id(), 1))
    repointed = method(new_id(), course, method_id=first.method_id, version=2)
    step.start(lambda session: change_method_in_steps(session, repointed)).result(WAIT_S)
    running = step.start_step(stop_before="lock_shared")
    step.wait_until_stopped()
    assert eraser.start(erasing(user)).result(WAIT_S).enrollment == 1
    step.go_on()
    running.result(WAIT_S)
    step.finish_backfills()
    return user


def test_a_backfill_step_that_had_read_the_person_before_leaves_nothing_of_them(site: Site, writer: MakeWriter) -> None:
    user = erase_between_the_halves_of_a_step(site, writer(), writer())
    assert set(tables_naming(site, user)) == {"outbox"}


def test_a_step_that_made_a_place_to_lock_for_everybody_would_name_the_person_again(
    site: Site, writer: MakeWriter
) -> None:
    user = erase_between_the_halves_of_a_step(site, writer(instead={"backfill_lock": WITHOUT_ASKING}), writer())
    assert set(tables_naming(site, user)) == {"outbox", "membership"}


def test_a_step_that_had_read_a_member_before_goes_on_with_the_others(site: Site, writer: MakeWriter) -> None:
    hidden = method(segment := new_id(), course := new_id(), visible=False)
    step, eraser = writer(), writer()
    step.batch(hidden)
    step.batch(member(segment, user := new_id(), 1), member(segment, other := new_id(), 1))
    opened = method(segment, course, method_id=hidden.method_id, version=2)
    step.start(lambda session: change_method_in_steps(session, opened)).result(WAIT_S)
    running = step.start_step(stop_before="lock_shared")
    step.wait_until_stopped()
    eraser.start(erasing(user)).result(WAIT_S)
    step.go_on()
    running.result(WAIT_S)
    step.finish_backfills()
    assert tables_naming(site, user) == {}
    assert [where for where, _ in site.enrollments()] == [course]
    assert [who for _, who in site.enrollments()] == [other]


def test_a_backfill_that_has_come_to_exactly_this_person_begins_anew(site: Site, writer: MakeWriter) -> None:
    enabled = method(segment := new_id(), course := new_id())
    users = sorted(new_id() for _ in range(5))
    one, eraser = writer(), writer()
    one.batch(*(member(segment, user, 1) for user in users))
    one.start(lambda session: change_method_in_steps(session, enabled)).result(WAIT_S)
    one.start_step(3).result(WAIT_S)
    gone = eraser.start(erasing(users[2])).result(WAIT_S)
    assert (gone.progress, gone.membership, gone.enrollment) == (1, 1, 1)
    assert set(tables_naming(site, users[2])) == {"outbox"}
    one.finish_backfills(3)
    assert {key[1] for key in site.enrollments()} == {*users} - {users[2]}
    assert lives_in_outbox(site, course, users[0]) == [[1]]


# ── users of the group view ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_hand_edit_that_is_being_made_is_waited_for_and_erased(site: Site, writer: MakeWriter) -> None:
    eraser, user, course = writer(), new_id(), new_id()
    eraser.batch(source(course, user, 1))
    with psycopg.connect(site.database_url, options="-c search_path=sync_worker") as lms:
        lms.execute(INSERT, (course, new_id(), user))
        lms.execute(WITHOUT_LIMIT)
        erasure = eraser.start(erasing(user))
        wait_until_blocked(site, eraser)
        lms.commit()
    erasure.result(WAIT_S)
    assert lives_in_outbox(site, course, user) == [[1, 2, 0]]
    assert site.group_members() == set()


def test_a_hand_edit_during_an_erasure_finds_nobody_enrolled(
    site: Site, writer: MakeWriter, held: Callable[[str], Path]
) -> None:
    eraser, user, course = writer(), new_id(), new_id()
    eraser.batch(source(course, user, 1))
    place = held("erase_before_commit")
    erasure = eraser.start(erasing(user))
    wait_until_held(place)
    refused: list[psycopg.Error] = []

    def edit() -> None:
        with site.connect() as lms:
            try:
                lms.execute(INSERT, (course, new_id(), user))
            except psycopg.Error as error:
                refused.append(error)

    thread = threading.Thread(target=edit)
    thread.start()
    wait_for(
        lambda: site.query("select from pg_locks where not granted and locktype = 'transactionid'"),
        what="the edit waits",
    )
    place.unlink()
    erasure.result(WAIT_S)
    thread.join(WAIT_S)
    assert [error.sqlstate for error in refused] == ["SW001"]
    assert lives_in_outbox(site, course, user) == [[1, 0]]


def test_an_erasure_that_can_not_have_a_row_in_time_has_done_nothing(site: Site, writer: MakeWriter) -> None:
    eraser, user, course = writer(patient=False), new_id(), new_id()
    eraser.session.execute("set idle_in_transaction_session_timeout = 0")  # only its waits are to be short
    eraser.batch(source(course, user, 1))
    with psycopg.connect(site.database_url, options="-c search_path=sync_worker") as lms:
        lms.execute(INSERT, (course, new_id(), user))
        lms.execute(WITHOUT_LIMIT)
        with pytest.raises(Contention):
            eraser.start(erasing(user)).result(WAIT_S)
    assert site.query("select count(*) as n from source")[0]["n"] == 1
    assert eraser.start(erasing(user)).result(WAIT_S).source == 1


# ── live traffic ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_erasures_in_the_midst_of_traffic_end_lives_whole(site: Site, writer: MakeWriter) -> None:
    """Two writers and an eraser, as fast as they can: each life a chain, and after each erasure facts and rows agree."""
    group = new_id()
    methods = [method(segment := new_id(), course := new_id(), group_id=group), method(segment, new_id())]
    user = new_id()
    one, other, eraser = writer(), writer(), writer()
    one.batch(*methods)
    enough = threading.Event()

    def traffic(first: int) -> Callable[[Session], None]:
        def work(session: Session) -> None:
            for version in count(first, 2):
                if version >= 120 and enough.is_set():
                    return
                events: list[Event] = [
                    member(segment, user, version, is_member=version % 5 > 0), source(course, user, version, role=f"r{version}")
                ]  # fmt: skip
                apply_batch(session, *events)

        return work

    running = one.start(traffic(1)), other.start(traffic(2))
    erasures = 0
    while not all(each.done() for each in running):
        erasures += eraser.start(erasing(user)).result(WAIT_S).erasable
        # Whoever is slow is waited for: that the others end before it has come is no fault.
        if erasures > 3 and all(len(lives_in_outbox(site, each.course_id, user)) > 3 for each in methods):
            enough.set()
    for batches in running:
        batches.result(WAIT_S)
    assert erasures > 3
    for each in methods:
        assert len(lives_in_outbox(site, each.course_id, user)) > 3
    facts = site.query("select is_member from membership where is_member")
    sources = site.query("select from source")
    rows = site.enrollments()
    assert (methods[1].course_id, user) in rows or not facts
    assert sum(len(row["sources"]) for row in rows.values()) == 2 * len(facts) + len(sources)
    eraser.start(erasing(user)).result(WAIT_S)
    assert set(tables_naming(site, user)) == {"outbox"}
    for each in methods:
        assert lives_in_outbox(site, each.course_id, user)[-1][-1] == 0


# ── what it costs under the exclusive lock ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["membership_erase", "source_erase", "enrollment_lock", "enrollment_erase"])
def test_no_table_is_read_through_under_the_exclusive_lock(site: Site, writer: MakeWriter, name: str) -> None:
    """Though the user is second in two of the keys, and whatever the statistics say."""
    session = writer().session
    session.execute("""insert into membership (segment_id, user_id, is_member, version)
        select s, gen_random_uuid(), true, 1 from (select gen_random_uuid() as s from generate_series(1, 20)), generate_series(1, 200)""")
    plan = session.execute("explain " + erase.SQL[name], {"user": new_id()}).fetchall()
    lines = [line for (line,) in plan]
    assert any("Index" in line and "Scan using" in line for line in lines), lines
    assert not any("Seq Scan" in line for line in lines), lines
