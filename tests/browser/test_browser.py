"""Test the view in JupyterLab: results, figures, errors, bars, and the effect of the stop button."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ipytaskfarm import Farm, TaskClient
from tests.conftest import Dirs
from tests.support.browser import Lab, Notebook, assert_no_inhabitants, inhabitants
from tests.support.farms import DEADLINE_S, Gate
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.browser, pytest.mark.farm, pytest.mark.slow]

CONNECT = (
    "from ipytaskfarm import Task, TaskClient\ntc = TaskClient('lab')\n%load_ext ipytaskfarm\n%taskfarm connect lab"
)
SLEEPS = "import time; time.sleep(60)"
FIGURE = "import matplotlib.pyplot as plt; figure, axes = plt.subplots(); axes.plot([1, 4, 9]); plt.show()"
FRAME = "import pandas as pd; display(pd.DataFrame({'n': [1, 2], 'text': ['b1', 'b2']}))"


def running(tc: TaskClient) -> int:
    """Wait until one task is on an engine; its id."""
    return next(iter(eventually(lambda: tc.tasks(state="pending"), DEADLINE_S, what="a task runs")))


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=2, name="lab", drain=0) as farm:
        yield farm


@pytest.fixture(scope="module")
def page(lab: Lab) -> Notebook:
    notebook = lab.open("shared")
    notebook.run(CONNECT)
    return notebook


@pytest.fixture
def notebook(page: Notebook) -> Notebook:
    """Provide an empty notebook with a kernel that is connected to the farm."""
    page.clear()
    return page


def test_a_result_shows_itself(notebook: Notebook) -> None:
    cell = notebook.run("tc.run(Task('a = 6 * 7', pull='a'), block=True)")
    expect(cell.html.filter(has_text="succeeded on engine")).to_contain_text("42")


def test_a_farm_that_runs_is_connected_to(notebook: Notebook) -> None:
    cell = notebook.run("%taskfarm connect lab\n%taskfarm status")
    cell.shows("connected to farm 'lab'")
    expect(cell.html.locator("td").filter(has_text="idle")).to_have_count(2)


def test_a_handle_is_shown_at_once_and_becomes_the_result(notebook: Notebook, tc: TaskClient, gate: Gate) -> None:
    cell = notebook.run(f"%%task -o h --pull a\n{gate.code}\nprint('from afar'); a = 6 * 7")
    task_id = running(tc)
    cell.shows(f"task {task_id}")
    assert "42" not in cell.text
    gate.open()
    cell.shows("42")
    cell.shows("from afar")
    notebook.run("a").shows("NameError")
    notebook.run("h.ns.a + 1").shows("43")
    notebook.run("tr = await h\nprint(tr.engineid in (0, 1))").shows("True")


def test_a_cell_that_waits_assigns_what_it_pulls(notebook: Notebook) -> None:
    notebook.run("x = [1, 2, 3]")
    notebook.run("%%task -b --push x --pull total,length\ntotal = sum(x)\nlength = len(x); print('from afar')").shows(
        "from afar"
    )
    notebook.run("print(total, length)").shows("6 3")


def test_a_figure_and_a_table_made_on_an_engine_are_seen(notebook: Notebook) -> None:
    cell = notebook.run(f"%%task -b\n{FIGURE}\n{FRAME}")
    assert cell.image_width() > 100
    expect(cell.html.locator("table.dataframe td").last).to_have_text("b2")


def test_a_map_shows_a_bar_and_gives_a_list(notebook: Notebook, gate: Gate) -> None:
    waits = textwrap.indent(gate.code, "    ")
    cell = notebook.start(f"%%taskmap n in range(12) --pull y -o squares\nif n >= 6:\n{waits}\ny = n * n")
    cell.shows("6/12 tasks: 6 succeeded, 2 running, 4 scheduled")
    assert cell.running
    gate.open()
    cell.done()
    cell.shows("12/12 tasks: 12 succeeded")
    notebook.run("squares").shows("[0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121]")


def test_an_error_is_as_short_as_a_local_one(notebook: Notebook) -> None:
    cell = notebook.run("%%task -b\ndef divide(n):\n    return 1 / n\ndivide(0)")
    cell.shows("ZeroDivisionError")
    assert "divide(0)" in cell.text
    assert f"In [{cell.number}], line 3, in divide" in cell.text
    assert "ipytaskfarm/" not in cell.text
    assert len(cell.text.splitlines()) < 20


def test_an_aborted_task_says_so(notebook: Notebook, tc: TaskClient) -> None:
    cell = notebook.run(f"%%task -o h\n{SLEEPS}")
    task_id = running(tc)
    notebook.run(f"%task abort {task_id}")
    notebook.run(f"%task status {task_id}").shows("aborted")
    cell.shows("aborted")
    eventually(lambda: not len(tc.tasks(state="unfinished")), what="the engine is free")


def test_the_loop_of_the_notebook_waits_for_a_result(notebook: Notebook) -> None:
    cell = notebook.run(
        "import asyncio\n"
        "ticks = 0\n"
        "async def tick():\n"
        "    global ticks\n"
        "    while True:\n"
        "        ticks += 1; await asyncio.sleep(0.01)\n"
        "ticking = asyncio.create_task(tick())\n"
        "tr = await tc.result(tc.run(Task('import time; time.sleep(0.5); a = 5', pull='a')))\n"
        "ticking.cancel()\n"
        "print(tr.ns.a, 'and the loop went on:', ticks > 5)"
    )
    cell.shows("5 and the loop went on: True")


HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked = 1</script>"


def test_a_script_in_the_text_of_a_task_runs_nowhere(notebook: Notebook) -> None:
    notebook.run("from IPython.display import HTML, display\ndisplay(HTML('<script>window.control = 1</script>'))")
    # JupyterLab does run the scripts of html: without escaping, those below would run too.
    eventually(lambda: notebook.page.evaluate("window.control") == 1, what="the script of a display")
    made = notebook.run(
        f'hostile = """{HOSTILE}"""\n'
        "ids = [tc.run(Task('print(text); raise ValueError(text)', push={'text': hostile}, name=hostile)),\n"
        "       tc.run(Task('print(text)', push={'text': hostile}, pull='text', name=hostile))]\n"
        "tc.barrier(ids)\n"
        "for i in ids: display(tc.get_task_result(i), tc.status(i), tc.explain(i))\n"
        "display(tc.tasks(ids=ids), tc.failures(), tc)"
    )
    made.shows("onerror=")
    eventually(lambda: made.html.count() >= 3, DEADLINE_S, what="three tables and more")
    assert made.locator.locator("img, script").count() == 0
    assert notebook.page.evaluate("window.hacked") is None


def test_the_stop_button_ends_a_wait_and_no_task(notebook: Notebook, tc: TaskClient) -> None:
    cell = notebook.start(f"print('waits'); ids = [tc.run(Task({SLEEPS!r}))]; print(*ids); tc.barrier(ids)")
    cell.shows("waits")
    task_id = running(tc)
    notebook.interrupt()
    cell.done()
    cell.shows("KeyboardInterrupt")
    cell.shows(f"task {task_id} continues: tc.barrier({task_id}) waits for it again, tc.abort({task_id}) ends it")
    assert tc.status(task_id).state == "running", "the wait has ended long before the task"
    tc.abort(task_id)


def test_a_new_kernel_finds_the_tasks_of_the_old_one(notebook: Notebook) -> None:
    notebook.run(
        "ids = [tc.run(Task(f'a = {n}', pull='a', name='before')) for n in range(3)]\n"
        "ids.append(tc.run(Task('import time; time.sleep(1); a = 3', pull='a', name='before'))); tc.flush(); print(ids)"
    )
    notebook.restart()
    notebook.clear()
    gone = notebook.run("tc")
    gone.shows("NameError")
    notebook.run(CONNECT)
    found = notebook.run(
        "tc.barrier(tc.tasks(state='unfinished'))\n"
        "ids = list(tc.tasks('before')); print(ids)\n"
        "print([tc.get_task_result(i).ns.a for i in ids])"
    )
    found.shows("[0, 1, 2, 3]")


def test_a_process_left_behind_is_found_and_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=tmp_path) as planted:
        eventually(lambda: [process.pid for process in inhabitants(tmp_path)] == [planted.pid])
        with pytest.raises(AssertionError, match=f"pid={planted.pid}"):
            assert_no_inhabitants(tmp_path, 0.0)
        assert planted.wait(60) == -9


def test_the_last_state_of_a_handle_is_saved_when_its_farm_ends(notebook: Notebook) -> None:
    notebook.run("from ipytaskfarm import Farm\nshort = Farm(n=1, name='short', drain=0)\n%taskfarm connect short")
    cell = notebook.run(f"%%task -o h\n{SLEEPS}")
    cell.shows("running on engine 0")
    notebook.run("%taskfarm connect lab\nshort.close()")
    cell.shows("not followed any longer", DEADLINE_S)
    (output,) = [each for each in notebook.outputs(1) if "ipytaskfarm" not in each.get("text", "")]
    assert "running on engine 0; not followed any longer" in "".join(output["data"]["text/plain"])


def test_a_job_that_is_shown_follows_itself(notebook: Notebook, tc: TaskClient, gate: Gate) -> None:
    notebook.run(f"job = tc.create_job('alive')\nfor _ in range(3): job.add_task(Task({gate.code!r}))\njob.submit()")
    cell = notebook.run("job")
    cell.shows("job alive: 0/3 tasks")
    running(tc)
    assert not cell.running
    gate.open()
    cell.shows("job alive: 3/3 tasks: 3 succeeded")


# -- output while it happens, and progress that is true


PICTURE = os.environ.get("IPYTASKFARM_SCREENSHOTS", "")
"""A folder for pictures of what these tests see; "": none are taken."""


def picture(notebook: Notebook, name: str) -> None:
    if PICTURE:
        notebook.page.screenshot(path=str(Path(PICTURE) / f"{name}.png"))


SPEAKS = (
    "import sys; print('halfway there'); print('\\x1b[31mred\\x1b[0m', 'words')\n"
    f"{FIGURE}\nfrom IPython.display import Markdown; display(Markdown('# A heading'))"
)


@pytest.mark.parametrize("options", ["-o h", "-b"])
def test_a_figure_and_a_print_appear_while_the_task_runs(notebook: Notebook, gate: Gate, options: str) -> None:
    cell = notebook.start(f"%%task {options}\n{SPEAKS}\n{gate.code}\nprint('through')")
    cell.shows("halfway there")
    assert cell.image_width() > 100
    heading = cell.locator.locator(".jp-RenderedMarkdown h1").first
    expect(heading).to_contain_text("A heading")
    cell.shows("red words")
    red = cell.locator.locator(".ansi-red-fg").first
    expect(red).to_have_text("red")
    # Output that is renewed has other elements, and one that is gone has no colour.
    coloured = "e => e.isConnected && getComputedStyle(e).color != getComputedStyle(e.parentElement).color"
    eventually(lambda: red.evaluate(coloured), what="it is red")
    assert "through" not in cell.text
    cell.shows("running")  # the state may come after the first lines
    picture(notebook, f"live{options.split()[0]}")
    gate.open()
    cell.shows("through")
    eventually(lambda: cell.images.count() == 1, what="one figure, and not two")
    assert "Markdown object" not in cell.text
    assert "\x1b" not in cell.text
    picture(notebook, f"ended{options.split()[0]}")


def test_px_that_raises_shows_what_came_before(notebook: Notebook) -> None:
    notebook.run("from ipytaskfarm import MultiEngineClient\nmec = MultiEngineClient('lab'); mec.activate()")
    code = f"%%px\nprint('on engine', int(id))\n{FIGURE}\nif int(id) == 1: raise ValueError('engine 1 only')"
    numbers: list[int] = []
    for line in (code, "%pxresult"):
        cell = notebook.run(line)
        cell.shows("[0] on engine 0")
        cell.shows("[1] on engine 1")
        cell.shows("ValueError: engine 1 only")
        numbers.append(cell.number)
        assert f"In [{numbers[0]}], line " in cell.text
        eventually(lambda cell=cell: cell.images.count() == 2, what="a figure of each engine")  # type: ignore[misc]
        assert "Figure(" not in cell.text
    picture(notebook, "px")


BARRIER = "ids = [tc.run(Task('import time; time.sleep(0.8)')) for _ in range(10)]\ntc.barrier(ids)"


def test_the_time_left_is_true_after_the_first_two_ends(notebook: Notebook, tc: TaskClient) -> None:
    cell = notebook.start("ids = [tc.run(Task('import time; time.sleep(3)')) for _ in range(20)]\ntc.barrier(ids)")
    cell.shows("2/20 tasks: 2 succeeded, 2 running, 16 scheduled")
    left = re.search(r"(\d+) s left", cell.text)
    assert left is not None
    assert abs(int(left[1]) - 27) <= 0.3 * 27, cell.text
    notebook.interrupt()
    cell.done()
    notebook.run("tc.abort(ids)")


FAILS = (
    "import time\ndef f(x):\n    time.sleep(0.5); return 1 / (x - 3)\ntc.map(f, range(6), return_exceptions=True)[3]"
)
ENDS = ["10/10 tasks: 10 succeeded", "6/6 items: 5 succeeded, 1 failed", "0/1 tasks: 1 running"]


@by_hand
def test_bars_say_how_it_ended_wherever_the_notebook_is_opened(notebook: Notebook, lab: Lab, tmp_path: Path) -> None:
    cell = notebook.start(BARRIER)
    cell.shows("2/10 tasks: 2 succeeded, 2 running, 6 scheduled")
    # Four rounds of 0.8 s from the beginning of the two that run.
    left = re.search(r"(\d+) s left", cell.text)
    assert left is not None
    assert 2 <= int(left[1]) <= 4, cell.text
    picture(notebook, "bar")
    cell.done().shows(ENDS[0])
    notebook.run(FAILS).shows(ENDS[1])
    stopped = notebook.start(f"stopped = tc.run(Task({SLEEPS!r})); tc.barrier(stopped)")
    stopped.shows(ENDS[2])
    notebook.interrupt()
    stopped.done().shows("interrupted after")
    notebook.run("tc.abort(stopped)")
    saved = notebook.save()
    outputs = [output for cell in saved["cells"] for output in cell.get("outputs", [])]
    pink = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in pink if "tasks:" in text], pink
    bars = [output["data"] for output in outputs if "text/html" in output.get("data", {})]
    bars = [bar for bar in bars if "ipytaskfarm-progress" in "".join(bar["text/html"])]
    assert ["".join(bar["text/plain"]).startswith(end) for bar, end in zip(bars, ENDS, strict=True)] == [True] * 3
    (tmp_path / "saved.ipynb").write_text(json.dumps(saved))
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level=ERROR", "saved.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=DEADLINE_S * 2)
    exported = (tmp_path / "saved.html").read_text()
    assert all(end in exported for end in ENDS)
    assert "Loading widget" not in exported
    again = lab.reopen(saved, "reopened")
    for end in ENDS:
        shown = again.page.locator(".jp-Notebook").get_by_text(end).first
        expect(shown).to_be_visible()
    picture(again, "reopened")
    again.page.close()


WAITS = """import os, time
def waits(x, folder):
    while not os.path.exists(f'{folder}/go'): time.sleep(0.01)
    return x
