"""A worker with a schema registry: Confluent framing in and out, ids that nobody knows, and a registry that is away.

The services are this module's own: they include a registry, and it is stopped here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from devstack import Stack
from sync_worker.database.migrate import migrate
from sync_worker.events import NAMESPACE
from tests.model.events import Event, MembershipChanged, MethodChanged, to_record
from tests.model.model import Model
from tests.support.check import assert_changes_are_a_chain, assert_rows_equal_model
from tests.support.kafka import KafkaRecord
from tests.support.site import Change, Site, WorkerProcess, wait_for
from tests.support.wire import encode, schema

NOW = 1_767_225_600_000_000
PATIENCE_S = 120.0
pytestmark = pytest.mark.timeout(900)
NOBODYS_ID = 2_000_000_000


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.start(registry=True, durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def template(stack: Stack) -> str:
    migrate(stack.postgres.create_database("template_of_registry"))
    return "template_of_registry"


@pytest.fixture
def client(stack: Stack) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": stack.registry.url}) as connected:
        yield connected


def new_id() -> str:
    return str(uuid4())


def bare(event: Event) -> bytes:
    """The datum alone."""
    name, fields = to_record(event)
    return encode(name, fields)[10:]


def framed(schema_id: int, datum: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + datum


def register(client: SchemaRegistryClient, subject: str, name: str, **extra: Any) -> int:
    """Register the record's schema, perhaps with a further field, as a publisher does; its id."""
    raw = json.loads(json.dumps(schema(name), default=str))
    fields = raw["fields"] + [{"name": key, "type": "string", "default": value} for key, value in extra.items()]
    text = {"type": "record", "name": name, "namespace": NAMESPACE, "fields": fields}
    return client.register_schema(subject, Schema(json.dumps(text), "AVRO"))


class Case:
    """A site with a registry, a segment with a method in a course, and what its rows must come to."""

    def __init__(self, site: Site, client: SchemaRegistryClient) -> None:
        self.site, self.model, self.segment = site, Model(), new_id()
        self.ids = {
            name: register(client, f"{site.topic(topic)}-{NAMESPACE}.{name}", name)
            for topic, name in (("methods", "EnrollmentMethodChanged"), ("membership", "SegmentMemberAdded"))
        }
        method = MethodChanged(
            new_id(), NOW, new_id(), 1, new_id(), self.segment, None, "SEGMENT_SYNC", "A method", True, True,
            "student", None,
        )  # fmt: skip
        self.course = method.course_id
        self.model.apply_batch([method])
        value = framed(self.ids["EnrollmentMethodChanged"], bare(method))
        site.produce_raw("methods", value, key=method.method_id.encode(), partition=0)

    def join(
        self, partition: int, *, schema_id: int | None = None, single_object: bool = False, tail: bytes = b""
    ) -> str:
        """Somebody joins the segment, by a record in that partition; who."""
        event = MembershipChanged(new_id(), NOW, self.segment, new_id(), 1, is_member=True)
        self.model.apply_batch([event])
        datum = framed(schema_id or self.ids["SegmentMemberAdded"], bare(event) + tail)
        self.site.produce_raw("membership", encode(*to_record(event)) if single_object else datum, partition=partition)
        return event.user_id

    def enrolled(self, user: str) -> bool:
        return (self.course, user) in self.site.enrollments()

    def wait_enrolled(self, user: str) -> None:
        wait_for(lambda: self.enrolled(user), PATIENCE_S, "an enrollment")

    def assert_equals_model(self, client: SchemaRegistryClient) -> None:
        self.site.wait_settled(PATIENCE_S)
        assert_rows_equal_model(self.site, self.model)
        assert assert_changes_are_a_chain(self.site, registered_changes(self.site, client)) == len(self.model.changes)


def registered_changes(site: Site, client: SchemaRegistryClient) -> list[Change]:
    """Every EnrollmentChanged, read by the schema that its Confluent framing names."""
    subject = f"{site.topic('changes')}-{NAMESPACE}.EnrollmentChanged"
    registered = client.get_latest_version(subject)
    assert registered.schema is not None
    assert registered.schema.schema_str is not None
    assert registered.schema_id is not None
    writer = fastavro.parse_schema(json.loads(registered.schema.schema_str))
    return [Change(record, read(record, registered.schema_id, writer)) for record in site.records("changes")]


def read(record: KafkaRecord, schema_id: int, writer: Any) -> dict[str, Any]:
    assert record.value is not None
    assert record.value[:5] == framed(schema_id, b"")
    buffer = BytesIO(record.value[5:])
    event: Any = fastavro.schemaless_reader(buffer, writer, None)
    assert not buffer.read(), "bytes after the datum"
    return json.loads(json.dumps(event, default=str))  # type: ignore[no-any-return]  # an object


