"""`positions show` and `positions reset` on a real site: refused under a running worker, said first, and right afterwards."""

from __future__ import annotations

import json

from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_site_equals_model
from tests.support.site import Site
from tests.support.went_back import make_topic_anew


def _positions(site: Site) -> dict[tuple[str, int], dict[str, int | None]]:
    shown = site.command("positions", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    return {(each["topic"], each["partition"]): each for each in json.loads(shown.stdout)["positions"]}


def test_replaying_everything_after_a_reset_to_earliest_changes_nothing(site: Site) -> None:
    history = random_history(2, events=1500, segments=6, users=40, methods_per_segment=2, courses=5)
    # It is in its group also while it stands still for a moment.
    worker = site.start_worker(kafka_properties='{"session.timeout.ms": 60000}')
    site.produce(history)
    site.wait_settled()

    refused = site.command("positions", "reset", "--to", "earliest", "--yes")
    assert refused.returncode == 1
    assert "stop the workers first" in refused.stderr

    assert worker.terminate() == 0
    before = len(site.changes())
    unconfirmed = site.command("positions", "reset", "--to", "earliest")
    assert unconfirmed.returncode == 2
    assert "--yes" in unconfirmed.stderr
    assert all(each["position"] == each["end"] for each in _positions(site).values())

    dry = site.command("positions", "reset", "--to", "earliest", "--dry-run")
    assert dry.returncode == 3
    assert "read again" in dry.stdout
    assert all(each["position"] == each["end"] for each in _positions(site).values())

    done = site.command("positions", "reset", "--to", "earliest", "--yes")
    assert done.returncode == 0, done.stderr
    assert all(each["position"] == each["committed"] == 0 for each in _positions(site).values())

    site.start_worker()
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert assert_site_equals_model(site, model) == before


def test_one_partition_is_set_to_an_offset_and_a_wrong_one_is_refused(site: Site) -> None:
    history = random_history(3, events=300, segments=3, users=10, methods_per_segment=1, courses=3)
    worker = site.start_worker()
    site.produce(history)
    site.wait_settled()
    worker.terminate()
    topic = site.topic("membership")

    outside = site.command("positions", "reset", "--to", "999999", "--topic", topic, "--partition", "1", "--yes")
    assert outside.returncode == 2
    assert f"{topic}[1]: 0 to" in outside.stderr
    unknown = site.command("positions", "reset", "--to", "earliest", "--topic", "nothing.here", "--yes")
    assert unknown.returncode == 2
    assert topic in unknown.stderr
    nonsense = site.command("positions", "reset", "--to", "yesterday", "--yes")
    assert nonsense.returncode == 2

    done = site.command("positions", "reset", "--to", "1", "--topic", topic, "--partition", "1", "--yes")
    assert done.returncode == 0, done.stderr
    found = _positions(site)
    assert found[topic, 1]["position"] == 1
    assert found[topic, 0]["position"] == found[topic, 0]["end"]


def test_a_reset_to_a_time_or_to_the_end_skips_what_it_said(site: Site) -> None:
    site.produce(random_history(4, events=200, segments=3, users=10, methods_per_segment=1, courses=3))
    skipped = site.command("positions", "reset", "--to", "latest", "--yes")
    assert skipped.returncode == 0, skipped.stderr
    assert all(each["position"] == each["end"] for each in _positions(site).values())
    past = site.command("positions", "reset", "--to", "2020-01-01T00:00:00Z", "--yes")
    assert past.returncode == 0, past.stderr
    assert all(each["position"] == 0 for each in _positions(site).values())
    future = site.command("positions", "reset", "--to", "2099-01-01T00:00:00Z", "--yes")
    assert future.returncode == 0
    assert all(each["position"] == each["end"] for each in _positions(site).values())


def test_a_database_that_went_back_goes_on_where_it_stands_unless_its_positions_mean_other_records(site: Site) -> None:
    site.produce(random_history(5, events=200, segments=3, users=10, methods_per_segment=1, courses=3))
    assert site.command("positions", "reset", "--to", "latest", "--yes").returncode == 0
    with site.connect() as connection:
        connection.execute("update position set next_offset = next_offset / 2")
    stood = {place: each["position"] for place, each in _positions(site).items()}
    done = site.command("positions", "reset", "--to", "database", "--yes")
    assert done.returncode == 0, done.stderr
    assert {place: (each["position"], each["committed"]) for place, each in _positions(site).items()} == {
        place: (offset, offset) for place, offset in stood.items()
    }
    with site.connect() as connection:
        connection.execute("update position set next_offset = 1000000")
    outside = site.command("positions", "reset", "--to", "database", "--yes")
    assert outside.returncode == 2
    assert "stands at 1000000" in outside.stderr
    make_topic_anew(site, "membership", 3)
    anew = site.command("positions", "reset", "--to", "database", "--yes")
    assert anew.returncode == 2
    assert f"{site.topic('membership')}: made anew" in anew.stderr
