"""Text that means harm, in every place where a publisher or an operator may put text: it is stored as it is, and does nothing.

SQL keeps it to the letter; a log event stays one line; nothing that is shown steers a terminal or a browser.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest

from devstack import Stack
from tests.model.events import Event, to_record
from tests.model.model import Model
from tests.support.check import assert_site_equals_model
from tests.support.databases import copy_database, drop_database
from tests.support.facts import member, method, new_id, source
from tests.support.site import Site, wait_for

# A dozen commands, each a process of its own.
pytestmark = pytest.mark.timeout(900)

TEXTS = (
    "'; drop schema sync_worker cascade; --",
    "\"); delete from sync_worker.membership where ('1'='1",
    "$$; select pg_sleep(60); $$ \\",
    "%s %(name)s %d %n {0} {} {name!r} ${jndi:ldap://x} $(reboot) `reboot`",
    "two\nlines\r\n2026-01-01T00:00:00Z [error] forged",
    '"}\n{"level": "critical", "event": "forged"}',
    "\x1b[2J\x1b]0;title\x07 \x9b31m \x08\x7f",
    "\u202e\u2066abc\u2069 \u2028 \u2029 \u200f \ufeff",
    "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;{{7*7}}{% raw %}",
    "[bold red]rich[/] [link=http://x]y[/link]",
    "\U0001d11e\u0301 ÄÖ ﷺ",
)
# What a terminal, a reader of lines or a reader's eyes act on; a table may use tabs and line ends of its own.
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
INSERT = "insert into sync_worker.course_group_member (course_id, group_id, user_id) values (%s, %s, %s)"
DELETE = "delete from sync_worker.course_group_member where course_id = %s and group_id = %s and user_id = %s"
TABLES = "select count(*) as n from information_schema.tables where table_schema = 'sync_worker'"


class Hostile:
    """A site to which each text came in every field that takes one, and what it must look like."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tables = site.query(TABLES)
        self.methods = [
            method(new_id(), new_id(), name=text, segment_name=text, role=text, group_id=new_id()) for text in TEXTS
        ]
        self.users = [new_id() for _ in TEXTS]
        events: list[Event] = [*self.methods]
        for text, made, user in zip(TEXTS, self.methods, self.users, strict=True):
            events += [
                member(made.segment_id, user, 1),
                replace(source(made.course_id, user, 1), source=text, role=text),
            ]
        self.model = Model()
        self.model.apply_batch(events)
        self.worker = site.start_worker(log_level="debug")
        site.produce(events)
        for text in TEXTS:
            self._produce_rejected(text)
        site.wait_settled()

    def _produce_rejected(self, text: str) -> None:
        """Ids, header names, header values and keys are text as well; and a record that is no event says what it is."""
        bad = replace(member(new_id(), text, 1), event_id=text)
        self.site.produce([bad])
        name = text.encode("utf-8", "replace").decode().replace("\0", "")
        headers = [(name, name.encode()), ("traceparent", name.encode()), ("__key_schema_id", b"\x1b[2J")]
        self.site.produce_raw("membership", f"{{{text}".encode(), key=text.encode(), headers=headers)
        self.site.produce_raw("membership", None, key=text.encode(), headers=headers)


