"""Dead letters of a worker that had no schema registry, or whose registry did not know the schema, once that is mended.

The services are this module's own: they include a registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from devstack import Stack
from sync_worker.database.migrate import migrate
from sync_worker.events import NAMESPACE
from tests.model.events import Event, to_record
from tests.model.model import Model
from tests.support.check import assert_rows_equal_model
from tests.support.facts import member, method, new_id
from tests.support.site import Site
from tests.support.wire import encode, schema

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.start(registry=True, durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def template(stack: Stack) -> str:
    migrate(stack.postgres.create_database("template_of_registry"))
    return "template_of_registry"


def register(client: SchemaRegistryClient, subject: str, name: str) -> int:
    raw: Any = json.loads(json.dumps(schema(name), default=str))
    text = {"type": "record", "name": name, "namespace": NAMESPACE, "fields": raw["fields"]}
    return client.register_schema(subject, Schema(json.dumps(text), "AVRO"))


def framed(schema_id: int, event: Event) -> bytes:
    """The event in Confluent framing."""
    return b"\0" + schema_id.to_bytes(4, "big") + encode(*to_record(event))[10:]


def test_records_of_a_registry_that_was_not_configured_are_all_applied_by_a_replay(
    make_site: Callable[..., Site], stack: Stack
) -> None:
    site, model = make_site(), Model()
    opened = method(new_id(), new_id())
    late = [member(opened.segment_id, new_id(), 1) for _ in range(10)]
    with SchemaRegistryClient({"url": stack.registry.url}) as client:
        added = register(client, f"{site.topic('membership')}-{NAMESPACE}.SegmentMemberAdded", "SegmentMemberAdded")
    worker = site.start_worker()
    site.produce([opened])
    for event in late:
        site.produce_raw("membership", framed(added, event), key=event.user_id.encode())
    site.wait_settled(PATIENCE_S)
    letters = site.dead_letters()
    assert [letter.header("dlq_reason") for letter in letters] == [b"unknown_schema"] * len(late)
    address = f"{letters[0].partition}:{letters[0].offset}"
    shown = json.loads(site.command("dlq", "show", address, "--json").stdout)
    assert (shown["framing"], shown["fields"]) == (f"Confluent, schema id {added}", {})
    assert "none is configured" in shown["verdict"]

    assert worker.terminate() == 0
    site.environment["SYNC_WORKER_SCHEMA_REGISTRY_URL"] = stack.registry.url
    site.start_worker()
    shown = json.loads(site.command("dlq", "show", address, "--json").stdout)
    assert shown["readable"]
    assert shown["fields"]["user_id"] in {event.user_id for event in late}
    done = site.command("dlq", "replay", "--reason", "unknown_schema")
    assert (done.returncode, done.stdout) == (0, f"{len(late)} sent back ({len(late)} unknown_schema)\n")
    site.wait_settled(PATIENCE_S)
    model.apply_batch([opened, *late])
    assert_rows_equal_model(site, model)


def test_members_are_imported_in_the_registry_s_framing(make_site: Callable[..., Site], stack: Stack) -> None:
    site = make_site(schema_registry_url=stack.registry.url)
    segment, users = new_id(), [new_id() for _ in range(3)]
    file = site.directory / "members.csv"
    file.write_text("".join(f"{segment},{user}\n" for user in users))
    site.start_worker()
    assert site.command("members", "import", str(file)).returncode == 0
    file.write_text(f"{segment},{users[0]}\n")
    replaced = site.command("members", "import", str(file), "--replace", segment)
    assert (replaced.returncode, replaced.stdout.splitlines()[-1]) == (0, "2 of 2 sent")
    site.wait_settled(PATIENCE_S)
    assert all((record.value or b"")[:1] == b"\0" for record in site.records("membership"))
    assert site.dead_letters() == []
    rows = site.query("select user_id from membership where is_member")
    assert [str(row["user_id"]) for row in rows] == users[:1]
