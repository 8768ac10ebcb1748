"""The page in a real Chromium: each state read as people read it, what can't be done with it, and a real worker's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect
from prometheus_client import CollectorRegistry
from psycopg import sql

from sync_worker.service.document import StatusDocument
from sync_worker.service.health import Health
from sync_worker.service.http import HttpServer, routes
from sync_worker.service.page.observing import Observer
from sync_worker.service.page.rendering import Page as WorkerPage
from sync_worker.service.redaction import Redactor
from tests.support.browsing import browsing
from tests.support.facts import member, method, new_id
from tests.support.scenes import AWAY, GROUP, SCENES, backfill, changes, document, hold, id_of, served
from tests.support.site import Site, wait_for

Scheme = Literal["light", "dark"]
DESK, PHONE = 1120, 360
PATIENCE_MS = 60_000
# Playwright gives an expectation five seconds, which a browser may stand still for.
expect.set_options(timeout=PATIENCE_MS)
HEADLINES = {
    "quiet": "Settled",
    "busy": "Working",
    "backfill": "Working",
    "outage": "Waiting for the database",
    "hold": "Removals held",
    "stopped": "Stopped",
}
HOSTILE = (
    '<script>window.harmed = 1</script><img src=x onerror="window.harmed=1">" onfocus="window.harmed=1\' {{ 7 * 7 }}'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as running:
        yield running


@contextmanager
def opened(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = DESK, scripts: bool = True
) -> Iterator[Page]:
    """The page in a window of its own; fails where the browser complains of anything, a refused script or style included."""
    complaints: list[str] = []
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}, java_script_enabled=scripts
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    # That a server went away is told on the page, and by the browser too.
    assert [each for each in complaints if "ERR_CONNECTION" not in each] == []


def headline(page: Page) -> Any:
    return expect(page.locator("h1"))


@pytest.mark.parametrize("state", SCENES)
def test_each_state_is_said_in_one_line_accessible_and_fits(browser: Browser, state: str) -> None:
    with served(SCENES[state]) as told:
        for scheme in ("light", "dark"):
            for width in (DESK, PHONE):
                with opened(browser, told.url, scheme=scheme, width=width) as page:
                    headline(page).to_have_text(HEADLINES[state])
                    found = Axe().run(page)
                    assert found.violations_count == 0, found.generate_report()
                    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_figures_are_those_of_the_document(browser: Browser) -> None:
    with served(SCENES["busy"]) as told:
        status = httpx.get(f"{told.url}status.json", timeout=60).json()
        with opened(browser, told.url) as page:
            lag = sum(entry["lag"] for entry in status["lag"])
            assert lag > 1000
            expect(page.locator(".figures .value").nth(0)).to_have_text(f"{lag:,}")
            expect(page.locator(".figures .value").nth(1)).to_have_text(f"{status['outbox']['unpublished']:,}")
            rows = page.locator("tbody tr", has=page.locator("td.trend"))
            assert rows.count() == len(status["lag"])
            # The curve of what waits rises and falls: it has more than one height.
            points = page.locator(".figures polyline").nth(0).get_attribute("points") or ""
            assert len({point.partition(",")[2] for point in points.split()}) > 10


def test_backfills_holds_and_releases_show_how_far_they_are(browser: Browser) -> None:
    with served(SCENES["backfill"]) as told, opened(browser, told.url) as page:
        bar = page.get_by_role("progressbar", name="Data protection 2027")
        assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("311000", "498213")
        expect(page.locator("#work")).to_contain_text("311,000 of 498,213 people")
        assert page.get_by_role("progressbar", name="Fire drill").get_attribute("value") is None
        expect(page.locator("#holds")).to_be_hidden()
    with served(SCENES["hold"]) as told, opened(browser, told.url) as page:
        held = page.locator(".card.held").first
        expect(held).to_contain_text("41,225 removals from All employees, held for 2 min 11 s")
        expect(held).to_contain_text(f"sync-worker holds release {id_of('segment All employees')}")
        expect(page.get_by_role("progressbar", name="Released removals")).to_be_visible()


def test_an_outage_shows_what_is_away_and_the_last_known_numbers(browser: Browser) -> None:
    with served(SCENES["outage"]) as told:
        assert httpx.get(f"{told.url}status.json", timeout=60).status_code == 503
        assert httpx.get(told.url, timeout=60).status_code == 200
        with opened(browser, told.url) as page:
            expect(page.locator("#verdict")).to_contain_text(AWAY)
            expect(page.locator("#notice")).to_contain_text("The numbers below are 30 s old.")
            assert page.locator(".figures .value").nth(0).inner_text() != "0"


def test_nothing_from_outside_is_more_than_text(browser: Browser) -> None:
    said = document(0, {"segments.membership": 60})
    said["backfills"] = [backfill(HOSTILE, HOSTILE, 1, 2, 5)]
    said["holds"] = [hold(HOSTILE, 2, 1, 1, 5)]
    for entry in said["lag"]:
        entry["topic"] += HOSTILE
    topics = {entry["topic"]: [0, 1] for entry in said["lag"]}
    said["workers"] = [
        {"holder": f"{HOSTILE}:1:a", "version": HOSTILE, "since": said["at"], "seen_at": said["at"], "present": True,
         "partitions": topics, "records_per_s": 1.0, "published_per_s": 1.0}
    ]  # fmt: skip
    said["leader"] = {"holder": f"{HOSTILE}:1:a", "since": said["at"], "expires_at": said["at"]}
    said["dead_letters"] = {
        "waiting": 0, "total": 1, "by_reason": {HOSTILE: 1}, "last_at": said["at"],
        "reasons": [{"reason": HOSTILE, "topic": HOSTILE, "records": 1, "last_at": said["at"]}],
    }  # fmt: skip
    changed = [
        {**change, "user_id": HOSTILE, "course_id": HOSTILE, "change": HOSTILE, "cause": {"type": HOSTILE}}
        for change in changes(2)
    ]
    health = Health(("database",))
    health.set_ready("database", ok=False, reason=HOSTILE)
    with handed(said, changed, health) as url, opened(browser, url) as page:
        shown = page.locator("body").inner_text()
        assert shown.count(HOSTILE) > 20
        with page.expect_response(url, timeout=PATIENCE_MS):
            pass  # the script puts it in, too
        assert page.evaluate("'harmed' in window") is False
        assert page.locator("main script, main img").count() == 0


@contextmanager
def handed(status: dict[str, Any], changed: list[dict[str, Any]], health: Health) -> Iterator[str]:
    """The address of a page of just this."""
    redactor = Redactor()
    reading = StatusDocument(lambda: status, redactor)
    observer = Observer(reading, lambda: changed, redactor)
    page = WorkerPage(observer, health, holder=HOSTILE, group=GROUP)
    observer.look()
    observer.observe()
    server = HttpServer("127.0.0.1", 0, routes(health, CollectorRegistry(), reading, page))
    try:
        yield f"http://127.0.0.1:{server.port}/"
    finally:
        server.close()


def test_the_browser_refuses_what_the_policy_does_not_name(browser: Browser) -> None:
    with served(SCENES["quiet"]) as told:
        policy = httpx.get(told.url, timeout=60).headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        context = browser.new_context()
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(told.url)
        refused = page.evaluate(
            """() => new Promise(resolve => {
                const refused = [];
                document.addEventListener("securitypolicyviolation", event => {
                    refused.push(event.effectiveDirective);
                    if (refused.length === 4) resolve(refused.sort());
                });
                const script = document.createElement("script");
                script.textContent = "window.harmed = 1";
                document.body.append(script);
                document.body.setAttribute("style", "color: red");
                document.body.insertAdjacentHTML("beforeend", "<button id=harm onclick='window.harmed = 1'></button>");
                document.getElementById("harm").click();
                fetch("http://127.0.0.2:9/").catch(() => null);
            })"""
        )
        assert refused == ["connect-src", "script-src-attr", "script-src-elem", "style-src-attr"]
        assert page.evaluate("'harmed' in window") is False
        context.close()


def test_the_page_is_one_answer_and_asks_nobody_else(browser: Browser) -> None:
    with served(SCENES["quiet"]) as told:
        context = browser.new_context()
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(told.url)
        with page.expect_response(told.url, timeout=PATIENCE_MS):
            pass  # the script's
        assert {url for url in asked if not url.startswith("data:")} == {told.url}
        context.close()


def test_it_updates_itself_without_disturbing_the_reader(browser: Browser) -> None:
    with served(SCENES["quiet"]) as told, opened(browser, told.url) as page:
        page.evaluate("window.same = true")
        page.locator("#topic-2 summary").click()
        page.locator("#topic-3 summary").focus()
        told.tell(document(0, {"segments.membership": 600}))
        headline(page).to_have_text("Working", timeout=PATIENCE_MS)
        expect(page.locator("#announcement")).to_have_text("Working")
        assert page.title().startswith("Working")
        assert page.evaluate("window.same") is True
        assert page.evaluate("[1, 2, 3].map(n => document.getElementById(`topic-${n}`).open)") == [True, False, True]
        assert page.evaluate("document.activeElement.parentElement.id") == "topic-3"


def test_selected_text_stays_selected(browser: Browser) -> None:
    with served(SCENES["hold"]) as told, opened(browser, told.url) as page:
        page.evaluate("document.getSelection().selectAllChildren(document.querySelector('.command code'))")
        page.evaluate(
            """() => {
                const real = document.getSelection.bind(document);
                window.looked = 0;
                document.getSelection = () => { window.looked += 1; return real(); };
            }"""
        )
        # What the script had asked for before is shown by then: it shows the same, and so replaces nothing.
        wait_for(lambda: page.evaluate("window.looked") >= 1, what="a turn of the script")
        told.tell(document(0))
        looked = page.evaluate("window.looked")
        wait_for(lambda: page.evaluate("window.looked") >= looked + 2, what="two turns of the script")
        assert page.evaluate("document.getSelection().toString()").startswith("sync-worker holds release")
        page.evaluate("document.getSelection().empty()")
        headline(page).to_have_text("Settled", timeout=PATIENCE_MS)


def test_a_worker_that_is_gone_is_said_on_its_page(browser: Browser) -> None:
    with served(SCENES["quiet"]) as told, opened(browser, told.url) as page:
        told.close()
        expect(page.locator("#lost")).to_contain_text("This worker has not answered since", timeout=PATIENCE_MS)
        headline(page).to_have_text("Settled")


def test_it_works_without_scripts(browser: Browser) -> None:
    with served(SCENES["quiet"]) as told, opened(browser, told.url, scripts=False) as page:
        headline(page).to_have_text("Settled")
        expect(page.locator("#inputs tbody tr").first).to_be_visible()
        told.tell(document(0, {"segments.membership": 600}))
        headline(page).to_have_text("Working", timeout=PATIENCE_MS)  # by reloading itself


def test_the_page_is_there_while_the_status_hangs() -> None:
    entered, release = threading.Event(), threading.Event()

    def hang() -> dict[str, Any]:
        entered.set()
        release.wait(600)
        return document(0)

    redactor, health = Redactor(), Health(("database",))
    reading = StatusDocument(hang, redactor)
    observer = Observer(reading, list, redactor)
    page = WorkerPage(observer, health, holder="host:1:a", group=GROUP)
    server = HttpServer("127.0.0.1", 0, routes(health, CollectorRegistry(), reading, page))
    observer.start()
    try:
        assert entered.wait(60)
        answer = httpx.get(f"http://127.0.0.1:{server.port}/", timeout=60)
        assert not release.is_set()
        assert answer.status_code == 200
        assert "Waiting for the database" in answer.text
    finally:
        release.set()
        observer.close()
        server.close()


def test_a_real_worker_shows_what_it_did_waits_and_goes_on(browser: Browser, site: Site) -> None:
    segment, course, user = new_id(), new_id(), new_id()
    site.produce([method(course=course, segment=segment), member(segment, user, 1)])
    worker = site.start_worker()
    site.wait_settled()
    url = f"http://127.0.0.1:{worker.http_port}/"
    with opened(browser, url) as page:
        headline(page).to_have_text("Settled", timeout=PATIENCE_MS)
        expect(page.locator("#recent")).to_contain_text(user, timeout=PATIENCE_MS)
        expect(page.locator("#recent")).to_contain_text("enrolled")
        expect(page.locator("#workers")).to_contain_text(str(worker.process.pid), timeout=PATIENCE_MS)
        expect(page.locator("#workers")).to_contain_text("leads the relay")
        expect(page.locator("#inputs")).not_to_contain_text("nobody", timeout=PATIENCE_MS)
        with database_away(site):
            headline(page).to_have_text("Waiting for the database", timeout=PATIENCE_MS)
            expect(page.locator("#notice")).to_contain_text("old.", timeout=PATIENCE_MS)
            expect(page.locator("#recent")).to_contain_text(user)
        headline(page).to_have_text("Settled", timeout=2 * PATIENCE_MS)
    assert worker.terminate() == 0
    assert site.query("select holder from worker") == []


@contextmanager
def database_away(site: Site) -> Iterator[None]:
    """Every session of the site's database ended, and no new one let in."""
    name = site.query("select current_database() as name")[0]["name"]
    with psycopg.connect(site.stack.postgres.url(), autocommit=True) as session:
        session.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
        session.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        yield
        session.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))


def test_two_workers_tell_who_has_what(site: Site) -> None:
    first, second = site.start_worker(), site.start_worker()

    def shared() -> dict[str, Any] | None:
        workers = site.status()["workers"]
        owned = [
            (topic, number) for each in workers for topic, numbers in each["partitions"].items() for number in numbers
        ]
        # Present by the time of their last word, which a machine that stands still delays.
        here = len(workers) == 2 and all(worker["present"] for worker in workers)
        return workers if here and len(owned) == len(set(owned)) == 9 else None

    workers = wait_for(shared, what="two workers with nine partitions between them")
    assert {worker["holder"].split(":")[1] for worker in workers} == {str(first.process.pid), str(second.process.pid)}
    first.kill()
    wait_for(
        lambda: [each["present"] for each in site.status()["workers"]].count(False) == 1, what="the killed one silent"
    )
    assert second.terminate() == 0
    assert json.loads(site.command("status", "--json").stdout)["workers"][0]["present"] is False