@pytest.fixture(scope="module")
def hostile(stack: Stack, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    directory: Path = tmp_path_factory.mktemp("hostile")
    url = copy_database(stack, "hostile", template)
    site = Site(stack, url, directory, {"SYNC_WORKER_CONSUMER_GROUP": "g'; drop table x; -- %s {0} \u00e4"})
    site.create_topics()
    yield Hostile(site)
    site.close()
    drop_database(stack, "hostile")


def test_what_is_stored_and_published_is_the_text_to_the_letter(hostile: Hostile) -> None:
    site = hostile.site
    assert_site_equals_model(site, hostile.model)
    stored = {
        (row["name"], row["segment_name"], row["role"])
        for row in site.query("select name, segment_name, role from method")
    }
    assert stored == {(text, text, text) for text in TEXTS}
    assert site.query(TABLES) == hostile.tables
    roles = {role for change in site.changes() for role in change.event["after"]["roles"]}
    assert roles == set(TEXTS)


def test_dead_letters_bring_bytes_keys_and_headers_back_as_they_were(hostile: Hostile) -> None:
    letters = hostile.site.dead_letters()
    assert len(letters) == 2 * len(TEXTS)
    by_value = {letter.value: letter for letter in letters}
    for text in TEXTS:
        letter = by_value[f"{{{text}".encode()]
        assert letter.key == text.encode()
        assert letter.headers[0] == (text, text.encode())
    for letter in letters:
        assert ACTS.search((letter.header("dlq_detail") or b"").decode()) is None


def test_the_group_view_names_methods_and_segments_to_the_letter(hostile: Hostile) -> None:
    with psycopg.connect(hostile.site.database_url, autocommit=True) as lms:
        for made, user, text in zip(hostile.methods, hostile.users, TEXTS, strict=True):
            with pytest.raises(psycopg.Error) as refused:
                lms.execute(DELETE, (made.course_id, made.group_id, user))
            assert refused.value.sqlstate == "SW002"
            assert (refused.value.diag.message_primary or "").count(text) >= 1
            lms.execute(INSERT, (made.course_id, group := new_id(), user))
            assert lms.execute(DELETE, (made.course_id, group, user)).rowcount == 1


def test_every_log_event_is_one_line_of_json_and_none_is_forged(hostile: Hostile) -> None:
    # The worker goes on, and may be in the middle of a line.
    text = wait_for(lambda: (said := hostile.worker.log()).endswith("\n") and said, what="the end of a line")
    lines = text.split("\n")
    assert lines.pop() == ""
    events = [json.loads(line) for line in lines]
    assert not any(event["event"] == "forged" or event["level"] == "critical" for event in events)
    assert text.isascii() or ACTS.search(text.replace("\n", "")) is None


def test_a_console_log_cannot_be_steered(hostile: Hostile) -> None:
    console = hostile.site.start_worker(log_format="console", log_level="debug")
    for text in TEXTS:
        hostile.site.produce_raw("membership", None, key=text.encode())
        hostile.site.produce_raw("membership", f"{{{text}".encode(), key=text.encode(), headers=[(text, text.encode())])
    hostile.site.wait_settled()
    hostile.worker.terminate()
    console.terminate()
    assert ACTS.search(console.log()) is None
    assert not any(line.startswith(("2026-01-01T00:00:00Z [error] forged", "{")) for line in console.log().splitlines())
    hostile.worker = hostile.site.start_worker()


COMMANDS: dict[str, Callable[[Hostile], list[list[str]]]] = {
    "status": lambda _: [["status"], ["status", "--json"]],
    # Each way once for some of the texts: a command takes seconds to start on a busy machine.
    "explain": lambda h: [
        ["explain", made.course_id, user, *(["--json"] if number % 3 == 0 else ["--history"] if number % 3 == 1 else [])]
        for number, (made, user) in enumerate(zip(h.methods, h.users, strict=True))
    ],
    "tail": lambda _: [["tail", "--from-beginning", "--until-end"], ["tail", "--dead-letters", "--from-beginning", "--until-end"]],
    "dlq": lambda _: [["dlq", "list"], ["dlq", "list", "--json"]],
    "reconcile": lambda _: [["reconcile", "--dry-run"]],
}  # fmt: skip


@pytest.mark.parametrize("what", COMMANDS)
def test_no_command_shows_what_steers_a_terminal(hostile: Hostile, what: str) -> None:
    for arguments in COMMANDS[what](hostile):
        done = hostile.site.command(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        for shown in (done.stdout, done.stderr):
            assert ACTS.search(shown) is None, (arguments, shown)
        assert "Traceback" not in done.stderr


def test_preview_of_a_hostile_method_is_words_alone(hostile: Hostile, tmp_path: Path) -> None:
    for made in hostile.methods:
        file = tmp_path / "method.json"
        _, fields = to_record(replace(made, version=2, role=f"{made.role}."))
        file.write_text(json.dumps(fields), "utf-8")
        done = hostile.site.command("preview", str(file))
        assert done.returncode == 0, done.stderr
        assert ACTS.search(done.stdout + done.stderr) is None


def test_the_page_and_the_documents_hold_the_texts_as_texts(hostile: Hostile) -> None:
    base = f"http://127.0.0.1:{hostile.worker.http_port}"
    page = httpx.get(base, timeout=60)
    assert page.status_code == 200
    assert "<script>alert(1)" not in page.text
    assert "onerror=alert(1)>" not in page.text
    for path in ("/status.json", "/metrics", "/readyz"):
        answer = httpx.get(base + path, timeout=60)
        assert ACTS.search(answer.text.replace("\n", "")) is None
    json.loads(httpx.get(f"{base}/status.json", timeout=60).text)


WRONG = ("MEMBERSHIP_TOPIC", "LOG_LEVEL", "HTTP_PORT", "SCHEMA_REGISTRY_URL", "KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL")


@pytest.mark.parametrize("text", TEXTS)
def test_settings_that_are_none_are_named_each_on_a_line(hostile: Hostile, text: str) -> None:
    environment = hostile.site.environment | {f"SYNC_WORKER_{name}": text for name in WRONG}
    done = subprocess.run(
        [sys.executable, "-m", "sync_worker", "status"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 + len(WRONG)
    assert all(sum(f"SYNC_WORKER_{name}:" in line for line in lines) == 1 for name in WRONG)
    assert ACTS.search(done.stderr) is None
