"""A bookmark moves only behind what has arrived, knows its file again, and gives a line the same id each time."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from sync_worker.errors import FatalError
from sync_worker.operations.bookmark import STEP_LINES, Bookmark, event_id

LINES = [b"%d\n" % n for n in range(STEP_LINES * 3 + 7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress"


def bookmark_at(path: Path) -> Bookmark:
    return Bookmark(path, "test", 1)


def lines_kept(path: Path) -> int:
    return int(json.loads(path.read_text())["lines"])


def test_it_stays_before_the_first_line_that_has_not_arrived(path: Path) -> None:
    bookmark = bookmark_at(path)
    steps = {number: bookmark.record() for number, _ in bookmark.remaining(LINES)}
    assert lines_kept(path) == 0
    for number in range(STEP_LINES + 1, len(LINES) + 1):
        bookmark.arrived(steps[number])
    assert lines_kept(path) == 0
    for number in range(1, STEP_LINES):
        bookmark.arrived(steps[number])
    assert lines_kept(path) == 0
    bookmark.arrived(steps[STEP_LINES])
    assert lines_kept(path) == len(LINES)


def test_lines_without_a_record_need_nothing_to_arrive(path: Path) -> None:
    assert len(list(bookmark_at(path).remaining(LINES))) == len(LINES)
    assert lines_kept(path) == len(LINES)


def test_the_next_run_gets_the_rest_under_the_same_name(path: Path) -> None:
    first = bookmark_at(path)
    seen = interrupted(first, STEP_LINES * 2 + 3)
    second = bookmark_at(path)
    assert (second.mark.run, second.mark.started_at) == (first.mark.run, 1)
    assert second.mark.lines == STEP_LINES * 2 < seen
    assert next(iter(second.remaining(LINES))) == (STEP_LINES * 2 + 1, LINES[STEP_LINES * 2])


def test_what_else_was_true_at_that_line_is_remembered_with_it(path: Path) -> None:
    state = (0, 0)
    remaining = bookmark_at(path).remaining(LINES, lambda: state)
    for number, _ in remaining:
        state = (number, number * 10)
        if number == STEP_LINES + 5:
            break
    mark = bookmark_at(path).mark
    assert (mark.rejected, mark.rejects_bytes) == (STEP_LINES, STEP_LINES * 10)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b"other\n", *LINES[1:]], "the file is not the one of which the first"),
        (LINES[: STEP_LINES - 1], f"it has {STEP_LINES - 1} lines only"),
        ([], "it has 0 lines only"),
    ],
)
def test_another_file_is_refused(path: Path, lines: list[bytes], words: str) -> None:
    interrupted(bookmark_at(path), STEP_LINES + 1)
    with pytest.raises(FatalError, match=words):
        list(bookmark_at(path).remaining(lines))


def test_a_file_that_only_grew_is_gone_on_with(path: Path) -> None:
    interrupted(bookmark_at(path), STEP_LINES + 1)
    grown = [*LINES, b"more\n"]
    assert list(bookmark_at(path).remaining(grown))[-1] == (len(grown), b"more\n")


def test_another_purpose_or_nonsense_is_refused(path: Path, tmp_path: Path) -> None:
    bookmark_at(path)
    with pytest.raises(FatalError, match="is of another run"):
        Bookmark(path, "something else", 1)
    path.write_text("[]")
    with pytest.raises(FatalError, match="does not say how far"):
        bookmark_at(path)
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(FatalError, match="another version of sync-worker"):
        bookmark_at(path)
    with pytest.raises(FatalError, match="can't be written"):
        bookmark_at(tmp_path / "no" / "folder")


def test_finished_it_is_gone_and_without_a_path_it_never_was(path: Path, tmp_path: Path) -> None:
    bookmark_at(path).finish()
    assert not path.exists()
    nowhere = Bookmark(None, "test", 1)
    assert len(list(nowhere.remaining(LINES))) == len(LINES)
    nowhere.finish()
    assert list(tmp_path.iterdir()) == []


def test_ids_are_uuids_of_their_own_for_each_run_and_line() -> None:
    runs = [str(uuid4()) for _ in range(3)]
    ids = {event_id(run, number) for run in runs for number in range(1, 2000)}
    assert len(ids) == 3 * 1999
    assert all(str(UUID(each)) == each and UUID(each).version == 8 for each in ids)
    assert event_id(runs[0], 7) == event_id(runs[0], 7)


def interrupted(bookmark: Bookmark, at: int) -> int:
    """Read so many lines, all of which arrive, and stop."""
    remaining: Iterator[tuple[int, bytes]] = bookmark.remaining(LINES)
    for number, _ in remaining:
        bookmark.arrived(bookmark.record())
        if number == at:
            return number
    raise AssertionError("there are fewer lines")
