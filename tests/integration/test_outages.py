"""PostgreSQL or the broker is away, at the start or later: the worker waits, says why, and goes on by itself (design §6).

Every test ends with the model's rows, every change published once, no dead letter, and the worker that was there before.
The services are this module's own, since they are stopped, killed, frozen and cut off here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from devstack import Stack
from devstack.parts import Part
from sync_worker.database.migrate import migrate
from tests.model.events import Event
from tests.model.model import Model
from tests.model.traffic import in_batches, random_history
from tests.support.check import assert_site_equals_model
from tests.support.site import Site, WorkerProcess, wait_for

# The machine may be slow, and a client's pauses between its attempts grow.
PATIENCE_S = 120.0
SESSIONS = frozenset({"apply", "backfill", "relay", "watch"})


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.start() as running:
        yield running


@pytest.fixture(scope="module")
def template(stack: Stack) -> str:
    migrate(stack.postgres.create_database("template_of_outages"))
    return "template_of_outages"


@pytest.fixture(scope="module")
def shared_site(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site with one worker, which is to outlive all of these outages."""
    url = stack.postgres.create_database("outages", template=template)
    site = Site(stack, url, tmp_path_factory.mktemp("outages"), {})
    site.create_topics(3)
    yield site
    site.close()


@pytest.fixture(scope="module")
def model() -> Model:
    """What the shared site must come to: all traffic so far."""
    return Model()


@pytest.fixture
def worker(shared_site: Site) -> WorkerProcess:
    """The shared site's worker; another one only where an earlier test broke it."""
    running = [each for each in shared_site.workers if each.process.poll() is None]
    return running[0] if running else shared_site.start_worker()


@pytest.fixture
def everything_up(stack: Stack) -> Iterator[None]:
    """Whatever a test did to the services, the next one finds them running."""
    yield
    for part in (stack.kafka, stack.postgres):
        part.resume()
        part.start()


# Several waits of PATIENCE_S, and services that start, one after the other.
pytestmark = [pytest.mark.usefixtures("everything_up"), pytest.mark.timeout(900)]


def probe(worker: WorkerProcess, path: str) -> tuple[int, str]:
    try:
        answer = httpx.get(f"http://127.0.0.1:{worker.http_port}{path}", timeout=60)
    except httpx.TransportError as error:
        raise AssertionError(f"the worker does not answer:\n{worker.log()[-3000:]}") from error
    return answer.status_code, answer.text


def failed_checks(worker: WorkerProcess) -> list[str]:
    """The lines of /readyz that say what is missing; /livez must be fine all the while."""
    code, text = probe(worker, "/livez")
    assert code == 200, text
    code, text = probe(worker, "/readyz")
    lines = [line for line in text.splitlines() if line.startswith("failed ")]
    assert (code == 503) == bool(lines), (code, text)
    return lines


def wait_until_not_ready(worker: WorkerProcess, condition: str) -> str:
    """What /readyz says of that condition once it isn't met."""

    def said() -> str:
        lines = [line for line in failed_checks(worker) if line.startswith(f"failed {condition}: ")]
        return next((line for line in lines if "not known yet" not in line), "")

    line: str = wait_for(said, PATIENCE_S, f"/readyz naming {condition}")
    return line


def wait_until_ready(worker: WorkerProcess) -> None:
    wait_for(lambda: not failed_checks(worker), PATIENCE_S, "/readyz without a failure")


def history(seed: int) -> list[Event]:
    return list(random_history(seed, events=2500, segments=4, users=40, methods_per_segment=2, courses=6))


@contextmanager
def traffic(site: Site, model: Model) -> Iterator[None]:
    """Publishes a history in small steps for as long as the block lasts, through any outage, and the rest at its end."""
    events = history(len(model.methods))
    model.apply_batch(events)
    ended = threading.Event()
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            for batch in in_batches(events, 10):
                site.produce(batch)
                ended.wait(0.3)  # for more than a minute: there is to be traffic for as long as the block lasts
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            failures.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * PATIENCE_S)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def wait_for_progress(site: Site) -> None:
    """Until more is applied than now: the outage is to come in the middle of work."""
    applied = "select coalesce(sum(next_offset), 0)::bigint as n from position"
    before = site.query(applied)[0]["n"]
    wait_for(lambda: site.query(applied)[0]["n"] > before, PATIENCE_S, "records applied")


def assert_recovered(site: Site, worker: WorkerProcess, model: Model) -> None:
    wait_until_ready(worker)
    site.wait_settled(PATIENCE_S)
    assert_site_equals_model(site, model)
    assert site.dead_letters() == []
    assert worker.process.poll() is None
    assert not worker.events("stopped")
    assert not worker.events("stopped_by_defect")


