"""The story, scene by scene: what is put in, and what has to come of it (semantics §7 in pictures).

Written from the rules, not from what the worker does: where the two differ, the demo fails.
"""

import random
from typing import Final
from uuid import uuid4

from demo.cast import (
    ADA,
    BEN,
    BERLIN,
    CHEN,
    DINA,
    EMIL,
    EVENING,
    FIRE_SAFETY,
    HIRES_LEARN,
    HIRES_SAFETY,
    MENTORS,
    MENTORS_HELP,
    NEW_HIRES,
    ONBOARDING,
    Named,
)
from demo.scene import Bytes, Effect, Event, GroupEdit, Method, Row, Scene


def _membership(what: str, verb: str, person: Named, segment: Named, version: int) -> Event:
    line = {
        "type": what,
        "event_id": str(uuid4()),
        "segment_id": segment.id,
        "user_id": person.id,
        "version": version,
    }
    return Event(line, f"{what} v{version}\n{person.name} {verb} {segment.name}")


def _joins(person: Named, segment: Named, version: int = 1) -> Event:
    return _membership("SegmentMemberAdded", "joins", person, segment, version)


def _leaves(person: Named, segment: Named, version: int = 2) -> Event:
    return _membership("SegmentMemberRemoved", "leaves", person, segment, version)


def _enrolls_oneself(person: Named, course: Named, role: str) -> Event:
    return Event(
        {
            "type": "EnrollmentSourceChanged",
            "course_id": course.id,
            "user_id": person.id,
            "source": "self",
            "version": 1,
            "status": "ACTIVE",
            "role": role,
        },
        f"EnrollmentSourceChanged v1\n{person.name} in {course.name} by `self`: {role}",
    )


def _suspension(person: Named, course: Named, version: int, *, suspended: bool) -> Event:
    return Event(
        {
            "type": "CourseSuspensionChanged",
            "course_id": course.id,
            "user_id": person.id,
            "version": version,
            "suspended": suspended,
        },
        f"CourseSuspensionChanged v{version}\n{person.name} in {course.name}: {'suspended' if suspended else 'lifted'}",
    )


def _active(*roles: str, groups: tuple[Named, ...] = (), by_hand: tuple[Named, ...] = ()) -> Row:
    return Row("ACTIVE", roles, _names(groups), _names(by_hand))


def _suspended(groups: tuple[Named, ...] = (), *, in_course: bool = False) -> Row:
    return Row("SUSPENDED", (), _names(groups), (), in_course)


def _names(things: tuple[Named, ...]) -> tuple[str, ...]:
    return tuple(thing.name for thing in things)


def _here(person: Named, change: str, row: Row | None, *more: str) -> Effect:
    return Effect(ONBOARDING, person, (change, *more), row)


_learn: Final = Method(HIRES_LEARN, ONBOARDING, NEW_HIRES, "student", BERLIN)
_learn_closed: Final = _learn.changed(visible=False)
_learn_open: Final = _learn_closed.changed(visible=True)
_learn_evening: Final = _learn_open.changed(role="trainee", group=EVENING)
_help: Final = Method(MENTORS_HELP, ONBOARDING, MENTORS, "tutor", BERLIN)
_safety: Final = Method(HIRES_SAFETY, FIRE_SAFETY, NEW_HIRES, "student", on_removal="SUSPEND")
_ben_returns: Final = _joins(BEN, NEW_HIRES, 3)

_OPENING: Final = (
    Scene(
        "A segment gets its members",
        "Members alone enroll nobody: no course asks for this segment yet.",
        ((_joins(ADA, NEW_HIRES), _joins(BEN, NEW_HIRES)),),
    ),
    Scene(
        "A course asks for the segment",
        "An activated method enrolls everybody who is a member already, with its role and into its group.",
        ((_learn.event(),),),
        (
            _here(ADA, "ENROLLED", _active("student", groups=(BERLIN,))),
            _here(BEN, "ENROLLED", _active("student", groups=(BERLIN,))),
        ),
    ),
    Scene(
        "People join and leave",
        "Whoever joins the segment is enrolled, whoever leaves it is unenrolled and out of the group.",
        ((_joins(CHEN, NEW_HIRES), _leaves(BEN, NEW_HIRES)),),
        (_here(CHEN, "ENROLLED", _active("student", groups=(BERLIN,))), _here(BEN, "UNENROLLED", None)),
    ),
    Scene(
        "A second method overlaps",
        "Mentors come to the same course and group as tutors; Ada is in both segments and has both roles.",
        ((_joins(ADA, MENTORS), _joins(DINA, MENTORS), _help.event()),),
        (
            _here(ADA, "UPDATED", _active("student", "tutor", groups=(BERLIN,))),
            _here(DINA, "ENROLLED", _active("tutor", groups=(BERLIN,))),
        ),
    ),
    Scene(
        "Leaving one of two segments",
        "Ada is no new hire any more, but still a mentor: the role goes, the group stays while anything wants it.",
        ((_leaves(ADA, NEW_HIRES),),),
        (_here(ADA, "UPDATED", _active("tutor", groups=(BERLIN,))),),
    ),
    Scene(
        "The eye is closed",
        "A hidden method suspends those it alone keeps in the course; who joins meanwhile is not enrolled.",
        ((_learn_closed.event(),), (_joins(EMIL, NEW_HIRES),)),
        (_here(CHEN, "SUSPENDED", _suspended((BERLIN,))),),
    ),
    Scene(
        "The eye is opened again",
        "The suspended come back, and who joined meanwhile is enrolled now.",
        ((_learn_open.event(),),),
        (
            _here(CHEN, "REACTIVATED", _active("student", groups=(BERLIN,))),
            _here(EMIL, "ENROLLED", _active("student", groups=(BERLIN,))),
        ),
    ),
    Scene(
        "Role and group of a method change",
        "A change of the method reaches everybody it enrolled, each told once; mentors are not touched.",
        ((_learn_evening.event(),),),
        (
            _here(CHEN, "UPDATED", _active("trainee", groups=(EVENING,))),
            _here(EMIL, "UPDATED", _active("trainee", groups=(EVENING,))),
        ),
    ),
)

