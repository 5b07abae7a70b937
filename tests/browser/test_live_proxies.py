"""The live view through the proxies that stand before servers: nginx with buffering, and JupyterHub's own.

`make live-check` installs both; where one is missing, its tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from ipytaskfarm import Farm, Task
from tests.browser.test_live_jupyter import farm as farm, server as server
from tests.conftest import Dirs
from tests.support.browser import free_port
from tests.support.live import WebPage, seen, strict_page, web_page
from tests.support.proxies import hub_proxy, hub_proxy_path, nginx, nginx_path

pytestmark = [pytest.mark.browser, pytest.mark.farm]

NEEDED = {"nginx": nginx_path, "configurable-http-proxy": hub_proxy_path}


@pytest.fixture(params=sorted(NEEDED))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    if NEEDED[found]() is None:
        pytest.skip(f"{found} is not installed: `make live-check` does it")
    return found


@contextmanager
def proxy(kind: str, target: int, port: int, dirs: Dirs) -> Iterator[None]:
    """A proxy of this kind at a port, before another port."""
    with nginx(target, port, dirs.root / f"nginx-{port}") if kind == "nginx" else hub_proxy(target, port):
        yield


def follows_and_acts(browser: Browser, url: str, farm: Farm) -> None:
    """See that what happens comes through at once, in both directions."""
    with strict_page(browser, url) as page, farm.task_client() as tc:
        seen(page, "#tf-causes", "ZeroDivisionError")
        succeeded = page.locator(".tf-total[data-state=succeeded] strong")
        before = int(succeeded.inner_text())
        tc.run(Task("a = 1"), block=True)
        expect(succeeded).to_have_text(str(before + 1))
        page.get_by_role("button", name="Pause the farm").click()
        seen(page, ".tf-header", "paused")
        page.get_by_role("button", name="Go on").click()
        seen(page, ".tf-header", "connected")


def test_jupyters_page_lives_behind_a_proxy_and_a_prefix(
    kind: str, browser: Browser, server: WebPage, farm: Farm, world: Dirs
) -> None:
    place, port = urlsplit(server.base), free_port()
    assert place.port is not None
    with proxy(kind, place.port, port, world):
        follows_and_acts(browser, f"http://127.0.0.1:{port}{place.path}?token={server.token}", farm)


def test_a_server_of_its_own_lives_behind_a_proxy_that_it_was_told_of(
    kind: str, browser: Browser, farm: Farm, world: Dirs
) -> None:
    port, told, other = free_port(), free_port(), free_port()
    with web_page("lab", "--control", "--port", str(port), "--host-name", f"127.0.0.1:{told}") as direct:
        with proxy(kind, port, told, world):
            follows_and_acts(browser, f"http://127.0.0.1:{told}/#token={direct.token}", farm)
        with proxy(kind, port, other, world):
            status, text = WebPage(f"http://127.0.0.1:{other}/#").request("farms")
    assert (status, "is not called" in text) == (403, True)
