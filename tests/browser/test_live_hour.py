"""A person's hour at `ipytaskfarm web`: first with a reader's key, then, on another port, with a client's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from ipytaskfarm import Farm
from tests.support.farms import module_farm
from tests.support.hour import Hour, work
from tests.support.live import WebPage, picture, strict_page, web_page
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.browser, pytest.mark.farm]


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(2, name="hour", drain=0) as farm:
        yield farm


class Tabs:
    """The tabs of one person's browser, which keeps the cookie and not the key."""

    def __init__(self, first: Page, server: WebPage, name: str) -> None:
        self._page = first
        self._server = server
        self._name = name
        self._is_open = True

    def open(self) -> Locator:
        if not self._is_open:
            self._page = self._page.context.new_page()
            self._page.goto(self._server.base)
        return self._page.locator("body")

    def close(self) -> None:
        picture(self._page, self._name)
        self._page.close()
        self._is_open = False


@by_hand
def test_a_persons_hour_with_a_readers_and_with_a_clients_key(browser: Browser, farm: Farm, tmp_path: Path) -> None:
    repaired = tmp_path / "repaired"
    with farm.task_client() as tc, web_page("hour") as reader, web_page("hour", "--control") as client:
        exec(work(repaired), {"tc": tc})
        for before, (server, acts) in enumerate(((reader, False), (client, True))):
            with strict_page(browser, server.url) as page:
                tabs = Tabs(page, server, f"hour-{'client' if acts else 'reader'}")
                Hour(tabs.open, tabs.close, tc, repaired, acts, before).walk()
