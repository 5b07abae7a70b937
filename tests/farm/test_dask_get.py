"""Test ``tc.dask_get``: dask's collections on a real farm, compared with dask's own synchronous scheduler."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.callbacks
import numpy as np
import pytest
from dask.bag import from_sequence
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.diagnostics.profile import Profiler
from dask.diagnostics.progress import ProgressBar
from dask.local import get_sync

from ipytaskfarm import TaskClient

pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]


def increment(x: int) -> int:
    return x + 1


def _array() -> Any:
    return da.arange(100, chunks=10)


GRAPHS: dict[str, Callable[[], Any]] = {
    "sum of an array": lambda: _array().sum(),
    "mean of squares": lambda: (_array() ** 2).mean(),
    "transposed product": lambda: (m := da.ones((40, 40), chunks=(10, 20))) @ m.T,
    "slices and concatenation": lambda: da.concatenate([_array()[::3], _array()[5:17]]),
    "cumulative sum": lambda: da.cumsum(_array()),
    "singular values": lambda: da.linalg.svd(da.ones((40, 5), chunks=(10, 5)).cumsum(0))[1],
    "rechunked": lambda: _array().reshape(10, 10).rechunk((3, 5)),
    "bag, mapped and folded": lambda: from_sequence(range(50), npartitions=7).map(increment).sum(),
    "bag, grouped": lambda: from_sequence(range(20), npartitions=4).frequencies(),
    "delayed tree": lambda: delayed(sum)([delayed(increment)(i) for i in range(5)]),
}


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS.keys())
def test_a_collection_has_the_value_that_dask_computes(tc: TaskClient, make: Callable[[], Any]) -> None:
    with dask.config.set(scheduler="synchronous"):
        expected = make().compute()
    with dask.config.set(scheduler=tc.dask_get):
        found = make().compute()
    np.testing.assert_array_equal(found, expected)
    assert tc.queue_status()["succeeded"] == 0, "values stay on the farm"


def test_a_plain_graph_may_have_aliases_data_and_nested_keys(tc: TaskClient) -> None:
    graph = {"a": 1, "b": (increment, "a"), "c": "b", "d": (sum, ["a", "b", "c"]), "unused": (increment, "d")}
    assert tc.dask_get(graph, [["a", "b"], ["c", ["d"]]]) == [[1, 2], [2, [5]]]
    assert tc.dask_get(graph, "d") == 5


def test_several_collections_share_what_they_have_in_common(tc: TaskClient) -> None:
    array = _array()
    with dask.config.set(scheduler=tc.dask_get):
        assert compute(array.sum(), array.max()) == (4950, 99)


def fails(x: int) -> int:
    print(f"x is {x}")
    raise ZeroDivisionError(f"with {x}")


def test_the_error_of_a_node_is_raised_and_the_others_end(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    total = delayed(sum)([delayed(increment)(1), delayed(fails)(2)])
    with dask.config.set(scheduler=tc.dask_get), pytest.raises(ZeroDivisionError, match="with 2"):
        total.compute()
    assert tc.queue_status()["scheduled"] == 0
    assert "ZeroDivisionError" in {group.etype for group in tc.failures()}
    assert capsys.readouterr().out == "x is 2\n"


def test_callbacks_are_called_as_by_dasks_own_scheduler(tc: TaskClient) -> None:
    graph = {
        "a": 1,
        "b": (increment, "a"),
        "c": "b",
        "d": (add, "b", "c"),
        "e": (add, "d", "c"),
        "unused": (increment, "e"),
    }
    calls: dict[str, list[Any]] = {}
    schedulers: dict[str, Callable[..., Any]] = {"dask": get_sync, "farm": tc.dask_get}
    for name, get in schedulers.items():
        seen = calls[name] = []
        watching = Callback(
            start=lambda dsk, seen=seen: seen.append(("start", sorted(dsk))),
            start_state=lambda dsk, state, seen=seen: seen.append(
                ("state", sorted(dsk), state["ready"], sorted(state))
            ),
            pretask=lambda key, dsk, state, seen=seen: seen.append(("begins", key, sorted(state["running"]))),
            posttask=lambda key, value, dsk, state, worker, seen=seen: seen.append(
                ("ends", key, value, sorted(state["finished"]), sorted(state["cache"]), sorted(state["released"]))
            ),
            finish=lambda dsk, state, failed, seen=seen: seen.append(("finish", failed, sorted(state["finished"]))),
        )
        with watching:
            assert get(graph, ["e"]) in ([6], (6,))
        with watching, pytest.raises(ZeroDivisionError):
            get({"x": (fails, 1), "y": (increment, "x")}, "y")
    assert calls["farm"] == calls["dask"]


def test_a_progress_bar_and_a_profiler_show_the_farms_nodes(tc: TaskClient) -> None:
    shown = io.StringIO()
    nodes = [delayed(pause)(0.2) for _ in range(4)]
    with dask.config.set(scheduler=tc.dask_get), ProgressBar(out=shown, dt=0.01), Profiler() as profiler:
        compute(nodes)
        assert _array().sum().compute() == 4950
    assert "100% Completed" in shown.getvalue()
    assert any(f"| {percent}% Completed" in shown.getvalue() for percent in (25, 50, 75)), shown.getvalue()
    slept = [each for each in profiler.results if "pause" in str(each.key)]
    assert len(slept) == 4
    assert all(each.end_time - each.start_time >= 0.2 for each in slept)
    assert {each.worker_id for each in slept} <= {0, 1}
    assert max(each.end_time for each in slept) <= profiler.end_time
    assert dask.callbacks.Callback.active == set()


@pytest.mark.parametrize(
    ("function", "value"), [(type, threading.Lock()), (threading.Lock, None)], ids=["argument", "result"]
)
def test_what_cannot_be_pickled_raises_pickles_error(tc: TaskClient, function: Any, value: Any) -> None:
    node = delayed(function)(value) if value is not None else delayed(function)()
    with dask.config.set(scheduler=tc.dask_get), pytest.raises(TypeError, match="cannot pickle") as raised:
        delayed(str)(node).compute()
    assert type(raised.value) is TypeError
    assert "a _thread.lock" in str(raised.value.__cause__)
    assert "inside the task" in str(raised.value.__cause__)


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def kills_its_engine_once(x: int, mark: Path) -> int:
    if x == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_killed_engine_costs_no_value(tc: TaskClient, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    total = delayed(sum)([delayed(kills_its_engine_once)(i, mark) for i in range(10)])
    with dask.config.set(scheduler=tc.dask_get):
        assert total.compute() == 45
    assert mark.exists()


def test_a_key_that_the_graph_lacks_is_named(tc: TaskClient) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        tc.dask_get({"a": 1}, ["nowhere"])


def test_a_key_that_needs_itself_is_named(tc: TaskClient) -> None:
    with pytest.raises(RuntimeError, match="Cycle detected in the dask graph: 'a' needs itself"):
        tc.dask_get({"a": (increment, "b"), "b": (increment, "a")}, "a")
