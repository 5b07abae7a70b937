"""The flame graph of the live view: shown to readers, switched by clients, and part of a report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from ipytaskfarm import Farm, Task
from tests.support.farms import module_farm
from tests.support.live import WebPage, seen, strict_page, web_page
from tests.support.polling import DEADLINE_S, eventually

pytestmark = [pytest.mark.browser, pytest.mark.farm]


def fold_proteins(seconds: float) -> None:
    import time

    def relax(until_s: float) -> None:
        while time.monotonic() < until_s:
            sum(range(1000))

    relax(time.monotonic() + seconds)


fold_proteins.__qualname__ = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(2, name="flames", drain=0) as farm:
        yield farm


@pytest.fixture(scope="module")
def server(farm: Farm) -> Iterator[WebPage]:
    with web_page("flames", "--control") as server:
        yield server


def test_a_client_starts_the_sampler_and_a_reader_sees_flames(browser: Browser, farm: Farm, server: WebPage) -> None:
    with farm.task_client() as tc, strict_page(browser, server.url) as page:
        page.get_by_role("button", name="Show the flame graph").click()
        seen(page, "#tf-flames", "The engines are not sampled")
        page.get_by_role("button", name="Start sampling").click()
        seen(page, ".tf-notices", "the engines are sampled")
        task = tc.run(Task(fold_proteins, args=(600.0,), name="slow"))
        eventually(lambda: "relax" in str(tc.sampling.get_stats().rows), DEADLINE_S)
        with web_page("flames") as reader, strict_page(browser, reader.url, bypass_csp=True) as other:
            other.get_by_role("button", name="Show the flame graph").click()
            relaxing = other.locator(".tf-flame", has_text="relax")
            relaxing.wait_for()
            assert other.get_by_role("button", name="sampling").count() == 0, "a reader switches nothing"
            relaxing.click()
            seen(other, ".tf-flames-path b", "relax")
            seen(other, ".tf-flames + p", "%")
            other.keyboard.press("Escape")
            seen(other, ".tf-flames-path b", "all")
            other.locator("#tf-flames summary").click()
            seen(other, "#tf-flames table", "relax")
            assert other.locator("img").count() == 0
            assert Axe().run(other).violations_count == 0
            _asks_where_a_task_is(other, task)
        tc.abort([task])
        page.get_by_role("button", name="Stop sampling").click()
        page.get_by_role("button", name="Start sampling").wait_for()  # the notice is gone after five seconds


def _asks_where_a_task_is(page: Page, task: int) -> None:
    page.locator("#tf-engines .tf-link", has_text=str(task)).last.click()
    page.get_by_role("button", name="Where is it now?").click()
    seen(page, ".tf-drawer", "relax")


def test_a_report_has_the_flames(browser: Browser, farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    command = [sys.executable, "-m", "ipytaskfarm", "report", "--farm", "flames", "--output", str(path)]
    assert subprocess.run(command, timeout=60).returncode == 0
    with strict_page(browser, path.as_uri()) as page:
        relaxing = page.locator(".tf-flame", has_text="relax")
        relaxing.wait_for()
        relaxing.press("Enter")
        seen(page, ".tf-flames-path b", "relax")
        expect(page.locator("img")).to_have_count(0)
