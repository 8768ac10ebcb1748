"""Figures of a running worker that are more than a count of what other tests look at."""

import time
from dataclasses import replace

import httpx

from tests.support.facts import member, method, new_id
from tests.support.site import Site, WorkerProcess, wait_for


def test_the_age_of_events_is_seen_until_they_are_applied_and_from_there_until_they_are_published(site: Site) -> None:
    worker = site.start_worker()
    segment = new_id()
    site.produce([method(segment, new_id())])
    site.wait_settled()
    # Settled is what the database knows; the worker observes an age a moment after it has committed.
    wait_for(lambda: age(worker, "applied")[0] == 1, what="the age of the method")
    before = {stage: age(worker, stage) for stage in ("applied", "published")}
    occurred_at = int((time.time() - 120) * 1_000_000)
    site.produce([replace(member(segment, new_id(), 1), occurred_at=occurred_at)])
    site.wait_settled()
    wait_for(lambda: age(worker, "applied")[0] > 1, what="the age of the member")

    after = {stage: age(worker, stage) for stage in before}
    assert {stage: after[stage][0] - before[stage][0] for stage in after} == {"applied": 1, "published": 1}
    # It was two minutes old when it came here, and is not as old when it leaves.
    assert 120 <= after["applied"][1] - before["applied"][1] < 240
    assert 0 < after["published"][1] - before["published"][1] < 120


def age(worker: WorkerProcess, stage: str) -> tuple[int, float]:
    """How many ages were observed, and their sum in seconds."""
    text = httpx.get(f"http://127.0.0.1:{worker.http_port}/metrics", timeout=60).text
    count, total = (
        next(
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith(f'sync_worker_age_seconds_{part}{{at="{stage}"}}')
        )
        for part in ("count", "sum")
    )
    return int(count), total
