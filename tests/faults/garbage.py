"""Records that can never be applied, and what must be said of each: noise, cut bytes, wrong types, invalid events.

The reason given here is the contract's (§2), worked out from how the bytes were made, never by decoding them.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.faults.sending import Garbage, Headers, Reason, Topic
from tests.model.events import Event, MethodChanged, to_record, topic_of
from tests.support.wire import encode

_BELONGS = {"segments.membership": "membership", "enrollment.methods": "methods", "enrollment.sources": "sources"}


def garbage(random: Random, event: Event, topic: Topic, *, registry: bool) -> Garbage:
    """Bytes that `topic` can't hold, made from a valid event or from nothing."""
    whole = encode(*to_record(event))
    # Whether it belongs to the topic is told by its schema, before its fields are looked at.
    elsewhere = _BELONGS[topic_of(event)] != topic
    undecodable: Reason = "invalid_event" if elsewhere else "undecodable"
    noise = b"\x99" + random.randbytes(random.randint(1, 200_000 if random.random() < 0.1 else 300))
    possible = [
        Garbage(whole[: random.randint(11, len(whole) - 1)], undecodable),
        Garbage(whole + random.randbytes(random.randint(1, 9)), undecodable),
        Garbage(b"\xc3\x01" + random.randbytes(8) + whole[10:], "unknown_schema"),
        Garbage(b"", "undecodable"),
        Garbage(b'{"event_id": "%s"}' % random.randbytes(4).hex().encode(), "undecodable"),
        Garbage(noise, "undecodable"),
    ]
    if elsewhere:
        possible.append(Garbage(whole, "invalid_event"))
    if not registry:  # where there is one, an id that it doesn't know is waited for
        possible.append(Garbage(b"\0" + random.randbytes(4) + whole[10:], "unknown_schema"))
    return random.choice(possible)


def flawed(random: Random, event: Event) -> Event:
    """A valid event made invalid in itself."""
    choice = random.randrange(4)
    if choice == 0:
        return replace(event, version=-random.randint(0, 5))
    if choice == 1:
        return replace(event, event_id=f"{event.event_id[:-1]}x")
    if isinstance(event, MethodChanged):
        if choice == 2:
            return replace(event, name="n" * 256)
        return replace(event, role=None) if event.kind == "SEGMENT_SYNC" else replace(event, role="student")
    return replace(event, event_id="")


def broken(random: Random, method: MethodChanged, courses: list[str]) -> MethodChanged:
    """A method's next version that changes what never changes. It is invalid only to who knows what came before."""
    if method.deleted:
        return replace(method, deleted=False)
    if random.random() < 0.5 and len(courses) > 1:
        return replace(method, course_id=random.choice([course for course in courses if course != method.course_id]))
    if method.kind == "SEGMENT_SYNC":
        return replace(method, kind="SEGMENT_GROUP", role=None, group_id=method.event_id)
    return replace(method, kind="SEGMENT_SYNC", role="student")


def some_headers(random: Random) -> Headers:
    """None for most; some that others put there, one of them twice or without a value."""
    draw = random.random()
    if draw < 0.7:
        return ()
    if draw < 0.8:
        return (
            ("traceparent", f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-01".encode()),
        )
    return (("ce_source", b"/faults"), ("x-\u00fc", None), ("x", random.randbytes(8)), ("x", b""))
