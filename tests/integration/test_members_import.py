"""`members import` on a real broker and a real worker: nothing lost, nothing twice, whatever stops it; and the cure for lost events."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.model.events import Event
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.facts import member, method, new_id
from tests.support.site import Site, wait_for
from tests.support.wire import prefix

DEADLINE_S = 90.0


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Bench:
    """A site, a folder for files, and a segment with a method, so that members show."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder, self.model = site, folder, Model()
        self.method = method(new_id(), new_id())
        self.segment, self.course = self.method.segment_id, self.method.course_id
        self.publish([self.method])

    @property
    def file(self) -> Path:
        return self.folder / "members.csv"

    @property
    def rejected(self) -> Path:
        return self.folder / "members.csv.rejected.csv"

    @property
    def remembered(self) -> Path:
        return self.folder / "members.csv.progress"

    def write(self, *lines: str | bytes) -> None:
        self.file.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))

    def members(self, users: Iterable[str]) -> list[str]:
        return [f"{self.segment},{user}" for user in users]

    def publish(self, events: list[Event]) -> None:
        self.site.produce(events)
        self.model.apply_batch(events)

    def run(self, *arguments: str, code: int = 0) -> Done:
        done = self.site.command("members", "import", str(self.file), *arguments, timeout_s=200)
        assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, failpoints: str = "") -> subprocess.Popen[bytes]:
        armed = {"SYNC_WORKER_TEST_FAILPOINTS": failpoints} if failpoints else {}
        return subprocess.Popen(
            [sys.executable, "-m", "sync_worker", "members", "import", str(self.file), *arguments],
            env=self.site.environment | armed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # Tests may run in the background, where a shell has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - sets one signal, nothing else
        )  # fmt: skip

    @contextmanager
    def held(self, place: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """An import that stands still at the place (`name@nth`) until the end of the block."""
        name, _, nth = place.partition("@")
        hold = self.folder / f"hold-{uuid4().hex}"
        hold.touch()
        process = self.start(*arguments, failpoints=f"{name}=hold:{hold}@{nth}")
        try:
            wait_for(Path(f"{hold}.reached").exists, DEADLINE_S, f"{place} being reached")
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            hold.unlink()

    def kill_at(self, place: str, *arguments: str) -> None:
        """An import that is killed there."""
        with self.held(place, *arguments) as process:
            process.kill()
            process.communicate()

    def sent(self) -> int:
        return len(self.site.records("membership"))

    def lines_done(self) -> int:
        """How far a run remembers to have come."""
        return int(json.loads(self.remembered.read_text())["lines"]) if self.remembered.exists() else 0

    def enrolled(self) -> set[str]:
        return {user for (course, user) in self.site.enrollments() if course == self.course}

    def reject_rows(self) -> list[list[str]]:
        with self.rejected.open(newline="") as file:
            return list(csv.reader(file))


@pytest.fixture
def bench(site: Site, tmp_path: Path) -> Bench:
    return Bench(site, tmp_path)


def test_a_file_becomes_members_and_bad_lines_go_to_a_file_of_their_own(bench: Bench) -> None:
    users = [new_id() for _ in range(6)]
    first, second, third, fourth, fifth, sixth = users
    bench.write(
        b"\xef\xbb\xbfUser_ID, version ,segment_id\r\n",
        f"{first},,{bench.segment}\r",
        f'"{second.upper()}",7,"{bench.segment}"',
        "",
        f"nobody,1,{bench.segment}",
        f'"{third},,{bench.segment}',
        f"{third},,{bench.segment}",
        f"{fourth},0,{bench.segment}",
        f"{fourth},1.5,{bench.segment}",
        f"{fourth},,{bench.segment},more",
        b"\xff\xfe,1,2\n",
        f"{fourth},{2**63 - 1},{bench.segment}",
        f"{fifth}",
        f"{fifth},,{bench.segment}",
        f"{sixth},,{bench.segment}".encode(),  # without a line feed
    )
    done = bench.run(code=1)
    assert done.out == "6 sent\n"
    assert f"{bench.file}:5: user_id: 'nobody' is not a uuid" in done.err
    assert f"7 lines can't be used, see {bench.rejected}" in done.err
    rows = bench.reject_rows()
    assert rows[0] == ["line", "reason", "text"]
    assert [row[0] for row in rows[1:]] == ["5", "6", "8", "9", "10", "11", "13"]
    reasons = (
        "'nobody' is not a uuid",
        "not CSV",
        "'0' is not",
        "'1.5' is not",
        "has 4 fields",
        "not UTF-8",
        "has 1 fields",
    )
    assert all(reason in row[1] for reason, row in zip(reasons, rows[1:], strict=True))
    assert rows[1][2] == f"nobody,1,{bench.segment}"
    assert not bench.remembered.exists()

    records = bench.site.records("membership")
    assert {(record.key or b"").decode() for record in records} == set(users)
    assert all((record.value or b"").startswith(prefix("SegmentMemberAdded")) for record in records)
    assert all(record.header("ce_subject") == record.key for record in records)
    bench.site.start_worker()
    bench.site.wait_settled()
    versions = {
        str(row["user_id"]): row["version"]
        for row in bench.site.query("select user_id, version from membership where is_member")
    }
    assert set(versions) == set(users) == bench.enrolled()
    assert (versions[second], versions[fourth]) == (7, 2**63 - 1)
    (shared,) = {versions[user] for user in (first, third, fifth, sixth)}
    assert abs(shared - time.time_ns() // 1000) < 3_600_000_000

    bench.write(*bench.members(users))
    assert bench.run().err == ""
    assert not bench.rejected.exists()


def test_without_a_header_columns_are_in_order_and_a_version_is_given_to_all(bench: Bench) -> None:
    bench.write(*bench.members(users := [new_id(), new_id()]), f"{bench.segment},{new_id()},9")
    assert bench.run("--version", "3").out == "3 sent\n"
    bench.site.start_worker()
    bench.site.wait_settled()
    versions = {
        str(row["user_id"]): row["version"] for row in bench.site.query("select user_id, version from membership")
    }
    assert sorted(versions.values()) == [3, 3, 9]
    assert {versions[user] for user in users} == {3}


def test_a_first_line_that_may_be_a_header_of_other_names_stops_it_before_anything_is_sent(bench: Bench) -> None:
    bench.write("user;segment", f"{new_id()};{bench.segment}")
    done = bench.run(code=1)
    assert "line 1 is neither a member nor a header of segment_id,user_id" in done.err
    assert bench.sent() == 0


def test_killed_again_and_again_it_goes_on_where_it_was_and_ends_as_the_file_says(bench: Bench) -> None:
    users = [str(uuid4()) for _ in range(40_000)]
    bad = set(range(0, len(users), 999))
    bench.write(*(f"{bench.segment},broken" if n in bad else f"{bench.segment},{user}" for n, user in enumerate(users)))
    done = 0
    for nth in (1, 3):
        bench.kill_at(f"bookmark_moved@{nth}")
        assert bench.lines_done() > done
        done = bench.lines_done()
    assert done < len(users)
    last = bench.run(code=1)
    left = sum(n >= done and n not in bad for n in range(len(users)))
    assert last.out == f"{left} sent, going on behind line {done}\n"
    assert f"{len(bad)} lines can't be used" in last.err
    assert [int(row[0]) for row in bench.reject_rows()[1:]] == sorted(n + 1 for n in bad)
    assert not bench.remembered.exists()

    by_key: dict[bytes, set[bytes]] = {}
    for record in bench.site.records("membership"):
        by_key.setdefault(record.key or b"", set()).add(record.value or b"")
    assert {key.decode() for key in by_key} == {user for n, user in enumerate(users) if n not in bad}
    assert all(len(values) == 1 for values in by_key.values()), "a line that was sent twice is not the same event"


def test_the_end_of_a_killed_and_resumed_import_is_exactly_the_file(bench: Bench) -> None:
    bench.site.start_worker()
    users = [str(uuid4()) for _ in range(20_000)]
    bench.write(*bench.members(users))
    bench.kill_at("bookmark_moved@1")
    bench.run()
    bench.site.wait_settled(DEADLINE_S)
    assert bench.enrolled() == set(users)
    assert len(bench.site.changes()) == len(users)


def test_interrupted_it_says_how_far_it_came_and_goes_on(bench: Bench) -> None:
    users = [str(uuid4()) for _ in range(40_000)]
    bench.write(*bench.members(users))
    with bench.held("bookmark_moved@1") as process:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert b" sent\n" in out
    assert b"error: interrupted" in out
    done = bench.lines_done()
    assert 0 < done < len(users)
    assert bench.run().out == f"{len(users) - done} sent, going on behind line {done}\n"
    assert len({record.key for record in bench.site.records("membership")}) == len(users)


def test_a_file_that_changed_meanwhile_is_not_taken_for_the_rest_of_the_other(bench: Bench) -> None:
    users = [str(uuid4()) for _ in range(10_000)]
    bench.write(*bench.members(users))
    # All of it has arrived by then: nothing that was on its way when the process died comes later.
    bench.kill_at("bookmark_moved@2")
    before = bench.sent()
    assert before == len(users)
    bench.write(*bench.members([new_id(), *users[1:], new_id()]))
    refused = bench.run(code=1)
    assert "the file is not the one of which the first" in refused.err
    assert f"remove {bench.remembered} to begin anew" in refused.err
    bench.write(*bench.members(users[:10]))
    assert "it has 10 lines only" in bench.run(code=1).err
    assert "is of another run" in bench.run("--version", "4", code=1).err
    assert bench.sent() == before
    bench.remembered.unlink()
    assert bench.run().out == "10 sent\n"


def test_a_dry_run_reads_everything_and_sends_nothing(bench: Bench) -> None:
    bench.write(*bench.members([new_id() for _ in range(5)]))
    assert bench.run("--dry-run", code=3).out == "5 would be sent\n"
    bench.write(*bench.members([new_id(), "broken"]))
    assert bench.run("--dry-run", code=1).out == "1 would be sent\n"
    assert bench.reject_rows()[1][0] == "2"
    bench.write("segment_id,user_id")
    assert bench.run("--dry-run").out == "0 would be sent\n"
    assert bench.sent() == 0
    assert not bench.remembered.exists()


def test_a_terminal_shows_a_bar(bench: Bench) -> None:
    bench.write(*bench.members([new_id() for _ in range(50)]))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sync_worker", "members", "import", str(bench.file)],
        env={**bench.site.environment, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how a terminal ends when its last writer is gone
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"importing" in shown
    assert b"50 sent" in shown


def test_lines_come_from_stdin_too(bench: Bench) -> None:
    lines = "\n".join([*bench.members([new_id()]), "broken,broken"])
    done = bench.site.command("members", "import", "-", stdin=lines)
    assert (done.returncode, done.stdout) == (1, "1 sent\n")
    assert "stdin:2: segment_id: 'broken' is not a uuid" in done.stderr
    assert done.stderr.endswith("1 lines can't be used\n")


# --replace


def test_a_replacement_sends_only_differences_and_cures_what_upstream_lost(bench: Bench) -> None:
    bench.site.start_worker()
    stay, lost_removal, lost_addition, never = (new_id() for _ in range(4))
    elsewhere = member(new_id(), lost_removal, 1)
    bench.publish(
        [
            member(bench.segment, stay, 3),
            member(bench.segment, lost_removal, 5),
            member(bench.segment, lost_addition, 6, is_member=False),
            elsewhere,
        ]
    )
    bench.write("segment_id,user_id", *bench.members([stay, lost_addition, never, never.upper()]))
    dry = bench.run("--replace", bench.segment, "--dry-run", code=3)
    assert dry.out == "the file names 3, the segment has 2 members: 2 to be added, 1 to be removed\n"
    before = bench.sent()
    done = bench.run("--replace", bench.segment)
    assert done.out.endswith("3 of 3 sent\n")
    assert "more than half" not in done.err
    assert bench.sent() == before + 3
    cured: list[Event] = [
        member(bench.segment, lost_addition, 7),
        member(bench.segment, never, 1),
        member(bench.segment, lost_removal, 6, is_member=False),
    ]
    bench.model.apply_batch(cured)
    bench.site.wait_settled()
    assert_site_equals_model(bench.site, bench.model)
    assert bench.enrolled() == {stay, lost_addition, never}
    versions = {
        str(row["user_id"]): row["version"]
        for row in bench.site.query("select user_id, version from membership where segment_id = %s", bench.segment)
    }
    assert versions == {stay: 3, lost_removal: 6, lost_addition: 7, never: 1}
    assert bench.run("--replace", bench.segment, "--dry-run").out.endswith(": 0 to be added, 0 to be removed\n")

    # Upstream's own event comes late after all: a repetition. What it says next counts, whichever way it counts.
    bench.publish([member(bench.segment, lost_removal, 6, is_member=False)])
    bench.publish(
        [member(bench.segment, lost_removal, 7), member(bench.segment, never, time.time_ns() // 1000, is_member=False)]
    )
    bench.site.wait_settled()
    assert_site_equals_model(bench.site, bench.model)
    assert bench.site.dead_letters() == []
    assert bench.enrolled() == {stay, lost_addition, lost_removal}


def test_nobody_is_removed_while_a_line_is_rejected(bench: Bench) -> None:
    bench.site.start_worker()
    typo, gone, new = new_id(), new_id(), new_id()
    bench.publish([member(bench.segment, typo, 1), member(bench.segment, gone, 1)])
    bench.write(*bench.members([new, typo[:-1]]), f"{new_id()},{typo}")
    done = bench.run("--replace", bench.segment, code=1)
    assert "1 to be added, 0 to be removed" in done.out
    assert "2 who aren't in the file stay, as a line that can't be used may name them" in done.err
    assert [row[0] for row in bench.reject_rows()[1:]] == ["2", "3"]
    assert "whose members are replaced" in bench.reject_rows()[2][1]
    bench.site.wait_settled()
    assert bench.enrolled() == {typo, gone, new}
    bench.write(*bench.members([new, typo]))
    assert "0 to be added, 1 to be removed" in bench.run("--replace", bench.segment).out
    bench.site.wait_settled()
    assert bench.enrolled() == {typo, new}


def test_an_empty_file_empties_a_segment_only_when_it_is_told_to(bench: Bench) -> None:
    bench.site.start_worker()
    bench.publish([member(bench.segment, new_id(), 1) for _ in range(3)])
    bench.write("segment_id,user_id")
    assert "say --allow-empty" in bench.run("--replace", bench.segment, code=1).err
    done = bench.run("--replace", bench.segment, "--allow-empty")
    assert "3 to be removed" in done.out
    assert "the workers may hold that; `sync-worker holds list` tells" in done.err
    bench.site.wait_settled()
    assert bench.enrolled() == set()


def test_versions_in_the_file_are_kept_and_those_that_cannot_win_are_rejected(bench: Bench) -> None:
    bench.site.start_worker()
    newer, removed, other = new_id(), new_id(), new_id()
    bench.publish([member(bench.segment, newer, 4), member(bench.segment, removed, 9, is_member=False)])
    bench.write(f"{bench.segment},{newer},8", f"{bench.segment},{removed},9", f"{bench.segment},{other},2")
    done = bench.run("--replace", bench.segment, code=1)
    assert "2 of 2 sent" in done.out
    assert bench.reject_rows()[1] == [
        "2", f"version: 9 is not above 9, with which user {removed} left", f"{bench.segment},{removed},9",
    ]  # fmt: skip
    bench.model.apply_batch([member(bench.segment, newer, 8), member(bench.segment, other, 2)])
    bench.site.wait_settled()
    assert_site_equals_model(bench.site, bench.model)
    bench.write(*bench.members([newer, other]))
    assert bench.run("--replace", bench.segment, "--dry-run").code == 0


def test_a_replacement_killed_in_the_middle_and_run_again_ends_as_the_file_says(bench: Bench) -> None:
    bench.site.start_worker()
    old = [str(uuid4()) for _ in range(15_000)]
    bench.write(*bench.members(old))
    bench.run("--version", "1")
    bench.site.wait_settled(DEADLINE_S)
    new = [*old[:7_000], *(str(uuid4()) for _ in range(15_000))]
    bench.write(*bench.members(new))
    bench.kill_at("replacement_page@2", "--replace", bench.segment)
    bench.run("--replace", bench.segment)
    bench.site.wait_settled(DEADLINE_S)
    assert bench.site.dead_letters() == []
    rows = bench.site.query("select user_id from membership where is_member")
    assert {str(row["user_id"]) for row in rows} == set(new)


def test_it_compares_only_when_what_the_topic_holds_already_is_applied(bench: Bench) -> None:
    joining = new_id()
    bench.publish([member(bench.segment, joining, 1)])
    bench.write(*bench.members([new_id()]))
    process = bench.start("--replace", bench.segment)
    bench.site.start_worker()
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    assert b"the segment has 1 members: 1 to be added, 1 to be removed" in out
    bench.site.wait_settled()
    assert joining not in bench.enrolled()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replace", "everything"), "--replace"),
        (("--replace", str(uuid4()), "--progress", "here"), "not with --replace"),
        (("--version", "0"), "--version"),
    ],
)
def test_wrong_usage_is_said_before_anything_connects(
    arguments: tuple[str, ...], words: str, make_site: Callable[..., Site], tmp_path: Path
) -> None:
    (tmp_path / "members.csv").write_text("")
    done = make_site(topics=False).command("members", "import", str(tmp_path / "members.csv"), *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_topic_that_is_not_there_is_not_made(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(topics=False)
    (tmp_path / "members.csv").write_text(f"{uuid4()},{uuid4()}\n")
    done = site.command("members", "import", str(tmp_path / "members.csv"))
    assert done.returncode == 1
    assert f"the topic {site.topic('membership')} does not exist; `sync-worker topics create` makes it" in done.stderr
