"""The live view in Chromium: what it shows, what it does, what it refuses, and what happens when the farm goes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from ipytaskfarm import Farm, Task
from ipytaskfarm.core.errors import SecurityError
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system.host import runtime_folder
from ipytaskfarm.transport import peer, wire
from ipytaskfarm.version import __version__
from ipytaskfarm.web import questions
from ipytaskfarm.web.feed import FarmFeed, page_connection
from tests.support.farms import farm_state, module_farm
from tests.support.live import SECOND_USER, WebPage, picture, second_user_tries, seen, strict_page, web_page
from tests.support.live_tasks import HOSTILE, fill
from tests.support.polling import DEADLINE_S, eventually
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.browser, pytest.mark.farm]

OWN_SCRIPTS = 2
"""start.js, and all others as one."""


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(2, name="lab", drain=0) as farm:
        with farm.task_client() as tc:
            fill(tc)
        yield farm


@pytest.fixture(scope="module")
def server(farm: Farm) -> Iterator[WebPage]:
    with web_page("lab", "--control") as server:
        yield server


@pytest.fixture(scope="module")
def reader(farm: Farm) -> Iterator[WebPage]:
    with web_page("lab") as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: WebPage) -> Iterator[Page]:
    with strict_page(browser, server.url) as page:
        page.locator(".tf-totals").wait_for()
        yield page


def test_the_page_answers_what_users_ask(page: Page) -> None:
    assert "token" not in page.url, "the key does not stay in the address"
    seen(page, ".tf-header", "lab")
    seen(page, ".tf-header", "connected")
    seen(page, "#tf-causes", "ValueError")
    seen(page, "#tf-causes", "KeyError")
    seen(page, "#tf-jobs", "sweep")
    seen(page, "#tf-jobs", "10 failed")
    seen(page, "#tf-waiting", "no suitable engine")
    seen(page, "#tf-engines", "idle")
    page.locator("#tf-stream select").select_option("300")
    seen(page, "#tf-stream", "2 engines")
    page.locator("#tf-waiting .tf-reason-head").click()
    seen(page, "#tf-waiting", "it is not among the task's targets [99]")


def test_a_failure_shows_its_traceback_and_its_task(page: Page) -> None:
    page.locator(".tf-cause-head", has_text="ValueError").click()
    seen(page, "#tf-causes .tf-cause-body", "in fail")
    page.locator("#tf-causes .tf-cause-body .tf-link").first.click()
    seen(page, ".tf-drawer", "Traceback")
    seen(page, ".tf-drawer", "failed: error")
    seen(page, ".tf-drawer", "Local variables")
    seen(page, ".tf-drawer", "in fail, line")
    task = page.locator("#tf-drawer-title").inner_text().removeprefix("Task ")
    seen(page, ".tf-drawer", f"tc.debug({task})")
    page.keyboard.press("Escape")
    expect(page.locator(".tf-drawer")).to_be_hidden()
    page.locator("#tf-causes").get_by_role("button", name="Show all").click()
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(5)


def test_tasks_are_filtered_and_paged_by_the_farm(page: Page) -> None:
    rows = page.locator("#tf-tasks tbody tr")
    expect(rows).to_have_count(25)
    page.locator("#tf-tasks").get_by_role("button", name="Older").click()
    expect(rows).to_have_count(11)
    page.locator("#tf-tasks").get_by_role("button", name="Newer").click()
    expect(rows).to_have_count(25)
    page.locator("#tf-tasks").get_by_role("button", name="failed").click()
    expect(rows).to_have_count(10)
    page.get_by_role("searchbox").fill("KeyErr")
    expect(rows).to_have_count(5)
    page.get_by_role("searchbox").fill("nothing of this name")
    seen(page, "#tf-tasks", "No task matches.")


def test_what_tasks_say_is_text(page: Page) -> None:
    page.get_by_role("searchbox").fill("onerror")
    row = page.locator("#tf-tasks tbody tr", has_text=HOSTILE)
    expect(row.first).to_be_visible()
    assert page.locator("img").count() == 0
    page.get_by_role("searchbox").fill("loud")
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(1)
    page.locator("#tf-tasks tbody .tf-link").click()
    seen(page, ".tf-drawer", "<script>alert(2)</script>")
    seen(page, ".tf-drawer", "red caf")
    seen(page, ".tf-drawer", "characters left out")
    assert page.locator("script").count() == OWN_SCRIPTS
    assert len(page.locator(".tf-drawer").inner_text()) < 300_000
    page.keyboard.press("Escape")
    names_are_cut_text(page)


def test_long_and_odd_lines_of_logs_are_cut_text(page: Page) -> None:
    red = b"\x1b[31mred\x1b[0m <script>alert(4)</script> caf\xe9 \xff\x00\n"
    long = b"z" * 10_000_000
    written = {"odd": red + long[:100_000] + b"\n", "then": b"before\n" + long + b"\n" + red, "only": red + long}
    for name, lines in written.items():
        (Home.of("lab").logs / f"zz-{name}.log").write_bytes(lines)
    logs, shown = page.locator("#tf-logs"), page.locator("#tf-logs pre")
    logs.get_by_role("button", name="Show").click()
    as_text = "red <script>alert(4)</script> caf\N{REPLACEMENT CHARACTER}"
    logs.get_by_role("combobox").select_option("zz-odd")
    expect(shown).to_contain_text(as_text)
    expect(shown).to_contain_text("98,000 characters left out")
    logs.get_by_role("combobox").select_option("zz-then")
    expect(shown).to_have_text(re.compile(r"^… \(10,000,0\d\d bytes in all; .* left out\) …\nred <script"))
    logs.get_by_role("combobox").select_option("zz-only")
    expect(shown).to_have_text(re.compile(r"^… \(10,000,0\d\d bytes .* …\nz{2000}… \(\d+,\d+ characters left out\)$"))
    assert page.locator("script").count() == OWN_SCRIPTS


def names_are_cut_text(page: Page) -> None:
    """The long hostile name of a job and of its task is text, without escapes, cut and marked."""
    job = page.locator("#tf-jobs .tf-job", has_text=HOSTILE).locator(".tf-name")
    begins = "\N{REPLACEMENT CHARACTER}[31m" + HOSTILE
    expect(job).to_have_text(re.compile(f"^{re.escape(begins)}n{{50,100}}…$"))
    page.get_by_role("searchbox").fill("nnnnn")
    rows = page.locator("#tf-tasks tbody tr")
    expect(rows).to_have_count(1)
    name = rows.locator("td").nth(2)
    expect(name).to_have_text(re.compile(f"^{re.escape(begins)}n{{50,400}}…$"))
    assert page.locator("img").count() == 0


def test_a_reader_sees_no_actions_and_a_group_can_be_tried_again(browser: Browser, page: Page, reader: WebPage) -> None:
    with strict_page(browser, reader.url) as other:
        other.locator(".tf-cause-head", has_text="KeyError").click()
        other.get_by_role("button", name="Show all").wait_for()
        assert other.get_by_role("button", name="again").count() == 0
        assert other.get_by_role("button", name="Pause").count() == 0
    page.locator(".tf-cause-head", has_text="KeyError").click()
    page.get_by_role("button", name="Try 5 tasks again").click()
    seen(page, ".tf-notices", "5 tasks submitted again")
    seen(page, ".tf-cause:has-text('KeyError') .tf-number", "10")


def test_a_running_task_is_aborted(page: Page, farm: Farm) -> None:
    with farm.task_client() as tc:
        task = tc.run(Task("import time; time.sleep(600)", name="slow"))
        eventually(lambda: tc.status(task).state == "running", 30.0)
        page.locator("#tf-tasks").get_by_role("button", name="running").click()
        page.locator("#tf-tasks tbody tr", has_text="slow").locator(".tf-link").click()
        page.locator(".tf-drawer").get_by_role("button", name="Abort").click()
        eventually(lambda: tc.status(task).state == "failed", 30.0)
        seen(page, ".tf-drawer", "aborted")


def test_a_frozen_engine_is_released(page: Page, farm: Farm) -> None:
    with farm.task_client() as tc:
        held = tc.run(Task("raise OSError('no' * 300)", name="held", on_failure="hold"))
        tc.barrier([held])
        row = page.locator(".tf-frozen li", has_text=f"task {held}")
        expect(row).to_contain_text("OSError: nonono")
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate(OVERFLOW) <= 0, "the page is wider than the window"
        eventually(lambda: [each.state for each in tc.frozen().rows] == ["frozen"])
        picture(page, "frozen")
        row.get_by_role("button", name="Release").click()
        seen(page, ".tf-notices", f"the engine that was frozen for task {held} ends")
        eventually(lambda: not tc.frozen().rows, what="the engine ends")
        expect(page.locator(".tf-frozen")).to_have_count(0)


def test_time_travel_shows_what_ran(page: Page) -> None:
    page.get_by_role("button", name="Stop here").click()
    page.locator("#tf-stream select").select_option("300")
    seen(page, "#tf-stream .tf-stream-text", "run")
    page.locator("canvas.tf-stream").focus()
    page.keyboard.press("Home")
    seen(page, "#tf-stream .tf-stream-text", "2 engines")
    page.get_by_role("button", name="Go live").click()
    expect(page.get_by_role("button", name="Stop here")).to_be_visible()


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_it_is_accessible(browser: Browser, server: WebPage, scheme: Any, width: int) -> None:
    window = {"width": width, "height": 900}
    # The checker is a script that the page's own policy keeps out.
    with strict_page(browser, server.url, color_scheme=scheme, viewport=window, bypass_csp=True) as page:
        seen(page, "#tf-causes", "ValueError")
        page.locator(".tf-cause-head").first.click()
        page.locator("#tf-causes .tf-text").wait_for()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate(OVERFLOW) <= 0, "the page is wider than the window"
        page.emulate_media(media="print")
        ground = page.locator(".tf-root").evaluate("e => getComputedStyle(e).backgroundColor")
        assert ground == "rgb(255, 255, 255)", "paper is white"
        expect(page.locator("#tf-tasks").get_by_role("button", name="Older")).to_be_hidden()


def test_a_keyboard_gets_everywhere(page: Page) -> None:
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(25)
    page.locator(".tf-total[data-state=scheduled]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#tf-tasks-title")).to_be_focused()
    page.locator("#tf-tasks").get_by_role("button", name="all").press("Space")
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(25)
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip the table")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#tf-tasks").get_by_role("button", name="Older")).to_be_focused()
    task = page.locator("#tf-tasks tbody .tf-link").first
    task.press("Enter")
    expect(page.locator("#tf-drawer-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(task).to_be_focused()


@by_hand
def test_a_page_that_was_away_gets_what_it_missed(page: Page, farm: Farm) -> None:
    page.evaluate("window.before = document.querySelector('.tf-totals')")
    page.context.set_offline(True)
    page.evaluate("sockets.at(-1).close()")
    seen(page, ".tf-page", "No connection to the server")
    with farm.task_client() as tc:
        tc.run(Task("a = 1", name="while away"), block=True)
    page.context.set_offline(False)
    expect(page.locator(".tf-trouble")).to_have_count(0)
    page.get_by_role("searchbox").fill("while away")
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(1)
    assert page.evaluate("window.before === document.querySelector('.tf-totals')"), "the page stayed as it was"
    assert page.evaluate("said.filter(kind => kind === 'picture').length") == 1, "only what it missed was sent"
    assert page.evaluate("said.includes('resumed')")


def test_a_page_that_nobody_sees_closes_its_socket_after_a_minute(page: Page) -> None:
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.clock.run_for(50_000)
    assert page.evaluate("sockets.at(-1).readyState") == 1
    page.clock.run_for(11_000)
    eventually(lambda: page.evaluate("sockets.at(-1).readyState") == 3, 10.0)
    page.evaluate(hide, False)
    eventually(lambda: page.evaluate("sockets.at(-1).readyState") == 1, 10.0)
    eventually(lambda: page.evaluate("said.at(-1)") == "delta", 10.0)


def test_a_controller_that_is_killed_is_said_and_the_page_goes_on(
    page: Page, farm: Farm, browser: Browser, server: WebPage
) -> None:
    """Durations and moments are right although the browser's clock is an hour ahead."""
    with farm.task_client() as tc:
        submitted_at = tc.status(0).submitted_at
        assert submitted_at is not None
        began_s = submitted_at.timestamp()
    page.clock.set_system_time(time.time() + 3600)
    pid = Home.of("lab").living_info()
    assert pid is not None
    os.kill(pid.controller_pid, signal.SIGKILL)
    with farm.task_client() as tc:
        tc.run(Task("a = 1", name="after the fall"), block=True)
    page.get_by_role("searchbox").fill("after the fall")
    expect(page.locator("#tf-tasks tbody tr")).to_have_count(1, timeout=60_000)
    seen(page, ".tf-header", "connected")
    seen(page, "#tf-causes", "ValueError")
    with strict_page(browser, server.url) as other:  # the slider of a new page reaches back to before
        slider = other.locator(".tf-slider input")
        eventually(lambda: int(slider.get_attribute("min") or 0) == int(began_s), DEADLINE_S)
        now_s = float(slider.get_attribute("max") or 0)
        assert abs(float(page.locator(".tf-slider input").get_attribute("max") or 0) - now_s) < 600


