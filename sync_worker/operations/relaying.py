"""Looks at the relay's two memories, and makes a database that is another one, or went back, follow the topic again.

`relay show` and `relay adopt` (contract §5, docs/adr/0007). Adopting is refused where anything could still publish, and
where everything fits: it never is a way around a relay.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import uuid4

import structlog

from sync_worker.database.revision import expect_revision
from sync_worker.database.sessions import Session, connect, translated
from sync_worker.errors import FatalError
from sync_worker.failpoints import reach
from sync_worker.kafka.broker import Broker
from sync_worker.operations.operator import operator
from sync_worker.operations.published import OnProgress, PublishedChanges, told_dead_letters
from sync_worker.outbox.adopt import SQL, Adoption, Differences
from sync_worker.outbox.cursor import Cursor, read_cursor, resume
from sync_worker.outbox.lease import Lease
from sync_worker.outbox.publisher import Publisher
from sync_worker.outbox.windows import SQL as WINDOWS
from sync_worker.outbox.windows import Window, waiting
from sync_worker.service.logging import kafka_logger
from sync_worker.settings import Settings

# How soon to see whether a lease is renewed; it is every second and a half, or it ends after five.
_LOOK_EVERY_S = 0.2

log = structlog.get_logger(__name__)


class Leader(NamedTuple):
    """Who has the lease, or had it last."""

    holder: str
    since: datetime
    expires_at: datetime
    leads: bool


@dataclass(frozen=True, slots=True)
class KeptWindow:
    """A window as the database has it, and when it was opened."""

    window: Window
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RelayState:
    """Both memories of the relay. misfit: why they don't belong together, in the words in which the worker stops."""

    system_identifier: str
    windows: list[KeptWindow]
    leader: Leader | None
    unpublished: int
    cursor: Cursor | None
    misfit: str | None

    @property
    def next_number(self) -> int:
        """A number that no window and no cursor had."""
        return max(self.windows[0].window.number if self.windows else 0, self.cursor.window if self.cursor else 0) + 1


def show(settings: Settings) -> RelayState:
    """What the database and Kafka say of the relay. Disturbs nobody."""
    broker = Broker(settings)
    with translated(), _session(settings) as session:
        return _look(settings, broker, session)