"""
SWEEP = """import pathlib, time
def fragile(x, folder):
    time.sleep(0.05)
    if x in (7, 37, 59) and not pathlib.Path(folder, 'mended').exists():
        raise ValueError(f'no sample {x}')
    return x * x
"""


def test_a_map_with_three_failures_is_named_by_item_and_mended_from_its_handle(
    notebook: Notebook, tmp_path: Path
) -> None:
    notebook.run(SWEEP + f"folder = {str(tmp_path)!r}")
    raised = notebook.run("tc.map(fragile, range(60), [folder] * 60, name='sweep')")
    raised.shows("ValueError: no sample 7")
    raised.shows("item 7 of 60: fragile(x=7, folder=")
    raised.shows("3 of 60 items of 'sweep' failed, this is the first; tc.job('sweep').retry_failed() runs them again")
    raised.shows("57 succeeded, 3 failed")
    assert "ipytaskfarm/" not in raised.text
    notebook.run("tc.failures()").shows("3 × ValueError at In [")
    notebook.run("tc.explain(tc.job('sweep').ids[37])").shows("no sample 37")
    handle = notebook.run("job = tc.job('sweep'); job")
    handle.shows("60/60 items: 57 succeeded, 3 failed")
    picture(notebook, "map-failures")
    (tmp_path / "mended").touch()
    notebook.run("len(job.retry_failed())").shows("3")
    notebook.run("job.results() == [x * x for x in range(60)]").shows("True")
    notebook.run("job").shows("60/60 items: 60 succeeded")
    picture(notebook, "map-retried")


def test_the_stop_button_in_a_map_drops_nothing(notebook: Notebook, tc: TaskClient, tmp_path: Path) -> None:
    notebook.run(f"folder = {str(tmp_path)!r}\n{WAITS}")
    cell = notebook.start("tc.map(waits, range(60), [folder] * 60, name='long')")
    cell.shows("2 running")
    notebook.interrupt()
    cell.done(5.0).shows("KeyboardInterrupt")
    cell.shows("job 'long' continues: tc.job('long').results() waits for it again, tc.job('long').abort() ends it")
    cell.shows("interrupted after")
    assert "ipytaskfarm/" not in cell.text
    picture(notebook, "map-stopped")
    handle = notebook.run("job = tc.job(tc.jobs()[-1]); job")
    handle.shows("0/60 items: 2 running, 58 scheduled")
    (tmp_path / "go").touch()
    handle.shows("60/60 items: 60 succeeded")
    notebook.run("job.results() == list(range(60))").shows("True")
    picture(notebook, "map-gone-on")
