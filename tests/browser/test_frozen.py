"""A frozen engine in JupyterLab: its frames in a cell of the user's notebook, and a notebook on the engine itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ipytaskfarm import Farm, StringTask
from tests.conftest import Dirs
from tests.support.browser import DEADLINE_MS, Lab, Notebook
from tests.support.polling import DEADLINE_S, eventually

pytestmark = [pytest.mark.browser, pytest.mark.farm]


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=1, drain=0, frozen_engines=8) as farm:
        yield farm


def connected(lab: Lab, farm: Farm, name: str) -> Notebook:
    notebook = lab.open(name)
    notebook.run(
        f"from ipytaskfarm import *\ntc = TaskClient({str(farm.connection_file)!r})\n"
        "def halve(x):\n    rest = x % 2\n    return x / rest"
    )
    return notebook


def answer(notebook: Notebook, text: str) -> None:
    """Type an answer to the debugger's question, as soon as it asks."""
    asked = notebook.page.locator(".jp-Stdin-input").last
    expect(asked).to_have_value("", timeout=DEADLINE_MS)
    asked.fill(text)
    asked.press("Enter")


def test_the_debugger_opens_in_the_users_own_notebook(lab: Lab, farm: Farm) -> None:
    notebook = connected(lab, farm, "own")
    notebook.run("bad = tc.run(Task(halve, args=(4,), on_failure='hold'))\ntc.barrier([bad])")
    cell = notebook.start("tc.debug(bad)")
    cell.shows("return x / rest")
    answer(notebook, "p x, rest")
    cell.shows("(4, 0)")
    answer(notebook, "q")
    cell.done()
    notebook.run("tc.release()").shows("1")
    notebook.page.close()


def test_a_notebook_on_the_frozen_engine(lab: Lab, farm: Farm) -> None:
    with farm.task_client() as tc:
        bad = tc.run(
            StringTask(
                "doubled = number * 2\nrest = doubled % 2\ndoubled / rest", push={"number": 3}, on_failure="hold"
            )
        )
        tc.barrier([bad])
        tc.debug(bad)  # nobody can type here: it is only offered to Jupyter
        notebook = lab.open("engine")
        choose_existing_kernel(notebook)
        cell = notebook.run("print(doubled, rest, env if 'env' in dir() else 'no env')")
        cell.shows("6 0 no env")
        cell = notebook.start("%debug")
        cell.shows("doubled / rest")
        answer(notebook, "p number")
        cell.shows("3")
        answer(notebook, "q")
        cell.done()
        picture = os.environ.get("SCREENSHOTS")
        if picture:
            notebook.page.screenshot(path=Path(picture) / "frozen-engine.png")
        assert tc.release([bad]) == 1
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        notebook.page.close()


def choose_existing_kernel(notebook: Notebook) -> None:
    """Connect the notebook to the kernel that somebody else has started, as a person does: click, choose, confirm."""
    page = notebook.page

    def chosen() -> bool:
        page.get_by_role("button", name="Python 3 (ipykernel)").first.click()
        option = page.locator(".jp-Dialog option", has_text="python3 (")
        if option.count() != 1:  # Lab asks for the list every few seconds
            page.locator(".jp-Dialog").get_by_role("button", name="Cancel").click()
            return False
        page.locator(".jp-Dialog select").select_option(value=option.get_attribute("value"))
        page.locator(".jp-Dialog").get_by_role("button", name="Select Kernel").click()
        return True

    eventually(chosen, DEADLINE_S, every_s=1.0)
    page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