_BESIDE_SEGMENTS: Final = (
    Scene(
        "Another way into the course",
        "Chen enrolls herself, then leaves the segment: its role and group go, her own enrollment is not touched.",
        ((_enrolls_oneself(CHEN, ONBOARDING, "guest"),), (_leaves(CHEN, NEW_HIRES),)),
        (_here(CHEN, "UPDATED", _active("guest"), "UPDATED"),),
    ),
    Scene(
        "Somebody is suspended in the course",
        "A suspension by the course itself holds, whatever segments and methods say.",
        ((_suspension(DINA, ONBOARDING, 1, suspended=True),),),
        (_here(DINA, "SUSPENDED", _suspended((BERLIN,), in_course=True)),),
    ),
    Scene(
        "The suspension is lifted",
        "Nothing was lost: what the segment gives is back.",
        ((_suspension(DINA, ONBOARDING, 2, suspended=False),),),
        (_here(DINA, "REACTIVATED", _active("tutor", groups=(BERLIN,))),),
    ),
    Scene(
        "A teacher adds somebody to a group",
        "Plain SQL on the view course_group_member; the change is published like any other.",
        ((GroupEdit("INSERT", ONBOARDING, EVENING, DINA),),),
        (_here(DINA, "UPDATED", _active("tutor", groups=(BERLIN, EVENING), by_hand=(EVENING,))),),
    ),
    Scene(
        "What was made by hand may go, what is managed may not",
        "The way out of a managed group is to leave the segment, and nobody is in a group who is not in the course.",
        (
            (
                GroupEdit("DELETE", ONBOARDING, EVENING, DINA),
                GroupEdit("DELETE", ONBOARDING, BERLIN, DINA, refused="SW002"),
                GroupEdit("INSERT", ONBOARDING, EVENING, BEN, refused="SW001"),
            ),
        ),
        (_here(DINA, "UPDATED", _active("tutor", groups=(BERLIN,))),),
    ),
)

_ENDING: Final = (
    Scene(
        "The same segment on a second course",
        "Each course decides what leaving means: Emil is unenrolled here, and suspended where his results must stay.",
        ((_safety.event(),), (_leaves(EMIL, NEW_HIRES),)),
        (
            _here(EMIL, "UNENROLLED", None),
            Effect(FIRE_SAFETY, EMIL, ("ENROLLED", "SUSPENDED"), _suspended()),
        ),
    ),
    Scene(
        "A record that is no event",
        "It is set aside as a dead letter, bytes unchanged; what comes with it goes on as if it were not there.",
        (
            (
                Bytes("segments.membership", random.Random(3).randbytes(24), "undecodable", "24 random bytes"),
                _ben_returns,
            ),
        ),
        (
            _here(BEN, "ENROLLED", _active("trainee", groups=(EVENING,))),
            Effect(FIRE_SAFETY, BEN, ("ENROLLED",), _active("student")),
        ),
    ),
    Scene(
        "The same event again, and a late one",
        "A repeated event and one older than what is known do nothing, however often and late they arrive.",
        ((_ben_returns, _leaves(BEN, NEW_HIRES, 2)),),
    ),
    Scene(
        "The method is deleted",
        "Whoever was in the course by it alone is unenrolled; the other method, course and ways in stay as they are.",
        ((_learn_evening.changed(deleted=True).event(),),),
        (_here(BEN, "UNENROLLED", None),),
    ),
)

STORY: Final = (*_OPENING, *_BESIDE_SEGMENTS, *_ENDING)
