"""Is every record that can never be applied a dead letter, once, with its bytes, key and headers as they came (contract §2)?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.checkers.expected import Expected, Where
from tests.faults.checkers.violation import Violation
from tests.faults.history import History
from tests.support.kafka import KafkaRecord

_OURS = ("dlq_reason", "dlq_detail", "dlq_topic", "dlq_partition", "dlq_offset", "dlq_timestamp")


def check_dead_letters(history: History, expected: Expected) -> Iterator[Violation]:
    short = {topic: name for name, topic in history.topics.items()}
    found: defaultdict[Where, list[KafkaRecord]] = defaultdict(list)
    for letter in history.dead_letters:
        topic, partition, offset = (letter.header(f"dlq_{name}") or b"?" for name in ("topic", "partition", "offset"))
        if not partition.isdigit() or not offset.isdigit():
            yield _wrong(f"offset {letter.offset}", f"does not say where it comes from: {letter!r:.300}")
            continue
        found[short.get(topic.decode(), topic.decode()), int(partition), int(offset)].append(letter)
    for where in sorted(expected.dead_letters.keys() - found.keys()):
        each, reason = expected.dead_letters[where]
        yield Violation("dead_letters", "lost", _name(where), f"{reason}, and no dead letter: {each.content!r:.300}")
    for where in sorted(found.keys() - expected.dead_letters.keys()):
        yield _wrong(_name(where), f"a dead letter that should be none: {found[where][0]!r:.400}")
    for where in sorted(found.keys() & expected.dead_letters.keys()):
        letters = found[where]
        each, reason = expected.dead_letters[where]
        if len(letters) > 1:
            yield Violation("dead_letters", "repeated", _name(where), f"there {len(letters)} times")
        letter = letters[0]
        for what, is_, was in (
            ("value", letter.value, each.record.value),
            ("key", letter.key, each.record.key),
            ("headers", letter.headers[: -len(_OURS)], each.record.headers),
            ("names of our headers", tuple(name for name, _ in letter.headers[-len(_OURS) :]), _OURS),
            ("reason", letter.header("dlq_reason"), reason.encode()),
        ):
            if is_ != was:
                yield _wrong(
                    _name(where),
                    f"its {what} is {is_!r:.150}, should be {was!r:.150}; {letter.header('dlq_detail')!r:.200}",
                )


def _name(where: Where) -> str:
    return f"{where[0]}/{where[1]}@{where[2]}"


def _wrong(key: str, detail: str) -> Violation:
    return Violation("dead_letters", "dead_letter", key, detail)
