"""The encoder against fastavro and the model's rule: the same bytes, for every row that the outbox can hold."""

import gc
import json
import tracemalloc
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid5

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from sync_worker.errors import FatalError
from sync_worker.outbox.encoding import ChangeEncoder, EncodedChange, OutboxRow, event_id_of
from tests.model.rule import Contribution, EnrollmentState, change_kind, visible_state

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "schemas" / "EnrollmentChanged.avsc").read_text(encoding="utf-8")
)
PREFIX = b"\xc3\x01fingerpr"
SOURCE = "/sync-worker/sync-worker"
COURSE, USER, EVENT, METHOD, OTHER_METHOD = (str(UUID(int=number << 64 | number)) for number in range(1, 6))
GROUP, HAND_MADE = str(UUID(int=0xA << 100)), str(UUID(int=0xB << 100))
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

Visible = tuple[dict[str, Contribution], list[str], bool]
"""What the rule looks at: contributions, hand-made groups, suspension in the course."""


def encoder_of(schema: Any = SCHEMA, cache_bytes: int = 1 << 20) -> ChangeEncoder:
    return ChangeEncoder(schema, prefix=PREFIX, source=SOURCE, cache_bytes=cache_bytes)


def jsonb(contributions: Mapping[str, Contribution]) -> bytes:
    """As PostgreSQL writes it: keys by length, then bytes; nulls left out; nothing escaped that needn't be."""

    def ordered(members: Mapping[str, Any]) -> dict[str, Any]:
        return dict(sorted(members.items(), key=lambda member: (len(member[0].encode()), member[0].encode())))

    return json.dumps(
        ordered(
            {
                source: ordered(
                    {
                        name: value
                        for name in ("kind", "status", "role", "group_id", "member")
                        if (value := getattr(each, name)) is not None
                    }
                )
                for source, each in contributions.items()
            }
        ),
        ensure_ascii=False,
    ).encode()


def array(ids: list[str]) -> bytes:
    return ("{" + ",".join(ids) + "}").encode()


def row_of(before: Visible | None, after: Visible, **columns: Any) -> OutboxRow:
    defaults: dict[str, Any] = {
        "id": 7,
        "course_id": COURSE,
        "user_id": USER,
        "version": 1,
        "recorded_at_us": 1_767_323_045_000_006,
        "before_sources": before and jsonb(before[0]),
        "before_hand": before and array(before[1]),
        "before_suspended": before and before[2],
        "sources": jsonb(after[0]),
        "hand": array(after[1]),
        "suspended": after[2],
        "cause_type": "SegmentMemberAdded",
        "cause_event_id": EVENT,
        "cause_method_id": METHOD,
        "traceparent": None,
    }
    return OutboxRow(**defaults | columns)


def as_record(state: EnrollmentState) -> dict[str, Any]:
    return {
        "status": state.status,
        "roles": list(state.roles),
        "groups": list(state.groups),
        "suspended_in_course": state.suspended_in_course,
        "sources": [{name: getattr(each, name) for name in each.__slots__} for each in state.sources],
    }


def expected_value(row: OutboxRow, before: Visible | None, after: Visible, schema: Any = SCHEMA) -> bytes:
    states = visible_state(*before) if before else EnrollmentState("ABSENT"), visible_state(*after)
    # The model knows no repeated absence: nothing changes then. A republication may say it, and it says UNENROLLED.
    absent = {state.status for state in states} == {"ABSENT"}
    key = f"{row.course_id}:{row.user_id}:{row.version}"
    written = BytesIO()
    schemaless_writer(
        written,
        parse_schema(schema),
        {
            "event_id": str(uuid5(uuid5(NAMESPACE_DNS, "user-segment-sync"), key)),
            "occurred_at": row.recorded_at_us,
            "course_id": row.course_id,
            "user_id": row.user_id,
            "version": row.version,
            "change": "UNENROLLED" if absent else change_kind(*states),
            "before": as_record(states[0]),
            "after": as_record(states[1]),
            "cause": {"type": row.cause_type, "event_id": row.cause_event_id, "method_id": row.cause_method_id},
        },
    )
    return PREFIX + written.getvalue()


