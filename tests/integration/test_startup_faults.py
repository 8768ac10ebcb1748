"""What stops a worker instead of letting it wait: exit code 1 with what is wrong and what to do, 2 for settings.

Where going on would skip or repeat something (topics, positions), the way out that the message names is taken too, and
the worker must then end where it should. No password may be in what it says.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported
from psycopg import sql

from devstack import Stack
from tests.model.events import Event, MembershipChanged, MethodChanged, to_record
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.kafka import add_partitions
from tests.support.site import Site, WorkerProcess
from tests.support.wire import encode

NOW = 1_767_225_600_000_000
# Far more than a worker needs to find out, on a machine that does ten other things.
EXIT_S = 150.0


def new_id() -> str:
    return str(uuid4())


def reason_for_exit(worker: WorkerProcess, code: int = 1) -> str:
    """What the worker says last; it must end by itself with that code."""
    assert worker.wait(EXIT_S) == code, worker.log()
    (line,) = worker.events("stopped")
    reason: str = line["reason"]
    return reason


# ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_topics_that_do_not_exist_are_all_named_with_the_command_that_makes_them(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(topics=False)
    reason = reason_for_exit(site.start_worker())
    for topic in ("membership", "methods", "sources", "changes", "dead_letters", "cursor"):
        assert site.topic(topic) in reason
    assert "`sync-worker topics create`" in reason
    assert site.command("topics", "create", "--partitions", "1").returncode == 0
    worker = site.start_worker()
    worker.wait_for_event("partitions_assigned")
    site.wait_settled()
    assert worker.terminate() == 0


def test_one_input_topic_that_does_not_exist_is_named_alone(site: Site) -> None:
    reason = reason_for_exit(site.start_worker(methods_topic="nowhere.to.be.found"))
    assert "nowhere.to.be.found" in reason
    assert site.topic("membership") not in reason
    assert "`sync-worker topics create`" in reason


# ── the database ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def empty_database(stack: Stack) -> Iterator[str]:
    name = f"empty_{uuid4().hex[:12]}"
    yield stack.postgres.create_database(name)
    stack.postgres.drop_database(name)


def test_a_database_that_is_not_migrated_is_answered_with_the_command_that_does_it(
    empty_database: str, site: Site
) -> None:
    reason = reason_for_exit(site.start_worker(database_url=empty_database))
    assert "holds no schema sync_worker" in reason
    assert "`sync-worker migrate`" in reason


def test_a_database_migrated_further_than_this_version_knows_asks_for_a_newer_worker(site: Site) -> None:
    with site.connect() as connection:
        connection.execute("update alembic_version set version_num = '9999'")
        connection.execute("update schema_support set oldest_worker = '9999'")
    reason = reason_for_exit(site.start_worker())
    assert "revision 9999" in reason
    assert "install a newer worker" in reason


PASSWORD = secrets.token_urlsafe(12)
WRONG_PASSWORD = secrets.token_urlsafe(12)


@pytest.fixture(scope="module")
def roles(stack: Stack) -> Iterator[str]:
    """Roles named after the suffix: needs_password_… is asked for PASSWORD, no_rights_… and no_login_… are what they say.

    The services trust everybody, so the one role that is not gets a line of its own in pg_hba.conf, through SQL, as the
    server may be anywhere.
    """
    suffix = uuid4().hex[:12]
    with psycopg.connect(stack.postgres.url(), autocommit=True) as connection:
        for role, further in (
            ("needs_password", sql.SQL("login password {}").format(sql.Literal(PASSWORD))),
            ("no_rights", sql.SQL("login")),
            ("no_login", sql.SQL("nologin")),
        ):
            connection.execute(sql.SQL("create role {} {}").format(sql.Identifier(f"{role}_{suffix}"), further))
        ((path, rules),) = connection.execute(
            "select current_setting('hba_file'), pg_read_file(current_setting('hba_file'))"
        ).fetchall()
        write_hba(connection, path, f"host all needs_password_{suffix} all scram-sha-256\n{rules}")
        yield suffix
        write_hba(connection, path, rules)
        for role in ("needs_password", "no_rights", "no_login"):
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(f"{role}_{suffix}")))


def write_hba(connection: psycopg.Connection[tuple[str, str]], path: str, rules: str) -> None:
    # As CSV with characters that no rule has, so that every line comes out as it is.
    connection.execute(
        sql.SQL(
            "copy (select line from regexp_split_to_table({}, '\n') line where line <> '') to {} "
            "(format csv, delimiter e'\x01', quote e'\x02', escape e'\x02')"
        ).format(sql.Literal(rules), sql.Literal(path))
    )
    connection.execute("select pg_reload_conf()")


def with_user(url: str, user: str, password: str = "") -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}{':' + password if password else ''}@{rest.rpartition('@')[2]}"


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [
        ("needs_password", WRONG_PASSWORD, "password authentication failed"),
        ("needs_password", "", "no password supplied"),
        ("nobody", "", "does not exist"),
        ("no_login", "", "is not permitted to log in"),
        ("no_rights", "", "permission denied"),
    ],
    ids=["a wrong password", "no password", "no such user", "a user that may not log in", "a user without rights"],
)
def test_a_user_that_postgresql_refuses_stops_the_worker_and_no_password_is_shown(
    user: str, password: str, words: str, site: Site, roles: str
) -> None:
    worker = site.start_worker(database_url=with_user(site.database_url, f"{user}_{roles}", password))
    assert words in reason_for_exit(worker)
    assert not password or password not in worker.log()


def test_the_right_password_is_let_in_so_that_it_was_the_wrong_one_that_was_refused(site: Site, roles: str) -> None:
    user = f"needs_password_{roles}"
    with site.connect() as connection:
        connection.execute(sql.SQL("grant sync_worker_app to {}").format(sql.Identifier(user)))
    worker = site.start_worker(database_url=with_user(site.database_url, user, PASSWORD))
    site.produce(enrolling(new_id(), new_id()))
    site.wait_settled()
    assert len(site.enrollments()) == 1
    assert worker.terminate() == 0
    assert PASSWORD not in worker.log()


def test_a_database_that_does_not_exist_or_may_not_be_entered_stops_the_worker(
    stack: Stack, site: Site, empty_database: str, roles: str
) -> None:
    assert "does not exist" in reason_for_exit(site.start_worker(database_url=stack.postgres.url("no_such_database")))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("revoke connect on database {} from public").format(name))
    worker = site.start_worker(database_url=with_user(empty_database, f"no_rights_{roles}"))
    assert "permission denied for database" in reason_for_exit(worker)


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wrong_settings_are_named_all_at_once_with_exit_code_2_and_nothing_was_asked_of_anybody(site: Site) -> None:
    worker = site.start_worker(
        database_url=f"mysql://somebody:{PASSWORD}@127.0.0.1/x",
        batch_max_records="0",
        group_protocol="both",
        http_port="x",
    )
    assert worker.wait(EXIT_S) == 2
    said = worker.log()
    for name in ("DATABASE_URL", "BATCH_MAX_RECORDS", "GROUP_PROTOCOL", "HTTP_PORT"):
        assert f"SYNC_WORKER_{name}: " in said
    assert PASSWORD not in said
    assert not worker.events("worker_starts")


# ── positions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def enrolling(segment: str, course: str) -> list[Event]:
    """A method and a member: one person enrolled."""
    method = MethodChanged(
        new_id(), NOW, new_id(), 1, course, segment, None, "SEGMENT_SYNC", "A method", True, True, "student", None
    )
    return [method, joining(segment)]


def joining(segment: str) -> MembershipChanged:
    return MembershipChanged(new_id(), NOW, segment, new_id(), 1, is_member=True)


def admin_of(site: Site) -> AdminClient:
    return AdminClient({"bootstrap.servers": site.stack.kafka.bootstrap_servers})


def produce(site: Site, event: Event, partition: int) -> None:
    """Publish with a client of its own: one that knew the topic before would not know what it is now."""
    name, fields = to_record(event)
    producer = Producer({"bootstrap.servers": site.stack.kafka.bootstrap_servers})
    producer.produce(site.topic("membership"), encode(name, fields), partition=partition)
    assert producer.flush(60) == 0


class Case:
    """A site that has enrolled somebody, and what its rows must come to."""

    def __init__(self, site: Site) -> None:
        self.site, self.model = site, Model()
        self.segment = new_id()
        self.membership = site.topic("membership")
        events = enrolling(self.segment, new_id())
        self.model.apply_batch(events)
        site.produce([events[0]])
        self.join(0, events[1])
        self.worker = site.start_worker()
        site.wait_settled()

    def join(self, partition: int, event: Event | None = None) -> None:
        """Somebody joins the segment, by a record in that partition."""
        joined = event or joining(self.segment)
        self.model.apply_batch([joined])
        produce(self.site, joined, partition)

    def stop(self) -> None:
        assert self.worker.terminate() == 0

    def stops(self) -> str:
        """A worker that is started now ends by itself; what it says."""
        return reason_for_exit(self.site.start_worker())

    def goes_on_after_reset(self, *arguments: str) -> None:
        """What the message tells to do helps; afterwards nothing is missing or published twice."""
        done = self.site.command("positions", "reset", "--to", "earliest", "--yes", *arguments)
        assert done.returncode == 0, done.stderr
        self.worker = self.site.start_worker()
        self.settles()

    def settles(self) -> None:
        self.site.wait_settled()
        assert_site_equals_model(self.site, self.model)
        assert self.worker.process.poll() is None


@pytest.fixture
def case(site: Site) -> Case:
    return Case(site)


def delete_records(site: Site, topic: str, partition: int, before: int) -> None:
    admin = admin_of(site)
    for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        future.result(60)


def make_anew(site: Site, topic: str, partitions: int = 3) -> None:
    """Delete the topic and create it again under its name."""
    admin = admin_of(site)
    admin.delete_topics([topic])[topic].result(60)
    while True:
        try:
            admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])[topic].result(60)
        except Exception as error:  # noqa: BLE001 - the deletion takes a moment
            assert "already exists" in str(error) or "marked for deletion" in str(error), error
            continue
        return


def test_records_that_are_gone_before_they_were_applied_stop_the_worker_by_the_partitions_name(case: Case) -> None:
    case.stop()
    lost = joining(case.segment)
    produce(case.site, lost, 2)
    case.join(2)
    delete_records(case.site, case.membership, 2, 1)
    reason = case.stops()
    assert f"position 0 of {case.membership}[2] is outside of what the topic holds" in reason
    assert "`sync-worker positions reset`" in reason
    case.goes_on_after_reset("--topic", case.membership, "--partition", "2")


def test_a_topic_made_anew_while_the_worker_was_stopped_stops_it_when_it_starts(case: Case) -> None:
    case.stop()
    make_anew(case.site, case.membership)
    reason = case.stops()
    assert f"topic {case.membership} was made anew" in reason
    assert "`sync-worker positions reset`" in reason
    case.join(0)
    case.goes_on_after_reset("--topic", case.membership)


def test_a_topic_made_anew_under_a_running_worker_stops_it(case: Case) -> None:
    make_anew(case.site, case.membership)
    reason = reason_for_exit(case.worker)
    assert case.membership in reason
    assert "no such topic" in reason or "`sync-worker positions reset`" in reason
    assert f"topic {case.membership} was made anew" in case.stops()
    case.join(0)
    case.goes_on_after_reset("--topic", case.membership)


def test_a_database_that_stands_behind_what_kafka_has_committed_stops_the_worker(case: Case) -> None:
    case.stop()
    with case.site.connect() as connection:
        connection.execute("update position set next_offset = 0 where topic = %s", (case.membership,))
    reason = case.stops()
    assert f"has committed offset 1 of {case.membership}[0] to Kafka, but the database stands at 0" in reason
    assert "`sync-worker positions reset`" in reason
    case.goes_on_after_reset()


def test_a_partition_that_a_known_topic_got_later_is_read_from_its_first_record(case: Case) -> None:
    case.stop()
    add_partitions(case.site.stack.kafka.bootstrap_servers, case.membership, 5)
    for _ in range(3):
        case.join(4)
    case.worker = case.site.start_worker()
    case.settles()
    assert len(case.site.enrollments()) == 4


def test_a_later_partition_that_has_lost_records_already_stops_the_worker(case: Case) -> None:
    case.stop()
    add_partitions(case.site.stack.kafka.bootstrap_servers, case.membership, 4)
    produce(case.site, joining(case.segment), 3)
    case.join(3)
    delete_records(case.site, case.membership, 3, 1)
    reason = case.stops()
    assert f"{case.membership}[3] was added to a topic that was being read" in reason
    assert "`sync-worker positions reset`" in reason
    case.goes_on_after_reset("--topic", case.membership, "--partition", "3")
