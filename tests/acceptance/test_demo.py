"""The demo as somebody runs it: its story, what it says when something is wrong, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.cast import ADA, BEN, ONBOARDING
from demo.check import history_differences, scene_differences
from demo.observe import Change, State, Tables
from demo.scene import DeadLetter, Effect, Row, Scene
from demo.story import STORY
from devstack import fetch

# A demo takes half a minute on a machine of its own, and some tests run it twice.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 250.0
DIRECTORY = re.compile(r"^  (/\S*devstack-[0-9a-f]+)$", re.MULTILINE)
ABSENT = State("ABSENT", (), (), suspended_in_course=False)
STUDENT = State("ACTIVE", ("student",), (), suspended_in_course=False)
KEY = (ONBOARDING.name, ADA.name)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Native services, the downloads that are there, and a memory of one's own for what is kept."""
    downloads = fetch.kafka_directory()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / downloads.name).symlink_to(downloads)
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "TERM", "FORCE_COLOR"}}
    # Settings of another installation must not reach the demo's worker.
    foreign = {"SYNC_WORKER_CONSUMER_GROUP": "somebody-elses", "SYNC_WORKER_CHANGES_TOPIC": "no.such.topic"}
    return {**inherited, **foreign, "DEVSTACK": "native", "DEVSTACK_CACHE": str(cache)}


