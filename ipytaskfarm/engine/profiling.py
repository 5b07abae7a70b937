"""The profilers of an engine.

A thread of their own starts, stops and reads them, also while a task runs. The sampler and tracemalloc start and stop
at that moment. yappi measures whole runs: it is switched on before a task or a command and off after it, so that it
measures tasks and nothing else. A run that is in progress when yappi is started is not measured. Of a run that is in
progress when yappi is stopped, the calls that had returned by then are kept.

Reading yappi during a run, from another thread, was rejected: yappi assumes that it sees all calls and returns of a
thread. If it misses some, it charges one function with the time of another.
"""

from __future__ import annotations

import threading
import tracemalloc
from types import ModuleType
from typing import Any

from ..core.errors import KernelError
from ..core.messages.engine_commands import CpuProfile, MemoryProfile, ProfileBody, SampleProfile
from .interpreter import Tracing
from .sampler import MACHINERY, OTHER, TEXT_MAX, CodeLocations, Sampler, Spot, known_file

FUNCTIONS_MAX = 20_000
BLOCKS_MAX = 20_000
"""The number of rows that a profile keeps. Later or smaller ones are added up in one row."""
OWN_THREADS = ("Lane", "Sampling", "Profiling")
"""The beginnings of the names of the engine's own threads."""


class CpuProfiler:
    """yappi around each run."""

    def __init__(self) -> None:
        self.on = False
        """Whether runs that begin now are measured."""
        self.running = False
        self._lock = threading.Lock()
        self._yappi: Any = None
        self._clock = "cpu"
        self._builtins = False
        self._runs = 0
        self._sums: dict[Spot, list[float]] | None = None
        """Calls, seconds in it, seconds with what it called.  None: never started."""
        self._problem = ""
        # These are the kernel's threads. Threads that tasks start belong to the tasks.
        self._kernels = {thread.ident for thread in threading.enumerate()} - {threading.main_thread().ident}

    def start(self, clock: str, builtins: bool) -> None:
        """Measure the next runs, with fresh sums. If it is on with the same settings already, go on.

        Raises:
            ImportError: yappi is not installed.
        """
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
        """Stop measuring. The sums stay until the next start."""
        with self._lock:
            self.on = False
            self._cut()

    def begin(self) -> None:
        """Begin to measure a run. Called in the main thread, where it cannot be interrupted."""
        with self._lock:
            if self.on:
                self.running = True
                self._runs += 1
                try:
                    self._yappi.start(builtins=self._builtins)
                except Exception as error:  # an error of yappi must not end an engine
                    self._give_up(error)

    def end(self) -> None:
        """End the measurement of a run."""
        with self._lock:
            self._cut()

    def read(self, engine_id: int) -> CpuProfile | None:
        """Return the sums of all measured runs that have ended; None if it was never started."""
        with self._lock:
            if self._problem:
                raise KernelError(f"yappi failed on engine {engine_id}, which profiles no more: {self._problem}")
            if self._sums is None:
                return None
            places = CodeLocations()
            calls = [(places.number(spot), int(n), own, all_) for spot, (n, own, all_) in self._sums.items()]
            return CpuProfile(engine_id, self._clock, self._runs, places.all(), calls)

    def _cut(self) -> None:
        """Add yappi's measurements to the sums and clear yappi, which limits its memory and resets its idea of the
        stack.
        """
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
            # yappi reports a call that has not returned as one that took no time.
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
    """tracemalloc, for the whole process."""

    def __init__(self) -> None:
        self._on = False
        self._last: MemoryProfile | None = None

    def start(self, nframes: int) -> None:
        """Trace allocations from now on. If tracing is on with the same number of frames already, go on."""
        if self._on and tracemalloc.is_tracing() and tracemalloc.get_traceback_limit() == nframes:
            return
        Tracing.profiler_on = True  # set before tracing starts: the end of a task may check it at any moment
        tracemalloc.stop()
        tracemalloc.start(nframes)
        self._on = True

    def stop(self, engine_id: int) -> None:
        """Stop tracing. The allocations of this moment stay readable until the next start."""
        if self._on:
            self._last = self.read(engine_id)
            self._on = False
            tracemalloc.stop()
            Tracing.profiler_on = False

    def read(self, engine_id: int) -> MemoryProfile | None:
        """Return the allocations of now, or of the moment when tracing was stopped; None if it was never started."""
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
            # Files that are one place here may have been several for tracemalloc.
            key = tuple(map(places.number, spots))
            size, count = blocks.get(key, (0, 0))
            blocks[key] = size + statistic.size, count + statistic.count
        rows = [(list(key), size, count) for key, (size, count) in blocks.items()]
        return MemoryProfile(engine_id, traced, peak, places.all(), rows)


class Profiling:
    """The three profilers of an engine."""

    def __init__(self) -> None:
        self.cpu = CpuProfiler()
        self.memory = MemoryProfiler()
        self.sampler = Sampler(threading.main_thread().ident or 0)

    def do(self, body: ProfileBody, engine_id: int) -> CpuProfile | MemoryProfile | SampleProfile | None:
        """Start, stop or read one of the profilers. One thread calls this, in order. Reading returns the profile."""
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
