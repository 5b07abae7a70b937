"""The profilers of an engine.

A thread of their own starts, stops and reads them, also while a task runs. The sampler and tracemalloc start and stop
at that moment. yappi measures whole runs: it is switched on before a task or a command and off after it, so that it
measures tasks and nothing else. A run that is in progress when yappi is started is not measured. Of a run that is in
progress when yappi is stopped, the calls that had returned by then are kept.

Reading yappi during a run, from another thread, was rejected: yappi assumes that it sees all calls and returns of a
thread. If it misses some, it charges one function with the time of another.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from types import CodeType, FrameType, ModuleType
from typing import Any, Final, TypeAlias

import ipykernel
import IPython.core

from ..core.errors import KernelError
from ..core.messages.engine_commands import CpuProfile, MemoryProfile, Place, ProfileBody, SampleProfile
from .interpreter import Tracing

Spot: TypeAlias = tuple[str, str, int]
"""(function, file, line) as the interpreter has them. If function is "", the spot is a line."""

OTHER: Spot = ("(others)", "(others)", 0)
"""Stands for all spots beyond the limit."""
TEXT_MAX = 300
"""The number of characters that are kept of a function's or a file's name, as users can choose the names."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
MACHINERY = (
    *(f"{os.path.join(_PACKAGE, part)}/" for part in ("engine", "serialization", "adapters")),
    *(f"{os.path.dirname(file)}/" for file in (IPython.core.__file__, ipykernel.__file__)),
)
"""Folders of code that runs tasks and cells and is not the user's."""


def known_file(file: str) -> str:
    """Return the file's name for profiles: one name for the code of all tasks, and one for all cells.

    Their own names contain a hash or a number: 100,000 tasks ``f(17)`` would be 100,000 places.
    """
    if file.startswith("<"):
        if file.startswith("<task "):
            return "<task>"
        if file.startswith(("<cell ", "<ipython-input-")):
            return "<cell>"
    elif "/ipykernel_" in file:
        return "<cell>"
    return file[:TEXT_MAX]


