"""What makes an input event invalid (contract §2): by itself, or against the method it follows.

Answers with words for the dead letter's detail, None for a valid event; it must never decide about versions.
"""

import re
from collections.abc import Iterator
from dataclasses import fields

from tests.model.events import Event, MethodChanged, SourceChanged

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
LONGEST_STRING = 255


def flaw(event: Event) -> str | None:
    """What is wrong with an event whatever came before it, or None."""
    return next(_flaws(event), None)


def flaw_after(newest: MethodChanged, event: MethodChanged) -> str | None:
    """What is wrong with a later version of a known method, or None."""
    if event.course_id != newest.course_id:
        return "course_id of a method never changes"
    if event.kind != newest.kind:
        return "kind of a method never changes"
    if newest.deleted and not event.deleted:
        return "deletion of a method is final"
    return None


def _flaws(event: Event) -> Iterator[str]:
    if event.version < 1:
        yield "version is below 1"
    for field in fields(event):
        value = getattr(event, field.name)
        if not isinstance(value, str):
            continue
        if field.name.endswith("_id"):
            if not UUID.fullmatch(value):
                yield f"{field.name} is not a uuid in canonical form"
        elif len(value) > LONGEST_STRING or "\0" in value:
            yield f"{field.name} is longer than {LONGEST_STRING} characters or contains NUL"
    if isinstance(event, SourceChanged) and UUID.fullmatch(event.source):
        yield "source is a uuid, which names a method"
    if isinstance(event, MethodChanged):
        yield from _flaws_of_method(event)


def _flaws_of_method(method: MethodChanged) -> Iterator[str]:
    if method.kind == "SEGMENT_SYNC" and method.role is None:
        yield "SEGMENT_SYNC needs a role"
    if method.kind == "SEGMENT_GROUP" and method.group_id is None:
        yield "SEGMENT_GROUP needs a group_id"
    if method.kind == "SEGMENT_GROUP" and method.role is not None:
        yield "SEGMENT_GROUP has no role"