class Adopting:
    """One `relay adopt`: say what it would do, then do it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.database_url.get_secret_value()
        self._broker = Broker(settings)
        self._session = _session(settings)
        self._adoption = Adoption(self._url)
        self._published: PublishedChanges | None = None

    def plan(self, on_progress: OnProgress) -> Differences:
        """What adopting would do. Raises FatalError while workers run, and where there is nothing to adopt."""
        self._refuse_workers()
        self._misfit()
        self._read_topic(on_progress)
        return self._adoption.compare()

    def adopt(self, on_progress: OnProgress) -> Differences:
        """Do it. Whatever ends it before its end, it can be run again."""
        # Nobody else becomes the relay meanwhile: as long as this process lives, the lease is renewed.
        lease = Lease(self._url, f"relay adopt {operator()} {uuid4().hex[:8]}", clock=lambda: 0.0)
        try:
            with translated():
                if not lease.hold():
                    raise self._led()
                self._refuse_members()
                return self._adopt(on_progress)
        finally:
            with translated():
                lease.release()
            lease.close()

    def _adopt(self, on_progress: OnProgress) -> Differences:
        settings, group = self._settings, self._settings.consumer_group
        publisher = Publisher(
            settings.kafka_client_config(),
            group,
            settings.kafka_bootstrap_servers,
            self._broker.max_message_bytes(settings.cursor_topic),
            logger=kafka_logger(),
        )
        # 1. Whoever published before, on whichever database, publishes no more: what the topic holds from here on stands.
        publisher.fence()
        reach("adopt_fenced")
        state = self._misfit()
        # 2. All of it, and which of the dead letters in the outbox are out already.
        self._read_topic(on_progress)
        letters = self._adoption.dead_letters()
        told = told_dead_letters(settings, self._broker, letters, on_progress)
        reach("adopt_read")
        # 3. Rows and outbox, and a window that fits no cursor yet, in one transaction; 4. its cursor. In between nothing fits,
        # so no relay publishes, and adopting again takes the next number and finds the same.
        differences = self._adoption.adopt(state.next_number, letters, told, operator())
        cursor = Cursor(state.next_number, 0, True, state.system_identifier)
        publisher.publish((), (settings.cursor_topic, group.encode(), cursor.to_bytes()))
        reach("adopt_finished")
        log.info("relay_adopted", window=state.next_number, system_identifier=state.system_identifier)
        return differences

    def _misfit(self) -> RelayState:
        with translated():
            state = _look(self._settings, self._broker, self._session)
        if state.misfit is None:
            raise FatalError(
                "there is nothing to adopt: database and Kafka belong together; `sync-worker relay show` shows both. "
                "To publish what is once more, use `sync-worker republish`"
            )
        return state

    def _read_topic(self, on_progress: OnProgress) -> None:
        if self._published is None:
            self._published = PublishedChanges(self._settings, self._broker)
        for chunk in self._published.read(on_progress):
            self._adoption.load(chunk)

    def _refuse_workers(self) -> None:
        """A worker that stopped or was killed a moment ago leaves its lease: it ends by itself, unless somebody renews it."""
        with translated():
            first = leader = _leader(self._session)
            while first is not None and leader is not None and leader.leads:
                if leader.expires_at != first.expires_at:
                    raise self._led()
                time.sleep(_LOOK_EVERY_S)
                leader = _leader(self._session)
        self._refuse_members()

    def _refuse_members(self) -> None:
        group = self._settings.consumer_group
        if members := self._broker.members(group):
            raise FatalError(f"group {group} has members; stop the workers first: {'; '.join(sorted(members))}")

    def _led(self) -> FatalError:
        leader = _leader(self._session)
        who = f"{leader.holder} until {leader.expires_at:%H:%M:%S} UTC" if leader else "another one"
        return FatalError(f"a relay leads ({who}): stop the workers first")

    def close(self) -> None:
        self._adoption.close()
        self._session.close()


def _session(settings: Settings) -> Session:
    url = settings.database_url.get_secret_value()
    expect_revision(url, "relay show")
    session = connect(url, "relay show")
    session.execute("set search_path = sync_worker, pg_temp")
    return session


def _look(settings: Settings, broker: Broker, session: Session) -> RelayState:
    """Windows before and after the cursor: a relay that leads moves both on while we look, and may be ahead of either."""
    broker.topics([settings.cursor_topic])
    before = _windows(session)
    cursor = read_cursor(
        broker, settings.kafka_client_config(), settings.cursor_topic, settings.consumer_group, logger=kafka_logger()
    )
    windows = _windows(session)
    (identifier,) = cast("tuple[str]", session.execute(WINDOWS["system_identifier"]).fetchone())
    # One that moves has found that they fit; else it would have stopped.
    misfit = None if _numbers(before) != _numbers(windows) else _misfit_of(windows, cursor, identifier)
    return RelayState(identifier, windows, _leader(session), waiting(session)[0], cursor, misfit)


def _misfit_of(windows: list[KeptWindow], cursor: Cursor | None, system_identifier: str) -> str | None:
    try:
        resume(windows[0].window if windows else None, cursor, system_identifier)
    except FatalError as error:
        return str(error)
    return None


def _windows(session: Session) -> list[KeptWindow]:
    """The newest first."""
    rows = session.execute(SQL["relay_windows"]).fetchall()
    return [KeptWindow(Window(*row[:5]), row[5]) for row in rows]


def _numbers(windows: list[KeptWindow]) -> list[int]:
    return [each.window.number for each in windows]


def _leader(session: Session) -> Leader | None:
    row: Any = session.execute(SQL["relay_leader"]).fetchone()
    return None if row is None else Leader(*row)
