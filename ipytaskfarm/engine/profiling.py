"""The profilers of an engine.

They are started, stopped and read by a thread of their own, also while a task runs.  The sampler and tracemalloc begin
and end at that very moment.  yappi measures run by run: it is switched on before a task or a command and off behind it,
so that it sees what tasks do and nothing else.  A run that is going on when it is started is not measured; of one that
is going on when it is stopped, what had returned by then is kept.

Reading yappi in the middle of a run, from another thread, was not done: it believes that it sees all calls and returns
of a thread, and what it misses meanwhile makes it charge one function with another's time.
"""

from __future__ import annotations

import threading
import tracemalloc
from types import ModuleType
from typing import Any

from ..core.errors import KernelError
from ..core.messages.engine_commands import CpuProfile, MemoryProfile, ProfileBody, SampleProfile
from .code_locations import MACHINERY, OTHER, TEXT_MAX, CodeLocations, Spot, known_file
from .interpreter import Tracing
from .sampler import Sampler

FUNCTIONS_MAX = 20_000
BLOCKS_MAX = 20_000
"""Rows kept of a profile; what comes later, or is smaller, is summed up in one."""
OWN_THREADS = ("Lane", "Sampling", "Profiling")
"""The beginnings of their names."""


class CpuProfiler:
    """yappi around each run."""

    def __init__(self) -> None:
        self.on = False
        """Runs that begin now are to be measured."""
        self.running = False
        self._lock = threading.Lock()
        self._yappi: Any = None
        self._clock = "cpu"
        self._builtins = False
        self._runs = 0
        self._sums: dict[Spot, list[float]] | None = None
        """Calls, seconds in it, seconds with what it called.  None: never started."""
        self._problem = ""
        # The kernel's threads; those that tasks start belong to the tasks.
        self._kernels = {thread.ident for thread in threading.enumerate()} - {threading.main_thread().ident}

    def start(self, clock: str, builtins: bool) -> None:
        """Measure runs from the next one on, anew; if it is on with these settings, go on.  ImportError: no yappi."""
        yappi = _yappi()
        with self._lock:
            if self.on and (clock, builtins) == (self._clock, self._builtins):
                return
            self._cut()
            yappi.clear_stats()
            yappi.set_clock_type(clock)
            self._yappi, self._clock, self._builtins = yappi, clock, builtins
            self._sums, self._runs, self._problem = {}, 0, ""
            self.on = True

    def stop(self) -> None:
        """Measure no more; what there is stays until the next start."""
        with self._lock:
            self.on = False
            self._cut()

    def begin(self) -> None:
        """A run begins; in the main thread, where it can not be interrupted."""
        with self._lock:
            if self.on:
                self.running = True
                self._runs += 1
                try:
                    self._yappi.start(builtins=self._builtins)
                except Exception as error:  # not ours, and not to be the end of an engine
                    self._give_up(error)

    def end(self) -> None:
        """A run has ended."""
        with self._lock:
            self._cut()

    def read(self, engine_id: int) -> CpuProfile | None:
        """Return the sums of all that ended; None: never started."""
        with self._lock:
            if self._problem:
                raise KernelError(f"yappi failed on engine {engine_id}, which profiles no more: {self._problem}")
            if self._sums is None:
                return None
            places = CodeLocations()
            calls = [(places.number(spot), int(n), own, all_) for spot, (n, own, all_) in self._sums.items()]
            return CpuProfile(engine_id, self._clock, self._runs, places.all(), calls)

    def _cut(self) -> None:
        """Add what yappi has to the sums, and let it forget: its memory, and what it takes for the stack, end here."""
        if not self.running:
            return
        self.running = False
        try:
            self._yappi.stop()
            self._add_all()
            self._yappi.clear_stats()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.on = False
        self._problem = f"{type(error).__name__}: {error}"

    def _add_all(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        own = self._kernels | {ident for ident, name in names.items() if name.startswith(OWN_THREADS)}
        theirs = {thread.id for thread in self._yappi.get_thread_stats() if thread.tid not in own}
        for stat in self._yappi.get_func_stats(filter_callback=lambda stat: stat.ctx_id in theirs):
            # yappi tells of a call that has not returned as one that took no time.
            if (stat.nactualcall or stat.tsub) and not stat.module.startswith(MACHINERY):
                self._add(stat)

    def _add(self, stat: Any) -> None:
        sums = self._sums
        assert sums is not None
        spot = stat.name[:TEXT_MAX], known_file(stat.module), stat.lineno
        if spot not in sums and len(sums) >= FUNCTIONS_MAX:
            spot = OTHER
        row = sums.setdefault(spot, [0, 0.0, 0.0])
        row[0] += stat.ncall
        row[1] += stat.tsub
        row[2] += stat.ttot


def _yappi() -> ModuleType:
    try:
        import yappi
    except ImportError:
        raise ModuleNotFoundError(
            "CPU profiling needs yappi, which is not installed where the engines run: pip install ipytaskfarm[profile]"
        ) from None
    found: ModuleType = yappi
    return found


class MemoryProfiler:
    """tracemalloc, for the process as a whole."""

    def __init__(self) -> None:
        self._on = False
        self._last: MemoryProfile | None = None

    def start(self, nframes: int) -> None:
        """Trace what is allocated from now on; as before if it is on with this many frames."""
        if self._on and tracemalloc.is_tracing() and tracemalloc.get_traceback_limit() == nframes:
            return
        Tracing.profiler_on = True  # before it starts: the end of a task may look at any moment
        tracemalloc.stop()
        tracemalloc.start(nframes)
        self._on = True

    def stop(self, engine_id: int) -> None:
        """Trace no more; what was there at this moment stays until the next start."""
        if self._on:
            self._last = self.read(engine_id)
            self._on = False
            tracemalloc.stop()
            Tracing.profiler_on = False

    def read(self, engine_id: int) -> MemoryProfile | None:
        """Return what is allocated now, or was at the stop; None: never started."""
        if not self._on:
            return self._last
        traced, peak = tracemalloc.get_traced_memory()
        places = CodeLocations()
        blocks: dict[tuple[int, ...], tuple[int, int]] = {}
        for statistic in tracemalloc.take_snapshot().statistics("traceback"):
            if statistic.traceback[-1].filename in (tracemalloc.__file__, __file__):
                continue
            if len(blocks) < BLOCKS_MAX:
                spots = [("", known_file(frame.filename), frame.lineno) for frame in statistic.traceback]
            else:
                spots = [OTHER]
            # Files that are one place here may have been several to tracemalloc.
            key = tuple(map(places.number, spots))
            size, count = blocks.get(key, (0, 0))
            blocks[key] = size + statistic.size, count + statistic.count
        rows = [(list(key), size, count) for key, (size, count) in blocks.items()]
        return MemoryProfile(engine_id, traced, peak, places.all(), rows)


class Profiling:
    """The three of them, for an engine's main thread."""

    def __init__(self) -> None:
        self.cpu = CpuProfiler()
        self.memory = MemoryProfiler()
        self.sampler = Sampler(threading.main_thread().ident or 0)

    def do(self, body: ProfileBody, engine_id: int) -> CpuProfile | MemoryProfile | SampleProfile | None:
        """Start, stop or read one; in one thread, in order.  What is read is the value."""
        if body.op == "start":
            self._start(body)
        elif body.op == "stop":
            self._stop(body, engine_id)
        elif body.profiler == "cpu":
            return self.cpu.read(engine_id)
        elif body.profiler == "memory":
            return self.memory.read(engine_id)
        else:
            return self.sampler.read(engine_id)
        return None

    def _start(self, body: ProfileBody) -> None:
        if body.profiler == "cpu":
            self.cpu.start(body.clock, body.builtins)
        elif body.profiler == "memory":
            self.memory.start(body.nframes)
        else:
            self.sampler.start()

    def _stop(self, body: ProfileBody, engine_id: int) -> None:
        if body.profiler == "cpu":
            self.cpu.stop()
        elif body.profiler == "memory":
            self.memory.stop(engine_id)
        else:
            self.sampler.stop()
