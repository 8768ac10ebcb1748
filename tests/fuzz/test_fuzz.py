"""The fuzz targets, short: inputs near to right and inputs at random, and each fault that fuzzing has found.

`make fuzz` runs the same targets by the million.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync_worker.errors import InvalidRecord, RejectionReason
from sync_worker.intake.decoding import Decoder
from sync_worker.intake.validation import shown
from sync_worker.schema.avro import UnusableSchema, parse
from sync_worker.schema.store import SchemaStore, load_schemas
from sync_worker.schema.strict import MAX_VALUES, Checker, NotADatum
from tests.fuzz import inputs, targets
from tests.fuzz.inputs import text, zigzag
from tests.fuzz.writers import SCHEMAS
from tests.records import MEMBER, METHOD, TOPICS, datum_bytes

EXAMPLES = settings(max_examples=500)
ID = text("0b0e6a9e-6ad9-4b5f-8a53-1f2a0d8a7f11")
AT = zigzag(1_750_000_000_000_000)


@EXAMPLES
@given(seed=st.integers(0, 2**64), mutants=st.integers(0, 10))
def test_an_input_near_to_right_is_judged_as_the_oracle_judges_it(seed: int, mutants: int) -> None:
    random = Random(seed)
    data = inputs.fresh(random)
    targets.anything(data)
    for _ in range(mutants):
        data = inputs.mutated(random, data)
        targets.anything(data)


@EXAMPLES
@given(st.binary(max_size=200))
def test_an_input_at_random_is_judged_as_the_oracle_judges_it(data: bytes) -> None:
    targets.anything(data)


def test_inputs_reach_every_outcome() -> None:
    random = Random(1)
    outcomes = Counter(targets.records(inputs.record(random)) for _ in range(2000))
    assert outcomes.keys() == {"event", "wait", "undecodable", "unknown_schema", "invalid_event"}
    assert outcomes["event"] > 500
    assert {targets.schemas(inputs.schema(random)) for _ in range(500)} > {"unusable", "event", "invalid_event"}


def test_a_process_counts_what_it_takes_and_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.process", "3000", "5", str(tmp_path)], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "5.json").read_text("utf-8"))
    assert report["inputs"] == sum(report["outcomes"].values()) == 3000


# what fuzzing has found


@pytest.mark.parametrize(
    "number",
    [
        b"\x80\x00",
        b"\x8e\x80\x80\x00",
        b"\x8e" + b"\x80" * 9 + b"\x00",
        b"\x8e" + b"\x80" * 9 + b"\x01",
        b"\x8e" + b"\x80" * 30 + b"\x01",
        b"\xfe" + b"\xff" * 8 + b"\x7f",
        b"\xfe" + b"\xff" * 8 + b"\x03",
    ],
)
def test_a_number_in_more_bytes_or_bits_than_avro_has_is_undecodable(number: bytes) -> None:
    member = b"\0\0" + ID + AT + ID + ID
    assert targets.records(member + zigzag(7)) == "event"
    assert targets.records(member + number) == "undecodable"


def test_the_largest_version_is_an_event() -> None:
    assert targets.records(b"\0\0" + ID + AT + ID + ID + zigzag(2**63 - 1)) == "event"
    assert targets.records(b"\0\0" + ID + AT + ID + ID + zigzag(-(2**63))) == "invalid_event"


def decoder_of(schema: Any) -> tuple[Decoder, bytes]:
    """A decoder that knows this writer's schema, and its prefix."""
    store, parsed = load_schemas(), parse(json.dumps(schema))
    known = SchemaStore(store.current, {**store.by_fingerprint, parsed.fingerprint: parsed})
    return Decoder(known, None, TOPICS), parsed.single_object_prefix


def further(name: str, type_: Any) -> dict[str, Any]:
    """The schema of a record with a further field, which this version passes over."""
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{name}.avsc").read_text("utf-8"))
    schema["fields"].insert(0, {"name": "further", "type": type_})
    return schema


def reason_of(decoder: Decoder, topic: str, value: bytes) -> tuple[RejectionReason, str]:
    with pytest.raises(InvalidRecord) as caught:
        decoder.decode(topic, value, None)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"\x01" * 2, b"\x01\x07"),  # active, visible
        (text("Sales people") + b"\x01", text("Sales people") + b"\xff"),
    ],
)
def test_a_publishers_further_array_opens_no_way_for_what_is_out_of_range(right: bytes, wrong: bytes) -> None:
    schema = further("EnrollmentMethodChanged", {"type": "array", "items": "string"})
    decoder, prefix = decoder_of(schema)
    whole = datum_bytes(schema, {**METHOD, "further": ["a"]})
    assert right in whole
    assert decoder.decode("enrollment.methods", prefix + whole, None)
    broken = prefix + whole.replace(right, wrong, 1)
    assert reason_of(decoder, "enrollment.methods", broken)[0] is RejectionReason.UNDECODABLE


