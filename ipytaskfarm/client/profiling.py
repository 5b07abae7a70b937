"""The profilers of both clients, ``tc.profile`` and ``mec.profile``: start, stop and read them on engines.

Engines answer at once, also while a task runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TextIO, TypeVar, overload

import msgspec

from ..core import errors, messages
from ..core.messages.engine_commands import PROFILE, CpuProfile, MemoryProfile, ProfileBody, SampleProfile
from .commands import CommandPart, PendingResult
from .profile_tables import Columns, Direction, Modules, PerEngine
from .profiles import CpuStats, File, GroupBy, MemorySnapshot, SampleStats, snapshot_of
from .session import Session

T = TypeVar("T")

STICKY_KEY = "profile:sampling"
FRAMES_MAX = 65535
"""tracemalloc's own limit."""


class EngineProfiler:
    """One kind of profiler on engines.

    Args:
        session: the connection.
        kind: which profiler.
        ids: engine ids; None: all engines that there are when it is asked.
    """

    def __init__(
        self, session: Session, kind: Literal["cpu", "memory", "sampling"], ids: list[int] | None = None
    ) -> None:
        self.session = session
        self.kind = kind
        self.ids = ids
        self.started = False
        """Whether it was started through this object."""

    def start(self, **settings: Any) -> None:
        """Start the profiler on all of the engines.  Raises NoEnginesRegistered."""
        self._send(ProfileBody(self.kind, "start", **settings), _nothing)
        self.started = True

    def stop(self) -> None:
        """Stop the profiler on all of the engines."""
        self.started = False
        with contextlib.suppress(errors.NoEnginesRegistered):
            self._send(ProfileBody(self.kind, "stop"), _nothing)

    def read(self, kind: type[T]) -> list[T]:
        """Return the measurements by engine.  Raises RuntimeError if the profiler was not started on any."""
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
            # The engines that failed lack the same module: one sentence with the remedy helps more than all errors.
            names = ", ".join(str(engine) for engine, _, _ in error.elist)
            raise ModuleNotFoundError(f"{missing[0]} (engines {names})", name="yappi") from None
        return answers


def _nothing(body: bytes) -> None:
    """Decode the answer of a command without a value."""