def decoded(change: EncodedChange) -> dict[str, Any]:
    stream = BytesIO(change.value[len(PREFIX) :])
    record = schemaless_reader(stream, parse_schema(SCHEMA), None)
    assert isinstance(record, dict)
    assert stream.read() == b""
    return record


ids = st.uuids().map(str)
# Few of each, so that roles, groups and names meet; and any text jsonb can hold.
texts = st.sampled_from(
    ["student", "tutor", 'a "b" \\', "\u00e9\u4e2d", "\U0001f600", "\uffff", "\n\t\x1f\x7f"]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=255)
groups = st.sampled_from([GROUP, HAND_MADE]) | ids
contributions = st.builds(
    Contribution,
    kind=st.sampled_from(["SEGMENT_SYNC", "SEGMENT_GROUP", "OTHER"]),
    status=st.sampled_from(["ACTIVE", "SUSPENDED"]),
    role=st.none() | texts,
    group_id=st.none() | groups,
    member=st.booleans(),
).filter(lambda each: each.kind != "SEGMENT_GROUP" or each.role is None)
visibles = st.tuples(
    st.dictionaries(ids | texts, contributions, max_size=5),
    st.lists(groups, unique=True, max_size=3),
    st.booleans(),
)
columns = st.fixed_dictionaries(
    {
        "course_id": ids,
        "user_id": ids,
        "version": st.integers(1, 2**63 - 1) | st.integers(1, 2000),
        "recorded_at_us": st.datetimes(
            datetime(1969, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)  # noqa: DTZ001 - hypothesis wants naive bounds
        ).map(lambda moment: int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)),
        "cause_type": st.sampled_from(["SegmentMemberAdded", "EnrollmentMethodChanged", "RECONCILE", "SQL"]),
        "cause_event_id": st.none() | ids,
        "cause_method_id": st.none() | ids,
        "traceparent": st.none() | st.just(TRACEPARENT),
    }
)  # fmt: skip


@settings(deadline=None)
@given(st.none() | visibles, visibles, columns)
def test_bytes_are_those_fastavro_writes_for_the_state_the_model_shows(
    before: Visible | None, after: Visible, others: dict[str, Any]
) -> None:
    row = row_of(before, after, **others)
    assert encoder_of().encode(row).value == expected_value(row, before, after)


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | visibles, visibles), max_size=8), st.sampled_from([0, 1500, 1 << 20]))
def test_an_encoder_with_a_past_writes_what_a_fresh_one_writes(
    changes: list[tuple[Visible | None, Visible]], cache_bytes: int
) -> None:
    encoder = encoder_of(cache_bytes=cache_bytes)
    for version, (before, after) in enumerate([*changes, *changes], 1):
        row = row_of(before, after, version=version)
        assert encoder.encode(row) == encoder_of().encode(row)


def test_a_person_in_five_hundred_sources_is_encoded_like_any_other() -> None:
    many = {str(UUID(int=number)): Contribution("OTHER", "ACTIVE", f"r{number}", None, True) for number in range(500)}
    after: Visible = (many, [str(UUID(int=number)) for number in range(200)], False)
    row = row_of(None, after)
    assert encoder_of().encode(row).value == expected_value(row, None, after)


STUDENT = Contribution("SEGMENT_SYNC", "ACTIVE", "student", GROUP, True)
TUTOR = Contribution("SEGMENT_SYNC", "ACTIVE", "tutor", GROUP, True)
TEACHER = Contribution("OTHER", "ACTIVE", "teacher", None, True)
PAUSED = Contribution("SEGMENT_SYNC", "SUSPENDED", "student", GROUP, True)
GROUP_ONLY = Contribution("SEGMENT_GROUP", "ACTIVE", None, GROUP, True)