def test_a_block_that_lies_about_its_size_is_undecodable_and_one_that_does_not_is_read() -> None:
    schema = further("SegmentMemberAdded", {"type": "array", "items": "string"})
    decoder, prefix = decoder_of(schema)
    rest = datum_bytes(schema, {**MEMBER, "further": []})[1:]
    for size, is_right in ((4, True), (3, False), (len(rest) + 4, False), (-4, False), (2**60, False)):
        value = prefix + zigzag(-2) + zigzag(size) + text("a") + text("b") + zigzag(0) + rest
        if is_right:
            assert decoder.decode("segments.membership", value, None)
        else:
            assert reason_of(decoder, "segments.membership", value)[0] is RejectionReason.UNDECODABLE


@pytest.mark.parametrize("name", ["\ud800", "a\ud800b"])
def test_a_schema_with_half_a_character_in_a_name_is_unusable(name: str) -> None:
    with pytest.raises(UnusableSchema) as caught:
        parse(json.dumps({"type": "record", "name": name, "fields": []}))
    assert str(caught.value).isprintable()


def test_what_is_told_of_a_schema_or_a_value_is_short_and_cannot_steer_a_terminal() -> None:
    schema = json.loads((SCHEMAS / "SegmentMemberAdded.avsc").read_text("utf-8"))
    decoder, prefix = decoder_of({**schema, "name": "A\x1b[2J\u202e"})
    _, detail = reason_of(decoder, "segments.membership", prefix)
    assert detail.startswith("a A\\x1b[2J\\u202e does not belong to")
    assert len(shown("\U0001d11e" * 255)) < 130
    assert shown("\U0001d11e" * 255).endswith("… (255 characters)")


# small records that ask for much


BOMBS = {
    "an array of records of fifty nulls and a byte": (
        {"type": "array", "items": {"type": "record", "name": "Wide", "fields": [
            *({"name": f"n{n}", "type": "null"} for n in range(50)), {"name": "one", "type": "boolean"}]}},
        zigzag(1_000_000) + b"\0" * 1_000_000 + zigzag(0),
    ),
    "arrays of arrays": ({"type": "array", "items": {"type": "array", "items": "int"}}, zigzag(1_000_000) + b"\0" * 1_000_001),
    "a map of many keys": ({"type": "map", "values": "null"}, zigzag(1_000_000) + b"\0" * 1_000_000 + zigzag(0)),
    "an array of 2^60": ({"type": "array", "items": "int"}, zigzag(2**60) + b"\0" * 100),
    "an array of -2^63": ({"type": "array", "items": "int"}, zigzag(-(2**63)) + zigzag(100) + b"\0" * 100),
    "bytes of 2^60": ("bytes", zigzag(2**60) + b"\0" * 100),
    "a fixed of 2^40": ({"type": "fixed", "name": "F", "size": 2**40}, b"\0" * 100),
    "a union of branch 2^60": (["null", "string"], zigzag(2**60)),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_a_record_that_declares_more_than_it_holds_is_undecodable_at_next_to_no_cost(what: str) -> None:
    type_, bomb = BOMBS[what]
    schema = further("SegmentMemberAdded", type_)
    decoder, prefix = decoder_of(schema)
    value = prefix + bomb + datum_bytes({**schema, "fields": schema["fields"][1:]}, MEMBER)
    tracemalloc.start()
    try:
        reason, detail = reason_of(decoder, "segments.membership", value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason is RejectionReason.UNDECODABLE
    assert len(detail) < 300
    assert peak < 2_000_000


def test_a_datum_may_hold_many_values_and_no_more() -> None:
    checker = Checker(parse(json.dumps({
        "type": "record", "name": "R", "fields": [{"name": "x", "type": {"type": "array", "items": "int"}}]})).parsed)  # fmt: skip
    most = MAX_VALUES - 1  # the field is one, too
    checker.check(zigzag(most) + b"\0" * most + b"\0", 0)
    with pytest.raises(NotADatum, match="more than 100000 values"):
        checker.check(zigzag(most + 1) + b"\0" * (most + 1) + b"\0", 0)
