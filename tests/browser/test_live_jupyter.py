"""The live view within Jupyter's server: under a prefix, behind Jupyter's login, with its protections."""

from __future__ import annotations

import http.cookiejar
import json
import os
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from ipytaskfarm import Farm, Task
from ipytaskfarm.deployment.enrolment import connection_info, write_copy
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system.farm_paths import connection_path
from ipytaskfarm.web import questions
from tests.conftest import Dirs
from tests.support.browser import START_S, free_port
from tests.support.farms import farm_state
from tests.support.live import SECOND_USER, WebPage, install_for_jupyter, second_user_tries, seen, strict_page
from tests.support.notebooks import quickly
from tests.support.polling import DEADLINE_S, eventually

pytestmark = [pytest.mark.browser, pytest.mark.farm]

PREFIX = "/user/me%40home/"


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=1, name="lab", drain=0) as farm:
        with farm.task_client() as tc:
            tc.run(Task("1 / 0", name="divides"))
            tc.run(Task("a = 1", pull="a"), block=True)
        yield farm


@pytest.fixture(scope="module")
def server(world: Dirs, farm: Farm) -> Iterator[WebPage]:
    """Jupyter's server with the extension, as a wheel's config file enables it; the URL ends with the token."""
    install_for_jupyter(world)
    token, port = secrets.token_hex(16), free_port()
    command = [
        "setpriv", "--pdeathsig", "TERM", "--", *quickly("jupyter_server"), "--allow-root", "--no-browser",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.base_url={PREFIX}", f"--ServerApp.root_dir={world.work}",
        "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    environment = {**os.environ, **world.environment(), "JUPYTER_TOKEN": token}
    log = world.home / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    found = WebPage(f"http://127.0.0.1:{port}{PREFIX}taskfarm/#token={token}")

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return found.request("farms", Authorization=f"token {token}")[0] == 200
        except OSError as error:
            raise AssertionError(f"{error}\n{log.read_text()}") from None

    try:
        eventually(answers, START_S, every_s=0.1)
        yield found
    finally:
        process.terminate()
        process.wait(60)


def test_it_shows_and_changes_a_farm_under_a_prefix(browser: Browser, server: WebPage, farm: Farm) -> None:
    with strict_page(browser, f"{server.base}?token={server.token}") as page:
        seen(page, ".tf-header", "lab")
        seen(page, "#tf-causes", "ZeroDivisionError")
        page.get_by_role("button", name="Pause the farm").click()
        seen(page, ".tf-notices", "paused")
        seen(page, ".tf-header", "paused")
        page.get_by_role("button", name="Go on").click()
        seen(page, ".tf-header", "connected")
        page.get_by_role("searchbox").fill("divides")
        expect(page.locator("#tf-tasks tbody tr")).to_have_count(1)


def test_a_page_of_a_farm_that_is_not_known_goes_on_when_it_is(browser: Browser, server: WebPage, farm: Farm) -> None:
    with strict_page(browser, f"{server.base}?farm=later&token={server.token}") as page:
        seen(page, ".tf-header", "not there")
        seen(page, ".tf-trouble", "there is no farm 'later'")
        assert '"' not in page.locator(".tf-trouble").inner_text()
        page.clock.run_for(30_000)
        seen(page, ".tf-trouble", "This page goes on when it is there.")
        with Farm(n=1, name="later", drain=0):
            seen(page, ".tf-header", "connected")


def test_an_action_of_a_page_whose_login_is_over_says_what_to_do(browser: Browser, server: WebPage) -> None:
    context = browser.new_context()  # without the rules of `strict_page`: the refusal is an error of the console
    page = context.new_page()
    page.goto(f"{server.base}?farm=lab&token={server.token}")
    seen(page, ".tf-header", "connected")
    context.clear_cookies()
    page.get_by_role("button", name="Pause the farm").click()
    seen(page, ".tf-notices", "reload it, and log in again")
    context.close()


def test_strangers_other_sites_and_paths_are_refused(server: WebPage, farm: Farm) -> None:
    key = {"Authorization": f"token {server.token}"}
    assert server.request("farms", **key) == (200, '{"farms": ["lab"]}')
    assert "login" in server.request("")[1].lower(), "a page leads to the login"
    for path in ("farms", "metrics?farm=lab", "page.js"):
        assert server.request(path)[0] == 403
    upgrade = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec_WebSocket_Version": "13",
    }  # fmt: skip
    assert server.request("socket?farm=lab", **upgrade)[0] == 403
    assert server.request("socket?farm=lab", **upgrade, Cookie="", Origin="http://evil.example")[0] == 403
    assert server.request("metrics?farm=..%2F..%2Fetc", **key)[0] == 404
    assert 'taskfarm_up{farm="lab"} 1.0' in server.request("metrics?farm=lab", **key)[1]


