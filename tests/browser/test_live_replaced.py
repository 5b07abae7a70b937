"""The live view of a farm that ends, whose place a farm of another version takes, and then a new farm."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from ipytaskfarm import Farm, Task
from ipytaskfarm.deployment.home import Home
from tests.support.live import seen, strict_page, web_page

pytestmark = [pytest.mark.browser, pytest.mark.farm]

GOES_ON_S = 60.0


def test_a_page_says_that_its_farm_is_gone_or_of_another_version_and_goes_on_with_a_new_one(browser: Browser) -> None:
    with ExitStack() as opened:
        with Farm(n=1, name="again", drain=0) as first, first.task_client() as tc:
            file = Path(first.connection_file)
            info: dict[str, Any] = json.loads(file.read_text())
            tc.run(Task("1 / 0", name="of the first farm"), block=True)
            server = opened.enter_context(web_page("again", "--control"))
            page = opened.enter_context(strict_page(browser, server.url))
            seen(page, "#tf-causes", "ZeroDivisionError")
            page.locator("#tf-stream select").select_option("300")
            seen(page, ".tf-stream-text", "1 with an error")
            tc.pause()
            seen(page, ".tf-header", "paused")
        seen(page, ".tf-header", "not there", GOES_ON_S)
        seen(page, ".tf-trouble", "This page goes on when it is back.")
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