@pytest.mark.parametrize(
    ("before", "after", "change", "status", "roles", "groups_"),
    [
        pytest.param(None, ({METHOD: STUDENT}, [], False), "ENROLLED", "ACTIVE", ["student"], [GROUP], id="joins"),
        pytest.param(({METHOD: STUDENT}, [], False), ({}, [], False), "UNENROLLED", "ABSENT", [], [], id="leaves"),
        pytest.param(
            ({}, [], False), ({METHOD: STUDENT}, [], False),
            "ENROLLED", "ACTIVE", ["student"], [GROUP], id="joins again",
        ),
        pytest.param(
            ({METHOD: STUDENT, OTHER_METHOD: TUTOR}, [], False), ({OTHER_METHOD: TUTOR}, [], False),
            "UPDATED", "ACTIVE", ["tutor"], [GROUP], id="leaves one of two",
        ),
        pytest.param(
            ({METHOD: STUDENT}, [], False), ({METHOD: PAUSED}, [], False),
            "SUSPENDED", "SUSPENDED", [], [GROUP], id="the eye closes",
        ),
        pytest.param(
            ({METHOD: PAUSED}, [], False), ({METHOD: STUDENT}, [], False),
            "REACTIVATED", "ACTIVE", ["student"], [GROUP], id="the eye opens",
        ),
        pytest.param(
            ({METHOD: STUDENT, "manual": TEACHER}, [], False), ({"manual": TEACHER}, [], False),
            "UPDATED", "ACTIVE", ["teacher"], [], id="stays by hand",
        ),
        pytest.param(
            ({}, [], True), ({METHOD: STUDENT}, [], True),
            "ENROLLED", "SUSPENDED", [], [GROUP], id="joins while suspended in the course",
        ),
        pytest.param(
            ({METHOD: STUDENT}, [], True), ({METHOD: STUDENT}, [], False),
            "REACTIVATED", "ACTIVE", ["student"], [GROUP], id="the suspension is lifted",
        ),
        pytest.param(
            ({METHOD: GROUP_ONLY}, [], False), ({METHOD: GROUP_ONLY, "manual": TEACHER}, [], False),
            "ENROLLED", "ACTIVE", ["teacher"], [GROUP], id="a group counts once something enrolls",
        ),
        pytest.param(
            ({METHOD: STUDENT}, [], False), ({METHOD: STUDENT}, [HAND_MADE, GROUP], False),
            "UPDATED", "ACTIVE", ["student"], [GROUP, HAND_MADE], id="put into a group by hand",
        ),
        pytest.param(
            ({METHOD: STUDENT}, [], False), ({METHOD: STUDENT}, [], False),
            "UPDATED", "ACTIVE", ["student"], [GROUP], id="republished",
        ),
        pytest.param(({}, [], False), ({}, [], True), "UNENROLLED", "ABSENT", [], [], id="absence republished"),
    ],
)  # fmt: skip
def test_examples_of_the_semantics(
    *, before: Visible | None, after: Visible, change: str, status: str, roles: list[str], groups_: list[str]
) -> None:
    row = row_of(before, after, version=2)
    encoded = encoder_of().encode(row)
    record = decoded(encoded)
    assert encoded.value == expected_value(row, before, after)
    assert record["change"] == change
    assert record["after"]["status"] == status
    assert record["after"]["roles"] == roles
    assert [str(group) for group in record["after"]["groups"]] == groups_


def test_absent_shows_nothing_else() -> None:
    record = decoded(encoder_of().encode(row_of(({"manual": TEACHER}, [], True), ({METHOD: GROUP_ONLY}, [], True))))
    nothing = {"status": "ABSENT", "roles": [], "groups": [], "suspended_in_course": False, "sources": []}
    assert record["after"] == nothing


def test_sources_are_sorted_by_code_point_whatever_order_jsonb_has() -> None:
    names = ["z", "aa", "\uffff", "\U0001f600", METHOD]
    record = decoded(encoder_of().encode(row_of(None, (dict.fromkeys(names, TEACHER), [], False))))
    assert [each["source"] for each in record["after"]["sources"]] == [METHOD, "aa", "z", "\uffff", "\U0001f600"]


@given(ids, ids, st.integers(1, 2**63 - 1))
def test_event_id_is_the_uuid5_of_the_contract(course_id: str, user_id: str, version: int) -> None:
    expected = uuid5(uuid5(NAMESPACE_DNS, "user-segment-sync"), f"{course_id}:{user_id}:{version}")
    assert event_id_of(f"{course_id}:{user_id}".encode(), version) == str(expected).encode()


