"""The AsyncAPI document describes the topics, keys, headers and messages that there are, and leaves none out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sync_worker.errors import RejectionReason
from sync_worker.events import NAMESPACE, RecordName
from sync_worker.operations.publishing import LineEncoder
from sync_worker.schema.store import load_schemas
from sync_worker.schema.wire import cloud_event_headers
from sync_worker.settings import Settings
from tests.records import SAMPLES, SCHEMAS, TOPIC_OF, TOPICS

DOCUMENT: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))
MESSAGES = DOCUMENT["components"]["messages"]
SHAPES = DOCUMENT["components"]["schemas"]
SETTINGS = {
    "membership": "membership_topic",
    "methods": "methods_topic",
    "sources": "sources_topic",
    "changes": "changes_topic",
    "deadLetters": "dead_letters_topic",
}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def resolved(reference: str) -> Any:
    node: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def conforms(value: Any, shape: str) -> bool:
    validator = jsonschema.Draft7Validator({**SHAPES[shape], "components": DOCUMENT["components"]})
    return bool(validator.is_valid(value))


def test_it_is_asyncapi_3_with_all_that_such_a_document_needs() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"]
    assert set(DOCUMENT) <= {"asyncapi", "id", "info", "defaultContentType", "channels", "operations", "components"}
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")


@pytest.mark.parametrize("reference", sorted(set(references(DOCUMENT))))
def test_every_reference_leads_somewhere(reference: str) -> None:
    if reference.startswith("#/"):
        assert resolved(reference)
    else:
        assert (SCHEMAS / reference).is_file()


def test_the_channels_are_the_topics_by_their_default_names() -> None:
    defaults = Settings.model_fields
    assert {name: channel["address"] for name, channel in DOCUMENT["channels"].items()} == {
        name: defaults[field].default for name, field in SETTINGS.items()
    }
    for name, field in SETTINGS.items():
        channel = DOCUMENT["channels"][name]
        assert f"SYNC_WORKER_{field.upper()}" in channel["description"]
        assert channel["bindings"]["kafka"]["topic"] == channel["address"]


def messages_of(channel: dict[str, Any]) -> set[str]:
    return {reference["$ref"].removeprefix("#/components/messages/") for reference in channel["messages"].values()}


def test_each_topic_has_the_records_that_belong_to_it() -> None:
    found = {channel["address"]: messages_of(channel) for channel in DOCUMENT["channels"].values()}
    assert found == {
        **{topic: set(names) for topic, names in TOPICS.items()},
        "enrollment.changes": {RecordName.ENROLLMENT_CHANGED, "EnrollmentErased"},
        "sync-worker.dead-letters": {"DeadLetter"},
    }


def test_the_worker_receives_every_input_and_sends_every_output_message() -> None:
    actions = {
        operation["channel"]["$ref"].removeprefix("#/channels/"): operation["action"]
        for operation in DOCUMENT["operations"].values()
    }
    assert actions == {
        "membership": "receive",
        "methods": "receive",
        "sources": "receive",
        "changes": "send",
        "deadLetters": "send",
    }
    for operation in DOCUMENT["operations"].values():
        channel = operation["channel"]["$ref"]
        listed = {reference["$ref"] for reference in operation["messages"]}
        assert listed == {f"{channel}/messages/{name}" for name in resolved(channel)["messages"]}


@pytest.mark.parametrize("name", RecordName)
def test_each_record_is_a_message_with_its_avsc_as_payload(name: RecordName) -> None:
    message = MESSAGES[name]
    assert message["name"] == f"{NAMESPACE}.{name}"
    assert message["payload"]["schemaFormat"].startswith("application/vnd.apache.avro+json;version=")
    assert message["payload"]["schema"]["$ref"] == f"./{name}.avsc"
    assert message["contentType"] == "application/avro"


def test_no_message_and_no_avsc_is_left_over() -> None:
    assert set(MESSAGES) == {*RecordName, "EnrollmentErased", "DeadLetter"}
    assert {path.stem for path in Path(SCHEMAS).glob("*.avsc")} == set(RecordName)


@pytest.mark.parametrize("name", sorted(TOPIC_OF))
def test_the_keys_and_headers_that_are_published_are_the_documents(name: RecordName) -> None:
    encoder = LineEncoder(load_schemas(), TOPIC_OF)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    publication = encoder.encode_line(json.dumps({"type": name, **SAMPLES[name], "traceparent": trace}))
    key = MESSAGES[name]["bindings"]["kafka"]["key"]["allOf"][0]["$ref"].rpartition("/")[2]
    assert conforms(publication.key.decode(), key)
    headers = {header: value.decode() for header, value in publication.headers}
    assert conforms(headers, "EventHeaders")
    assert set(headers) == set(SHAPES["EventHeaders"]["properties"]) - {"__value_schema_id"}


def test_a_header_that_is_not_the_documents_does_not_conform() -> None:
    headers = {
        header: value.decode()
        for header, value in cloud_event_headers(
            event_id="not a uuid", full_name="n", source="s", occurred_at=0, subject="k"
        )
    }
    assert not conforms(headers, "EventHeaders")


def test_the_reasons_of_dead_letters_are_the_workers() -> None:
    assert SHAPES["DeadLetterHeaders"]["properties"]["dlq_reason"]["enum"] == list(RejectionReason)


def test_every_pattern_compiles() -> None:
    for shape in SHAPES.values():
        if "pattern" in shape:
            re.compile(shape["pattern"])
