"""A header's name that isn't UTF-8, which other clients can write and Python's can't read: asking twice ends the process."""

from __future__ import annotations

from tests.model.events import MembershipChanged, to_record
from tests.support import raw_producer
from tests.support.site import Site
from tests.support.wire import encode

SEGMENT, USER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
EVENT = "00000000-0000-4000-8000-00000000000c"


def test_a_record_is_applied_and_garbage_is_a_dead_letter_though_its_headers_cannot_be_read(site: Site) -> None:
    name, fields = to_record(MembershipChanged(EVENT, 1_700_000_000_000_000, SEGMENT, USER, 1, True))
    address, topic = site.stack.kafka.bootstrap_servers, site.topic("membership")
    raw_producer.produce(address, topic, encode(name, fields), (b"bad\xff\xfe", b"v"))
    raw_producer.produce(address, topic, b"garbage", (b"bad\xff\xfe", b"v"))
    worker = site.start_worker()
    site.wait_settled()
    assert site.query("select is_member from membership where user_id = %s", USER) == [{"is_member": True}]
    (letter,) = site.dead_letters()
    assert letter.value == b"garbage"
    assert b"headers can't be read" in (letter.header("dlq_detail") or b"")
    assert worker.terminate() == 0
