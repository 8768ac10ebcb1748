"""Who and what the story is about. Names are for people, ids for events; an id follows from its name.

So the ids are the same in every run, and what was printed once can be pasted into the next. Must never hold two things
of one name: the screen could not tell them apart.
"""

import re
from typing import Final, NamedTuple
from uuid import NAMESPACE_DNS, UUID, uuid5

_NAMESPACE: Final = uuid5(NAMESPACE_DNS, "demo.user-segment-sync")
_A_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Named(NamedTuple):
    """A person, course, segment, group or method."""

    name: str

    @property
    def id(self) -> str:
        """Its id as the events carry it."""
        return str(uuid5(_NAMESPACE, self.name))


ADA, BEN, CHEN, DINA, EMIL, FARID = PEOPLE = tuple(map(Named, ("Ada", "Ben", "Chen", "Dina", "Emil", "Farid")))
ONBOARDING, FIRE_SAFETY = COURSES = (Named("Onboarding"), Named("Fire safety"))
NEW_HIRES, MENTORS = SEGMENTS = (Named("New hires Berlin"), Named("Mentors"))
BERLIN, EVENING = GROUPS = (Named("Berlin"), Named("Evening"))
HIRES_LEARN, MENTORS_HELP, HIRES_SAFETY = METHODS = (
    Named("New hires learn"),
    Named("Mentors help"),
    Named("New hires, safety"),
)

_NAMES: Final = {one.id: one.name for one in (*PEOPLE, *COURSES, *SEGMENTS, *GROUPS, *METHODS)}


def name_of(id_: str | UUID) -> str:
    """The name behind an id; of an id the story doesn't know, the id itself."""
    return _NAMES.get(str(id_), str(id_))


def with_names(text: str) -> str:
    """A text, as of an error, with names where it has ids."""
    return _A_UUID.sub(lambda found: name_of(found[0]), text)
