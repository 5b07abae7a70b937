"""The live view within Jupyter's server: under a prefix, behind Jupyter's login, with its protections."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from ipytaskfarm import Farm, Task
from tests.conftest import Dirs
from tests.support.browser import START_S, free_port
from tests.support.live import WebPage, install_for_jupyter, seen, strict_page
from tests.support.polling import eventually

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
        "setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser",
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


def test_an_action_of_another_site_is_refused(browser: Browser, server: WebPage, farm: Farm) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{server.base}?token={server.token}")
    opened.locator(".tf-totals").wait_for()
    body = json.dumps({"farm": "lab", "what": "pause", "arguments": {"on": True}})
    status = opened.evaluate("async body => (await fetch('act', {method: 'POST', body})).status", body)
    assert status == 403
    context.close()
