"""The pictures of notebooks in the README and the docs, from a real farm in a real JupyterLab.

``make screenshot`` takes them again.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import FloatRect

from ipytaskfarm import Farm, Task
from tests.conftest import assert_nothing_left, isolated
from tests.support.browser import Cell, Lab, Notebook, answer, connect_to, jupyterlab, other_kernels
from tests.support.live import install_for_jupyter

FOLDER = Path(__file__).parent / "images"
WIDTH = 1000
HEIGHT = 1400
SCALE = 2.0
COLOURS = 200
BYTES_MAX = 300_000

FAILS = """%%task -o mean --push points --name mean
sum(points[2000:]) / len(points[2000:])"""
CELLS = (
    "%load_ext ipytaskfarm\n%taskfarm connect",
    """%%taskmap seed in range(2000) --pull inside -o points --name dots
import numpy as np
x, y = np.random.default_rng(seed).random((2, 250_000))
inside = int(np.sum(x * x + y * y < 1))""",
    """%%task -b --push points --name curve
import matplotlib.pyplot as plt, numpy as np
pi = 4 * np.cumsum(points) / (250_000 * np.arange(1, len(points) + 1))
plt.figure(figsize=(7, 2.2))
plt.plot(pi, label="drawn on an engine")
plt.axhline(np.pi, color="C1", ls="--", label="π")
plt.ylim(3.1405, 3.1425); plt.xlabel("tasks"); plt.legend(); plt.show()""",
    FAILS,
    "%tasks --last 5",
)


def write_notebook(lab: Lab) -> Notebook:
    """Type the cells and run them, one after the other."""
    notebook = lab.open("notebook", WIDTH, HEIGHT, SCALE)
    notebook.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    for code in CELLS:
        notebook.run(code)
    # The handle of the last task gives way to what came of it.
    notebook.cell(CELLS.index(FAILS)).shows("ZeroDivisionError")
    notebook.page.evaluate("() => document.activeElement.blur()")
    return notebook


def take(notebook: Notebook) -> bytes:
    """The cells that were run, without what is around them, and without the empty one below: a PNG of few colours."""
    first, last = notebook.cell(0).locator, notebook.cell(len(CELLS) - 1).locator
    top, bottom = first.bounding_box(), last.bounding_box()
    assert top is not None
    assert bottom is not None
    end = bottom["y"] + bottom["height"]
    assert end < HEIGHT, f"the cells end at {end:g} of {HEIGHT}"
    clip: FloatRect = {"x": top["x"], "y": top["y"], "width": top["width"], "height": end - top["y"]}
    return small(notebook.page.screenshot(clip=clip))


BAR = """ids = [tc.run(Task("import time; time.sleep(3)", name="fit")) for _ in range(20)]
tc.barrier(ids)"""
LIVE = """%%task
import matplotlib.pyplot as plt, time
for epoch in range(1, 4): print(f"epoch {epoch}: loss {1 / epoch:.2f}")
plt.figure(figsize=(5, 1.6)); plt.plot([1, 1 / 2, 1 / 3]); plt.show()
time.sleep(6)"""
PX = """%%px -t 0,1
print("fitting on engine", int(id))
if int(id) == 1: raise ValueError("no data here")"""
CONNECT = (
    "from ipytaskfarm import MultiEngineClient, Task, TaskClient\ntc = TaskClient()\nMultiEngineClient().activate()"
)
DARK = "jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
LIGHT = DARK.replace(" Dark", " Light")
FRAGILE = """import os, time
def fit(x):
    time.sleep(0.05)
    if x in (7, 37, 59) and not os.path.exists("mended"):
        raise ValueError(f"no sample {x}")
    return x * x"""
SWEEP = 'tc.map(fit, range(60), name="sweep")'
SLOW = 'tc.map(lambda x: time.sleep(0.4) or x, range(60), name="slow")'


def take_cells(lab: Lab) -> dict[str, bytes]:
    """Take pictures of single cells: a bar and live output while they run, a command that fails in both themes."""
    notebook = lab.open("cells", WIDTH, HEIGHT, SCALE)
    notebook.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    notebook.run("%load_ext ipytaskfarm\n%taskfarm connect")
    notebook.run(CONNECT)
    found = {}
    for name, code, shown in (
        ("progress", BAR, "4/20 tasks"),
        ("live", LIVE, "epoch 3"),
        ("px", PX, "ValueError"),
        ("px-dark", PX, "ValueError"),
    ):
        if name.endswith("dark"):
            notebook.page.evaluate(f"async () => {{ await {DARK} }}")
        notebook.page.evaluate("() => document.activeElement.blur()")
        cell = notebook.start(code)
        cell.shows(shown, 30.0)
        if code is LIVE:
            cell.image_width()
        found[name] = small(cell.locator.screenshot())
        cell.done(60.0)
        notebook.run("tc.barrier()")
    notebook.page.evaluate(f"async () => {{ await {LIGHT} }}")
    return found


def take_maps(lab: Lab) -> dict[str, bytes]:
    """Take pictures of a map of which three items fail, of one that is stopped and goes on, and of both reopened."""
    notebook = lab.open("maps", WIDTH, HEIGHT, SCALE)
    notebook.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    notebook.run("%load_ext ipytaskfarm\n%taskfarm connect")
    notebook.run(CONNECT)
    fit = notebook.run(FRAGILE)
    notebook.run(SWEEP).shows("no sample 7")
    notebook.run('job = tc.job("sweep"); job').shows("3 failed")
    (lab.folder / "mended").touch()
    notebook.run("job.retry_failed()")
    notebook.run("job.results()[37]").shows("1369")
    mended = notebook.run("job")
    mended.shows("60 succeeded")
    found = {"map-failures": take_between(notebook, fit, mended)}
    stopped = notebook.start(SLOW)
    stopped.shows("4 running")
    notebook.interrupt()
    stopped.done().shows("continues")
    handle = notebook.run("job = tc.job(tc.jobs()[-1]); job")
    handle.shows("60 succeeded", 30.0)
    gone_on = notebook.run("job.results() == list(range(60))")
    gone_on.shows("True")
    found["map-stopped"] = take_between(notebook, stopped, gone_on)
    again = lab.reopen(notebook.save(), "reopened")
    again.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    again.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    again.cell(4).shows("60/60 items: 57 succeeded, 3 failed")
    found["reopened"] = take_between(again, again.cell(3), again.cell(7))
    again.page.close()
    return found


HALVE = """rest = number % 2
half = number / rest"""


def take_frozen(lab: Lab, farm: Farm) -> bytes:
    """Return a picture of a notebook that is connected with the engine that was frozen for a task."""
    with farm.task_client() as tc:
        failed = tc.run(Task(HALVE, push={"number": 6}, on_failure="hold"))
        tc.barrier([failed])
        tc.debug(failed)  # nobody can type here: it is only offered to Jupyter
        notebook = lab.open("frozen", 1200, 470, 1.5)
        (kernel,) = other_kernels(notebook, 1)
        connect_to(notebook, kernel)
        notebook.run("print(number, rest)").shows("6 0")
        cell = notebook.start("%debug")
        cell.shows("half = number / rest")
        answer(notebook, "p number, rest")
        cell.shows("(6, 0)")
        answer(notebook, "q")
        cell.done()
        notebook.page.mouse.move(0, 0)
        picture = small(notebook.page.screenshot())
        notebook.page.close()
        tc.release()
    return picture


def take_between(notebook: Notebook, first: Cell, last: Cell) -> bytes:
    """Return a picture of some cells in a row."""
    notebook.page.evaluate("() => document.activeElement.blur()")
    last.locator.scroll_into_view_if_needed()
    top, bottom = first.locator.bounding_box(), last.locator.bounding_box()
    assert top is not None
    assert bottom is not None
    height = bottom["y"] + bottom["height"] - top["y"]
    clip: FloatRect = {"x": top["x"], "y": top["y"], "width": top["width"], "height": height}
    return small(notebook.page.screenshot(clip=clip))


def small(shot: bytes) -> bytes:
    """Return a PNG of few colours."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def main() -> None:
    """Start a farm and JupyterLab, take the picture, leave nothing behind."""
    with isolated("itf-") as dirs, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        patch.chdir(dirs.work)
        install_for_jupyter(dirs)
        with Farm(n=4, name="default", drain=0) as farm, jupyterlab(dirs) as lab:
            pictures = {"frozen-engine": take_frozen(lab, farm)}
            pictures |= {"notebook": take(write_notebook(lab)), **take_cells(lab), **take_maps(lab)}
        assert_nothing_left(dirs)
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        assert len(picture) <= BYTES_MAX, f"{name}: {len(picture)} bytes are more than {BYTES_MAX}"
        (FOLDER / f"{name}.png").write_bytes(picture)
        print(f"{name}.png: {len(picture)} bytes")


if __name__ == "__main__":
    main()
