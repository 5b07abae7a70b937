"""The live view of a farm that ends, whose place a farm of another version takes, and then a new farm."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from ipytaskfarm import Farm, Task
from ipytaskfarm.deployment.home import Home
from tests.support.live import seen, strict_page, web_page
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.browser, pytest.mark.farm]

GOES_ON_S = 60.0


def offered(page: Page) -> set[str]:
    """Return the words on the buttons of a page."""
    buttons = page.locator("button:visible").all()
    return {button.inner_text() or button.get_attribute("aria-label") or "" for button in buttons}


def it_stands_still(page: Page) -> None:
    """Nothing goes on, nothing is foretold, and nothing is offered that cannot be done."""
    parts = "#tf-engines", ".tf-stream-text", ".tf-slider"
    before = [page.locator(part).inner_text() for part in parts]
    assert "now" not in before[2]
    assert not offered(page) & {"Pause the farm", "Go on", "Pause", "Drain", "Set", "Refresh", "Abort"}
    assert not [name for name in offered(page) if name.startswith(("Try ", "Priority"))]
    page.clock.run_for(90_000)
    assert before == [page.locator(part).inner_text() for part in parts]
    assert page.locator(".tf-notice").count() == 0


@by_hand
def test_a_page_says_that_its_farm_is_gone_or_of_another_version_and_goes_on_with_a_new_one(browser: Browser) -> None:
    with ExitStack() as opened:
        with Farm(n=1, name="again", drain=0) as first, first.task_client() as tc:
            file = Path(first.connection_file)
            info: dict[str, Any] = json.loads(file.read_text())
            tc.barrier([tc.run(Task("1 / 0", name="of the first farm")) for _ in range(30)])
            job = tc.create_job("left")
            for _ in range(2):
                job.add_task(Task("import time; time.sleep(600)", name="endless"))
            job.submit()
            served = opened.enter_context(ExitStack())
            server = served.enter_context(web_page("again", "--control"))
            page = opened.enter_context(strict_page(browser, server.url))
            seen(page, "#tf-causes", "ZeroDivisionError")
            page.locator("#tf-stream select").select_option("300")
            seen(page, ".tf-stream-text", "30 with an error")
            seen(page, "#tf-engines", "endless")
            page.locator(".tf-cause-head").click()
            assert offered(page) >= {"Pause the farm", "Pause", "Drain", "Set", "Try 30 tasks again"}
            tc.pause()
            seen(page, ".tf-header", "paused")
            page.get_by_role("button", name="engine 0: show its tasks").click()
            page.locator("#tf-tasks").get_by_role("button", name="Older").click()
            rows = page.locator("#tf-tasks tbody tr")
            expect(rows).to_have_count(5)
            rows.locator(".tf-link").last.click()
            seen(page, ".tf-drawer", "ZeroDivisionError")
        seen(page, ".tf-header", "not there", GOES_ON_S)
        seen(page, ".tf-trouble", "This page goes on when it is back.")
        assert "What is shown is from 20" in page.locator(".tf-trouble").inner_text()
        it_stands_still(page)
        with strict_page(browser, server.url) as late:
            seen(late, ".tf-trouble", "What is shown is from 20")
            seen(late, "#tf-tasks", "Not known while the farm is not there.")
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(0o600)
        file.write_text(json.dumps({**info, "protocol": 10**6, "version": "99.0"}))
        seen(page, ".tf-trouble", "99.0", GOES_ON_S)
        shutil.rmtree(Home.of("again").folder)
        with Farm(n=2, name="again", drain=0) as second, second.task_client() as tc:
            tc.run(Task("a = 1", name="of the second farm"), block=True)
            seen(page, ".tf-header", "connected", GOES_ON_S)
            seen(page, "#tf-causes", "No task has failed.", GOES_ON_S)
            seen(page, "#tf-tasks", "of the second farm", GOES_ON_S)
            seen(page, "#tf-engines", "2 idle", GOES_ON_S)
            seen(page, ".tf-total[data-state=failed]", "0")
            seen(page, ".tf-stream-text", "1 run")
            assert "error" not in page.locator(".tf-stream-text").inner_text(), "the first farm's runs are gone too"
            # Its tasks have the ids of others: what was chosen of the first farm is chosen no more.
            expect(page.locator(".tf-drawer")).to_be_hidden()
            expect(page.locator(".tf-chip")).to_have_count(0)
            expect(rows).to_have_count(1)
            assert {"Pause the farm", "Drain"} <= offered(page)
            served.close()
            seen(page, ".tf-header", "no connection")
            seen(page, ".tf-trouble", "What is shown is from 20")
            assert not offered(page) & {"Pause the farm", "Drain"}
