"""The live view in JupyterLab and Notebook 7: the panel of the farms, tabs, the status bar, and the button of cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Dialog, Error, Page, Request, TimeoutError, expect

from ipytaskfarm import Farm, Task
from tests.conftest import Dirs
from tests.support.browser import (
    DEADLINE_MS,
    EMPTY_NOTEBOOK,
    START_S,
    Lab,
    Notebook,
)
from tests.support.farms import Gate
from tests.support.polling import eventually

pytestmark = [pytest.mark.browser, pytest.mark.farm, pytest.mark.slow]

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=2, name="lab", drain=0) as farm:
        with farm.task_client() as tc:
            tc.run(Task("1 / 0", name=EVIL))
            tc.run(Task("a = 1", pull="a"), block=True)
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


def test_a_person_starts_a_farm_runs_a_cell_on_it_and_watches_it(notebook: Notebook) -> None:
    page = notebook.page
    show_panel(page)
    start = page.locator(".tf-lab-start")
    start.get_by_label("engines").fill("1")
    start.get_by_role("button", name="Start").click()
    mine = page.locator("[data-farm=default]")
    expect(mine).to_contain_text("1 engine", timeout=START_S * 1000)
    # The button of the cell runs it on the farm; the cell says so.
    cell = notebook.cell(0)
    cell.locator.locator(".cm-content").click()
    page.keyboard.insert_text("import os\nprint('by', os.environ.get('IPYTASKFARM_ENGINE', 'nobody'))\nanswer = 6 * 7")
    page.locator(".jp-cell-toolbar").get_by_role("button", name="Run this cell on the task farm").click()
    expect(cell.locator.locator(".cm-content")).to_contain_text("%%task")
    cell.done()
    cell.shows("succeeded")
    # Again: the line is there once.
    page.locator(".jp-cell-toolbar").get_by_role("button", name="Run this cell on the task farm").click()
    cell.done()
    assert cell.locator.locator(".cm-content").inner_text().count("%%task") == 1
    mine.get_by_role("button", name="Open farm default").click()
    tab = page.locator(".tf-lab-page:visible")
    expect(tab.locator(".tf-total[data-state=succeeded]")).to_contain_text("2")
    # Engines, from the panel.
    mine.get_by_label("engines of farm default").fill("2")
    mine.get_by_role("button", name="Set").click()
    expect(mine).to_contain_text("2 engines")
    mine.get_by_role("button", name="Stop farm default").click()
    page.locator(".jp-Dialog").get_by_role("button", name="Stop").click()
    expect(mine).to_contain_text("stopped; its tasks and results are kept", timeout=START_S * 1000)
    expect(tab.locator(".tf-trouble")).to_contain_text("goes on when it is back")


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
    expect(item).to_have_text("Farm: 0 running, 0 waiting, 1 failed")
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
    assert link.get_attribute("href") == "/taskfarm/?farm=lab"
    link.click()
    expect(page.locator(".tf-lab-page:visible h1")).to_have_text("lab")
    page.evaluate("() => jupyterapp.shell.currentWidget.close()")


def test_a_widget_follows_the_farm_and_answers_while_its_cell_runs(notebook: Notebook, farm: Farm, world: Dirs) -> None:
    page, gate = notebook.page, Gate(world.work / "gate")
    page.evaluate("jupyterapp.commands.execute('docmanager:open', {path: 'farms.ipynb'})")
    notebook.clear()
    cell = notebook.start(
        "from ipytaskfarm import Task, TaskClient\ntc = TaskClient('lab')\ndisplay(tc.view())\n"
        f"for number in range(3): tc.run(Task('n = 1', name=f'widget {{number}}'), block=True)\n{gate.code}"
    )
    shown = cell.locator.locator(".tf-page")
    succeeded = shown.locator(".tf-total[data-state=succeeded]")
    expect(succeeded).to_contain_text("4", timeout=DEADLINE_MS)
    shown.get_by_role("searchbox").fill("widget 2")
    expect(shown.locator("#tf-tasks tbody tr")).to_have_count(1, timeout=DEADLINE_MS)
    assert cell.running
    gate.open()
    cell.done()
    shown.get_by_role("button", name="Pause the farm").click()
    expect(shown.locator(".tf-header")).to_contain_text("paused", timeout=DEADLINE_MS)
    shown.get_by_role("button", name="Go on").click()
    expect(shown.locator(".tf-header")).to_contain_text("connected", timeout=DEADLINE_MS)
    # A notebook that is read elsewhere has the state as HTML and as text.
    data = notebook.outputs(0)[0]["data"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "ZeroDivisionError" in data["text/html"]
    assert "farm 'lab': 0 waiting" in data["text/plain"]
    assert EVIL not in data["text/html"]


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
