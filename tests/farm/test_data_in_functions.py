"""Large values inside functions travel as arguments do: files that are written once, and kept while tasks need them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ipytaskfarm import Farm, MapTask, Task, TaskClient
from ipytaskfarm.client.packing import pack_task
from ipytaskfarm.storage.backup import needed_blobs
from ipytaskfarm.storage.blobs import Blobs
from tests.support.farms import Gate
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

ITEMS = 200_000
"""Of 8 bytes: well above the size of a blob."""


def written(blobs: Blobs) -> dict[str, int]:
    """The blobs' names, and the files that hold them."""
    return {path.name: path.stat().st_ino for path in blobs.folder.glob("??/*")}


def adding(**names: Any) -> Callable[[], float]:
    """A function of a notebook, with these globals."""
    exec("def f(): return float(data.sum())", names)
    function: Callable[[], float] = names["f"]
    function.__module__ = "__main__"
    return function


class Model:
    """A class whose methods stand on an array."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def total(self) -> float:
        return float(self.data.sum())


def total_of(data: Any) -> float:
    return float(data.sum())


def closure_over(data: Any) -> Callable[[], float]:
    return lambda: float(data.sum())


def default_of(array: Any) -> Callable[[], float]:
    def function(data: Any = array) -> float:
        return float(data.sum())

    return function


FORMS: dict[str, Callable[[Any], Callable[[], float]]] = {
    "global": lambda data: adding(__name__="__main__", data=data),
    "closure": closure_over,
    "default": default_of,
    "partial": lambda data: partial(total_of, data),
    "bound method": lambda data: Model(data).total,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_travels_as_a_file(tc: TaskClient, blobs: Blobs, form: str) -> None:
    data = np.arange(ITEMS) + float(len(form))
    function = FORMS[form](data)
    packed = pack_task(MapTask(function), blobs)
    assert len(packed.blobs) == 1
    assert sum(len(each.code) for each in packed.functions) < 100_000
    assert tc.get_task_result(tc.run(MapTask(function)), block=True, timeout=60) == data.sum()
    before = written(blobs)
    assert tc.get_task_result(tc.run(MapTask(function)), block=True, timeout=60) == data.sum()
    assert written(blobs) == before
    assert pack_task(MapTask(function), blobs).function == packed.function
    data[0] = 1e9
    assert tc.get_task_result(tc.run(MapTask(function)), block=True, timeout=60) == data.sum()


def test_a_global_of_200_megabytes(tc: TaskClient, blobs: Blobs) -> None:
    """More than a message may have."""
    data = np.ones(25_000_000)
    function = adding(__name__="__main__", data=data)
    before = written(blobs)
    assert tc.get_task_result(tc.run(MapTask(function)), block=True, timeout=120) == 25_000_000
    first = written(blobs)
    assert len(first.keys() - before.keys()) == 1
    assert tc.map(lambda n: float(data[n]), [0, 24_999_999]) == [1.0, 1.0]
    assert tc.get_task_result(tc.run(MapTask(function)), block=True, timeout=120) == 25_000_000
    assert written(blobs) == first


def test_the_file_is_kept_while_a_task_needs_it(farm: Farm, tc: TaskClient, blobs: Blobs, tmp_path: Path) -> None:
    """The controller is killed meanwhile: what the tasks need stands in the store."""
    gate = Gate(tmp_path / "gate")
    store = blobs.folder.with_suffix("")
    data = np.arange(ITEMS) + 77_000_001.0
    first = tc.run(Task(gate.code))
    second = tc.run(Task(adding(__name__="__main__", data=data), after=first))
    tc.flush(timeout=60)
    (name,) = pack_task(MapTask(adding(__name__="__main__", data=data)), blobs).blobs
    blobs.sweep(lambda old: needed_blobs(store, sorted(old)), older_than_s=-1.0)
    assert name in written(blobs)
    os.kill(controller_of(farm), signal.SIGKILL)
    gate.open()
    assert tc.get_task_result(second, block=True, timeout=60).result == data.sum()
    tc.clear()

    def is_gone() -> bool:
        blobs.sweep(lambda old: needed_blobs(store, sorted(old)), older_than_s=-1.0)
        return name not in written(blobs)

    eventually(is_gone, what="the file of a cleared task to go")
    again = tc.run(Task(adding(__name__="__main__", data=data)))
    assert tc.get_task_result(again, block=True, timeout=60).result == data.sum()


def controller_of(farm: Farm) -> int:
    """The process that decides for this farm."""
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith("ipytaskfarm controller") and farm.name in words:
            return int(process.pid)
    raise AssertionError("the farm has no controller")
