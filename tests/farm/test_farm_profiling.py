"""Profiles of a real farm of two engines: CPU, memory and samples, merged and per engine, tables and a flame graph."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient, errors
from tests.support.farms import DEADLINE_S, Gate, incarnations, until_running
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

SPIN = "def spin():\n    return sum(range(2000))\ndef work(busy):\n    while busy(): spin()\n"


WAITS = """
import os, time
ready = True
def waits(path):
    while ready and not os.path.exists(path):
        time.sleep(0.01)
"""


def leaf(x: int) -> int:
    return x * x


def branch(n: int) -> int:
    return sum([leaf(i) for i in range(n)])


def spins(gate: Gate) -> Task:
    """A task that calls `spin` until the gate is open."""
    return Task(f"import os\n{SPIN}work(lambda: not os.path.exists({str(gate.path)!r}))")


def printed(print_it: Callable[..., None], **settings: object) -> str:
    file = io.StringIO()
    print_it(file=file, **settings)
    return file.getvalue()


def test_what_was_never_started_says_so(tc: TaskClient) -> None:
    for profiler in (tc.cpu_profiling.get_stats, tc.sampling.get_stats, tc.memory_profiling.take_snapshot):
        with pytest.raises(RuntimeError, match=r"start\(\) first"):
            profiler()
    with pytest.raises(ValueError, match="'cpu' or 'wall'"):
        tc.cpu_profiling.start(clock="sun")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nframes must be 1 to 65535, not 0"):
        tc.memory_profiling.start(0)


def test_cpu_time_over_all_engines(tc: TaskClient, mec: MultiEngineClient) -> None:
    tc.barrier([tc.run(Task(branch, args=(1,), targets=i)) for i in range(2)])  # importing this file is not measured
    with tc.cpu_profiling as profiling:
        assert tc.map(branch, [10] * 20) == [285] * 20
        mec.execute("def once(): pass\nonce()")
    tc.map(branch, [10])  # not measured any more
    stats = profiling.get_stats()
    counts = {row["name"]: row["ncall"] for row in stats.rows}
    assert (counts["branch"], counts["leaf"], counts["once"]) == (20, 200, 2)
    each = profiling.get_stats(per_engine=True)
    by_engine = printed(profiling.print_stats, per_engine=True)
    assert printed(profiling.print_stats, per_worker=True) == by_engine, "bndl's name of the argument"
    assert list(each) == stats.engines == [0, 1]
    assert sum(row["ncall"] for part in each.values() for row in part.rows if row["name"] == "leaf") == 200
    assert not [row for row in stats.rows if row["module"].startswith("ipytaskfarm.engine")]

    table = printed(profiling.print_stats, sort_by="ncall", columns=["ncall", "name"], max_rows=1, include=__name__)
    counted, heading, first = table.splitlines()
    assert (counted[:5], heading.split(), first.split()) == ("1 of ", ["ncall", "name"], ["200", "leaf"])
    both = printed(profiling.print_stats, per_engine=True, exclude=["<cell>"], max_rows=None)
    assert both.count("engine 0\n") == both.count("engine 1\n") == 1
    assert "once" not in both
    assert "cpu time of" in repr(stats)


def test_stopping_cpu_profiling_does_not_wait_for_a_task(tc: TaskClient, gate: Gate) -> None:
    with tc.cpu_profiling.start(clock="wall"):
        running = tc.run(spins(gate))
        until_running(tc, running)
        assert tc.cpu_profiling.get_stats().clock == "wall"
    names = {row["name"] for row in tc.cpu_profiling.get_stats().top(include="<task>")}
    assert "work" not in names, "what had returned by then is there; what goes on is not"
    assert tc.status(running).state == "running"
    gate.open()
    tc.barrier(running, timeout=DEADLINE_S)


def test_cpu_profiling_of_some_engines(tc: TaskClient, mec: MultiEngineClient) -> None:
    tc.cpu_profiling.start()
    tc.cpu_profiling.stop()
    mec.targets = 1
    with mec.cpu_profiling:
        mec.execute("def only(): pass\nonly()", targets="all")
    rows = [row for row in tc.cpu_profiling.get_stats().rows if row["name"] == "only"]
    assert [row["ncall"] for row in rows] == [1]
    assert list(mec.cpu_profiling.get_stats(per_engine=True)) == [1]


def test_engines_without_yappi_name_the_remedy(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("import sys; there = sys.modules.pop('yappi', None); sys.modules['yappi'] = None")
    try:
        with pytest.raises(ModuleNotFoundError, match=r"pip install ipytaskfarm\[profile\] \(engines 0, 1\)"):
            tc.cpu_profiling.start()
    finally:
        mec.execute("del sys.modules['yappi']\nif there is not None: sys.modules['yappi'] = there")


def test_memory_over_all_engines(tc: TaskClient, mec: MultiEngineClient, tmp_path: Path) -> None:
    with tc.memory_profiling:
        before = tc.memory_profiling.take_snapshot()
        before.save(tmp_path / "before.json")
        mec.execute("held = [bytes(1000) for _ in range(1000)]")
        grown = printed(tc.memory_profiling.print_top, compare_to=before, limit=1)
        assert "<cell>:1" in grown
        each = printed(tc.memory_profiling.print_top, compare_to=tmp_path / "before.json", per_engine=True, limit=1)
        assert each.count("<cell>:1") == 2
    mec.execute("del held")
    after = tc.memory_profiling.take_snapshot()  # as it was when profiling stopped
    (row,) = after.top(include="<cell>")
    assert row["size"] > 2_000_000
    assert {engine: part.engines for engine, part in tc.memory_profiling.take_snapshot(per_engine=True).items()} == {
        0: [0], 1: [1],
    }  # fmt: skip
    assert [r["module"] for r in after.top("filename", include="<cell>")] == ["<cell>"]


def test_tracebacks_of_memory_show_who_called(tc: TaskClient, mec: MultiEngineClient) -> None:
    with tc.memory_profiling.start(nframes=5):
        mec.execute("def make():\n    return bytes(10**6)\n\nheld = make()")
    mec.execute("del held")
    (row,) = [r for r in tc.memory_profiling.take_snapshot().top("traceback") if r["size"] > 10**6]
    assert (row["module"], row["line"]) == ("<cell>", 2)
    assert row["callers"].startswith("<cell>:4")


def test_samples_of_what_runs_now(tc: TaskClient, gate: Gate, tmp_path: Path) -> None:
    with tc.sampling as sampling:
        running = tc.run(spins(gate))
        until_running(tc, running)
        eventually(lambda: "work" in {row["name"] for row in sampling.get_stats().rows}, DEADLINE_S)
    assert tc.status(running).state == "running"
    gate.open()
    tc.barrier(running, timeout=DEADLINE_S)

    stats = sampling.get_stats()
    rows = {row["name"]: row for row in stats.top(include="<task>")}
    assert rows["<module>"]["cumulative"] == stats.samples  # no frame of ours around it
    assert "work" in printed(sampling.print_stats, sort_by="cumulative", per_engine=True)
    sampling.flamegraph(tmp_path / "farm.svg")
    titles = [element.text or "" for element in ET.parse(tmp_path / "farm.svg").iter() if element.tag.endswith("title")]
    assert any(title.startswith("work (<task>:4): ") for title in titles)
    sampling.save(tmp_path / "stacks.txt")
    counts = [int(line.rpartition(" ")[2]) for line in (tmp_path / "stacks.txt").read_text().splitlines()]
    assert sum(counts) == stats.samples


@pytest.mark.parametrize("travels", ["notebook", "executor"])
def test_samples_of_a_function_begin_with_the_function(tc: TaskClient, gate: Gate, travels: str) -> None:
    names: dict[str, Any] = {
        "__name__": "__main__"
    }  # as in a notebook: such a function gets its globals before each call
    exec(WAITS, names)
    with tc.sampling as sampling, tc.executor(gathers=False) as executor:
        call = (executor if travels == "executor" else tc).submit(names["waits"], str(gate.path))
        eventually(lambda: "waits" in {row["name"] for row in sampling.get_stats().rows}, DEADLINE_S)
        gate.open()
        call.result(DEADLINE_S)
    stats = sampling.get_stats()
    assert {row["name"]: row["cumulative"] for row in stats.rows}["waits"] == stats.samples
    assert not [row for row in stats.rows if row["module"].startswith("ipytaskfarm")]


def test_engines_that_come_later_sample_too(tc: TaskClient, mec: MultiEngineClient, farm: Farm, gate: Gate) -> None:
    with tc.sampling:
        assert [entry[0] for entry in mec.sticky()] == ["profile:sampling"]
        before = incarnations(farm)
        lost = tc.run(Task("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
        tc.barrier(lost, timeout=DEADLINE_S)
        eventually(lambda: len(incarnations(farm)) == 2 and incarnations(farm) != before, DEADLINE_S, every_s=0.05)
        assert list(tc.sampling.get_stats(per_engine=True)) == [0, 1]
        (mec.targets,) = [row.id for row in mec.engines() if row.engine not in before]
        with pytest.raises(RuntimeError, match="has replaced another"):
            mec.cpu_profiling.get_stats()  # only the sampler came with it
    assert mec.sticky() == []
    mec.targets = 9
    with pytest.raises(errors.InvalidEngineID):
        mec.sampling.start()
