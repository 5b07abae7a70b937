"""pipefunc's pipelines with our `Executor`: its public example, and an engine that is killed in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Executor, TaskClient

pipefunc = pytest.importorskip("pipefunc")
pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]


def double_it(x: int) -> int:
    return 2 * x


def killed_once(x: int, mark: str) -> int:
    if x == 3 and not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * x


def take_sum(y: np.ndarray[Any, np.dtype[np.object_]]) -> int:
    return sum(y)


def pipeline(double: Any) -> Any:
    y = pipefunc.PipeFunc(double, output_name="y", mapspec="x[i] -> y[i]")
    return pipefunc.Pipeline([y, pipefunc.PipeFunc(take_sum, output_name="sum")])


@pytest.mark.parametrize("storage", ["file_array", "dict"])
def test_the_example_of_its_documentation(ex: Executor, tmp_path: Path, storage: str) -> None:
    results = pipeline(double_it).map(
        {"x": [1, 2, 3, 4]}, run_folder=tmp_path, executor=ex, storage=storage, show_progress=False
    )
    assert results["sum"].output == 20
    assert results["y"].output.tolist() == [2, 4, 6, 8]


def test_an_engine_is_killed(ex: Executor, tc: TaskClient, tmp_path: Path) -> None:
    inputs = {"x": list(range(40)), "mark": str(tmp_path / "mark")}
    results = pipeline(killed_once).map(inputs, executor=ex, storage="dict", show_progress=False)
    assert results["sum"].output == 2 * sum(range(40))
    assert (tmp_path / "mark").exists()