def test_a_rebound_name_and_another_origin_are_refused(server: WebPage, farm: Farm) -> None:
    key = {"Authorization": f"token {server.token}"}
    for path in ("farms", "overview", "socket?farm=lab", ""):
        assert server.request(path, **key, Host="evil.example")[0] == 403, path
    # A cookie that another site's page would bring along, if the browser let it.
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{server.base}?token={server.token}", timeout=DEADLINE_S).close()
    cookie = {"Cookie": "; ".join(f"{each.name}={each.value}" for each in jar)}
    assert server.request("farms", **cookie)[0] == 200
    for what in questions.ACTIONS:
        body = {"farm": "lab", "what": what, "arguments": {"id": 0, "on": True, "engines": 0}}
        assert server.request("act", body)[0] == 403, f"{what} of a stranger"
        assert server.request("act", body, **cookie)[0] == 403, f"{what} without the header"
        assert server.request("act", body, **cookie, Origin="http://evil.example")[0] in (403, 404), what
    for path in ("start", "stop"):
        assert server.request(path, {"farm": "evil"}, **cookie)[0] == 403
    assert not farm_state(farm).held


def test_a_readers_connection_file_shows_a_farm_that_cannot_be_changed(
    browser: Browser, server: WebPage, farm: Farm
) -> None:
    """As of a colleague's farm, with the file of ``ipytaskfarm keys add --reader``."""
    key = {"Authorization": f"token {server.token}"}
    path = connection_path("guest")
    write_copy(connection_info(Home.of("lab"), "reader"), path)
    try:
        with strict_page(browser, f"{server.base}?farm=guest&token={server.token}") as page:
            seen(page, ".tf-header", "connected")
            seen(page, "#tf-causes", "ZeroDivisionError")
            seen(page, "footer", "this page only looks")
            page.locator(".tf-cause-head").click()
            page.get_by_role("button", name="Show all").click()
            page.locator("#tf-tasks tbody .tf-link").first.click()
            seen(page, ".tf-drawer", "Traceback")
            for action in ("again", "Abort", "Pause", "Priority", "Drain", "Set"):
                assert page.get_by_role("button", name=action).count() == 0, action
        for what in questions.ACTIONS:
            body = {"farm": "guest", "what": what, "arguments": {"id": 0, "on": True, "engines": 0, "priority": 1}}
            status, text = server.request("act", body, **key)
            assert (status, "it has a reader's key" in text) == (403, True), what
        rows = {row["name"]: row for row in json.loads(server.request("overview", **key)[1])["farms"]}
        assert (rows["guest"]["control"], rows["lab"]["control"]) == (False, True)
    finally:
        path.unlink()
    assert not farm_state(farm).held


@pytest.mark.skipif(not SECOND_USER, reason="a second user needs root and setpriv")
def test_a_second_user_of_the_machine_gets_nowhere(server: WebPage, farm: Farm) -> None:
    places = [f"get {server.base}{path}" for path in ("farms", "overview", "metrics?farm=lab", "page.js")]
    assert second_user_tries(*places, f"read {farm.connection_file}") == ["403"] * 4 + ["no permission"]


def test_an_action_of_another_site_is_refused(browser: Browser, server: WebPage, farm: Farm) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{server.base}?token={server.token}")
    opened.locator(".tf-totals").wait_for()
    body = json.dumps({"farm": "lab", "what": "pause", "arguments": {"on": True}})
    status = opened.evaluate("async body => (await fetch('act', {method: 'POST', body})).status", body)
    assert status == 403
    context.close()
