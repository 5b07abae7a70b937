"""What tasks do now, in the live view: the flame graph, which is also part of a report, and the output of one task."""

from __future__ import annotations

import re
import subprocess
import sys
import time
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


def test_a_task_that_runs_is_followed_with_its_output(
    browser: Browser, server: WebPage, farm: Farm, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    code = (
        f"import os, time\nprint('begun <b>')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint('over')"
    )
    with strict_page(browser, server.url) as page, farm.task_client() as tc:
        task = tc.run(Task(code, name="shows its output"))
        waits = tc.run(Task("1", name="waits for it", after=[task]))
        page.get_by_role("searchbox").fill("waits for it")
        page.locator("#tf-tasks tbody .tf-link", has_text=str(waits)).click()
        seen(page, ".tf-drawer", f"it waits for task {task}")
        expect(page.get_by_role("button", name="Where is it now?")).to_have_count(0)
        page.keyboard.press("Escape")
        page.get_by_role("searchbox").fill(str(task))
        page.get_by_role("button", name=f"Open task {task}").wait_for()
        page.get_by_role("searchbox").press("Enter")
        expect(page.get_by_label("Output so far")).to_have_text("begun <b>\n")
        gate.touch()
        page.clock.run_for(3000)
        seen(page, ".tf-drawer", "succeeded")
        history = page.locator(".tf-drawer tbody td").first
        expect(history).to_have_text(re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$"))
        page.clock.set_fixed_time(time.time() + 86400)  # the next day
        page.get_by_role("button", name="Refresh").click()
        expect(history).to_have_text(re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}$"))
        expect(page.get_by_label("Output", exact=True)).to_have_text("begun <b>\nover\n")
        expect(page.get_by_label("Output so far")).to_have_count(0)
