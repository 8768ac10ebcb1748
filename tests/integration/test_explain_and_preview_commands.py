"""`explain` and `preview` as a user runs them: words, tables, JSON, exit codes, and the history from a real topic."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from sync_worker.kafka.partitioner import partition_of
from tests.model.events import MethodChanged, to_record
from tests.support.facts import member, method, new_id, source
from tests.support.kafka import add_partitions
from tests.support.site import Site


def _explained(site: Site, *arguments: str) -> dict[str, Any]:
    done = site.command("explain", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _json(changed: MethodChanged, **without: object) -> str:
    name, fields = to_record(changed)
    return json.dumps({"type": name, **fields, **without}, indent=2)


def on_a_terminal(site: Site, *arguments: str) -> str:
    """What the command writes when stdout is a terminal."""
    outside, inside = pty.openpty()
    environment = {**site.environment, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "sync_worker", *arguments]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=inside, stderr=subprocess.PIPE):
        os.close(inside)
        written = b""
        try:
            while chunk := os.read(outside, 65536):
                written += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(outside)
    return written.decode()


def test_a_person_is_explained_and_their_history_is_read_from_the_topic(site: Site) -> None:
    opened = method(new_id(), new_id(), name="Tutors \x1b[2J", segment_name="All tutors")
    course, user = opened.course_id, new_id()
    site.start_worker()
    site.produce([opened])
    site.wait_settled()
    for version in range(1, 5):
        site.produce([member(opened.segment_id, user, version, is_member=version % 2 == 1)])
        site.wait_settled()
    site.produce([source(course, user, 1), member(opened.segment_id, new_id(), 1)])
    site.wait_settled()

    # Any spelling of a uuid will do.
    document = _explained(site, course.upper(), UUID(user).hex, "--history")
    assert (document["course_id"], document["user_id"]) == (course, user)
    assert (document["status"], document["roles"]) == ("ACTIVE", ["teacher"])
    history = document["history"]
    assert [change["change"] for change in history["changes"]] == ["ENROLLED", "UNENROLLED"] * 2 + ["ENROLLED"]
    assert history["complete"] is True
    assert history["partitions"] == [partition_of(f"{course}:{user}".encode(), 3)]
    published = [each.event for each in site.changes() if each.event["user_id"] == user]
    assert [change["event_id"] for change in history["changes"]] == [event["event_id"] for event in published]
    assert "history" not in _explained(site, course, user)

    plain = site.command("explain", course, user, "--history")
    assert plain.returncode == 0
    assert plain.stdout.startswith("ACTIVE: in the course through manual\n")
    assert "not a member of All tutors: removed 2026-01-01T00:00:00Z (version 4)" in plain.stdout
    assert "\x1b" not in plain.stdout

    shown = on_a_terminal(site, "explain", course, user, "--history")
    assert "Tutors \\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "━" in shown or "─" in shown
    assert "REACTIVATED" not in shown
    assert shown.count("UNENROLLED") == 2


def test_wrong_ids_and_missing_ones_are_wrong_usage(site: Site) -> None:
    for arguments in (("explain", "nonsense", new_id()), ("explain", new_id(), "12"), ("explain", new_id())):
        done = site.command(*arguments)
        assert done.returncode == 2, done.stdout
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr
    unknown = site.command("explain", new_id(), f"{{{new_id()}}}")
    assert unknown.returncode == 0
    assert unknown.stdout.startswith("ABSENT: never heard of course ")


def test_a_history_is_whole_though_the_topic_got_more_partitions_and_starts_anew_after_an_erasure(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(2)
    opened = method(new_id(), new_id())
    # Somebody whose key goes elsewhere once there are seven partitions.
    user = next(
        user
        for user in iter(new_id, None)
        if partition_of(f"{opened.course_id}:{user}".encode(), 2)
        != partition_of(f"{opened.course_id}:{user}".encode(), 7)
    )
    worker = site.start_worker()
    site.produce([opened, member(opened.segment_id, user, 1)])
    site.wait_settled()
    site.produce([member(opened.segment_id, user, 2, is_member=False)])
    site.wait_settled()
    worker.terminate()
    add_partitions(site.stack.kafka.bootstrap_servers, site.topic("changes"), 7)
    site.start_worker()
    site.produce([member(opened.segment_id, user, 3)])
    site.wait_settled()

    key = f"{opened.course_id}:{user}".encode()
    assert len({each.record.partition for each in site.changes() if each.record.key == key}) == 2
    history = _explained(site, opened.course_id, user, "--history")["history"]
    assert [change["version"] for change in history["changes"]] == [1, 2, 3]
    assert history["complete"] is True
    assert {partition_of(key, 2), partition_of(key, 7)} <= set(history["partitions"])

    erased = site.command("erase", user, "--yes")
    assert erased.returncode == 0, erased.stderr
    site.wait_settled()
    document = _explained(site, opened.course_id, user, "--history")
    assert document["version"] is None
    assert (document["history"]["changes"], document["history"]["erased"]) == ([], True)
    site.produce([member(opened.segment_id, user, 4)])
    site.wait_settled()
    document = _explained(site, opened.course_id, user, "--history")
    assert [(change["version"], change["change"]) for change in document["history"]["changes"]] == [(1, "ENROLLED")]
    assert document["history"]["complete"] is True


def test_a_record_of_theirs_that_cannot_be_read_is_named_and_the_rest_is_shown(site: Site) -> None:
    opened, user = method(new_id(), new_id()), new_id()
    site.start_worker()
    site.produce([opened])
    site.wait_settled()
    site.produce([member(opened.segment_id, user, 1)])
    site.wait_settled()
    site.produce_raw("changes", b"nonsense", key=f"{opened.course_id}:{user}".encode())
    done = site.command("explain", opened.course_id, user, "--history", "--json")
    assert done.returncode == 0
    history = json.loads(done.stdout)["history"]
    assert [change["version"] for change in history["changes"]] == [1]
    assert history["complete"] is False
    assert len(history["unreadable"]) == 1
    assert history["unreadable"][0] in done.stderr


def test_a_method_is_previewed_from_a_file_and_then_published(site: Site) -> None:
    opened = method(new_id(), new_id(), name="Tutors", segment_name="All tutors")
    users = [new_id() for _ in range(7)]
    site.start_worker()
    site.produce([member(opened.segment_id, user, 1) for user in users])
    site.wait_settled()
    file = site.directory / "method.json"
    file.write_text(_json(opened), "utf-8")

    plain = site.command("preview", str(file))
    assert plain.returncode == 0, plain.stderr
    assert f"SEGMENT_SYNC method Tutors ({opened.method_id}), version 1" in plain.stdout
    assert "7 EnrollmentChanged would be published" in plain.stdout
    assert "enrolled\t7\t7\t0\t7 ACTIVE" in plain.stdout
    assert plain.stdout.count("ABSENT\tACTIVE, student") == 5

    said = json.loads(site.command("preview", str(file), "--json").stdout)
    assert (said["verdict"], said["detail"], said["stored"], said["events"]) == ("applied", None, None, 7)
    assert {one["user_id"] for one in said["changes"]["ENROLLED"]["sample"]} < set(users)
    assert site.changes() == []
    assert site.query("select from method") == []

    published = site.command("publish", "-", stdin=json.dumps(json.loads(_json(opened))))
    assert published.returncode == 0, published.stderr
    site.wait_settled()
    assert len(site.changes()) == said["events"]
    shown = on_a_terminal(site, "preview", str(file))
    assert "is applied already, with the same content: nothing would happen" in shown


def test_what_the_worker_would_not_apply_is_said_in_its_words_and_is_exit_code_3(site: Site) -> None:
    stored = method(new_id(), new_id(), version=5)
    gone = method(new_id(), new_id(), version=2, deleted=True)
    site.start_worker()
    site.produce([stored, gone])
    site.wait_settled()
    cases = (
        (replace(stored, version=4), "stale", "version 4 of method"),
        (replace(stored, role="tutor"), "version_conflict", "was applied with other content"),
        (replace(stored, version=6, course_id=new_id()), "invalid_event", "course_id of method"),
        (replace(gone, version=3, deleted=False), "invalid_event", "was deleted, which is final"),
    )
    for changed, verdict, words in cases:
        done = site.command("preview", "-", "--json", stdin=_json(changed))
        assert done.returncode == 3, done.stderr
        document = json.loads(done.stdout)
        assert document["verdict"] == verdict
        assert words in document["detail"]
        assert document["events"] == 0
        if verdict != "stale":
            site.produce([changed])
    site.wait_settled()
    details = [letter.header("dlq_detail") or b"" for letter in site.dead_letters()]
    said = [
        json.loads(site.command("preview", "-", "--json", stdin=_json(changed)).stdout) for changed, *_ in cases[1:]
    ]
    assert sorted(details) == sorted(document["detail"].encode() for document in said)


def test_a_file_that_publish_would_refuse_is_refused_in_its_words(site: Site) -> None:
    opened = method(new_id(), new_id())
    missing = site.command("preview", str(site.directory / "nothing.json"))
    assert missing.returncode == 2
    for text, words in (
        ("{", "not a JSON object"),
        (_json(opened, active="yes"), "active: 'yes' is not true or false"),
        (_json(opened, role=None), "a SEGMENT_SYNC method needs a role"),
        (
            json.dumps({"type": "SegmentMemberAdded", "segment_id": new_id(), "user_id": new_id()}),
            "type: preview takes",
        ),
    ):
        done = site.command("preview", "-", stdin=text)
        assert done.returncode == 1, text
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    defaults = {
        key: value
        for key, value in json.loads(_json(opened)).items()
        if key not in {"type", "event_id", "occurred_at", "version"}
    }
    done = site.command("preview", "-", "--json", stdin="\ufeff" + json.dumps(defaults))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"]["version"] > 1_700_000_000_000_000
