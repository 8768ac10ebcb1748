"""A line of CSV says a member or what is wrong with it; none takes another with it. And the records are those of `publish`."""

import csv
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_worker.errors import FatalError
from sync_worker.events import RecordName
from sync_worker.operations.members_file import Member, MemberLines, Rejects
from sync_worker.operations.memberships import MembershipEncoder
from sync_worker.operations.publishing import InvalidLine, LineEncoder
from sync_worker.schema.store import load_schemas

STORE = load_schemas()
SEGMENT, USER = "5e000000-0000-4000-8000-000000000001", "a0000000-0000-4000-8000-000000000001"
OK = f"{SEGMENT},{USER}\n".encode()


def members(lines: Iterable[bytes], segment: str | None = None) -> list[Member | str | None]:
    """For each line the member, or what is wrong with it."""
    file = MemberLines(lines, segment)
    found: list[Member | str | None] = []
    for number, line in enumerate(file.lines, start=1):
        try:
            found.append(file.member(number, line))
        except InvalidLine as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    "line",
    [
        f"{SEGMENT},{USER}",
        f"{SEGMENT},{USER}\r\n",
        f"\ufeff{SEGMENT},{USER}",
        f' "{SEGMENT}","{USER}"'.lstrip(),
        f"{SEGMENT} , {USER.upper()} ,",
    ],
)
def test_a_member_is_read_however_it_is_written(line: str) -> None:
    assert members([line.encode()]) == [Member(SEGMENT, USER, None)]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("segment_id,user_id", f"{SEGMENT},{USER}"),
        ("User_Id , SEGMENT_ID", f"{USER},{SEGMENT}"),
        ("\ufeffversion,user_id,segment_id\r", f",{USER},{SEGMENT}"),
    ],
)
def test_a_header_gives_the_order(header: str, line: str) -> None:
    assert members([f"{header}\n".encode(), line.encode()]) == [None, Member(SEGMENT, USER, None)]


def test_blank_lines_are_no_members_nor_the_header() -> None:
    assert members([b"\n", b"user_id,segment_id\n", b" \r\n", f"{USER},{SEGMENT}".encode()]) == [
        None, None, None, Member(SEGMENT, USER, None),
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["user;segment", "id,name", "segment_id,user", "segment_id,user_id,user_id", "x"])
def test_a_first_line_that_may_be_another_header_is_refused(first: str) -> None:
    with pytest.raises(FatalError, match="line 1 is neither a member nor a header"):
        members([first.encode(), OK])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{SEGMENT},nobody", "user_id: 'nobody' is not a uuid"),
        (f"{SEGMENT}", "it has 1 fields; they must be segment_id,user_id,version"),
        (f"{SEGMENT},{USER},1,2", "it has 4 fields"),
        (f'{SEGMENT},"{USER}', "it is not CSV"),
        (f"{SEGMENT},{USER},0", "version: '0' is not a whole number"),
        (f"{SEGMENT},{USER},-1", "version: '-1'"),
        (f"{SEGMENT},{USER},{2**63}", "version: '9223372036854775808'"),
        (f"{SEGMENT},{USER},\u0661", "version: '\\u0661'"),
        (f"{SEGMENT},{USER},{'1' * 5000}", "version: "),
    ],
)
def test_a_wrong_line_says_what_is_wrong_and_the_next_is_read(line: str, words: str) -> None:
    before, fault, after = members([OK, line.encode() + b"\n", OK])
    assert before == after == Member(SEGMENT, USER, None)
    assert isinstance(fault, str)
    assert words in fault
    assert fault.isprintable()


def test_a_line_of_another_segment_is_refused_where_one_is_meant() -> None:
    (fault,) = members([OK], str(uuid4()))
    assert "whose members are replaced" in str(fault)


@given(st.lists(st.binary(max_size=120).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=5))
def test_no_bytes_raise_anything_else_or_take_the_next_line_with_them(lines: list[bytes]) -> None:
    assert members([OK, *lines, OK])[-1] == Member(SEGMENT, USER, None)


def test_rejects_are_cut_back_to_where_a_run_goes_on(tmp_path: Path) -> None:
    path, told = tmp_path / "rejects.csv", list[tuple[int, str]]()
    with Rejects(path, lambda number, reason: told.append((number, reason))) as rejects:
        rejects.begin()
        rejects.add(3, "wrong", b'a,"b\n')
        state = rejects.state()
        rejects.add(9, "wrong, too", b"\xff\n")
    with Rejects(path, lambda number, reason: told.append((number, reason))) as again:
        again.begin(*state)
        again.add(9, "wrong, too", b"\xff\n")
        assert again.count == 2
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["line", "reason", "text"],
            ["3", "wrong", 'a,"b'],
            ["9", "wrong, too", "\\xff"],
        ]
    assert told == [(3, "wrong"), (9, "wrong, too"), (9, "wrong, too")]
    with Rejects(path, lambda *_: None) as anew:
        anew.begin()
    assert not path.exists()


def test_a_place_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    with Rejects(tmp_path / "no" / "folder.csv", lambda *_: None) as rejects:
        rejects.begin()
        with pytest.raises(FatalError, match="--rejects names another place"):
            rejects.add(1, "wrong", b"line")


@pytest.mark.parametrize("name", [RecordName.MEMBER_ADDED, RecordName.MEMBER_REMOVED])
@given(
    ids=st.tuples(st.uuids(), st.uuids(), st.uuids()),
    version=st.integers(1, 2**63 - 1),
    occurred_at=st.integers(0, 253_402_300_799_999_999),
)
def test_the_records_are_those_of_publish(
    name: RecordName, ids: tuple[UUID, UUID, UUID], version: int, occurred_at: int
) -> None:
    event, segment, user = map(str, ids)
    ours = MembershipEncoder(STORE, "topic", None, occurred_at).encode(
        event, segment, user, version, joins=name is RecordName.MEMBER_ADDED
    )
    fields = {
        "event_id": event, "occurred_at": occurred_at, "segment_id": segment, "user_id": user, "version": version,
    }  # fmt: skip
    assert ours == LineEncoder(STORE, {name: "topic"}).encode(name, fields)