def module_of(file: str, path: Sequence[str]) -> str:
    """Return the dotted name under which a file is imported from one of these folders; else the file's base name."""
    if file.startswith("<frozen "):
        return file[len("<frozen ") : -1]
    if not file.endswith(".py"):
        return file
    roots = [len(root) for root in path if isinstance(root, str) and root and file.startswith(root)]
    name = file[max(roots) :] if roots else os.path.basename(file)
    return name.strip("/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class CodeLocations:
    """Numbers for spots, from which the list of places is made in the end."""

    def __init__(self) -> None:
        self._numbers: dict[Spot, int] = {}
        self._modules: dict[str, str] = {}

    def number(self, spot: Spot) -> int:
        """Return the number of a spot: 0, 1, 2 … in the order of the first calls."""
        return self._numbers.setdefault(spot, len(self._numbers))

    def all(self) -> list[Place]:
        """Return the places in the order of their numbers."""
        return [Place(function, self._module(file), file, line) for function, file, line in self._numbers]

    def _module(self, file: str) -> str:
        module = self._modules.get(file)
        if module is None:
            module = self._modules[file] = module_of(file, sys.path)
        return module


_chance = random.SystemRandom()
"""The sampler's own generator, because users may seed the shared one."""

INTERVAL_S: Final = 0.02
IDLE_LOOKS = 50
"""After this number of samples that found nothing, the sampler sleeps until there is work."""
DEPTH_MAX = 500
"""The number of frames of one stack. Of a deeper stack the innermost frames are kept."""
STACKS_MAX = 20_000
SPOTS_MAX = 20_000
"""The number of distinct stacks, and of distinct functions in them. Further ones count as others."""
CODES_MAX = 2000
"""The number of code objects with a known spot: looking up 400 frames by name takes longer than waking up."""


class Sampler:
    """Samples one thread fifty times a second.

    A thread looks at the main thread's stack while a task or a command runs. It counts wall-clock time, including
    waiting, and costs less than 2 %, so it may stay on. It sleeps while nothing runs.
    """

    def __init__(self, thread_id: int) -> None:
        """Create it; `thread_id` is the thread's ident."""
        self._thread_id = thread_id
        self._marks: set[int] = set()
        self._lock = threading.Lock()
        self._spots: dict[Spot, int] | None = None
        """None: never started."""
        self._stacks: dict[tuple[int, ...], int] = {}
        self._known: dict[int, tuple[CodeType, int]] = {}
        """By the code's id, which stays its own as long as it is in here."""
        self._running = threading.Lock()
        """Held while the thread is to run.  An Event, which makes a lock for each wait, costs a quarter more."""
        self._ending = False
        self._thread: threading.Thread | None = None
        self._awake = threading.Event()
        self._parked = False
        self._busy = False

    def busy(self) -> None:
        """Record that there may be work from now on. Called by the sampled thread."""
        # `_park` reads and writes these two in the other order, so at least one side sees what the other has written.
        self._busy = True
        if self._parked:
            self._awake.set()

    def idle(self) -> None:
        """Record that there is no work."""
        self._busy = False

    def mark(self, *codes: CodeType) -> None:
        """Set the functions that call the user's code.

        Stacks without one of them are not counted. They must live for ever.
        """
        self._marks.update(map(id, codes))  # hashing a code object itself takes microseconds

    def start(self) -> None:
        """Start with an empty record. If it is on already, go on."""
        if self._thread is not None:
            return
        with self._lock:
            self._spots, self._stacks, self._known = {OTHER: 0}, {}, {}
        self._ending = False
        self._running.acquire()
        self._thread = threading.Thread(target=self._serve, name="Sampling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling. The counts stay readable until the next start."""
        if self._thread is not None:
            self._ending = True
            self._running.release()
            self._awake.set()
            self._thread.join()
            self._thread = None
            self._known = {}

    def read(self, engine_id: int) -> SampleProfile | None:
        """Return the counts so far; None if it was never started."""
        with self._lock:
            if self._spots is None:
                return None
            spots, stacks = list(self._spots), list(self._stacks.items())
        places = CodeLocations()
        for spot in spots:
            places.number(spot)
        return SampleProfile(
            engine_id, INTERVAL_S, places.all(), [(list(stack), n) for stack, n in stacks], self._thread is not None
        )

    def _serve(self) -> None:
        due = time.monotonic() + INTERVAL_S
        found_nothing = 0
        # The distances vary, because regular work could keep step with even ones.
        while not self._running.acquire(timeout=max(0.0, due - time.monotonic()) + _chance.uniform(0, INTERVAL_S / 2)):
            late = max(0.0, time.monotonic() - due)
            # If C code held the interpreter for two seconds, a hundred samples were missed. They are charged to that
            # code: the next line to run is the one that called it.
            samples = 1 + int(late / INTERVAL_S)
            due += samples * INTERVAL_S
            found_nothing = 0 if self._take(samples) else found_nothing + 1
            if found_nothing >= IDLE_LOOKS and not self._busy:
                self._park()
                found_nothing, due = 0, time.monotonic() + INTERVAL_S
        self._running.release()

    def _park(self) -> None:
        self._awake.clear()
        self._parked = True
        if not self._busy and not self._ending:
            self._awake.wait()
        self._parked = False

    def _take(self, samples: int) -> bool:
        """Take a sample, and return whether there was a stack of the user."""
        codes = self._codes(sys._current_frames().get(self._thread_id))
        if codes:
            with self._lock:
                self._count(codes, samples)
        return bool(codes)

    def _codes(self, frame: FrameType | None) -> list[CodeType]:
        """Return the user's part of a stack, the outermost function first; empty if there is none."""
        marks = self._marks
        codes: list[CodeType] = []
        while frame is not None:
            code = frame.f_code
            if id(code) in marks:
                break
            codes.append(code)
            frame = frame.f_back
        else:
            return []
        while codes and codes[-1].co_filename.startswith(MACHINERY):
            codes.pop()
        del codes[DEPTH_MAX:]
        codes.reverse()
        return codes

    def _count(self, codes: list[CodeType], samples: int) -> None:
        known = self._known
        if len(known) > CODES_MAX:
            known.clear()
        numbers = []
        for code in codes:
            found = known.get(id(code))
            if found is None:
                found = known[id(code)] = code, self._number(code)
            numbers.append(found[1])
        key = tuple(numbers)
        if key not in self._stacks and len(self._stacks) >= STACKS_MAX:
            key = (0,)
        self._stacks[key] = self._stacks.get(key, 0) + samples

    def _number(self, code: CodeType) -> int:
        spots = self._spots
        assert spots is not None
        spot = code.co_qualname[:TEXT_MAX], known_file(code.co_filename), code.co_firstlineno
        if spot not in spots and len(spots) < SPOTS_MAX:
            spots[spot] = len(spots)
        return spots.get(spot, 0)


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
