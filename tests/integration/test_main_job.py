"""The main job, seen from outside: records in Kafka, rows in PostgreSQL, EnrollmentChanged in Kafka (semantics §7)."""

from tests.model.model import Model
from tests.model.traffic import random_history
from tests.support.check import assert_site_equals_model
from tests.support.site import Site


def test_random_traffic_ends_in_the_models_state_with_every_change_published_once(site: Site) -> None:
    history = random_history(1, events=3000, segments=10, users=60, methods_per_segment=2, courses=8)
    site.start_worker()
    site.produce(history)
    site.wait_settled()
    model = Model()
    model.apply_batch(history)
    assert_site_equals_model(site, model)
