"""What the page shows and in which words: plain values made of what was observed, for the template to lay out.

Every text from outside stays plain text here; the template escapes it. Must never compute what the status document doesn't
say: it only adds up, compares with before, and finds words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sync_worker.service.document import Document
from sync_worker.service.health import Check, Health
from sync_worker.service.history import KEEP_S, History
from sync_worker.service.page.observing import Change, Observed, Recent
from sync_worker.service.page.words import Spark, clock_time, duration, number, rate, spark
from sync_worker.service.verdict import State, Verdict, unreadable, verdict

_FEW_PARTITIONS = 12
_CAUSES = {
    "SegmentMemberAdded": "member added",
    "SegmentMemberRemoved": "member removed",
    "EnrollmentMethodChanged": "method changed",
    "EnrollmentSourceChanged": "source changed",
    "CourseSuspensionChanged": "suspension changed",
    "RECONCILE": "reconcile",
    "HOLD_RELEASED": "hold released",
    "REPUBLISH": "republish",
    "SQL": "changed by hand",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the large numbers."""

    name: str
    value: str
    unit: str
    note: str
    trend: Spark


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """Where a partition stands, and who has it."""

    number: int
    position: int | None
    end: int
    lag: int
    trend: Spark
    worker: str


@dataclass(frozen=True, slots=True)
class TopicPart:
    """An input topic with its partitions. Many of them are folded away, unless the reader opens them."""

    name: str
    lag: int
    trend: Spark
    partitions: Sequence[PartitionRow]
    open: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Something done in steps: a backfill, or the release of a hold. total None: not counted yet."""

    title: str
    about: str
    ids: Mapping[str, str]
    done: int
    total: int | None
    since: str
    takes: str


@dataclass(frozen=True, slots=True)
class View:
    """The whole page. known False: nothing could be read since this worker started."""

    verdict: Verdict
    notice: str
    at: str
    known: bool
    document: Document
    figures: Sequence[Figure]
    topics: Sequence[TopicPart]
    work: Sequence[Work]
    recent: Recent
    loops: Sequence[Check]
    conditions: Sequence[Check]
    holder: str
    group: str
    now: datetime


def view_of(seen: Observed, health: Health, *, holder: str, group: str, now: datetime) -> View:
    """now: the time of day, with its zone; `seen.now` is by the monotonic clock of the readings."""
    live, ready = health.live(), health.ready()
    unready = [check for check in ready.checks if not check.ok]
    document = seen.known.document if seen.known else None
    answered = seen.latest is None or seen.latest.document is not None
    if document is None or not answered:
        error = seen.latest.error if seen.latest else "nothing has been read yet"
        summary = unreadable(error, unready)
    else:
        silent = [check for check in live.checks if not check.ok]
        summary = verdict(document, silent=silent, unready=unready)
    document = document or {}
    return View(
        verdict=summary,
        notice=_notice(seen, answered=answered),
        at=clock_time(datetime.fromisoformat(document["at"])) if document else "",
        known=bool(document),
        document=document,
        figures=_figures(seen.history, document) if document else (),
        topics=_topics(seen.history, document) if document else (),
        work=_work(document, now),
        recent=seen.recent,
        loops=live.checks,
        conditions=ready.checks,
        holder=holder,
        group=group,
        now=now,
    )


def _notice(seen: Observed, *, answered: bool) -> str:
    """Why the numbers below are not those of now, where they aren't."""
    if seen.latest is None or seen.known is None:
        return "" if answered or seen.latest is None else seen.latest.error
    age_s = seen.now - seen.known.at
    if not answered:
        return f"The numbers below are {duration(age_s)} old."
    return f"The status takes long to read: the numbers below are {duration(age_s)} old." if age_s > 20 else ""


