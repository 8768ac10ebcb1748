"""The three services as their users see them: where they are, whether they answer, and how to torment them.

The same for every kind of stack; what a service runs in is its runner's business. Nothing here may start a second
server or change data nobody named.
"""

from __future__ import annotations

import signal
import socket
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg import sql

from devstack.errors import DevstackError
from devstack.runner import Runner

StopMode = Literal["fast", "immediate", "smart"]
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "smart": signal.SIGTERM,
}


class Part(ABC):
    """One service of the stack. It keeps its port and its data over stop, kill and start."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def running(self) -> bool:
        """Whether it runs (also while paused); not whether it answers."""
        return self._runner.running

    @property
    def pid(self) -> int:
        """Process id of the service's main process; DevstackError when it doesn't run on this machine."""
        return self._runner.pid

    @property
    def log_path(self) -> Path:
        """The file with the service's output."""
        return self._runner.log_path

    def check(self) -> None:
        """DevstackError, with the end of its log, if it does not run."""
        if not self.running:
            raise self._runner.failure("ended")

    def start(self, *, timeout_s: float = 90) -> None:
        """Start it, unless it runs, and wait until it is ready."""
        self._runner.start()
        self.wait_ready(timeout_s=timeout_s)

    def stop(self, *, timeout_s: float = 60) -> None:
        """Shut it down in order and wait for the end. Does nothing when it is down."""
        self._runner.stop(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a power cut would; returns when they are gone."""
        self._runner.kill()

    def restart(self, *, timeout_s: float = 90) -> None:
        """Stop and start."""
        self.stop(timeout_s=timeout_s)
        self.start(timeout_s=timeout_s)

    def pause(self) -> None:
        """Freeze all its processes (SIGSTOP): connections stay open, nothing answers."""
        self._runner.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._runner.resume()

    def discard(self) -> None:
        """End it in the quickest way; its data isn't needed again."""
        self._runner.discard()

    def wait_ready(self, *, timeout_s: float = 90) -> None:
        """Wait until it does real work; DevstackError with the end of its log when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while (trouble := self._trouble()) is not None:
            if not self._runner.running:
                raise self._runner.failure("ended before it was ready")
            if time.monotonic() > deadline:
                raise self._runner.failure(f"not ready after {timeout_s:g} s: {trouble}")
            time.sleep(0.05)

    @abstractmethod
    def _trouble(self) -> str | None:
        """Why it is not ready; None when it is. Takes a few seconds at most."""


class Kafka(Part):
    """A broker."""

    def __init__(self, runner: Runner, bootstrap_servers: str) -> None:
        super().__init__(runner)
        self.bootstrap_servers = bootstrap_servers

    def _trouble(self) -> str | None:
        host, _, port = self.bootstrap_servers.split(",")[0].rpartition(":")
        try:
            # Cheaper than a client for each try, and the client would complain on stderr.
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as error:
            return str(error)
        client = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            brokers = client.list_topics(timeout=3).brokers
        except KafkaException as error:
            return str(error)
        return None if brokers else "it knows of no broker"


class Postgres(Part):
    """A PostgreSQL server."""

    def __init__(self, runner: Runner, owner_url: str) -> None:
        super().__init__(runner)
        self._owner_url = owner_url

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        """The `postgresql://` URL of a database, for the superuser or the given user (then without a password)."""
        parts = urlsplit(self._owner_url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        if user is not None:
            credentials = quote(user, safe="")
        netloc = f"{credentials}@{hosts}" if credentials else hosts
        return urlunsplit((parts.scheme, netloc, "/" + quote(database, safe=""), parts.query, ""))

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of the template if one is named; returns its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending the sessions that use it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self, *, timeout_s: float = 60, mode: StopMode = "fast") -> None:
        """Shut down: `fast` ends sessions, `immediate` skips the checkpoint, `smart` waits for sessions to leave."""
        self._runner.stop(_STOP_SIGNALS[mode], timeout_s)

    def _execute(self, statement: sql.Composed) -> None:
        try:
            with psycopg.connect(self._owner_url, autocommit=True, connect_timeout=10) as connection:
                connection.execute(statement)
        except psycopg.Error as error:
            raise DevstackError(f"{statement.as_string()} failed: {error}") from error

    def _trouble(self) -> str | None:
        try:
            with psycopg.connect(self._owner_url, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            return str(error)
        return None


class Registry(Part):
    """A schema registry with the Confluent API."""

    def __init__(self, runner: Runner, url: str) -> None:
        super().__init__(runner)
        self.url = url

    def _trouble(self) -> str | None:
        if not self.url.startswith(("http://", "https://")):
            raise DevstackError("the schema registry's address must be an http:// or https:// URL")
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=3) as answer:  # noqa: S310 (checked above)
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            return str(error)
        return None