def test_key_and_headers_are_those_of_cloudevents_binary_mode() -> None:
    encoder = encoder_of()
    row = row_of(None, ({METHOD: STUDENT}, [], False), traceparent=TRACEPARENT)
    encoded = encoder.encode(row)
    key = f"{COURSE}:{USER}".encode()
    assert encoded.key == key
    assert dict(encoded.headers) == {
        "ce_specversion": b"1.0",
        "ce_type": b"user_segment_sync.v1.EnrollmentChanged",
        "ce_source": SOURCE.encode(),
        "content-type": b"application/avro",
        "ce_id": str(decoded(encoded)["event_id"]).encode(),
        "ce_time": b"2026-01-02T03:04:05.000006Z",
        "ce_subject": key,
        "traceparent": TRACEPARENT.encode(),
    }
    assert len(encoded.headers) == len(dict(encoded.headers))
    untraced = encoder.encode(row._replace(traceparent=None, recorded_at_us=-1))
    assert "traceparent" not in dict(untraced.headers)
    assert dict(untraced.headers)["ce_time"] == b"1969-12-31T23:59:59.999999Z"


def test_memory_stays_bounded_when_no_two_states_are_alike() -> None:
    limit = 256 << 10
    encoder = encoder_of(cache_bytes=limit)

    def encode(start: int) -> None:
        for number in range(start, start + 2000):
            contribution = Contribution("SEGMENT_SYNC", "ACTIVE", f"role {number}", str(UUID(int=number)), True)
            encoder.encode(row_of(None, ({METHOD: contribution}, [], False)))

    tracemalloc.start()
    try:
        encode(0)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        encode(2000)
        gc.collect()
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * limit
    assert later < kept + limit // 10


def test_a_state_larger_than_the_cache_drives_nothing_out() -> None:
    encoder = encoder_of(cache_bytes=2000)
    small, huge = row_of(None, ({METHOD: STUDENT}, [], False)), row_of(None, ({"x" * 250: TEACHER}, [GROUP] * 99, True))
    assert encoder.encode(small) == encoder.encode(small)
    assert encoder.encode(huge) == encoder.encode(huge)
    assert list(encoder._states) == [(small.sources, small.hand, small.suspended)]


GOOD = row_of(({"manual": TEACHER}, [], False), ({METHOD: STUDENT}, [], False))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"sources": b'{"a"'}, id="no json"),
        pytest.param({"sources": b"\xff"}, id="no utf-8"),
        pytest.param({"sources": b"[]"}, id="no object"),
        pytest.param({"sources": b'{"a": 1}'}, id="no contribution"),
        pytest.param({"sources": b'{"a": {"kind": "OTHER", "status": "ACTIVE"}}'}, id="no member"),
        pytest.param({"sources": b'{"a": {"kind": "X", "status": "ACTIVE", "member": true}}'}, id="unknown kind"),
        pytest.param({"sources": b'{"a": {"kind": "OTHER", "status": "ABSENT", "member": true}}'}, id="unknown status"),
        pytest.param({"sources": b'{"a": {"kind": [], "status": "ACTIVE", "member": true}}'}, id="kind no text"),
        pytest.param({"sources": b'{"a": {"kind": "OTHER", "status": "ACTIVE", "member": 1}}'}, id="member no boolean"),
        pytest.param(
            {"sources": b'{"a": {"kind": "OTHER", "status": "ACTIVE", "member": true, "role": 1}}'}, id="role no text"
        ),
        pytest.param(
            {"sources": b'{"a": {"kind": "OTHER", "status": "ACTIVE", "member": true, "group_id": "g"}}'},
            id="group no id",
        ),
        pytest.param(
            {"sources": b'{"a": {"kind": "OTHER", "status": "ACTIVE", "member": true, "b": 1}}'}, id="one more"
        ),
        pytest.param({"sources": None}, id="no sources"),
        pytest.param({"hand": b"{NULL}"}, id="null in the array"),
        pytest.param({"hand": GROUP.encode()}, id="no array"),
        pytest.param({"hand": b""}, id="empty array text"),
        pytest.param({"suspended": None}, id="no suspension"),
        pytest.param({"suspended": b"f"}, id="suspension unparsed"),
        pytest.param({"before_hand": None}, id="no hand before"),
        pytest.param({"before_suspended": None}, id="no suspension before"),
        pytest.param({"course_id": COURSE[1:]}, id="short course"),
        pytest.param({"course_id": COURSE[1:], "user_id": USER + "0"}, id="shifted ids"),
        pytest.param({"version": 0}, id="version 0"),
        pytest.param({"version": 2**63}, id="version too large"),
        pytest.param({"recorded_at_us": 2**62}, id="time out of range"),
        pytest.param({"cause_event_id": "x"}, id="cause no id"),
        pytest.param({"cause_type": None}, id="no cause"),
    ],
)
def test_a_row_that_makes_no_sense_stops_the_relay_and_is_named(damage: dict[str, Any]) -> None:
    encoder = encoder_of()
    row = GOOD._replace(**damage)
    for _ in range(2):  # nothing of it is remembered as good
        with pytest.raises(FatalError) as raised:
            encoder.encode(row)
        assert "outbox row 7" in str(raised.value)
        assert f"{row.course_id}:{row.user_id}" in str(raised.value)
    assert encoder.encode(GOOD) == encoder_of().encode(GOOD)


