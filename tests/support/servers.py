"""PostgreSQL servers of a test's own, beside the stack's: restored from a backup, a standby, or made anew.

Run as the stack's is, from the same programs, and ended with it. Only for a native stack: a container's data can't be
reached from here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from devstack import Stack
from devstack.native_postgres import INITDB_OPTIONS, PARAMETERS, programs_of, service_user
from devstack.parts import Postgres
from devstack.ports import HOST, kept_ports
from devstack.process import Command, ProcessRunner
from devstack.stack import Kind
from tests.support.site import Site, wait_for


class Server(Postgres):
    """A server in a folder of the stack's. Its data is made by `initialize` or `back_up`, before `start`."""

    def __init__(self, stack: Stack, name: str, installed: Path | None = None) -> None:
        """installed: another build of PostgreSQL than the stack's."""
        if stack.kind is not Kind.NATIVE:
            pytest.skip("a second server needs a native stack")
        self._stack = stack
        self.home = stack.directory / name
        self.data = self.home / "data"
        self._user = service_user()
        self.home.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(self.home, self._user.uid, self._user.gid)
        copies = stack.directory / "postgres" if installed is None else self.home
        self.programs = programs_of(copies, self._user, installed)
        (port,) = kept_ports(self.home, 1)
        self._env = {"HOME": str(self.home), "LC_ALL": "C", "PATH": os.environ["PATH"]}
        settings = {**PARAMETERS, "port": str(port), "shared_buffers": "64MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = Command([str(self.programs / "postgres"), "-D", str(self.data), *options], self._env, self._user)
        super().__init__(ProcessRunner(name, stack.directory, command), f"postgresql://postgres@{HOST}:{port}/postgres")

    def initialize(self) -> None:
        """A cluster of its own, with another system identifier."""
        self.run("initdb", "--pgdata", str(self.data), *INITDB_OPTIONS)

    def back_up(self, *options: str) -> None:
        """Take a base backup of the stack's server as it is now."""
        source = ("--dbname", self._stack.postgres.url(), "--pgdata", str(self.data))
        self.run("pg_basebackup", *source, "--checkpoint=fast", "--wal-method=stream", "--no-sync", *options)

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs to its end, as the server's user."""
        user = {} if self._user is None else {"user": self._user.uid, "group": self._user.gid, "extra_groups": []}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            env=self._env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            **user,  # type: ignore[call-overload]  # three keywords of subprocess
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def configure(self, **settings: str) -> None:
        """Lines for its configuration, before it starts."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def recover_from(self, wal: Path, target: str) -> None:
        """Before it starts: recover up to a named restore point from these log files, and then be a primary."""
        self.configure(restore_command=f"cp {wal}/%f %p", recovery_target_name=target, recovery_target_action="promote")
        (self.data / "recovery.signal").touch()

    def ask(self, statement: str) -> str:
        """The one value of a statement, as text."""
        with psycopg.connect(self.url(), autocommit=True) as owner:
            row = owner.execute(statement).fetchone()
        assert row is not None
        return str(row[0])

    def wait_for_primary(self) -> None:
        wait_for(lambda: self.ask("select pg_is_in_recovery()") == "False", what="the promotion")


def move(site: Site, server: Postgres, database: str | None = None) -> None:
    """The site's database is on that server from now on."""
    url = server.url(database or site.database_url.rpartition("/")[2])
    site.database_url = site.environment["SYNC_WORKER_DATABASE_URL"] = url
    site.settings = site.settings.model_copy(update={"database_url": SecretStr(url)})