class CpuProfiling:
    """CPU profiling over the farm's engines with yappi, which `pip install ipytaskfarm[profile]` brings.

        with tc.cpu_profiling:
            tc.map(f, range(1000))
        tc.cpu_profiling.print_stats()

    Every call of a Python function is timed, in tasks and in MultiEngine commands; threads that they start count too.
    Functions that do little take several times as long meanwhile; not for every day: that is `sampling`.

    A run counts when it has ended, or with what had returned until then when profiling is stopped; one that is going on
    when it is started does not count.  Engines that come later (replacements) are not profiled, so that nobody who
    forgets to stop slows the farm down for good: `start` once more reaches them, and those that are profiled go on.
    From bndl.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self, clock: Literal["cpu", "wall"] = "cpu", builtins: bool = False) -> CpuProfiling:
        """Start on all engines; earlier results are dropped where it is off, or on with other settings.

        Args:
            clock: "cpu" counts seconds of work, "wall" those on the clock, waiting included.
            builtins: whether functions written in C have rows of their own; else their time is their caller's.

        Returns itself, for ``with tc.cpu_profiling.start(clock="wall"):``.  Raises ModuleNotFoundError that names what
        to install where yappi is not, NoEnginesRegistered.
        """
        if clock not in ("cpu", "wall"):
            raise ValueError(f"clock must be 'cpu' or 'wall', not {clock!r}")
        self._profiler.start(clock=clock, builtins=bool(builtins))
        return self

    def stop(self) -> None:
        """Stop on all engines, at once, whatever runs; what was measured stays until the next `start`."""
        self._profiler.stop()

    @overload
    def get_stats(self, per_engine: Literal[False] = ...) -> CpuStats: ...
    @overload
    def get_stats(self, per_engine: Literal[True]) -> PerEngine[CpuStats]: ...
    @overload
    def get_stats(self, per_engine: bool) -> CpuStats | PerEngine[CpuStats]: ...
    def get_stats(self, per_engine: bool = False) -> CpuStats | PerEngine[CpuStats]:
        """Return what was measured until now, while it is on and afterwards: `CpuStats` over all engines, or a dict of
        them by engine id.  Raises RuntimeError where it was never started."""
        found = self._profiler.read(CpuProfile)
        return PerEngine({p.engine: CpuStats([p]) for p in found}) if per_engine else CpuStats(found)

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
        """Print the functions that took the most.

        Args:
            max_rows: None prints all.
            sort_by: name, where, ncall, tsub (seconds in the function itself), ttot (with what it called; the default),
                tavg (ttot of a call).
            sort_dir: "asc" or "desc"; else numbers from the largest, text from A.
            columns: names of these, or (name, width in characters), in the order in which they are to stand.
            per_engine: a table for each engine.
            strip_dirs: modules instead of files.
            include, exclude: only, or without, these modules and what is within them; tasks' own code is ``<task>``.
            file: where to; sys.stdout.
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
    """Memory profiling over the farm's engines with tracemalloc.

        with tc.memory_profiling:
            before = tc.memory_profiling.take_snapshot()
            tc.map(f, range(1000))
            tc.memory_profiling.print_top(compare_to=before)

    Each block that Python allocates while it is on, and that is still there, is known with the line that allocated it;
    an engine's own are among them.  It slows allocation down several times and needs memory of its own.  Engines that
    come later are not profiled; `start` once more reaches them.  From bndl.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self, nframes: int = 1) -> MemoryProfiling:
        """Start on all engines, at once, whatever runs; those that trace with as many frames go on.

        Args:
            nframes: how many frames of a traceback are kept of each block: more than 1 only for
                ``group_by="traceback"``, and the dearer the more.

        Returns itself, for ``with tc.memory_profiling.start(10):``.  Raises ValueError, NoEnginesRegistered.
        """
        if not 1 <= nframes <= FRAMES_MAX:
            raise ValueError(f"nframes must be 1 to {FRAMES_MAX}, not {nframes}")
        self._profiler.start(nframes=nframes)
        return self

    def stop(self) -> None:
        """Stop on all engines; `take_snapshot` then gives what was there at this moment, until the next `start`."""
        self._profiler.stop()

    @overload
    def take_snapshot(self, per_engine: Literal[False] = ...) -> MemorySnapshot: ...
    @overload
    def take_snapshot(self, per_engine: Literal[True]) -> PerEngine[MemorySnapshot]: ...
    @overload
    def take_snapshot(self, per_engine: bool) -> MemorySnapshot | PerEngine[MemorySnapshot]: ...
    def take_snapshot(self, per_engine: bool = False) -> MemorySnapshot | PerEngine[MemorySnapshot]:
        """Return what is allocated now: a `MemorySnapshot` over all engines, or a dict of them by engine id.  The
        20,000
        largest lines of each engine come singly, the others as one.  Raises RuntimeError where it was never started."""
        found = self._profiler.read(MemoryProfile)
        return PerEngine({p.engine: MemorySnapshot([p]) for p in found}) if per_engine else MemorySnapshot(found)

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
        """Take a snapshot and print what has allocated the most.

        Args:
            group_by: "lineno", "filename" or "traceback".
            limit: rows; None prints all.
            compare_to: an earlier snapshot, or the file of one: what has grown most since comes first.
            per_engine: a table for each engine.
            strip_dirs: modules instead of files.
            include, exclude: only, or without, these modules and what is within them; tasks' own code is ``<task>``.
            file: where to; sys.stdout.
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
    """Where tasks spend their time, seen from outside fifty times a second.

        tc.sampling.start()
        …
        tc.sampling.print_stats()
        tc.sampling.flamegraph("flames.svg")

    It costs less than 2 % and may stay on; it sees what runs now, also in the middle of a task.  It counts time on the
    clock, waiting included, of each engine's main thread while a task or a MultiEngine command runs there; time in C
    code counts for the line that called it.

    Started on all engines it is the farm's until it is stopped: engines that come later, and those of a farm that was
    stopped and resumed, sample too (``mec.sticky()`` shows it).  What an engine has counted goes when the engine goes.
    """

    def __init__(self, profiler: EngineProfiler) -> None:
        self._profiler = profiler

    def start(self) -> Sampling:
        """Start on all engines, and those to come; those that sample already go on.  Returns itself."""
        profiler = self._profiler
        if profiler.ids is None:
            body = msgspec.msgpack.encode(ProfileBody("sampling", "start"))
            profiler.session.ask(messages.SetSticky(STICKY_KEY, PROFILE, body, "sampling.start()"))
            with contextlib.suppress(errors.NoEnginesRegistered):
                profiler.start()
            profiler.started = True
        else:
            profiler.start()
        return self

    def stop(self) -> None:
        """Stop on all engines; what was counted stays until the next `start`."""
        if self._profiler.ids is None:
            self._profiler.session.ask(messages.ClearSticky([STICKY_KEY]))
        self._profiler.stop()

    @overload
    def get_stats(self, per_engine: Literal[False] = ...) -> SampleStats: ...
    @overload
    def get_stats(self, per_engine: Literal[True]) -> PerEngine[SampleStats]: ...
    @overload
    def get_stats(self, per_engine: bool) -> SampleStats | PerEngine[SampleStats]: ...
    def get_stats(self, per_engine: bool = False) -> SampleStats | PerEngine[SampleStats]:
        """Return what was seen until now, while it is on and afterwards: `SampleStats` over all engines, or a dict of
        them by engine id.  Raises RuntimeError where it was never started."""
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
        """Print the functions in which most samples were taken; arguments as of `CpuProfiling.print_stats`.

        sort_by: name, where, self (samples in the function itself; the default), cumulative (in it or in what it
        called), tsub and ttot (the same in seconds).
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
        """Write what was seen until now as collapsed stacks, which flamegraph.pl, speedscope and others read."""
        self.get_stats().save(path, per_engine)

    def flamegraph(self, path: File, per_engine: bool = False) -> None:
        """Write what was seen until now as a flame graph, an SVG picture that needs nothing else.

        per_engine: the engines beside one another instead of summed up.
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
    """The profilers of a client, over all engines or some."""

    session: Session
    ids: list[int] | None = None
    """Engine ids; None: all engines that there are when a profiler is asked."""

    @property
    def cpu(self) -> CpuProfiling:
        """CPU time by function, with yappi."""
        return CpuProfiling(EngineProfiler(self.session, "cpu", self.ids))

    @property
    def memory(self) -> MemoryProfiling:
        """Memory by line, with tracemalloc."""
        return MemoryProfiling(EngineProfiler(self.session, "memory", self.ids))

    @property
    def sampling(self) -> Sampling:
        """Time by function, by samples; cheap enough to stay on."""
        return Sampling(EngineProfiler(self.session, "sampling", self.ids))