@pytest.fixture
def case(make_site: Callable[..., Site], stack: Stack, client: SchemaRegistryClient) -> Case:
    return Case(make_site(schema_registry_url=stack.registry.url), client)


def readiness(worker: WorkerProcess) -> str:
    assert httpx.get(f"http://127.0.0.1:{worker.http_port}/livez", timeout=60).status_code == 200
    return httpx.get(f"http://127.0.0.1:{worker.http_port}/readyz", timeout=60).text


def wait_until_ready(worker: WorkerProcess) -> None:
    """The group may be sharing out its partitions just now."""
    wait_for(lambda: "failed" not in readiness(worker), PATIENCE_S, "/readyz without a failure")


def wait_until_not_ready(worker: WorkerProcess, condition: str) -> str:
    def said() -> str:
        return next((line for line in readiness(worker).splitlines() if line.startswith(f"failed {condition}: ")), "")

    line: str = wait_for(said, PATIENCE_S, f"/readyz naming {condition}")
    return line


def test_confluent_framing_is_read_by_the_registered_schema_and_written_with_the_registered_id(
    case: Case, client: SchemaRegistryClient
) -> None:
    worker = case.site.start_worker()
    case.join(0)
    case.join(0, single_object=True)
    # A publisher that is newer than the worker: its further field is read over.
    newer = register(client, f"{case.site.topic('membership')}-newer", "SegmentMemberAdded", reason="none")
    case.join(0, schema_id=newer, tail=b"\x0amoved")
    case.assert_equals_model(client)
    assert case.site.dead_letters() == []
    wait_until_ready(worker)


def test_an_id_that_nobody_knows_holds_up_its_partition_for_a_minute_and_then_is_a_dead_letter(
    case: Case, client: SchemaRegistryClient
) -> None:
    worker = case.site.start_worker()
    case.wait_enrolled(case.join(0))
    unknown = framed(NOBODYS_ID, b"whatever")
    case.site.produce_raw("membership", unknown, key=b"k", headers=[("h", b"v")], partition=0)
    behind = case.join(0)
    wait_until_not_ready(worker, "registry")
    # Meanwhile the other partitions go on, and nothing is decided.
    case.wait_enrolled(case.join(1))
    assert not case.enrolled(behind)
    assert case.site.dead_letters() == []
    case.wait_enrolled(behind)
    case.assert_equals_model(client)
    (letter,) = case.site.dead_letters()
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", unknown, ("h", b"v"))
    assert letter.header("dlq_reason") == b"unknown_schema"
    assert str(NOBODYS_ID).encode() in (letter.header("dlq_detail") or b"")
    assert letter.header("dlq_partition") == b"0"
    wait_until_ready(worker)


def test_a_schema_that_is_registered_while_its_record_waits_is_used(case: Case, client: SchemaRegistryClient) -> None:
    worker = case.site.start_worker()
    # The relay registers what it writes, which takes an id; only then is the next one known.
    wait_for(lambda: "relay" in readiness(worker) and "failed" not in readiness(worker), what="a relay that leads")
    subject = f"{case.site.topic('membership')}-late"
    coming = register(client, f"{subject}-before", "SegmentMemberAdded", before="x") + 1
    user = case.join(0, schema_id=coming, tail=b"\x02y")
    wait_until_not_ready(worker, "registry")
    assert register(client, subject, "SegmentMemberAdded", late="x") == coming
    case.wait_enrolled(user)
    case.assert_equals_model(client)
    assert case.site.dead_letters() == []
    wait_until_ready(worker)


def test_a_registry_that_is_away_is_waited_for_and_what_needs_no_asking_goes_on(
    case: Case, client: SchemaRegistryClient, stack: Stack
) -> None:
    worker = case.site.start_worker()
    case.wait_enrolled(case.join(0))
    newer = register(client, f"{case.site.topic('membership')}-away", "SegmentMemberAdded", away="x")
    stack.registry.stop()
    try:
        waiting = case.join(0, schema_id=newer, tail=b"\x02y")
        assert "does not answer" in wait_until_not_ready(worker, "registry")
        case.wait_enrolled(case.join(1))
        assert not case.enrolled(waiting)
        # A worker that starts now applies what it can read, and says that it can't publish.
        assert worker.terminate() == 0
        worker = case.site.start_worker()
        alone = case.join(2, single_object=True)
        case.wait_enrolled(alone)
        wait_until_not_ready(worker, "relay")
        assert case.site.dead_letters() == []
    finally:
        stack.registry.start()
    case.wait_enrolled(waiting)
    case.assert_equals_model(client)
    assert case.site.dead_letters() == []
    wait_until_ready(worker)
    assert worker.process.poll() is None
