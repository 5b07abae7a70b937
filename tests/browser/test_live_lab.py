"""The live view in JupyterLab and Notebook 7: the panel of the farms, tabs, the status bar, and the button of cells."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Dialog, Error, Locator, Page, Request, TimeoutError, expect

from ipytaskfarm import Farm, Task, TaskClient
from tests.conftest import Dirs
from tests.support.browser import (
    DEADLINE_MS,
    EMPTY_NOTEBOOK,
    START_S,
    Cell,
    Lab,
    Notebook,
    free_port,
    jupyterlab,
)
from tests.support.farms import Gate
from tests.support.hour import Hour, work
from tests.support.live import install_for_jupyter, picture
from tests.support.polling import DEADLINE_S, eventually
from tests.support.proxies import hub_proxy, hub_proxy_path
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.browser, pytest.mark.farm, pytest.mark.slow]

EVIL = "<img src=x onerror=alert(1)>"
LOUD = "import os; os.write(1, b'<img src=y onerror=alert(2)> \\x1b[31mred\\x1b[0m caf\\xe9 \\xff\\n')"

PREFIX = "/user/me%40home/"


@pytest.fixture(scope="module")
def lab(world: Dirs, farm: Farm) -> Iterator[Lab]:
    """Provide JupyterLab under a prefix, as behind a hub."""
    install_for_jupyter(world)
    with jupyterlab(world, PREFIX) as lab:
        yield lab


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=2, name="lab", drain=0) as farm:
        with farm.task_client() as tc:
            tc.run(Task("1 / 0", name=EVIL))
            job = tc.create_job(EVIL)
            job.add_task(Task("a = 1", pull="a"))
            job.submit()
            job.results()
            tc.run(Task(LOUD, name=f"\x1b[31m{EVIL}"), block=True)
        yield farm


def watched(page: Page, lab: Lab) -> list[str]:
    """Note what a page must not do: errors of ours, requests to elsewhere, dialogs."""
    found: list[str] = []

    def on_request(request: Request) -> None:
        if not request.url.startswith((lab.url, lab.url.replace("http", "ws"), "data:", "blob:")):
            found.append(f"a request to elsewhere: {request.url}")

    def on_error(error: Error) -> None:
        stack = error.stack or ""
        if "taskfarm" in stack:  # a fresh Notebook 7 has errors of its own
            found.append(stack)

    def on_dialog(dialog: Dialog) -> None:
        if dialog.type != "beforeunload":  # JupyterLab asks whether it may be left with an unsaved notebook
            found.append(f"a dialog: {dialog.message}")
        dialog.accept()

    page.on("request", on_request)
    page.on("pageerror", on_error)
    page.on("dialog", on_dialog)
    return found


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> Iterator[Notebook]:
    opened = lab.open("farms", width=1400, height=1000)
    found = watched(opened.page, lab)
    yield opened
    assert not found, found


def show_panel(page: Page) -> None:
    page.evaluate("jupyterapp.shell.activateById('ipytaskfarm-panel')")
    page.locator(".tf-lab-panel").wait_for()


def search_commands(page: Page, words: str) -> None:
    """Open the command palette and type `words`.

    A page that is still starting ignores the keys, or moves the focus back to its cell, which hides the palette: press
    again until the words stand there.
    """
    field = page.locator(".lm-CommandPalette-input")

    def typed() -> bool:
        if not field.is_visible():
            page.keyboard.press("Control+Shift+C")
        try:
            field.fill(words, timeout=2000)
        except TimeoutError:
            return False
        return field.is_visible()

    eventually(typed, what="the command palette opens")


def run_by_the_button(notebook: Notebook, code: str) -> Cell:
    """Type code into the first cell, and run it on the farm by the button of the cell, which says so in the cell."""
    cell = notebook.cell(0)
    cell.locator.locator(".cm-content").click()
    notebook.page.keyboard.insert_text(code)
    notebook.page.locator(".jp-cell-toolbar").get_by_role("button", name="Run this cell on the task farm").click()
    expect(cell.locator.locator(".cm-content")).to_contain_text("%%task")
    cell.done()
    cell.shows("succeeded")
    return cell


def an_hour(notebook: Notebook, name: str, repaired: Path) -> None:
    """Start a farm from the panel, run a cell by the button, walk through the job, and stop the farm."""
    page = notebook.page
    show_panel(page)
    start = page.locator(".tf-lab-start")
    start.get_by_label("name").fill(name)
    start.get_by_label("engines").fill("1")
    start.get_by_role("button", name="Start").click()
    mine = page.locator(f"[data-farm={name}]")
    expect(mine).to_contain_text("1 engine", timeout=START_S * 1000)
    if name != "default":
        notebook.run(f"%load_ext ipytaskfarm\n%taskfarm connect {name}")
        notebook.clear()
    run_by_the_button(
        notebook, "import os\nprint('by', os.environ.get('IPYTASKFARM_ENGINE', 'nobody'))\nanswer = 6 * 7"
    )
    mine.get_by_label(f"engines of farm {name}").fill("2")
    mine.get_by_role("button", name="Set").click()
    expect(mine).to_contain_text("2 engines", timeout=DEADLINE_MS)
    notebook.clear()
    notebook.run(f"from ipytaskfarm import TaskClient\ntc = TaskClient({name!r})\n{work(repaired)}")
    tab = page.locator(".tf-lab-page:visible")

    def opened() -> Locator:
        mine.get_by_role("button", name=f"Open farm {name}").click()
        return tab

    def closed() -> None:
        picture(page, f"hour-{name}")
        page.evaluate("() => jupyterapp.shell.currentWidget.close()")
        page.reload()
        # The notebook comes back by itself, and to the front.
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=START_S * 1000)
        page.evaluate("() => jupyterapp.restored.then(() => null)")
        page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=START_S * 1000)
        show_panel(page)

    with TaskClient(name) as tc:
        Hour(opened, closed, tc, repaired, before=1).walk()
    mine.get_by_role("button", name=f"Stop farm {name}").click()
    page.locator(".jp-Dialog").get_by_role("button", name="Stop").click()
    expect(mine).to_contain_text("stopped; its tasks and results are kept", timeout=START_S * 1000)
    page.locator(f".lm-TabBar-tab[title='Task farm {name}']").click()
    expect(tab.locator(".tf-trouble")).to_contain_text("goes on when it is back")
    page.evaluate("() => jupyterapp.shell.currentWidget.close()")


@by_hand
def test_a_persons_hour(notebook: Notebook, world: Dirs) -> None:
    an_hour(notebook, "default", world.work / "repaired")


@pytest.mark.skipif(hub_proxy_path() is None, reason="configurable-http-proxy: `make live-check` installs it")
def test_a_persons_hour_through_the_proxy_of_a_hub(lab: Lab, world: Dirs) -> None:
    place, port = urlsplit(lab.url), free_port()
    assert place.port is not None
    with hub_proxy(place.port, port):
        outside = dataclasses.replace(lab, url=f"http://127.0.0.1:{port}{place.path}")
        notebook = outside.open("hub", width=1400, height=1000)
        found = watched(notebook.page, outside)
        an_hour(notebook, "hub", world.work / "repaired-too")
        notebook.page.close()
        assert not found, found


def test_the_button_writes_its_line_once(notebook: Notebook, farm: Farm) -> None:
    page = notebook.page
    page.evaluate("jupyterapp.commands.execute('docmanager:open', {path: 'farms.ipynb'})")
    notebook.clear()
    notebook.run("%load_ext ipytaskfarm\n%taskfarm connect lab")
    notebook.clear()
    cell = run_by_the_button(notebook, "a = 2")
    cell.locator.locator(".cm-content").click()
    page.locator(".jp-cell-toolbar").get_by_role("button", name="Run this cell on the task farm").click()
    cell.done()
    assert cell.locator.locator(".cm-content").inner_text().count("%%task") == 1


def test_a_farm_in_a_tab_shows_text_of_tasks_as_text_and_follows_the_theme(notebook: Notebook, farm: Farm) -> None:
    page = notebook.page
    show_panel(page)
    page.locator("[data-farm=lab] .tf-lab-name").click()
    tab = page.locator(".tf-lab-page:visible")
    expect(tab.locator("#tf-causes")).to_contain_text("ZeroDivisionError")
    # Another farm's page is beside it, with the same ids: each finds its own table.
    tab.locator(".tf-total[data-state=failed]").click()
    expect(tab.locator("#tf-tasks tbody")).to_contain_text(EVIL)
    assert tab.locator(".tf-root").get_attribute("data-theme") == "light"
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    expect(tab.locator(".tf-root[data-theme=dark] .tf-totals")).to_be_visible()
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    expect(tab.locator(".tf-root[data-theme=light] .tf-totals")).to_be_visible()


def test_numbers_palette_launcher_and_a_second_look(notebook: Notebook, farm: Farm, lab: Lab) -> None:
    page = notebook.page
    item = page.locator(".tf-lab-status")
    expect(item).to_have_text("Farm: 0 running, 0 scheduled, 1 failed")
    item.click()
    title = page.locator(".tf-lab-page:visible h1")
    expect(title).to_have_text("lab")
    page.evaluate("() => { jupyterapp.shell.currentWidget.close(); jupyterapp.commands.execute('launcher:create'); }")
    page.locator(".jp-LauncherCard[title^='Show a farm at work']:visible").click()
    expect(title).to_have_text("lab")
    search_commands(page, "task farm")
    command = page.locator(".lm-CommandPalette-itemLabel").filter(has_text="Task Farm: Show a Farm")
    expect(command).to_be_visible()
    page.keyboard.press("Escape")
    # Whoever comes back finds the tab again.
    state = "() => jupyterapp.serviceManager.workspaces.fetch('default').then(found => JSON.stringify(found))"
    eventually(lambda: "ipytaskfarm:lab" in page.evaluate(state), 30.0, every_s=0.2, what="the layout is saved")
    page.reload()
    page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=START_S * 1000)
    expect(title).to_have_text("lab", timeout=START_S * 1000)


def test_a_client_links_the_page_and_the_link_opens_a_tab(notebook: Notebook, farm: Farm) -> None:
    page = notebook.page
    page.evaluate("jupyterapp.commands.execute('docmanager:open', {path: 'farms.ipynb'})")
    notebook.clear()
    cell = notebook.run("from ipytaskfarm import TaskClient\ntc = TaskClient('lab')\ntc")
    link = cell.html.get_by_role("link", name="live view")
    assert link.get_attribute("href") == f"{PREFIX}taskfarm/?farm=lab"
    link.click()
    expect(page.locator(".tf-lab-page:visible h1")).to_have_text("lab")
    page.evaluate("() => jupyterapp.shell.currentWidget.close()")


def test_a_widget_follows_the_farm_answers_while_its_cell_runs_and_is_saved_with_its_last_state(
    notebook: Notebook, farm: Farm, lab: Lab, world: Dirs, tmp_path: Path
) -> None:
    page, gate = notebook.page, Gate(world.work / "gate")
    with farm.task_client() as tc:
        before = tc.queue_status()["succeeded"]  # other tests have run cells on this farm
    page.evaluate("jupyterapp.commands.execute('docmanager:open', {path: 'farms.ipynb'})")
    notebook.clear()
    cell = notebook.start(
        "from ipytaskfarm import Task, TaskClient\ntc = TaskClient('lab')\njob = tc.create_job('saved')\n"
        f"job.add_task(Task({gate.code!r} + 'raise KeyError(\"at the end\")', name='last'))\njob.submit()\n"
        "display(job.view())\n"
        f"for number in range(3): tc.run(Task('n = 1', name=f'widget {{number}}'), block=True)\n{gate.code}"
    )
    shown = cell.locator.locator(".tf-page")
    succeeded = shown.locator(".tf-total[data-state=succeeded]")
    expect(succeeded).to_contain_text(str(before + 3), timeout=DEADLINE_MS)
    # A job's view begins with its tasks.
    expect(shown.locator("#tf-tasks tbody tr")).to_have_count(1, timeout=DEADLINE_MS)
    shown.get_by_role("button", name="job saved: remove this filter").click()
    expect(cell.locator.locator(".ipytaskfarm-last-state")).to_be_hidden()
    shown.get_by_role("searchbox").fill("widget 2")
    expect(shown.locator("#tf-tasks tbody tr")).to_have_count(1, timeout=DEADLINE_MS)
    assert cell.running
    gate.open()
    cell.done()
    shown.get_by_role("button", name="Pause the farm").click()
    expect(shown.locator(".tf-header")).to_contain_text("paused", timeout=DEADLINE_MS)
    shown.get_by_role("button", name="Go on").click()
    expect(shown.locator(".tf-header")).to_contain_text("connected", timeout=DEADLINE_MS)
    what_tasks_say_is_text(shown)
    # A notebook that is read elsewhere has the state as it was last: while the cell ran, the job had not ended.
    ended = f"farm 'lab': 0 scheduled, 0 running, {before + 3} succeeded, 2 failed"

    def told() -> bool:
        text = notebook.outputs(0)[0]["data"]["text/plain"]
        assert ended in text, text
        return True

    eventually(told, what="the last state is in the notebook")
    data = notebook.outputs(0)[0]["data"]
    assert "KeyError" in data["text/html"]
    assert EVIL not in data["text/html"]
    assert "&lt;img src=x" in data["text/html"], "the name of a job"
    assert "application/vnd.jupyter.widget-view+json" in notebook.outputs(0)[1]["data"]
    notebook.restart()
    expect(shown.locator(".tf-trouble")).to_contain_text("The kernel is gone. What is shown is from 20")
    expect(shown.get_by_role("button", name="Pause the farm")).to_have_count(0)
    saved = notebook.save()
    exported = converted(saved, tmp_path)
    again = lab.reopen(saved, "without-a-kernel")
    read = again.page.locator(".jp-Notebook .jp-OutputArea").first
    expect(read).to_contain_text(ended)
    expect(read).to_contain_text("KeyError")
    expect(again.page.get_by_text("Error displaying widget")).to_be_hidden()
    picture(again.page, "without-a-kernel")
    again.page.goto(exported)
    expect(again.page.locator("body")).to_contain_text(ended)
    picture(again.page, "exported")
    again.page.close()


def what_tasks_say_is_text(shown: Locator) -> None:
    """Names and output in the widget's page are shown as they are, without escapes; nothing in them is an element."""
    expect(shown.locator("#tf-jobs")).to_contain_text(EVIL)
    shown.get_by_role("searchbox").fill("[31m<img")
    rows = shown.locator("#tf-tasks tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.locator("td").nth(2)).to_have_text(f"\N{REPLACEMENT CHARACTER}[31m{EVIL}")
    rows.locator(".tf-link").first.click()
    drawer = shown.locator(".tf-drawer")
    expect(drawer).to_contain_text(r"<img src=y onerror=alert(2)> red caf\xe9 \xff")
    assert shown.locator("img").count() == 0
    drawer.get_by_role("button", name="Close").click()
    expect(drawer).to_be_hidden()


def converted(saved: dict[str, Any], folder: Path) -> str:
    """Export a saved notebook to a page; return its URL."""
    (folder / "saved.ipynb").write_text(json.dumps(saved))
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level=ERROR", "saved.ipynb"]
    subprocess.run(command, cwd=folder, check=True, timeout=DEADLINE_S * 2)
    return (folder / "saved.html").as_uri()


def test_a_notebook_in_notebook_7_has_the_button_and_opens_farms_in_tabs_of_the_browser(lab: Lab, farm: Farm) -> None:
    (lab.folder / "seven.ipynb").write_text(json.dumps(EMPTY_NOTEBOOK))
    page = lab.browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(DEADLINE_MS)
    found = watched(page, lab)
    page.goto(f"{lab.url}/notebooks/seven.ipynb?token={lab.token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=START_S * 1000)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    expect(
        page.locator(".jp-cell-toolbar").get_by_role("button", name="Run this cell on the task farm")
    ).to_be_visible()
    search_commands(page, "task farm show a")
    with page.context.expect_page() as opened:
        page.keyboard.press("Enter")
    tab = opened.value
    tab.wait_for_url(re.compile(r"/taskfarm/\?farm=lab$"))
    expect(tab.locator("#tf-causes")).to_contain_text("ZeroDivisionError")
    page.context.close()
    assert not found, found
