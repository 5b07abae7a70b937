"""The pictures of the live view in docs/live.md, from a real farm: ``make screenshot`` takes them again."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

from docs.screenshot import FOLDER, small
from ipytaskfarm import Farm, Task
from tests.conftest import Dirs, assert_nothing_left, isolated
from tests.support.browser import CHROMIUM_FLAGS, chromium, jupyterlab
from tests.support.live import install_for_jupyter, seen, strict_page, web_page

SHOTS: dict[str, dict[str, Any]] = {
    "view": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"},
    "view-dark": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
    "view-narrow": {"viewport": {"width": 420, "height": 1000}, "color_scheme": "light"},
}
RATE_MS = 10_000
"""Until the chart of tasks per second has points enough to be one."""


FIT = """
def residual(until):
    return sum(n % 7 for n in range(20000)) - until

def relax(until):
    while time.monotonic() < until:
        residual(until)
        time.sleep(0.002)

def fit(step, seconds):
    relax(time.monotonic() + seconds)
    time.sleep(seconds / 4)
    if step % 23 == 0:
        raise ValueError(f"no convergence after {step} steps")
    if step % 61 == 0:
        raise KeyError("residual")
"""


def main() -> None:
    """Fill a farm, and take a picture of each shape of its page."""
    with isolated("itf-") as dirs:
        with Farm(n=4, name="lab", memory_limit=1 << 30, drain=0) as farm, farm.task_client() as tc:
            tc.sampling.start()
            tc.run(Task("1 / 0", name="divide", on_failure="hold"), block=True)
            work: dict[str, Any] = {"__name__": "__main__", "time": time}
            exec(compile(FIT, "model.py", "exec"), work)
            for name, count in (("fit models", 600), ("score holdout", 4000)):
                job = tc.create_job(name)
                for step in range(1, count + 1):
                    job.add_task(Task(work["fit"], args=(step, 0.02 + step % 7 / 20), name=name.split()[0]))
                job.submit()
            for _ in range(40):
                tc.run(Task("import torch", name="train", targets=[99]))
            with web_page("lab", "--control") as server, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=CHROMIUM_FLAGS)
                take_priority(browser, server.url)
                tc.job("score holdout").set_priority(0)
                for name, settings in SHOTS.items():
                    is_phone = name == "view-narrow"
                    with strict_page(browser, server.url, device_scale_factor=1.5, **settings) as page:
                        seen(page, "#tf-jobs", "left", 60.0)
                        seen(page, "#tf-causes", "KeyError", 60.0)
                        page.wait_for_timeout(RATE_MS)
                        page.locator("#tf-tasks").get_by_role("button", name="failed").click()
                        page.locator(".tf-cause-head").first.click()
                        seen(page, "#tf-causes", "Traceback")
                        page.clock.set_system_time(time.time())  # the installed one is behind on a busy machine
                        page.wait_for_timeout(1100)
                        path = FOLDER / f"{name}.png"
                        path.write_bytes(small(page.screenshot(full_page=True, clip=None if is_phone else upper(page))))
                        print(path)
                with strict_page(browser, server.url, device_scale_factor=1.5, **SHOTS["view"]) as page:
                    page.get_by_role("button", name="Show the flame graph").click()
                    page.locator(".tf-flame", has_text="fit").first.wait_for()
                    path = FOLDER / "view-flames.png"
                    path.write_bytes(small(page.locator("#tf-flames").screenshot()))
                    print(path)
                browser.close()
            take_lab(dirs)
        assert_nothing_left(dirs)


def upper(page: Page) -> FloatRect:
    """Return the part of the page down to the end of the task stream."""
    box = page.locator("#tf-stream").bounding_box()
    assert box is not None
    return {"x": 0.0, "y": 0.0, "width": 1280.0, "height": box["y"] + box["height"] + 14.0}


def take_priority(browser: Browser, url: str) -> None:
    """Give a job another priority, and take a picture of the control as it is used on the next one."""
    with strict_page(browser, url, device_scale_factor=1.5, **SHOTS["view"]) as page:
        page.get_by_role("button", name="Priority of job score holdout").click()
        page.get_by_label("New priority of job score holdout").fill("-1")
        page.locator("#tf-jobs").get_by_role("button", name="Set", exact=True).click()
        seen(page, "#tf-jobs", "priority -1")
        page.get_by_role("button", name="Priority of job fit models").click()
        page.get_by_label("New priority of job fit models").fill("5")
        page.mouse.move(0, 0)  # no button looks as if it was pressed
        path = FOLDER / "view-priority.png"
        path.write_bytes(small(page.locator("#tf-jobs").screenshot()))
        print(path)


def take_lab(dirs: Dirs) -> None:
    """Take a picture of JupyterLab with the panel of the farms and the farm in a tab."""
    install_for_jupyter(dirs)
    with jupyterlab(dirs) as lab:
        page = lab.browser.new_page(viewport={"width": 1400, "height": 900}, device_scale_factor=1.5)
        page.goto(f"{lab.url}/lab?token={lab.token}&reset")
        page.locator("#jupyterlab-splash").wait_for(state="detached")
        page.locator(".jp-Launcher").wait_for()  # the layout is restored
        page.evaluate("jupyterapp.shell.activateById('ipytaskfarm-panel')")
        page.locator("[data-farm=lab] .tf-lab-name").click()
        seen(page, ".tf-lab-page #tf-causes", "KeyError", 60.0)
        seen(page, ".tf-lab-status", "running", 60.0)
        page.wait_for_timeout(RATE_MS)
        path = FOLDER / "view-lab.png"
        path.write_bytes(small(page.screenshot()))
        print(path)


if __name__ == "__main__":
    main()