def run_demo(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def directory_in(output: str) -> Path:
    found = DIRECTORY.search(output)
    assert found is not None, output
    return Path(found[1])


def processes_of(directory: Path) -> list[psutil.Process]:
    """Whoever has the run directory in the command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if str(directory) in " ".join(process.cmdline()):
                found.append(process)
    return found


def worker_of(directory: Path) -> psutil.Process | None:
    for process in processes_of(directory):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it may have ended since
            if process.cmdline()[-2:] == ["sync_worker", "run"]:
                return process
    return None


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.02)
    return value


def assert_nothing_left(directory: Path) -> None:
    assert not directory.exists()
    # The watchdog of the stack sees the end a moment later than we do.
    wait_for(lambda: not processes_of(directory), "no process of the demo is left")


@contextlib.contextmanager
def demo_on_a_terminal(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    """The demo with a terminal for its output, and a way to read on until a text appears; all output so far."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""

    def read_until(text: str) -> str:
        nonlocal output
        deadline = time.monotonic() + TIMEOUT_S
        while text.encode() not in output:
            assert time.monotonic() < deadline, f"{text!r} did not come: {output.decode(errors='replace')}"
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    output += os.read(ours, 65536)
                except OSError as error:  # the other side was closed
                    raise AssertionError(f"{text!r} did not come: {output.decode(errors='replace')}") from error
        return output.decode(errors="replace")

    try:
        yield process, read_until
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_demo_tells_its_story_in_plain_text_and_leaves_nothing_running(environment: dict[str, str]) -> None:
    done = run_demo(environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for number, scene in enumerate(STORY, start=1):
        assert f"{number}/{len(STORY)}  {scene.title} ---" in done.stdout
        assert scene.why in done.stdout
    flat = re.sub(r"\s+", " ", done.stdout)
    for line in (
        "Ada joins New hires Berlin",
        "Ada ENROLLED v1 (Onboarding)",
        "Chen REACTIVATED v3 (Onboarding)",
        "refused, SW002: user Dina is a",
        "refused, SW001: user Ben is",
        "dead letter: undecodable",
        "records in: 24, and 4 statements on course_group_member",
        "changes out: 24 (8 ENROLLED, 2 REACTIVATED, 3 SUSPENDED, 3 UNENROLLED, 8 UPDATED)",
        "dead letters: 1",
        "make demo ARGS=--keep",
    ):
        assert line in flat
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert_nothing_left(directory_in(done.stdout))


def test_what_is_kept_answers_as_the_printed_commands_say_until_down(environment: dict[str, str]) -> None:
    done = run_demo({**environment, "COLUMNS": "48"}, "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    directory = directory_in(done.stdout)
    try:
        narrow, _, last_words = done.stdout.partition("Left running")
        assert max(len(line) for line in narrow.splitlines() if not DIRECTORY.match(line)) <= 48
        commands = [line.strip() for line in last_words.splitlines() if line.startswith("  ")]
        exports = [command for command in commands if command.startswith("export ")]
        assert len(exports) == 2

        def shell(command: str) -> str:
            script = "\n".join(["set -e", *exports, command])
            ran = subprocess.run(
                ["/bin/sh", "-c", script],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
            return ran.stdout

        # Somebody who follows the demo's words has no other settings.
        for name in [name for name in environment if name.startswith("SYNC_WORKER_")]:
            del environment[name]
        refused = run_demo(environment, "--keep")
        assert (refused.returncode, "is kept already" in refused.stderr) == (1, True)

        pages = [shlex.split(command)[1] for command in commands if command.startswith("curl ")]
        assert [page.rpartition("/")[2] for page in pages] == ["status.json", "readyz", "metrics"]
        for page in pages:
            with urllib.request.urlopen(page, timeout=60) as answer:  # noqa: S310 - our own pages
                assert answer.status == 200
        (status,) = (command for command in commands if command.endswith(" status"))
        assert "settled" in shell(status)
        (history,) = (command for command in commands if command.endswith(" tail --from-beginning --until-end"))
        assert len(shell(history).splitlines()) == 24
        (publish,) = (command for command in commands if command.endswith(" publish"))
        shell(publish)
        changed = wait_for(lambda: shell(history).splitlines()[24:], "what was published has an effect")
        assert len(changed) == 1
        rows, groups = (command for command in commands if " -c " in command)
        assert "(6 rows)" in shell(rows)  # Ada, Chen, Dina; Ben, Emil, and now Farid
        assert "(2 rows)" in shell(groups)
        (letters,) = (command for command in commands if "--dead-letters" in command)
        assert len(shell(letters).splitlines()) == 1

        worker = worker_of(directory)
        assert worker is not None
        assert f"worker: process {worker.pid}," in last_words
        shell(commands[-1])
        assert_nothing_left(directory)
    finally:
        subprocess.run(
            [sys.executable, "-m", "devstack", "down"], cwd=ROOT, env=environment, capture_output=True, check=True
        )


def test_ctrl_c_in_the_middle_of_the_story_ends_everything(environment: dict[str, str]) -> None:
    with demo_on_a_terminal(environment) as (process, read_until):
        shown = read_until("3/17").replace("\r\n", "\n")
        assert "\x1b" in shown
        directory = directory_in(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))
        assert worker_of(directory) is not None
        process.send_signal(signal.SIGINT)
        read_until("interrupted; everything that was started has been ended")
        assert process.wait(TIMEOUT_S) == 130
        assert_nothing_left(directory)


def test_a_demo_that_is_killed_leaves_no_worker_behind(environment: dict[str, str]) -> None:
    with demo_on_a_terminal(environment) as (process, read_until):
        directory = directory_in(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read_until("1/17").replace("\r\n", "\n")))
        assert worker_of(directory) is not None
        process.kill()
        process.wait()
        wait_for(lambda: not directory.exists(), "the run directory is removed")
        assert_nothing_left(directory)


def test_a_worker_that_dies_ends_the_demo_with_its_last_words(environment: dict[str, str]) -> None:
    with demo_on_a_terminal(environment) as (process, read_until):
        directory = directory_in(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read_until("2/17").replace("\r\n", "\n")))
        worker = worker_of(directory)
        assert worker is not None
        worker.kill()
        shown = read_until("end of the worker's log")
        assert "demo failed: the worker ended by itself" in shown
        assert process.wait(TIMEOUT_S) == 1
        assert_nothing_left(directory)


def test_the_demo_does_not_touch_services_that_others_run(environment: dict[str, str]) -> None:
    done = run_demo({**environment, "DEVSTACK": "external"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "not those that others run" in done.stderr


def test_a_wrong_option_is_wrong_usage(environment: dict[str, str]) -> None:
    done = run_demo(environment, "--kepe")
    assert done.returncode == 2
    assert "--keep" in run_demo(environment, "--help").stdout


SCENE = Scene("A title", "A sentence.", (), (Effect(ONBOARDING, ADA, ("ENROLLED",), Row("ACTIVE", ("student",))),))
ROWS = {KEY: Row("ACTIVE", ("student",))}
TABLES = Tables(ROWS, {KEY: 1}, ())
ENROLLED = Change(KEY, 1, "ENROLLED", ABSENT, STUDENT)


def test_what_comes_as_it_should_makes_no_difference() -> None:
    assert scene_differences(SCENE, ROWS, TABLES, [ENROLLED], []) == []
    assert history_differences(TABLES, [ENROLLED]) == []


def test_a_change_that_did_not_come_is_named() -> None:
    assert scene_differences(SCENE, ROWS, TABLES, [], []) == [
        "Ada in Onboarding: EnrollmentChanged expected: ENROLLED; came: nothing"
    ]


def test_a_change_of_somebody_who_should_not_change_is_named() -> None:
    other = ENROLLED._replace(key=(ONBOARDING.name, BEN.name))
    assert scene_differences(SCENE, ROWS, TABLES, [ENROLLED, other], []) == [
        "Ben in Onboarding: EnrollmentChanged expected: nothing; came: ENROLLED"
    ]


def test_a_row_that_is_another_is_named_with_both_sides() -> None:
    tables = Tables({KEY: Row("ACTIVE", ("student",), ("Berlin",), by_hand=("Berlin",))}, {KEY: 1}, ())
    assert scene_differences(SCENE, ROWS, tables, [ENROLLED], []) == [
        "Ada in Onboarding: row expected: ACTIVE student; found: ACTIVE student @ Berlin (by hand: Berlin)"
    ]


def test_a_dead_letter_nobody_expected_is_named() -> None:
    assert scene_differences(SCENE, ROWS, TABLES, [ENROLLED], [DeadLetter("invalid_event", "AA==")]) == [
        "dead letters expected: nothing; came: invalid_event AA=="
    ]


def test_a_gap_in_the_versions_and_a_broken_chain_are_named() -> None:
    late = Change(KEY, 3, "UPDATED", ABSENT, STUDENT)
    assert history_differences(Tables(ROWS, {KEY: 3}, ()), [ENROLLED, late]) == [
        "Ada in Onboarding: EnrollmentChanged v3 follows v1",
        "Ada in Onboarding: v3 begins at ABSENT; v1 ended at ACTIVE student",
    ]


def test_a_table_that_says_something_else_than_the_last_change_is_named() -> None:
    assert history_differences(Tables({}, {}, ()), [ENROLLED]) == [
        "Ada in Onboarding: told last: ACTIVE student; the table: ABSENT"
    ]
    assert history_differences(Tables(ROWS, {KEY: 2}, ()), [ENROLLED]) == [
        "Ada in Onboarding: told last: v1; the table: v2"
    ]
