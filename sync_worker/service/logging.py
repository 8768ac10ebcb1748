"""Logs: events with fields, as JSON lines or for a terminal, all to stderr and all through one redacting door.

The standard library's loggers (alembic, sqlalchemy, waitress) and librdkafka's go the same way, so that nothing can be
logged around the redaction. Must never let a value end a line: what comes from outside can't forge a log entry.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Collection
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sync_worker.service.redaction import Redactor, escape_control

LogFormat = Literal["json", "console"]
KAFKA_LOGGER: Final = "librdkafka"
# They tell at INFO what is their own business; their warnings matter.
_QUIET: Final = ("alembic", "sqlalchemy", "waitress", "httpx", "httpx2")
# They warn of each request that has to wait, so that whoever sends many could fill a disk.
_REPEATING: Final = ("waitress", "waitress.queue")


def configure(
    level: str = "info",
    format: LogFormat | None = None,  # noqa: A002 - the setting's name
    secrets: Collection[str] = (),
    *,
    kafka: bool = True,
) -> None:
    """Send every log from `level` on to stderr, without `secrets`; may be called again, the last call counts.

    `format` None is console on a terminal, else JSON. `kafka` False leaves out what librdkafka says by itself, for
    commands whose error says it already.
    """
    stream = sys.stderr
    as_json = format == "json" or (format is None and not stream.isatty())
    redactor = Redactor(secrets)
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                _redaction(redactor, as_json=as_json),
                renderer,
            ],
        )
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    librdkafka = kafka_logger()
    librdkafka.setLevel(logging.NOTSET if kafka else logging.CRITICAL)
    for repeating in (librdkafka, *(logging.getLogger(name) for name in _REPEATING)):
        if not any(isinstance(one, _Repetitions) for one in repeating.filters):
            repeating.addFilter(_Repetitions(time.monotonic))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def kafka_logger() -> logging.Logger:
    """The `logger=` argument of every confluent_kafka client; librdkafka writes to stderr by itself without it."""
    return logging.getLogger(KAFKA_LOGGER)


def _redaction(redactor: Redactor, *, as_json: bool) -> Processor:
    def redact(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        blocks = {name: event_dict.pop(name) for name in ("exception", "stack") if name in event_dict}
        ordered = {name: event_dict.pop(name) for name in ("timestamp", "level", "event") if name in event_dict}
        # JSON escapes control characters by itself, so that a reader gets back exactly what was meant.
        clean = redactor.text if as_json else redactor.line
        shown: EventDict = redactor.mapping({**ordered, **event_dict}, clean)
        for name, block in blocks.items():
            # A traceback has lines; indented, none of them can be taken for a log line of its own.
            text = redactor.text(str(block))
            lines = [f"    {escape_control(line)}" for line in text.split("\n")]
            shown[name] = text if as_json else "\n".join(lines)
        return shown

    return redact


class _Repetitions(logging.Filter):
    """Lets one message of a kind through in ten seconds: librdkafka reports a broker that is away at each attempt."""

    _EVERY_S: Final = 10.0

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        kind = re.sub(r"\d+", "", record.getMessage())
        if now - self._last.get(kind, -math.inf) < self._EVERY_S:
            return False
        self._last = {kind: at for kind, at in self._last.items() if now - at < self._EVERY_S} | {kind: now}
        return True


class _Handler(logging.StreamHandler[TextIO]):
    """Ours among the root's handlers. A record that can't be written is told by type only: its text may be secret."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        kind = sys.exc_info()[0]
        if not self.stream.closed and not (kind and issubclass(kind, OSError)):
            self.stream.write(f"a log record of {record.name} was lost: {kind.__name__ if kind else 'unknown'}\n")
