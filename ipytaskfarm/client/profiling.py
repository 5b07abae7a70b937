"""The profilers of both clients, ``tc.profile`` and ``mec.profile``: start, stop and read profilers on engines.

Engines answer at once, even while a task runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TextIO, TypeVar, overload

import msgspec

from ..core import errors, messages
from ..core.messages.engine_commands import (
    PROFILE,
    SAMPLING_KEY,
    CpuProfile,
    MemoryProfile,
    ProfileBody,
    SampleProfile,
)
from .commands import CommandPart, PendingResult, nothing
from .old_names import old_keywords
from .profiles import (
    Columns,
    CpuStats,
    Direction,
    File,
    GroupBy,
    MemorySnapshot,
    Modules,
    PerEngine,
    SampleStats,
    snapshot_of,
)
from .session import Session

T = TypeVar("T")

FRAMES_MAX = 65535
"""The limit of tracemalloc."""


class EngineProfiler:
    """Controls one kind of profiler on engines.

    Args:
        session: the connection.
        kind: which profiler.
        ids: engine ids; None: all engines that exist at the time of a call.
    """

    def __init__(
        self, session: Session, kind: Literal["cpu", "memory", "sampling"], ids: list[int] | None = None
    ) -> None:
        self.session = session
        self.kind = kind
        self.ids = ids
        self.started = False
        """Whether the profiler was started through this object."""

    def start(self, **settings: Any) -> None:
        """Start the profiler on the engines.  Raises NoEnginesRegistered."""
        self._send(ProfileBody(self.kind, "start", **settings), nothing)
        self.started = True

    def stop(self) -> None:
        """Stop the profiler on the engines."""
        self.started = False
        with contextlib.suppress(errors.NoEnginesRegistered):
            self._send(ProfileBody(self.kind, "stop"), nothing)

    def read(self, kind: type[T]) -> list[T]:
        """Return the measurements of the engines.

        Raises RuntimeError if the profiler was not started on any of them.
        """
        decode = msgspec.msgpack.Decoder(kind | None).decode
        answers: list[T | None] = self._send(ProfileBody(self.kind, "read"), decode)
        found = [answer for answer in answers if answer is not None]
        if not found:
            name = "sampling" if self.kind == "sampling" else f"{self.kind}_profiling"
            raise RuntimeError(
                f"no engine that was asked has any measurement: {name}.start() first (an engine that has replaced "
                "another begins without the measurements of that one)"
            )
        return found

    def __repr__(self) -> str:
        what = {"cpu": "CPU profiling", "memory": "memory profiling", "sampling": "sampling"}[self.kind]
        where = "all engines" if self.ids is None else f"engines {self.ids}"
        return f"<{what} on {where} of farm {self.session.farm!r}>"

    def _send(self, body: ProfileBody, read: Callable[[bytes], Any]) -> list[Any]:
        part = CommandPart(self.ids, msgspec.msgpack.encode(body))
        text = f"{PROFILE}({body.profiler} {body.op})"
        try:
            answers: list[Any] = PendingResult(self.session, PROFILE, [part], read, text, at_once=True).get_result()
        except errors.CompositeError as error:
            missing = [failure for _, _, failure in error.elist if isinstance(failure, ImportError)]
            if len(missing) < len(error.elist):
                raise
            # All engines that failed lack the same module: one sentence with the remedy is clearer than all errors.
            names = ", ".join(str(engine) for engine, _, _ in error.elist)
            raise ModuleNotFoundError(f"{missing[0]} (engines {names})", name="yappi") from None
        return answers


class CpuProfiling:
    """CPU profiling on the farm's engines with yappi, which ``pip install ipytaskfarm[profile]`` installs.

        with tc.cpu_profiling:
            tc.map(f, range(1000))
        tc.cpu_profiling.print_stats()

    Every call of a Python function is timed, in tasks, in MultiEngine commands, and in threads that they start.  Short
    functions become several times slower, so profile only when needed; `sampling` may always be on.

    A run counts when it has ended.  A run that goes on when profiling is stopped counts with the calls that have
    returned, and a run that has begun before the start does not count.  Engines that start later, such as replacements,
    are not profiled, so a forgotten profiler does not slow the farm down for ever; call `start` again to include them.
    From bndl.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self, clock: Literal["cpu", "wall"] = "cpu", builtins: bool = False) -> CpuProfiling:
        """Start on all engines.

        Earlier measurements are kept on engines that are profiled already with the same settings, and dropped on
        others.

        Args:
            clock: "cpu" counts seconds of CPU work, "wall" counts elapsed seconds with all waits.
            builtins: list functions written in C in rows of their own; otherwise their time counts for their caller.

        Returns itself, for ``with tc.cpu_profiling.start(clock="wall"):``.

        Raises:
            ValueError: an unknown clock.
            ModuleNotFoundError: yappi is missing on engines; the text says how to install it.
            NoEnginesRegistered: there is no engine.
        """
        if clock not in ("cpu", "wall"):
            raise ValueError(f"clock must be 'cpu' or 'wall', not {clock!r}")
        self._profiler.start(clock=clock, builtins=bool(builtins))
        return self

    def stop(self) -> None:
        """Stop on all engines at once, even while tasks run; measurements are kept until the next `start`."""
        self._profiler.stop()

    @overload
    def get_stats(self, per_engine: Literal[False] = ...) -> CpuStats: ...
    @overload
    def get_stats(self, per_engine: Literal[True]) -> PerEngine[CpuStats]: ...
    @overload
    def get_stats(self, per_engine: bool) -> CpuStats | PerEngine[CpuStats]: ...
    def get_stats(self, per_engine: bool = False) -> CpuStats | PerEngine[CpuStats]:
        """Return the measurements until now; profiling may be on or stopped.

        per_engine: return a dict of `CpuStats` by engine id, instead of one `CpuStats` for all engines.

        Raises RuntimeError if profiling was never started.
        """
        found = self._profiler.read(CpuProfile)
        return PerEngine({p.engine: CpuStats([p]) for p in found}) if per_engine else CpuStats(found)

    @old_keywords(per_worker="per_engine")
    def print_stats(
        self,
        max_rows: int | None = 100,
        sort_by: str | None = None,
        sort_dir: Direction = None,
        columns: Columns = (),
        per_engine: bool = False,
        strip_dirs: bool = True,
        include: Modules = (),
        exclude: Modules = (),
        file: TextIO | None = None,
    ) -> None:
        """Print the functions that took the most time.

        Args:
            max_rows: the largest number of rows; None: all.
            sort_by: name, where, ncall, tsub (seconds in the function itself), ttot (seconds with its callees; the
                default), tavg (ttot of one call).
            sort_dir: "asc" or "desc"; None: numbers from the largest, text from A.
            columns: columns in the order to show them: names, or pairs of a name and a width in characters.
            per_engine: print a table for each engine.
            strip_dirs: True names places by module, False by file.
            include, exclude: select, or leave out, code in these modules; the code of tasks themselves is ``<task>``.
            file: where to print; None: sys.stdout.
        """
        _print(
            self.get_stats(per_engine),
            file,
            max_rows=max_rows,
            sort_by=sort_by,
            sort_dir=sort_dir,
            columns=columns,
            strip_dirs=strip_dirs,
            include=include,
            exclude=exclude,
        )

    def __enter__(self) -> CpuProfiling:
        return self if self._profiler.started else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return repr(self._profiler)


