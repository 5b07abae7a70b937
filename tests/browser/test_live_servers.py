"""The live view of a server that was started again, of a farm that tells little yet, and of long texts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from ipytaskfarm import Farm, Task
from tests.support.browser import DEADLINE_MS, free_port
from tests.support.farms import module_farm
from tests.support.live import WebPage, seen, strict_page, web_page

pytestmark = [pytest.mark.browser, pytest.mark.farm]

LONG = "long " * 200


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(1, name="served", drain=0) as farm:
        with farm.task_client() as tc:
            tc.barrier([tc.run(Task(f"raise ValueError({LONG!r})"))])
            tc.run(Task("import time; time.sleep(600)", name=LONG))
        yield farm


@pytest.fixture(scope="module")
def server(farm: Farm) -> Iterator[WebPage]:
    with web_page("served") as server:
        yield server


def test_a_page_says_that_its_server_was_started_again_and_takes_the_new_url(browser: Browser, farm: Farm) -> None:
    port = str(free_port())
    context = browser.new_context()  # without the rules of `strict_page`: the refusals are errors of the console
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    with web_page("served", "--port", port) as first:
        page.goto(first.url)
        seen(page, ".tf-header", "connected")
    seen(page, ".tf-header", "no connection")
    with web_page("served", "--port", port) as second:
        seen(page, ".tf-trouble", "it was started again, and has printed another URL")
        assert second.base == first.base
        page.goto(second.url)  # the same page to a browser, which loads nothing
        seen(page, ".tf-header", "connected")
        assert "token" not in page.url
    context.close()


def test_a_page_of_a_farm_that_has_not_told_everything_shows_what_it_has(browser: Browser, server: WebPage) -> None:
    def without_waiting(route: Route) -> None:
        answer = route.fetch()
        farms = json.loads(answer.text())
        del farms["first"]["picture"]["waiting"]
        route.fulfill(response=answer, json=farms)

    with strict_page(browser, server.url) as page:
        seen(page, ".tf-header", "connected")
        page.add_init_script("window.WebSocket = class { send() {} close() {} }")
        page.route("**/farms*", without_waiting)
        page.reload()
        seen(page, "#tf-waiting", "…")
        expect(page.locator("#tf-engines")).to_be_visible()


def test_long_texts_leave_room_for_what_stands_beside_them(browser: Browser, server: WebPage) -> None:
    with strict_page(browser, server.url) as page:
        seen(page, "#tf-engines tbody", "long")
        fits(page, "#tf-engines .tf-scroll")
        expect(page.locator("#tf-causes .tf-cause-head small")).to_be_in_viewport(ratio=1)
        shown = page.locator("#tf-causes .tf-cause-head").bounding_box()
        place = page.locator("#tf-causes .tf-cause-head code").bounding_box()
        assert shown is not None
        assert place is not None
        assert place["y"] + place["height"] <= shown["y"] + shown["height"]


def fits(page: Page, selector: str) -> None:
    """Assert that all columns of a table are seen without scrolling."""
    assert page.locator(selector).evaluate("e => e.scrollWidth - e.clientWidth") == 0