def _figures(history: History, document: Document) -> list[Figure]:
    samples = history.samples
    newest = samples[-1]
    backlog = history.backlog_age()
    behind_s = backlog.seconds + newest.oldest_age_s
    trends = {
        "lag": spark(history.series(lambda sample: sample.total_lag), KEEP_S),
        "in": spark(history.series(lambda sample: sample.records_per_s), KEEP_S),
        "out": spark(history.series(lambda sample: sample.published_per_s), KEEP_S),
        "unpublished": spark(history.series(lambda sample: sample.unpublished), KEEP_S),
    }
    waiting = (
        f"the oldest for {'at least ' if backlog.at_least else ''}{duration(backlog.seconds)}"
        if newest.total_lag
        else "nothing waits"
    )
    unpublished = f"the oldest for {duration(newest.oldest_age_s)}" if newest.unpublished else "nothing waits"
    present = sum(worker["present"] for worker in document["workers"])
    return [
        Figure("Records to apply", number(newest.total_lag), "", waiting, trends["lag"]),
        Figure("Events to publish", number(newest.unpublished), "", unpublished, trends["unpublished"]),
        Figure("In", rate(newest.records_per_s), "records/s", f"{present} at work", trends["in"]),
        Figure("Out", rate(newest.published_per_s), "events/s", f"end to end {duration(behind_s)}", trends["out"]),
    ]


def _topics(history: History, document: Document) -> list[TopicPart]:
    owners = {
        (topic, partition): short(worker["holder"])
        for worker in document["workers"]
        if worker["present"]
        for topic, partitions in worker["partitions"].items()
        for partition in partitions
    }
    rows: dict[str, list[PartitionRow]] = {}
    for entry in document["lag"]:
        place = (entry["topic"], entry["partition"])
        rows.setdefault(entry["topic"], []).append(
            PartitionRow(
                entry["partition"],
                entry["position"],
                entry["end"],
                entry["lag"],
                spark(history.series(lambda sample, at=place: sample.lag.get(at, 0)), KEEP_S),  # type: ignore[misc]  # bound at once
                owners.get(place, ""),
            )
        )
    return [
        TopicPart(
            topic,
            sum(row.lag for row in partitions),
            spark(history.series(lambda sample, name=topic: sample.topic_lag(name)), KEEP_S),  # type: ignore[misc]  # bound at once
            partitions,
            open=len(partitions) <= _FEW_PARTITIONS,
        )
        for topic, partitions in rows.items()
    ]


def _work(document: Document, now: datetime) -> list[Work]:
    backfills = [
        Work(
            each["name"],
            f"from {each['segment_name']}" if each["segment_name"] else "",
            {"method": each["method_id"], "course": each["course_id"], "segment": each["segment_id"]},
            each["done"],
            each["total"],
            each["since"],
            _left(each, now),
        )
        for each in document.get("backfills", ())
    ]
    releases = [
        Work(
            "Released removals",
            f"of {each['segment_name']}" if each["segment_name"] else "",
            {"segment": each["segment_id"]},
            each["done"],
            each["total"],
            each["since"],
            _left(each, now),
        )
        for each in document.get("releases", ())
    ]
    return [*releases, *backfills]


def _left(work: Mapping[str, Any], now: datetime) -> str:
    """How long the rest takes at the pace so far."""
    done, total = work["done"], work["total"]
    running_s = (now - datetime.fromisoformat(work["since"])).total_seconds()
    if not done or not total or running_s <= 0:
        return ""
    return f"about {duration(max(0.0, running_s * (total - done) / done))} to go"


def short(holder: str) -> str:
    """A worker's host and process, without the part that only makes the name unique."""
    return holder.rpartition(":")[0] or holder


def change_word(change: Change) -> str:
    """What a change did, in lower case."""
    return str(change.get("change", "")).lower()


def cause_word(change: Change) -> str:
    """What was behind a change; a cause that is not known here by its own name."""
    cause = str(change.get("cause", {}).get("type", ""))
    return _CAUSES.get(cause, cause)


def state_class(state: State) -> str:
    """The style of a state."""
    return f"state-{state.value}"
