"""The command line as a user meets it before anything connects: help, wrong usage, wrong settings, words and tables."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sync_worker.cli.console import print_table, run
from sync_worker.cli.status import show
from sync_worker.errors import RetryableError, SettingsError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    ("migrate",), ("run",), ("publish",), ("tail",), ("status",), ("topics",), ("topics", "create"), ("erase",),
    ("explain",), ("preview",),
    ("dlq",), ("dlq", "list"), ("dlq", "show"), ("dlq", "replay"), ("members",), ("members", "import"),
    ("versions",), ("versions", "show"), ("versions", "find"), ("versions", "lower"),
)  # fmt: skip


def sync_worker(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in an empty folder, with only these settings."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("SYNC_WORKER_")}
    environment |= {f"SYNC_WORKER_{name}": value for name, value in settings.items()}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "sync_worker", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    done = sync_worker("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command[0]} " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...], tmp_path: Path) -> None:
    done = sync_worker(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_help_imports_no_client(tmp_path: Path) -> None:
    program = "import sys, sync_worker.cli.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert not loaded & {
        "confluent_kafka",
        "psycopg",
        "sqlalchemy",
        "alembic",
        "pydantic_settings",
        "fastavro",
        "waitress",
    }


def test_the_version_is_shown(tmp_path: Path) -> None:
    done = sync_worker("--version", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("sync-worker ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("topics", "destroy"),
        ("topics", "create", "--partitions", "0"),
        ("topics", "create", "--replication-factor", "many"),
        ("tail", "--no-such-option"),
        ("publish", "one", "two"),
        ("publish", "no-such-file.jsonl"),
        ("preview", "no-such-file.json"),
        ("explain", "nonsense", "nonsense"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = sync_worker(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_settings_are_exit_code_2_all_named_and_no_traceback(tmp_path: Path) -> None:
    done = sync_worker("run", cwd=tmp_path, HTTP_PORT="x", DATABASE_URL="mysql://worker:s3cr3t-w0rd@db/lms")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: 3 settings cannot be used:"
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "HTTP_PORT"):
        assert f"\n  SYNC_WORKER_{name}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (("migrate",), {"DATABASE_URL"}),
        (("topics", "create"), {"KAFKA_BOOTSTRAP_SERVERS"}),
        (("publish",), {"KAFKA_BOOTSTRAP_SERVERS"}),
        (("tail",), {"KAFKA_BOOTSTRAP_SERVERS"}),
        (("run",), {"KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"}),
        (("status",), {"KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"}),
    ],
)
def test_a_command_asks_for_the_settings_it_needs(command: tuple[str, ...], needed: set[str], tmp_path: Path) -> None:
    done = sync_worker(*command, cwd=tmp_path)
    assert done.returncode == 2
    named = {line.split(":")[0].strip().removeprefix("SYNC_WORKER_") for line in done.stderr.splitlines()[1:]}
    assert named == needed


def test_a_broker_that_is_not_there_is_exit_code_1_and_says_so(tmp_path: Path) -> None:
    done = sync_worker("migrate", cwd=tmp_path, DATABASE_URL="postgresql://worker:s3cr3t-w0rd@127.0.0.1:1/lms")
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cr3t" not in done.stderr


def raising(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SettingsError("two lines\n  of it"), 2, "error: two lines\n  of it\n"),
        (RetryableError("Kafka is away\x1b[2K"), 1, "error: Kafka is away\\x1b[2K\n"),
        (RetryableError("postgresql://worker:word@db"), 1, "error: postgresql://worker:***@db\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(130), 1, "error: interrupted\n"),
    ],
)
def test_an_expected_error_is_a_message_and_an_exit_code(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: raising(error)) == code
    assert capsys.readouterr().err == words


def test_a_defect_is_told_with_its_traceback_but_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: raising(ValueError("postgresql://worker:word@db"))) == 1
    shown = capsys.readouterr().err
    assert "ValueError: postgresql://worker:***@db" in shown
    assert shown.endswith("please report it with the lines above\n")


def test_a_table_is_lines_with_tabs_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Lag", ("topic", "lag"), [("segments\x1b[31m", 3), ("methods", None)])
    assert capsys.readouterr().out == "Lag\ntopic\tlag\nsegments\\x1b[31m\t3\nmethods\t-\n\n"


def test_a_table_is_drawn_on_a_terminal_and_takes_no_orders_from_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table("Lag", ("topic", "lag"), [("[red]methods[/red]\x1b[2K", 3)])
    shown = terminal.getvalue()
    assert "[red]methods[/red]\\x1b[2K" in shown
    assert "\t" not in shown


def test_status_is_shown_as_far_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        {
            "settled": False,
            "outbox": {"unpublished": 3, "oldest_age_s": None},
            "dead_letters": {
                "by_reason": {},
                "reasons": [{"reason": "undecodable", "topic": "t", "records": 2, "last_at": "x"}],
            },
            "workers": [{"holder": "h:1:a", "present": True, "partitions": {"t": [0, 2], "u": [1]}}],
            "leader": None,
            "lag": [{"topic": "segments.membership", "lag": 7, "later": 1}],
            "backfills": [],
            "what_comes_later": [{"a": 1}, 2],
        }
    )
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["not settled", "Working: 7 records to apply and 3 events to publish."]
    for line in (
        "undecodable\tt\t2\tx",
        "h:1:a\tTrue\t-\t-\t-\t-\t-\tt 0, 2; u 1",
        "outbox unpublished\t3",
        "outbox oldest age s\t-",
        "dead letters by reason\t-",
        "leader\t-",
        "what comes later 0 a\t1",
        "what comes later 1\t2",
        "segments.membership\t-\t-\t-\t7",
    ):
        assert line in shown
    assert "Backfills" not in shown


def test_a_status_of_nothing_is_not_settled(capsys: pytest.CaptureFixture[str]) -> None:
    show({})
    assert capsys.readouterr().out.splitlines()[0] == "not settled"