def find(schema: Any, name: str) -> dict[str, Any]:
    """The definition of a field or the named type, wherever it stands."""
    found = [each for each in walk(schema) if each.get("name") == name]
    assert found, name
    return found[0]


def walk(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [each for part in schema for each in walk(part)]
    if isinstance(schema, dict):
        return [schema, *(each for part in schema.values() for each in walk(part))]
    return []


def test_numbers_of_symbols_and_branches_come_from_the_schema() -> None:
    schema = deepcopy(SCHEMA)
    for part in walk(schema):
        for name in ("symbols", "type"):
            if isinstance(part.get(name), list):
                part[name].reverse()
        part.pop("default", None)  # of a union, it has to be of the first branch
    encoder = encoder_of(schema)
    states: list[Visible] = [
        ({}, [], False),
        ({METHOD: STUDENT, "manual": TEACHER}, [HAND_MADE], False),
        ({METHOD: PAUSED, OTHER_METHOD: GROUP_ONLY}, [], True),
    ]
    for before, after in product(states, states):
        row = row_of(before, after, cause_method_id=None)
        assert encoder.encode(row).value == expected_value(row, before, after, schema)
        assert encoder.encode(row).value != encoder_of().encode(row).value
    assert encoder_of(parse_schema(schema)).encode(row) == encoder.encode(row)


def with_fields_swapped(schema: dict[str, Any]) -> None:
    fields = schema["fields"]
    fields[2], fields[3] = fields[3], fields[2]


def with_a_new_field(schema: dict[str, Any]) -> None:
    find(schema, "cause")["type"]["fields"].append({"name": "note", "type": ["null", "string"], "default": None})


def with_a_symbol_less(schema: dict[str, Any]) -> None:
    change = find(schema, "change")["type"]
    change.pop("default", None)
    change["symbols"].remove("REACTIVATED")


def with_an_int_for_a_long(schema: dict[str, Any]) -> None:
    find(schema, "version")["type"] = "int"


def with_bytes_for_a_role(schema: dict[str, Any]) -> None:
    find(schema, "role")["type"] = ["null", "bytes"]


def with_a_map_of_sources(schema: dict[str, Any]) -> None:
    find(schema, "sources")["type"] = {"type": "map", "values": "string"}


def with_a_wider_after(schema: dict[str, Any]) -> None:
    after = deepcopy(find(schema, "before")["type"])
    for part in walk(after):
        if part.get("type") in ("record", "enum"):
            part["name"] += "After"
    find(schema, "after")["type"] = after


@pytest.mark.parametrize(
    "evolve",
    [
        with_fields_swapped,
        with_a_new_field,
        with_a_symbol_less,
        with_an_int_for_a_long,
        with_bytes_for_a_role,
        with_a_map_of_sources,
        with_a_wider_after,
    ],
)
def test_a_schema_of_another_layout_is_refused(evolve: Any) -> None:
    schema = deepcopy(SCHEMA)
    evolve(schema)
    with pytest.raises(FatalError, match="schema and encoder must change together"):
        encoder_of(schema)


def test_a_schema_that_only_gains_symbols_and_documentation_is_written_as_before() -> None:
    schema = deepcopy(SCHEMA)
    schema["doc"] = "other words"
    find(schema, "change")["type"]["symbols"].append("MOVED")
    assert encoder_of(schema).encode(GOOD) == encoder_of().encode(GOOD)
