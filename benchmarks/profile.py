"""Show the time of one task by function: ``python -m benchmarks --profile`` samples each process in turn with py-spy.

The operating system measures the CPU time per task of each process; the samples distribute it over functions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Options, cpu_s, farm_with_client, processes
from benchmarks.run_loop import run_expressions
from ipytaskfarm import TaskClient

SAMPLES_PER_S = 500
SHOWN = 15
WAITING = re.compile(r"(\w+\.)*(_?select|_?poll|_?wait|_sleep|device) \(")
"""Functions in which waiting threads are, unless py-spy counts them as idle."""
LEAST = 0.01
"""Least share of a process's time for which a function is shown."""


class Load(threading.Thread):
    """Repeats the run loop until it is told to end."""

    def __init__(self, tc: TaskClient, count: int) -> None:
        super().__init__(name="load", daemon=True)
        self.tasks = 0
        self.ending = threading.Event()
        self._tc = tc
        self._count = count

    def run(self) -> None:
        """Submit, wait, fetch, clear."""
        while not self.ending.is_set():
            run_expressions(self._tc, self._count)
            self._tc.clear()
            self.tasks += self._count


def profile(options: Options, seconds: int = 5) -> Iterator[str]:
    """Return lines of text: for each process its CPU time per task, and its functions by their own time."""
    py_spy = _py_spy()
    with farm_with_client(options.engines) as (farm, tc):
        found = processes(farm)
        load = Load(tc, options.count(5_000))
        load.start()
        try:
            for name in ("client", "controller", "agent", "engine 0"):
                process = {"": next(p for full, p in found.items() if full.startswith(name))}
                before, done = cpu_s(process)[""], load.tasks
                samples = _sample(py_spy, process[""].pid, seconds)
                spent_s, tasks = cpu_s(process)[""] - before, max(1, load.tasks - done)
                yield f"\n{name}: {spent_s / tasks * 1e6:.1f} us of CPU per task of the farm"
                total = sum(samples.values()) or 1
                for function, count in samples.most_common(SHOWN):
                    if count >= LEAST * total:
                        yield f"  {100 * count / total:5.1f} %  {function}"
        finally:
            load.ending.set()
            load.join()


def _py_spy() -> str:
    """Return the path of py-spy: that beside this Python first, whose environment need not be active."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise RuntimeError("py-spy is not installed: pip install -e '.[bench]'")
    return found


def _sample(py_spy: str, pid: int, seconds: int) -> Counter[str]:
    """Return the samples by innermost function, of threads that were not idle."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        command = [py_spy, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(SAMPLES_PER_S)]
        subprocess.run(
            [*command, "--function", "--format", "raw", "--output", str(raw)], check=True, capture_output=True
        )
        samples: Counter[str] = Counter()
        for line in raw.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            function = stack.rpartition(";")[2]
            if not WAITING.match(function):
                samples[function] += int(count)
        return samples
