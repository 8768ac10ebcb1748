"""The image as a cluster runs it, on the real Kafka and PostgreSQL: `make image-test` builds it, starts an engine and comes here."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_site_equals_model
from tests.support.container import USER, ContainerWorker
from tests.support.site import Site, wait_for

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
START_LIMIT_S = 2.0
# What must not be in the last stage, by the names of programs and packages.
UNWANTED = ("pip", "setuptools", "cc", "gcc", "sh", "bash", "dpkg", "apt", "curl", "perl")


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., ContainerWorker]]:
    """Starts containers with the site's settings; they are removed in the end."""
    started: list[ContainerWorker] = []

    def run(*arguments: str, **settings: str) -> ContainerWorker:
        changed = {f"SYNC_WORKER_{name.upper()}": value for name, value in settings.items()}
        started.append(ContainerWorker(site.environment | changed, *arguments))
        return started[-1]

    yield run
    for worker in started:
        worker.remove()


def test_a_container_without_rights_does_the_main_job_and_stops_on_sigterm(
    site: Site, start: Callable[..., ContainerWorker]
) -> None:
    history = random_history(1, events=1500, segments=8, users=50, methods_per_segment=2, courses=6)
    worker = start()
    site.produce(history)
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)

    configuration = worker.engine.attrs["HostConfig"]
    assert configuration["ReadonlyRootfs"]
    assert configuration["CapDrop"] == ["ALL"]
    port = worker.wait_for_event("worker_starts")["http_port"]

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    wait_for(is_ready, what="readiness")

    assert worker.terminate() == 0
    assert worker.events("worker_stopped")


def test_a_rolling_upgrade_of_two_containers_under_traffic_publishes_every_change_once(
    site: Site, start: Callable[..., ContainerWorker]
) -> None:
    history = random_history(2, events=4000, segments=8, users=60, methods_per_segment=2, courses=6)
    parts = [history[start : start + 1000] for start in range(0, 4000, 1000)]
    old = [start(), start()]
    for worker in old:
        worker.wait_for_event("worker_starts")
    site.produce(parts[0])
    wait_for(site.changes, what="a change")
    fresh = []
    for worker, part in zip(old, parts[1:], strict=False):
        # As a Deployment does: the new one has started before the old one is told to go, in the middle of work.
        fresh.append(start())
        fresh[-1].wait_for_event("worker_starts")
        site.produce(part)
        assert worker.terminate() == 0, worker.log()
    site.produce(parts[3])
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)
    assert [worker.terminate() for worker in fresh] == [0, 0]


def test_it_starts_within_two_seconds(start: Callable[..., ContainerWorker]) -> None:
    # Others share the machine: it must be able to, not every time.
    taken: list[float] = []
    while not taken or min(taken) > START_LIMIT_S:
        assert len(taken) < 20, f"from the container's start to worker_starts: {taken} s"
        worker = start()
        said = datetime.fromisoformat(worker.wait_for_event("worker_starts")["timestamp"])
        worker.engine.reload()
        begun = datetime.fromisoformat(worker.engine.attrs["State"]["StartedAt"][:26] + "+00:00")
        taken.append((said - begun).total_seconds())
        assert worker.terminate() == 0


def test_it_holds_the_interpreter_and_the_worker_and_nothing_that_builds_or_steers(
    site: Site, start: Callable[..., ContainerWorker]
) -> None:
    worker = start()
    worker.wait_for_event("worker_starts")
    look = (
        "import importlib.util, json, os, shutil; print(json.dumps({'user': [os.getuid(), os.getgid()], 'found': "
        f"[name for name in {UNWANTED!r} if shutil.which(name) or importlib.util.find_spec(name)], "
        "'sbom': json.load(open('/usr/share/sbom/sync-worker.cdx.json'))}))"
    )
    code, said = worker.run_inside("python3", "-c", look)
    assert code == 0, said
    document = json.loads(said)
    assert document["user"] == [int(number) for number in USER.split(":")]
    assert document["found"] == []
    assert document["sbom"]["bomFormat"] == "CycloneDX"
    assert {"psycopg", "confluent-kafka", "fastavro"} <= {part["name"] for part in document["sbom"]["components"]}
    code, said = worker.run_inside("python3", "-c", "open('/app/a-file', 'w')")
    assert code != 0
    assert "Read-only file system" in said

    labels = worker.engine.image.labels
    assert labels["org.opencontainers.image.version"]
    assert worker.engine.image.attrs["Config"]["User"] == USER


def test_the_health_check_asks_livez(site: Site, start: Callable[..., ContainerWorker]) -> None:
    worker = start()
    worker.wait_for_event("worker_starts")
    port = str(worker.wait_for_event("worker_starts")["http_port"])
    check = ("python3", "/usr/share/sync-worker/alive.py")
    assert worker.engine.image.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", *check]
    asked = worker.engine.exec_run(list(check), environment={"SYNC_WORKER_HTTP_PORT": port})
    assert asked.exit_code == 0, asked.output
    refused = worker.engine.exec_run(list(check), environment={"SYNC_WORKER_HTTP_PORT": "1"})
    assert refused.exit_code == 1
    assert b"not alive" in refused.output


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--version",), 0), (("migrate",), 0), (("topics", "create"), 0), (("no",), 2)]
)
def test_every_command_is_there(start: Callable[..., ContainerWorker], arguments: tuple[str, ...], code: int) -> None:
    assert start(*arguments).wait() == code