class MemoryProfiling:
    """Memory profiling on the farm's engines with tracemalloc.

        with tc.memory_profiling:
            before = tc.memory_profiling.take_snapshot()
            tc.map(f, range(1000))
            tc.memory_profiling.print_top(compare_to=before)

    For each block that Python allocates while profiling is on, and that still exists, the allocating line is known;
    blocks of the engine itself are included.  Allocation becomes several times slower and needs more memory.  Engines
    that start later are not profiled; call `start` again to include them.  From bndl.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self, nframes: int = 1) -> MemoryProfiling:
        """Start on all engines at once, even while tasks run.

        Engines that already trace with the same number of frames keep their measurements.

        Args:
            nframes: frames of the traceback that are kept for each block.  More than 1 is needed only for
                ``group_by="traceback"``, and costs time and memory.

        Returns itself, for ``with tc.memory_profiling.start(10):``.  Raises ValueError, NoEnginesRegistered.
        """
        if not 1 <= nframes <= FRAMES_MAX:
            raise ValueError(f"nframes must be 1 to {FRAMES_MAX}, not {nframes}")
        self._profiler.start(nframes=nframes)
        return self

    def stop(self) -> None:
        """Stop on all engines; until the next `start`, `take_snapshot` returns the state at this moment."""
        self._profiler.stop()

    @overload
    def take_snapshot(self, per_engine: Literal[False] = ...) -> MemorySnapshot: ...
    @overload
    def take_snapshot(self, per_engine: Literal[True]) -> PerEngine[MemorySnapshot]: ...
    @overload
    def take_snapshot(self, per_engine: bool) -> MemorySnapshot | PerEngine[MemorySnapshot]: ...
    def take_snapshot(self, per_engine: bool = False) -> MemorySnapshot | PerEngine[MemorySnapshot]:
        """Return the allocated memory by line.

        per_engine: return a dict of `MemorySnapshot` by engine id, instead of one `MemorySnapshot` for all engines.

        The 20,000 largest lines of each engine are listed, the others are summed up in one row.  Raises RuntimeError if
        profiling was never started.
        """
        found = self._profiler.read(MemoryProfile)
        return PerEngine({p.engine: MemorySnapshot([p]) for p in found}) if per_engine else MemorySnapshot(found)

    @old_keywords(per_worker="per_engine")
    def print_top(
        self,
        group_by: GroupBy = "lineno",
        limit: int | None = 30,
        compare_to: MemorySnapshot | PerEngine[MemorySnapshot] | File | None = None,
        per_engine: bool = False,
        strip_dirs: bool = True,
        include: Modules = (),
        exclude: Modules = (),
        file: TextIO | None = None,
    ) -> None:
        """Take a snapshot and print the lines that hold the most memory.

        Args:
            group_by: "lineno", "filename" or "traceback".
            limit: the largest number of rows; None: all.
            compare_to: an earlier snapshot, or its file; the largest growth since then comes first.
            per_engine: print a table for each engine.
            strip_dirs: True names places by module, False by file.
            include, exclude: select, or leave out, code in these modules; the code of tasks themselves is ``<task>``.
            file: where to print; None: sys.stdout.
        """
        now = self.take_snapshot(per_engine)
        before = None if compare_to is None else snapshot_of(compare_to)
        settings: dict[str, Any] = {"max_rows": limit, "strip_dirs": strip_dirs}
        settings |= {"include": include, "exclude": exclude, "group_by": group_by}
        if isinstance(now, MemorySnapshot):
            print(now.top(compare_to=before, **settings), file=file)
            return
        for engine, snapshot in now.items():
            mine = None if before is None else before.of(engine)
            print(f"engine {engine}", snapshot.top(compare_to=mine, **settings), "", sep="\n", file=file)

    def __enter__(self) -> MemoryProfiling:
        return self if self._profiler.started else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return repr(self._profiler)


class Sampling:
    """Samples of what tasks execute, taken from outside fifty times per second.

        tc.sampling.start()
        …
        tc.sampling.print_stats()
        tc.sampling.flamegraph("flames.svg")

    Sampling costs less than 2 % and may always be on.  It includes tasks that are still running.  Samples count elapsed
    time, with all waits, of an engine's main thread while a task or a MultiEngine command runs there.  Time in C code
    counts for the line that called it.

    When started on all engines, sampling belongs to the farm until it is stopped: engines that start later sample too,
    also after the farm was stopped and started again (``mec.sticky()`` lists it).  The samples of an engine are lost
    with the engine.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self) -> Sampling:
        """Start on all engines, also on future ones; engines that sample already go on.  Returns itself."""
        profiler = self._profiler
        if profiler.ids is None:
            body = msgspec.msgpack.encode(ProfileBody("sampling", "start"))
            profiler.session.ask(messages.SetSticky(SAMPLING_KEY, PROFILE, body, "sampling.start()"))
            with contextlib.suppress(errors.NoEnginesRegistered):
                profiler.start()
            profiler.started = True
        else:
            profiler.start()
        return self

    def stop(self) -> None:
        """Stop on all engines; samples are kept until the next `start`."""
        if self._profiler.ids is None:
            self._profiler.session.ask(messages.ClearSticky([SAMPLING_KEY]))
        self._profiler.stop()

    @overload
    def get_stats(self, per_engine: Literal[False] = ...) -> SampleStats: ...
    @overload
    def get_stats(self, per_engine: Literal[True]) -> PerEngine[SampleStats]: ...
    @overload
    def get_stats(self, per_engine: bool) -> SampleStats | PerEngine[SampleStats]: ...
    def get_stats(self, per_engine: bool = False) -> SampleStats | PerEngine[SampleStats]:
        """Return the samples until now; sampling may be on or stopped.

        per_engine: return a dict of `SampleStats` by engine id, instead of one `SampleStats` for all engines.

        Raises RuntimeError if sampling was never started.
        """
        found = self._profiler.read(SampleProfile)
        return PerEngine({p.engine: SampleStats([p]) for p in found}) if per_engine else SampleStats(found)

    def print_stats(
        self,
        max_rows: int | None = 100,
        sort_by: str | None = None,
        sort_dir: Direction = None,
        columns: Columns = (),
        per_engine: bool = False,
        strip_dirs: bool = True,
        include: Modules = (),
        exclude: Modules = (),
        file: TextIO | None = None,
    ) -> None:
        """Print the functions with the most samples; for the arguments see `CpuProfiling.print_stats`.

        sort_by: name, where, self (samples in the function itself; the default), cumulative (samples with its callees),
        tsub and ttot (the same in seconds).
        """
        _print(
            self.get_stats(per_engine),
            file,
            max_rows=max_rows,
            sort_by=sort_by,
            sort_dir=sort_dir,
            columns=columns,
            strip_dirs=strip_dirs,
            include=include,
            exclude=exclude,
        )

    def save(self, path: File, per_engine: bool = False) -> None:
        """Write the samples until now as collapsed stacks, which flamegraph.pl and speedscope read.

        per_engine: keep the engines apart.
        """
        self.get_stats().save(path, per_engine)

    def flamegraph(self, path: File, per_engine: bool = False) -> None:
        """Write the samples until now as a flame graph, a self-contained SVG picture.

        per_engine: draw the engines side by side instead of adding them up.
        """
        self.get_stats().flamegraph(path, per_engine)

    def __enter__(self) -> Sampling:
        return self if self._profiler.started else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return repr(self._profiler)


def _print(
    found: CpuStats | SampleStats | PerEngine[CpuStats] | PerEngine[SampleStats], file: TextIO | None, **settings: Any
) -> None:
    if isinstance(found, CpuStats | SampleStats):
        print(found.top(**settings), file=file)
        return
    for engine, stats in found.items():
        print(f"engine {engine}", stats.top(**settings), "", sep="\n", file=file)


class Profilers(NamedTuple):
    """The profilers of a client."""

    session: Session
    ids: list[int] | None = None
    """Engine ids; None: all engines that exist at the time of a call."""

    @property
    def cpu(self) -> CpuProfiling:
        """Return the profiler of CPU time by function, yappi."""
        return CpuProfiling(EngineProfiler(self.session, "cpu", self.ids))

    @property
    def memory(self) -> MemoryProfiling:
        """Return the profiler of memory by line, tracemalloc."""
        return MemoryProfiling(EngineProfiler(self.session, "memory", self.ids))

    @property
    def sampling(self) -> Sampling:
        """Return the sampling profiler, which is cheap enough to be always on."""
        return Sampling(EngineProfiler(self.session, "sampling", self.ids))
