"""`run`. From here on the words are logs, also the last ones: what reads them expects one format."""

import os
import sys
from typing import Annotated

import structlog
import typer

from sync_worker.cli.console import ERROR, settings_for
from sync_worker.errors import SettingsError, SyncWorkerError


def run(
    without_relay: Annotated[
        bool,
        typer.Option(
            "--without-relay",
            help="Only apply, publish nothing: for a database that is to catch up before `relay adopt`.",
        ),
    ] = False,
) -> None:
    """The worker: applies input, publishes changes, until SIGTERM or SIGINT."""
    settings = settings_for({"kafka_bootstrap_servers", "database_url"}, kafka_logs=True)
    from sync_worker.worker import Worker  # noqa: PLC0415 - heavy, and not for --help

    log = structlog.get_logger("sync_worker")
    for warning in type(settings).warnings():
        log.warning("unknown_setting", detail=warning)
    code = 0
    try:
        Worker(settings, publishes=not without_relay).run()
    except SettingsError:
        raise
    except SyncWorkerError as error:
        log.error("stopped", kind=type(error).__name__, reason=str(error))
        code = ERROR
    except Exception:
        log.critical("stopped_by_defect", exc_info=True)
        code = ERROR
    # All is closed that can be. The interpreter's own farewell would take down the clients' threads, and librdkafka waits there for
    # a broker that is away, with a clock that was set back for hours.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
