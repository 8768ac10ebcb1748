"""What a log line may hold: events with fields, no secret whoever wrote it, and no line that a value made."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog

from sync_worker.service.logging import LogFormat, configure, kafka_logger
from sync_worker.service.redaction import Redactor

SECRETS = ("s3cr3t-w0rd", "pw", 'quo"ted\\')


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail(error: Exception) -> None:
    raise error


class Captured:
    """Standard error, and logging set up to write to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.stream = io.StringIO()

    def configure(self, format_: LogFormat | None = "json", level: str = "info", *, terminal: bool = False) -> None:
        self.stream = Terminal() if terminal else io.StringIO()
        self._monkeypatch.setattr(sys, "stderr", self.stream)
        configure(level, format_, SECRETS)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Captured]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    quiet = {name: logging.getLogger(name).level for name in ("alembic", "sqlalchemy", "waitress", "httpx")}
    yield Captured(monkeypatch)
    root.handlers[:] = before
    root.setLevel(level)
    for name, old in quiet.items():
        logging.getLogger(name).setLevel(old)
    for logger in (kafka_logger(), logging.getLogger("waitress"), logging.getLogger("waitress.queue")):
        logger.filters.clear()
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_an_event_is_one_json_line_that_begins_with_time_level_and_event(captured: Captured) -> None:
    captured.configure()
    id_ = UUID(int=1)
    structlog.get_logger().info("batch_applied", records=500, seconds=0.02, course=id_, parts=("a", b"b"), none=None)
    (event,) = captured.events
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert event | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "event": "batch_applied",
        "records": 500,
        "seconds": 0.02,
        "course": str(id_),
        "parts": ["a", "b'b'"],
        "none": None,
    }


def test_the_format_follows_the_terminal_unless_it_is_set(captured: Captured) -> None:
    for format_, terminal, as_json in ((None, False, True), (None, True, False), ("json", True, True)):
        captured.configure(format_, terminal=terminal)  # type: ignore[arg-type]
        structlog.get_logger().info("something")
        assert captured.text.startswith("{") is as_json


def test_what_is_below_the_level_is_not_written(captured: Captured) -> None:
    captured.configure(level="warning")
    structlog.get_logger().info("no")
    logging.getLogger("other").info("no")
    structlog.get_logger().warning("yes")
    assert [event["event"] for event in captured.events] == ["yes"]


def test_configuring_again_replaces_what_was(captured: Captured) -> None:
    captured.configure()
    captured.configure(level="error")
    structlog.get_logger().info("no")
    structlog.get_logger().error("once")
    assert [event["event"] for event in captured.events] == ["once"]


def test_libraries_write_through_the_same_door(captured: Captured) -> None:
    captured.configure()
    logging.getLogger("waitress.queue").warning("depth %d", 3)
    logging.getLogger("alembic.runtime.migration").info("its own business")
    kafka_logger().error("FAIL %s", "postgresql://worker:any-word@db/lms")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old, and s3cr3t-w0rd", stacklevel=1)
    first, second, third = captured.events
    assert (first["logger"], first["event"]) == ("waitress.queue", "depth 3")
    assert (second["logger"], second["event"]) == ("librdkafka", "FAIL postgresql://worker:***@db/lms")
    assert third["logger"] == "py.warnings"
    assert "s3cr3t" not in captured.text


def test_librdkafka_repeats_itself_only_now_and_then(captured: Captured) -> None:
    captured.configure()
    for attempt in range(100):
        kafka_logger().error("Connection refused (after %dms in state CONNECT)", attempt)
    kafka_logger().error("another")
    assert [event["event"] for event in captured.events] == [
        "Connection refused (after 0ms in state CONNECT)",
        "another",
    ]


def test_a_flood_of_requests_is_no_flood_of_log_lines(captured: Captured) -> None:
    captured.configure()
    for depth in range(1000):
        logging.getLogger("waitress.queue").warning("Task queue depth is %d", depth)
    assert [event["event"] for event in captured.events] == ["Task queue depth is 0"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_secrets_are_hidden_wherever_they_stand(captured: Captured, format_: LogFormat) -> None:
    captured.configure(format_)
    log = structlog.get_logger()
    log.info(
        "s3cr3t-w0rd", url="postgresql://worker:other-word@db/lms?password=third-word", deep=[{"a": "s3cr3t-w0rd"}]
    )
    log.info("fields", password="fourth-word", sasl_password="fourth-word", api_token="fourth-word", count=2)
    log.info("conninfo", detail="host=db password='fifth-word' user=x", error=ValueError("pw: s3cr3t-w0rd"))
    log.info("shape", value='a quo"ted\\ one', again={"s3cr3t-w0rd": 1})
    try:
        fail(ConnectionError("postgres://worker:sixth-word@db refused s3cr3t-w0rd"))
    except ConnectionError:
        log.exception("failed")
        logging.getLogger("library").exception("failed")
    for word in ("s3cr3t-w0rd", "other-word", "third-word", "fourth-word", "fifth-word", "sixth-word", "ted\\"):
        assert word not in captured.text
    assert "ConnectionError" in captured.text
    assert "db/lms" in captured.text


def test_a_short_secret_leaves_ordinary_words_alone() -> None:
    redactor = Redactor(["pw"])
    assert redactor.text("pw is not part of npwx, nor of pw_x: pw") == "*** is not part of npwx, nor of pw_x: ***"


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_value_makes_a_line_of_its_own(captured: Captured, format_: LogFormat) -> None:
    captured.configure(format_)
    forged = "x\n2026-01-01T00:00:00Z [info] forged\r\x1b[2K\u2028\x85\u202e\u200f"
    structlog.get_logger().info(forged, value=forged, **{forged: [forged]})
    logging.getLogger("library").warning("%s", forged)
    lines = captured.text.split("\n")
    assert len(lines) == 3
    assert all("forged" not in line or not line.startswith("2026-01-01") for line in lines)
    for character in "\r\x1b\u2028\x85\u202e\u200f":
        assert character not in captured.text


def test_the_lines_of_a_traceback_cannot_be_taken_for_log_lines(captured: Captured) -> None:
    captured.configure("console")
    try:
        fail(ValueError("bad\n2026-01-01T00:00:00Z [info] forged\x1b[2K"))
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *rest = captured.text.rstrip("\n").split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in captured.text


def test_a_record_that_cannot_be_written_is_told_without_its_text(captured: Captured) -> None:
    captured.configure()
    (ours,) = [one for one in logging.getLogger().handlers if type(one).__module__ == configure.__module__]
    ours.handle(logging.LogRecord("library", logging.WARNING, "", 0, "%d s3cr3t-w0rd", ("x",), None))
    assert captured.text == "a log record of library was lost: TypeError\n"
