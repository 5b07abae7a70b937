"""The picture of a notebook in the README: ``make screenshot`` takes it anew, from a real farm in a real JupyterLab."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import FloatRect

from ipytaskfarm import Farm
from tests.conftest import assert_nothing_left, isolated
from tests.support.browser import Lab, Notebook, jupyterlab

PICTURE = Path(__file__).parent / "images" / "notebook.png"
WIDTH = 900
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
    shot = notebook.page.screenshot(clip=clip)
    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Start a farm and JupyterLab, take the picture, leave nothing behind."""
    with isolated("itf-") as dirs, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        with Farm(n=4, name="default", drain=0), jupyterlab(dirs) as lab:
            picture = take(write_notebook(lab))
        assert_nothing_left(dirs)
    assert len(picture) <= BYTES_MAX, f"{len(picture)} bytes are more than {BYTES_MAX}"
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture)
    print(f"{PICTURE}: {len(picture)} bytes")


if __name__ == "__main__":
    main()
