"""Test the private memory of engines, measured on real processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipytaskfarm.agent import memory
from ipytaskfarm.agent.memory import MemoryWatch, descendants, node_memory, private_bytes
from ipytaskfarm.system.control_groups import MemoryRoom

MIB = 2**20
HOLD = "import sys, mmap, subprocess\n{}\nprint('ready', flush=True)\nsys.stdin.read()"


@contextmanager
def holding(code: str) -> Iterator[int]:
    """A process that has done this; its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.communicate()


def test_private_memory_is_what_was_written() -> None:
    with holding("kept = b'x' * 50_000_000") as large, holding("pass") as small:
        assert 48e6 < private_bytes(large) - private_bytes(small) < 55e6


def test_mapped_files_and_memory_from_before_a_fork_are_shared(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    with open(file, "wb") as written:
        written.write(b"x" * 30 * MIB)
        os.fsync(written.fileno())  # as blobs are: pages that wait for the disk count for who maps them
    code = f"f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); m.find(b'z')"
    with holding(code) as mapping, holding("pass") as small:
        assert private_bytes(mapping) - private_bytes(small) < 10 * MIB
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    kept = bytearray(b"y") * (40 * MIB)
    child = os.fork()
    if child == 0:
        shared[0] = 1
        while not shared[1]:
            pass
        os._exit(len(kept) and 0)
    try:
        while not shared[0]:
            pass
        assert private_bytes(child) < 20 * MIB
    finally:
        shared[1] = 1
        os.waitpid(child, 0)


def test_children_count_and_theirs() -> None:
    grandchild = "import sys; kept = b'x' * 30_000_000; print('ready', flush=True); sys.stdin.read()"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {grandchild!r}]); p.wait()"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); p.stdout.readline()"
    with holding(start) as pid:
        assert len(list(descendants(pid))) == 2
        assert private_bytes(pid) > 30e6


def test_one_beyond_its_limit_has_to_go() -> None:
    with holding("kept = b'x' * 50_000_000") as large, holding("pass") as small:
        engines = [(small, False), (large, False)]
        verdict = MemoryWatch(40_000_000).look(engines, 0.0)
        assert verdict is not None
        assert verdict.place == 1
        assert verdict.cause.startswith("memory: ")
        assert "the limit is 38 MiB" in verdict.cause
        assert MemoryWatch(200_000_000).look(engines, 0.0) is None
        assert MemoryWatch(40_000_000).look([(small, False), (large, True)], 0.0) is None, "it is going already"


def test_it_looks_now_and_then() -> None:
    with holding("kept = b'x' * 50_000_000") as large:
        watch = MemoryWatch(1_000_000_000)
        assert watch.look([(large, False)], 0.0) is None
        watch._limit = 1_000_000
        assert watch.look([(large, False)], memory.LOOK_S / 2) is None
        assert watch.look([(large, False)], memory.LOOK_S) is not None


def test_when_the_node_has_little_left_the_largest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with holding("kept = b'x' * 50_000_000") as large, holding("pass") as small:
        engines = [(small, False), (large, False)]
        assert MemoryWatch(None).look(engines, 0.0) is None
        monkeypatch.setattr(memory, "node_memory", lambda: [MemoryRoom(40 * MIB, 1000 * MIB)])
        verdict = MemoryWatch(None).look(engines, 0.0)
        assert verdict is not None
        assert verdict.place == 1
        assert "the node had 40 MiB of 1,000 MiB left" in verdict.cause
        assert MemoryWatch(None).look([(small, False), (large, True)], 0.0) is None, "one is going already"


def test_an_engine_that_runs_nothing_goes_before_a_larger_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with holding("kept = b'x' * 50_000_000") as large, holding("pass") as small:
        monkeypatch.setattr(memory, "node_memory", lambda: [MemoryRoom(40 * MIB, 1000 * MIB)])
        verdict = MemoryWatch(None).look([(large, False), (small, False)], 0.0, idle_from=1)
        assert verdict is not None
        assert verdict.place == 1
        assert "this engine is frozen" in verdict.cause
        none_idle = MemoryWatch(None).look([(small, False), (large, False)], 0.0, idle_from=2)
        assert none_idle is not None
        assert none_idle.place == 1


def test_what_the_kernel_ends_for_lack_of_memory_is_told_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = iter([2, 2, 3, 3, 3])
    monkeypatch.setattr(memory, "oom_kills", lambda: next(kills))
    watch = MemoryWatch(None)
    assert watch.oom_cause(0.0) == "", "others were ended before"
    assert watch.look([], 1.0) is None
    assert watch.oom_cause(2.0).startswith(memory.LIMIT_CAUSE)
    assert watch.oom_cause(1.1 + memory.OOM_S) == ""


def test_the_nodes_memory() -> None:
    for available, total in node_memory():
        assert 0 < available <= total


def test_processes_that_are_gone_have_nothing() -> None:
    with holding("pass") as pid:
        pass
    assert private_bytes(pid) == 0