# -- versions

FAKED = """
import runpy, sys, types
fake = types.ModuleType("ipytaskfarm.version")
fake.__version__ = "99.0"
sys.modules["ipytaskfarm.version"] = fake
sys.argv = ["ipytaskfarm", *sys.argv[1:]]
runpy.run_module("ipytaskfarm", run_name="__main__")
"""
"""The command of another version of the package, which speaks the same protocol."""


@by_hand
def test_other_versions_of_server_and_client_are_said_politely(
    browser: Browser, page: Page, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(page.locator(".tf-versions")).to_have_count(0)
    with web_page("lab", program=("-c", FAKED)) as server, strict_page(browser, server.url) as other:
        seen(other, ".tf-versions", f"from ipytaskfarm 99.0, and the farm runs {__version__}")
        seen(other, ".tf-header", "connected")
        assert other.locator(".tf-trouble").count() == 0
        picture(other, "versions")
        other.get_by_role("button", name="Close this note").click()
        expect(other.locator(".tf-versions")).to_have_count(0)
    # The kernel of a notebook is a client, in an environment of its own.
    monkeypatch.setattr(peer, "__version__", "98.0")
    monkeypatch.setattr(wire, "python_version", lambda: "3.8.1")
    with farm.task_client() as tc:
        tc.queue_status()
        seen(page, ".tf-versions", f"uses ipytaskfarm 98.0, and the farm {__version__}")
        seen(page, ".tf-versions", "uses Python 3.8, and the engines 3.")
    seen(page, ".tf-header", "connected")
    expect(page.locator(".tf-versions")).to_have_count(0)


# -- as a file


def report(*flags: str) -> int:
    """``ipytaskfarm report`` in a process of its own, as a loop of the browser's runs in this one; its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "ipytaskfarm", "report", "--farm", "lab", *flags], timeout=60
    ).returncode


def test_a_report_is_the_same_page_in_one_file(browser: Browser, farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    assert report("--output", str(path)) == 0
    with strict_page(browser, path.as_uri()) as page:
        seen(page, ".tf-header", "saved")
        seen(page, "#tf-jobs", "sweep")
        seen(page, "#tf-stream", "2 engines")
        page.locator(".tf-cause-head", has_text="ValueError").click()
        seen(page, "#tf-causes .tf-cause-body", "in fail")
        page.get_by_role("searchbox").fill("src=x")
        # Then the table is at rest: rows that change places while a button is pressed get no click.
        expect(page.locator("#tf-tasks tbody tr")).to_have_count(7)
        expect(page.locator("#tf-tasks tbody tr", has_text=HOSTILE)).to_have_count(7)
        page.locator("#tf-tasks tbody .tf-link").first.click()
        seen(page, ".tf-drawer", "Task")
        assert page.locator("img").count() == 0
        page.keyboard.press("Escape")
        names_are_cut_text(page)
        page.get_by_role("searchbox").fill("")
        page.locator("#tf-tasks").get_by_role("button", name="failed").click()
        expect(page.locator("#tf-tasks tbody tr").first).to_be_visible()
        # In another window the stream is drawn again, with what it had.
        page.set_viewport_size({"width": 700, "height": 900})
        eventually(lambda: page.evaluate(PAINTED) > 100, what="the stream is drawn")


PAINTED = """() => {
    const canvas = document.querySelector("canvas.tf-stream");
    const reds = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let painted = 0;
    for (let i = 0; i < reds.length; i += 4) if (reds[i + 3] && reds[i] > reds[i + 2] + 60) painted++;
    return canvas.clientWidth < 700 && canvas.width === Math.round(canvas.clientWidth * devicePixelRatio) ? painted : 0;
}"""
"""The number of points of the stream in the colour of failures, in a narrow window."""


def test_a_report_of_one_job_has_its_tasks_alone(browser: Browser, farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "sweep.html"
    assert report("--job", "sweep", "-o", str(path)) == 0
    with strict_page(browser, path.as_uri()) as page:
        seen(page, ".tf-header", "job sweep")
        page.get_by_role("searchbox").fill("loud")
        seen(page, "#tf-tasks", "No task matches.")
    assert report("--job", "no such job", "-o", str(path)) == 1
    assert report() == 2, "no file"


# -- who is refused


def test_without_the_key_nothing_is_told(browser: Browser, server: WebPage) -> None:
    for path in ("farms", "metrics", "socket"):
        assert server.request(path)[0] == 401
    assert server.request("act", {"farm": "lab", "what": "abort", "arguments": {"id": 1}})[0] in (401, 403)
    assert server.request("login", {"token": "guess"})[0] == 403
    assert server.request("farms", Authorization="Bearer guess")[0] == 401
    assert server.request("farms", Authorization=f"Bearer {server.token}") == (200, '{"farms": ["lab"]}')
    opened = browser.new_page()
    opened.goto(server.base)
    seen(opened, "body", "This page needs its key")
    opened.close()


def test_another_host_or_origin_is_refused(server: WebPage) -> None:
    key = {"Authorization": f"Bearer {server.token}"}
    assert server.request("farms", **key, Host="evil.example")[0] == 403
    assert server.request("farms", **key, Origin="http://evil.example")[0] == 403
    assert server.request("", Host="evil.example:80")[0] == 403
    assert server.request("socket", **key, Origin="http://evil.example", Upgrade="websocket")[0] == 403


def test_a_job_and_a_task_are_put_forward(page: Page, reader: WebPage, browser: Browser, farm: Farm) -> None:
    """Of tasks that wait, those of the job run next, and before them one of the others that is put before all."""
    one_at_a_time: dict[str, Any] = {"group": "forward", "max_parallel": 1}
    with farm.task_client() as tc:
        tc.pause()
        others = [tc.run(Task("pass", name="other", **one_at_a_time)) for _ in range(3)]
        job = tc.create_job("urgent")
        for _ in range(2):
            job.add_task(Task("pass", **one_at_a_time))
        job.submit()
        tc.flush()
        page.get_by_role("button", name="Priority of job urgent").click()
        page.get_by_label("New priority of job urgent").fill("5")
        page.locator("#tf-jobs").get_by_role("button", name="Set", exact=True).click()
        seen(page, "#tf-jobs", "priority 5")
        page.get_by_role("searchbox").fill("other")
        page.locator("#tf-tasks tbody .tf-link", has_text=str(others[2])).click()
        page.locator(".tf-drawer").get_by_role("button", name=f"Priority of task {others[2]}").click()
        page.get_by_label(f"New priority of task {others[2]}").fill("7")
        page.locator(".tf-drawer").get_by_role("button", name="Set", exact=True).click()
        seen(page, ".tf-drawer", "priority 0 \N{RIGHTWARDS ARROW} 7")
        page.keyboard.press("Escape")
        row = page.locator("#tf-tasks tbody tr", has_text=str(others[2]))
        expect(row.locator("td").nth(5)).to_have_text("7")
        with strict_page(browser, reader.url) as other:
            seen(other, "#tf-jobs", "priority 5")
            assert other.get_by_role("button", name="Priority of").count() == 0
        tc.resume()
        everyone = [others[2], *job.ids, *others[:2]]
        tc.barrier(everyone, timeout=DEADLINE_S)
        rows = {row.id: row.started_at.timestamp() if row.started_at else 0.0 for row in tc.tasks(ids=everyone).rows}
        assert sorted(everyone, key=lambda task: rows[task]) == everyone


def test_an_action_needs_the_header_that_other_sites_cannot_send(browser: Browser, server: WebPage) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(server.url)
    opened.locator(".tf-totals").wait_for()
    body = json.dumps({"farm": "lab", "what": "pause", "arguments": {"on": True}})
    status = opened.evaluate("async body => (await fetch('act', {method: 'POST', body})).status", body)
    assert status == 403
    context.close()


def test_a_reader_may_do_nothing_that_a_page_can_do(browser: Browser, reader: WebPage, farm: Farm) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(reader.url)
    opened.locator(".tf-totals").wait_for()
    with farm.task_client() as tc:
        before = tc.queue_status()
        found = opened.evaluate(ACT, list(questions.ACTIONS))
        assert {"abort", "retry", "retry_group", "priority", "pause", "drain", "sample", "release"} <= found.keys()
        assert {name: status for name, (status, _) in found.items()} == dict.fromkeys(questions.ACTIONS, 403)
        assert all("--control" in text for _, text in found.values())
        assert tc.queue_status() == before
        assert not farm_state(farm).held
    context.close()


ACT = """async names => {
    const xsrf = decodeURIComponent(document.cookie.match(/_xsrf=([^;]*)/)[1]);
    const all = {id: 0, on: true, node: "*", cause: "", engines: 0, job: null, priority: 1};
    const found = {};
    for (const what of names) {
        const body = JSON.stringify({farm: "lab", what, arguments: all});
        const answer = await fetch("act", {method: "POST", body, headers: {"X-XSRFToken": xsrf}});
        found[what] = [answer.status, await answer.text()];
    }
    return found;
}"""
"""Tries actions with all rights of a page, and with arguments that fit."""


def test_a_readers_connection_refuses_what_the_server_would_let_through(farm: Farm) -> None:
    """The pages of a reader have a reader's key: a mistake in the server would still change nothing."""

    async def tried(what: str) -> str:
        feed = FarmFeed("lab", page_connection("lab", False), control=True)
        try:
            await questions.act(feed, what, {"id": 0, "on": True, "node": "*", "engines": 0, "priority": 1})
        except SecurityError as error:
            return str(error)
        except ValueError as error:  # before the farm was asked
            return str(error)
        finally:
            await feed.stop()
        return "done"

    # Of a group the page knows nothing yet, so there is nothing to refuse.
    for what in questions.ACTIONS.keys() - {"retry_group"}:
        with ThreadPoolExecutor(1) as thread:  # a loop of the browser's runs in this one
            assert "read-only" in thread.submit(asyncio.run, tried(what)).result(DEADLINE_S), what


@pytest.mark.skipif(not SECOND_USER, reason="a second user needs root and setpriv")
def test_a_second_user_of_the_machine_gets_nowhere(server: WebPage, farm: Farm, tmp_path: Path) -> None:
    (url,) = [path for path in runtime_folder().glob("*.url") if path.read_text().strip() == server.url]
    path = farm._home.folder.parent / "web.sock"
    with web_page("lab", "--control", "--socket", str(path)):
        path.parent.chmod(0o755)  # a folder that others may enter
        assert second_user_tries(
            f"get {server.base}farms", f"get {server.base}metrics", f"read {url}", f"read {farm.connection_file}",
            f"connect {path}",
        ) == ["401", "401", "no permission", "no permission", "no permission"]  # fmt: skip


def test_the_url_is_in_a_private_file_and_the_cookie_is_out_of_reach(page: Page, server: WebPage) -> None:
    files = list(runtime_folder().glob("ipytaskfarm-web-lab-*.url"))
    assert server.url in [path.read_text().strip() for path in files]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    (own,) = [cookie for name, cookie in cookies.items() if name.startswith("taskfarm-")]
    assert (own["httpOnly"], own["sameSite"]) == (True, "Strict")
    assert "taskfarm-" not in page.evaluate("document.cookie")


def test_metrics_have_bounded_labels(server: WebPage) -> None:
    status, text = server.request("metrics", Authorization=f"Bearer {server.token}")
    assert status == 200
    assert 'taskfarm_up{farm="lab"} 1.0' in text
    assert 'taskfarm_tasks{farm="lab",state="succeeded"}' in text
    assert 'taskfarm_waiting_tasks{farm="lab",reason="no suitable engine"} 3.0' in text
    assert "attempt" not in text
    assert "onerror" not in text


def test_what_a_page_shows_first_comes_before_its_socket(server: WebPage, browser: Browser) -> None:
    """The numbers come with the names of the farms; the long parts of the picture follow by the socket."""
    key = {"Authorization": f"Bearer {server.token}"}
    first = json.loads(server.request("farms?first=", **key)[1])["first"]
    assert first["control"]
    assert {"farm", "counts", "engine_states", "waiting", "jobs", "causes", "status"} <= first["picture"].keys()
    assert not {"stretches", "series"} & first["picture"].keys()
    assert server.request("farms?first=another", **key) == (200, '{"farms": ["lab"]}')
    opened = browser.new_page()
    opened.add_init_script("window.WebSocket = class extends EventTarget { close() {} send() {} readyState = 0; };")
    opened.goto(server.url)
    failed = str(first["picture"]["counts"]["failed"])
    expect(opened.locator(".tf-total[data-state=failed] strong")).to_have_text(failed)
    seen(opened, "#tf-causes", "ValueError")
    seen(opened, ".tf-header", "connecting")
    opened.close()


def test_operations_are_applied_as_in_python(page: Page) -> None:
    """``picture.js`` does what ``view/picture.py`` does."""
    from ipytaskfarm.view.picture import apply

    operations: list[Any] = [
        ["set", "a", {"x": 1}], ["put", "b", {"k": 1, "l": 2}], ["put", "b", {"l": 3}], ["drop", "b", ["k", "none"]],
        ["append", "c", [1, 2, 3], 2], ["append", "c", [4], 2], ["append", "d", [], 1], ["put", "a", {"y": 2}],
    ]  # fmt: skip
    ours: dict[str, Any] = {}
    apply(ours, operations)
    theirs = page.evaluate(
        "async operations => (await import('./picture.js')).apply({}, operations)", json.loads(json.dumps(operations))
    )
    assert theirs == ours


def test_vendored_files_are_those_of_the_list() -> None:
    from hashlib import sha256

    from docs.vendor import FOLDER, PACKAGES

    versions = json.loads((FOLDER / "versions.json").read_text())
    assert {package.name: package.version for package in PACKAGES} == {n: v["version"] for n, v in versions.items()}
    hashes = {name: found for each in versions.values() for name, found in each["files"].items()}
    files = {path.name for path in Path(FOLDER).iterdir() if not path.name.startswith(("LICENSE", "versions"))}
    assert files == hashes.keys()
    assert {name: sha256((FOLDER / name).read_bytes()).hexdigest() for name in files} == hashes