CONDITION = {"kafka": "broker", "postgres": "database"}


@pytest.mark.parametrize("name", CONDITION)
def test_a_worker_that_starts_before_a_service_waits_and_goes_on_when_it_comes(
    name: str, stack: Stack, make_site: Callable[..., Site]
) -> None:
    site, model = make_site(), Model()
    part: Part = getattr(stack, name)
    part.stop()
    worker = site.start_worker()
    wait_until_not_ready(worker, CONDITION[name])
    worker.wait_for_event("waiting_to_start")
    part.start()
    with traffic(site, model):
        wait_for_progress(site)
    assert_recovered(site, worker, model)


@pytest.mark.parametrize("name", CONDITION)
def test_a_service_that_is_away_for_a_while_in_the_middle_of_traffic_is_waited_for(
    name: str, stack: Stack, shared_site: Site, worker: WorkerProcess, model: Model
) -> None:
    wait_until_ready(worker)
    with traffic(shared_site, model):
        wait_for_progress(shared_site)
        if name == "postgres":
            stack.postgres.stop(mode="immediate")
        else:
            stack.kafka.stop()
        wait_until_not_ready(worker, CONDITION[name])
        getattr(stack, name).start()
    assert_recovered(shared_site, worker, model)


@pytest.mark.parametrize("name", CONDITION)
def test_a_service_that_is_killed_and_comes_back_at_once_is_gone_on_with(
    name: str, stack: Stack, shared_site: Site, worker: WorkerProcess, model: Model
) -> None:
    wait_until_ready(worker)
    part: Part = getattr(stack, name)
    with traffic(shared_site, model):
        wait_for_progress(shared_site)
        part.kill()
        part.start()
    assert_recovered(shared_site, worker, model)


def test_a_broker_that_hangs_is_waited_for(
    stack: Stack, shared_site: Site, worker: WorkerProcess, model: Model
) -> None:
    wait_until_ready(worker)
    with traffic(shared_site, model):
        wait_for_progress(shared_site)
        stack.kafka.pause()
        wait_until_not_ready(worker, "broker")
        stack.kafka.resume()
    assert_recovered(shared_site, worker, model)


def test_connections_that_are_cut_again_and_again_are_made_anew(
    shared_site: Site, worker: WorkerProcess, model: Model
) -> None:
    wait_until_ready(worker)
    cut: set[str] = set()
    with traffic(shared_site, model), shared_site.connect() as connection:

        def connected() -> set[str]:
            found = connection.execute(
                """select application_name from pg_stat_activity
                   where datname = current_database() and application_name like 'sync-worker %'"""
            ).fetchall()
            return {row["application_name"].removeprefix("sync-worker ") for row in found}

        def cut_all() -> set[str]:
            found = connection.execute(
                """select application_name, pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and application_name like 'sync-worker %'"""
            ).fetchall()
            return {row["application_name"].removeprefix("sync-worker ") for row in found}

        # Later ones may find some of the loops between two connections.
        wait_for(lambda: connected() >= SESSIONS, PATIENCE_S, "a session of each loop")
        for _ in range(8):
            cut |= wait_for(cut_all, PATIENCE_S, "sessions to cut")
            # Connected again, and at work.
            wait_for_progress(shared_site)
    assert cut >= SESSIONS
    assert_recovered(shared_site, worker, model)


def test_a_database_that_goes_away_while_nothing_is_to_be_done_is_noticed_and_so_is_its_return(
    stack: Stack, shared_site: Site, worker: WorkerProcess, model: Model
) -> None:
    wait_until_ready(worker)
    shared_site.wait_settled(PATIENCE_S)
    stack.postgres.stop()
    wait_until_not_ready(worker, "database")
    stack.postgres.start()
    assert_recovered(shared_site, worker, model)


@pytest.mark.parametrize("name", CONDITION)
def test_a_worker_told_to_stop_in_an_outage_stops_in_order_and_the_next_one_loses_nothing(
    name: str, stack: Stack, make_site: Callable[..., Site]
) -> None:
    # A member that could not say that it leaves is missed by the group only after its session timeout, 45 s by default.
    site, model = make_site(drain_timeout_s="6", kafka_properties='{"session.timeout.ms": 6000}'), Model()
    worker = site.start_worker()
    part: Part = getattr(stack, name)
    with traffic(site, model):
        wait_for_progress(site)
        part.stop()
        begun = time.monotonic()
        assert worker.terminate(PATIENCE_S) == 0
        # The drain limit, and what a busy machine needs to end a process; the outage lasts until it has.
        assert time.monotonic() - begun < 6 + 60
        part.start()
    assert_recovered(site, site.start_worker(), model)
