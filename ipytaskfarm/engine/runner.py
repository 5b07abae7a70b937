"""Runs tasks in the kernel's main thread.

One run consists of: [clear] push, execute, pull [clear]. Its result is in the flight recorder before the next run is
recorded there.

Only code that `_guarded` and `_guarded_await` call can be interrupted. Their own frames cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from types import CoroutineType
from typing import Any, TypeAlias

import msgspec

from ..core.messages import Granted, OutputQuery, OutputText, Returned, SetUp
from ..core.messages.payload import CallWork, StringWork, Work
from ..core.messages.running_task import TaskReply
from ..core.messages.task_types import RunKey
from ..core.states import FREEZES
from ..core.text import did_you_mean, text_of
from ..serialization.child_processes import forget_sent, sent
from ..serialization.function_globals import setup_globals
from ..serialization.function_templates import fill_template
from ..serialization.import_settings import IMPORT_SETTINGS
from ..serialization.modules import active, begin_run, used
from ..serialization.pack import note_rebuild, pack, pack_names, unpack, unpack_function
from ..serialization.rebuild import came
from ..serialization.references import give_inputs
from ..serialization.shared_values import forget_added
from ..storage.blobs import BlobWriter
from .baseline import LONG_S, Garbage
from .begun_marks import BegunMarks
from .capture import nothing_new
from .child_processes import LOKY_WORKERS, Brought, ChildProcesses, TaskMain, leave_fork, prepare_older, take_came
from .client_waits import ClientWaits
from .coroutines import Coroutines, attempt_here
from .current import CurrentTask, Deferred, Interruptible, giver
from .edits import Edits
from .failures import Freezer, half_imported
from .interrupt import Interrupts, cancelled, deadline_ns, told
from .lane import QueuedRun, Step
from .map_chunks import Callables, ChunkCalls, ItemNames, Known, call_each, pack_values
from .namespace import assigned_names, task_names, written_globals
from .plain import Plain, PlainTest, source_of
from .run_records import ItemWatch, RunningAttempt, RunRecords
from .shared_parts import Parts
from .sinks import SINK

Call: TypeAlias = Callable[[], Any]
"""The guarded part of a run: returns the packed value, or a coroutine that returns it."""


_NOTHING_BOUND = contextlib.nullcontext()


class Runner:
    """Runs one attempt at a time."""

    def __init__(
        self,
        parts: Parts,
        interrupts: Interrupts,
        plain: PlainTest,
        shell: Any,
        finished: Callable[[float], None],
        company_over: Callable[[], None],
    ) -> None:
        """Create the runner.

        Args:
            shell: IPython's shell, in which a console finds what a frozen engine keeps.
            finished: called when a result is in the recorder.
            company_over: called when the last one of several coroutine tasks has ended.
        """
        self._engine = parts.engine
        self._recorder = parts.recorder
        self.marks = BegunMarks(parts.recorder)
        self._namespace = parts.namespace
        self._properties = parts.properties
        self._cells = parts.cells
        self._capture = parts.capture
        self._baseline = parts.baseline
        self._loops = parts.loops
        self._send = parts.send
        self._environments = parts.environments
        self._blobs = parts.blobs
        self._cpu_profiler = parts.profiling.cpu
        self._interrupts = interrupts
        self._garbage = Garbage()
        self._plain = plain
        self.freezer = Freezer(parts.engine, shell, parts.send)
        self._finished = finished
        self._pid = os.getpid()
        self._writer = BlobWriter(parts.blobs) if parts.blobs is not None else None
        self._callables = Callables()
        self.edits = Edits(parts.namespace, self._callables)
        self._attempt: RunningAttempt | None = None
        """What runs now."""
        self._decoder = msgspec.msgpack.Decoder(Work)
        self._records = RunRecords(self._pid, self._writer)
        self._items = ItemWatch(parts.engine, parts.send, self._records.pack_body)
        self._client_waits = ClientWaits(parts.engine, parts.farm, parts.send)
        self._nothing = pack({})
        children = ChildProcesses(self._brought)
        children.install(sys.modules["__main__"])
        self._namespace.children = children
        self.coroutines = Coroutines(
            parts, interrupts, self._records, self._writer, self._call_concurrently, finished, company_over
        )
        interrupts.protected |= {Runner._guarded.__code__, Runner._guarded_await.__code__}
        parts.profiling.sampler.mark(*interrupts.protected)
        # Python's import and pickle ask for ``__spec__`` and the like, and drop all errors of that.
        interrupts.protected.add(TaskMain.__getattribute__.__code__)

    def run(self, job: QueuedRun) -> Step:
        """Run an attempt to its end, or to the first await of an attempt that needs the event loop."""
        run = job.run
        why = ""
        if self.freezer.run is not None:
            why = "frozen"
        elif run.properties_version is not None and run.properties_version != self._properties.version:
            why = "properties changed"
        elif run.environment is not None and self._environments.failed:
            why = "environment"
        elif self._baseline.spoiled or (self.edits.is_due and self._must_leave(job.newest_s)):
            why = "surroundings"
        if why:
            self._send(Returned(self._engine, [(run.task, run.attempt)], why))
            return None
        attempt = self._attempt = RunningAttempt(run)
        if run.environment is not None and run.environment != self._environments.ready:
            unset = self._baseline.by_hand(self._set_up, attempt, job)
            if unset is not None:
                self._end(attempt, None, unset)
                return None
        if setup_globals.active or run.environment is not None:
            setup_globals.activate(run.environment is not None)
        if run.environment is not None:
            self._namespace.names["env"] = self._environments.instance  # an earlier task may have bound the name
        if run.special is not None and run.special.concurrent:
            self._attempt = None
            self._let_begin(job.place, alone=False)
            self.coroutines.begin(job)
            return None
        return self._baseline.task_context().run(self._run, attempt, job)

    def _must_leave(self, submitted_s: float) -> bool:
        """Look for edited modules. Return whether another engine has to take this one's place for one of them."""
        self._baseline.spoiled = self.edits.reason_to_leave(submitted_s)
        if self._baseline.spoiled:
            self._send(SetUp(self._engine, "", self._baseline.spoiled))
        return bool(self._baseline.spoiled)

    def _run(self, attempt: RunningAttempt, job: QueuedRun) -> Step:
        """Run the attempt, inside its own context."""
        run = attempt.run
        SINK.set(attempt.sink)
        self._begin(attempt, job.place)
        if self.edits.notices:
            self.edits.tell()
        try:
            call = self._prepare(attempt, job)
        except Exception as unready:
            self._end(attempt, None, unready)
            return None
        if self._cpu_profiler.on:
            self._cpu_profiler.begin()
        attempt.begun = time.perf_counter()
        self._loops.hide()  # until the slice ends: each change asks the system for the process
        value, error = self._guarded((run.task, run.attempt), call)
        if error is None and type(value) is CoroutineType:
            return self._run_in_loop(attempt, value)
        self._end(attempt, value, error if attempt.current is None else self._flushed(attempt, error))
        return None

    def _begin(self, attempt: RunningAttempt, place: tuple[int, int]) -> None:
        """Start the attempt's clock."""
        run = attempt.run
        limit = run.time_limit_s
        self._let_begin(place)
        self._recorder.begin(run.task, run.attempt, deadline_ns(limit) if limit else 0)
        self._recorder.words.begin((run.task, run.attempt))
        self._interrupts.begin(limit)
        if run.allotment is not None:
            self._now(attempt).apply()
        attempt.begun = time.perf_counter()

    def _let_begin(self, place: tuple[int, int], alone: bool = True) -> None:
        """Let the run at this place begin: wait until the disk knows that it may have."""
        if place > self.marks.next:
            self.marks.begin(place, alone and not self.coroutines)

    def _set_up(self, attempt: RunningAttempt, job: QueuedRun) -> BaseException | None:
        """Prepare the engine for the run's environment, outside the run's time limit. Return the error, if any."""
        self._loops.show()
        run = job.run
        self._let_begin(job.place)
        self._recorder.begin(run.task, run.attempt, 0)
        self._recorder.words.begin((run.task, run.attempt))
        self._interrupts.begin(None)
        attempt.begun = time.perf_counter()
        token = SINK.set(attempt.sink)
        setup = partial(self._environments.set_up, run.environment or "", job.environment or b"")
        _, error = self._guarded((run.task, run.attempt), setup)
        SINK.reset(token)
        attempt.started_s = time.time()
        if error is not None:
            attempt.unready = True
            self._environments.give_up(run.environment or "", f"{type(error).__name__}: {text_of(error)}")
        return error

    def current(self) -> CurrentTask | None:
        """Return the running task's view of itself; None if no task runs."""
        attempt = self._attempt or attempt_here()
        return self._now(attempt) if attempt is not None else None

    def _now(self, attempt: RunningAttempt) -> CurrentTask:
        if attempt.current is None:
            run = attempt.run
            environment = self._environments.instance if run.environment is not None else None
            names = self._namespace.names
            interrupted: Interruptible = attempt if attempt.row else self._interrupts
            attempt.current = CurrentTask(self._engine, run, self._send, names, self._blobs, interrupted, environment)
        return attempt.current

    def granted(self, answer: Granted) -> None:
        """Pass the answer to a request for resources to the running task. Called by the lane's thread."""
        attempt = self._attempt or self.coroutines.get(answer.run)
        if attempt is not None and attempt.current is not None:
            attempt.current.granted(answer)

    def answered(self, reply: TaskReply) -> None:
        """Pass a reply to the running task. Called by the lane's thread."""
        attempt = self._attempt or self.coroutines.get(reply.run)
        if attempt is not None and attempt.current is not None:
            attempt.current.answered(reply)

    def watch(self) -> None:
        """Send progress that was not sent yet, and see whether the task waits. The lane's thread calls this 20 times a
        second.
        """
        attempt = self._attempt
        if attempt is not None:
            self._client_waits.look(attempt.key, attempt.current is not None and attempt.current.calls.is_asking)
        if attempt is not None and attempt.chunk is not None and not attempt.sink.ended:
            self._items.look(attempt, attempt.chunk)
        for each in self.coroutines.attempts() if attempt is None else (attempt,):
            if each.current is not None:
                each.current.calls.watch()

    # A method of both for the end of an error would run signal handlers at its call, before its own `try`.

    def _guarded(self, key: RunKey, call: Call) -> tuple[Any, BaseException | None]:
        try:
            self._interrupts.current = key
            value = call()
            self._baseline.disarm()
            self._interrupts.current = None
            return value, None
        except BaseException as error:
            self._interrupts.current = None
            try:
                self._baseline.disarm()
            except BaseException:  # a timer fired in the meantime and its handler raised; the next one may do the same
                with contextlib.suppress(BaseException):
                    self._baseline.disarm()
            return None, error

    async def _guarded_await(self, key: RunKey, coroutine: Awaitable[Any]) -> tuple[Any, BaseException | None]:
        try:
            self._interrupts.current = key
            value = await coroutine
            self._baseline.disarm()
            self._interrupts.current = None
            return value, None
        except BaseException as error:
            self._interrupts.current = None
            try:
                self._baseline.disarm()
            except BaseException:  # a timer fired in the meantime and its handler raised; the next one may do the same
                with contextlib.suppress(BaseException):
                    self._baseline.disarm()
            return None, error

    def _run_in_loop(self, attempt: RunningAttempt, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self._loops.show()
        run = attempt.run
        # The task copies the present context, which includes the sink.
        task = asyncio.get_running_loop().create_task(self._guarded_await((run.task, run.attempt), coroutine))
        self._interrupts.awaiting = task
        task.add_done_callback(partial(self._ended_in_loop, attempt))
        return task

    def _ended_in_loop(self, attempt: RunningAttempt, task: asyncio.Task[Any]) -> None:
        self._interrupts.awaiting = None
        self._interrupts.current = None
        value, error = (None, cancelled()) if task.cancelled() else task.result()
        self._end(attempt, value, self._flushed(attempt, error))

    def _flushed(self, attempt: RunningAttempt, error: BaseException | None) -> BaseException | None:
        """Return the error with which a run ends.

        If the run succeeds or is deferred, its messages are on the controller's disk first.
        """
        if attempt.current is None or not (error is None or issubclass(type(error), Deferred)):
            return error
        _, between = self._guarded((attempt.run.task, attempt.run.attempt), attempt.current.calls.flush)
        return between or error

    def output(self, query: OutputQuery) -> OutputText:
        """Return what a run in progress has printed and displayed. The lane's thread calls this."""
        attempt = self._attempt or self.coroutines.get(query.run)
        if attempt is None or attempt.key != query.run:
            return nothing_new(query)
        return self._capture.look(attempt.sink, query)

    # -- preparing and running

    def _prepare(self, attempt: RunningAttempt, job: QueuedRun) -> Call:
        """Do all that can be done before the user's code begins: decode, clear, compile."""
        work = attempt.work = self._decoder.decode(job.run.payload)
        special = job.run.special
        if special is not None and special.inputs:
            give_inputs(giver(special.inputs, self._namespace.names))
        if work.clear_before:
            self._namespace.clear()
        if sent:
            forget_sent()
        if isinstance(work, CallWork):
            return partial(self._call, attempt, job, work)
        if active:
            begin_run()
        plain = self._plain.compile(work.code, work.cell)
        if plain is not None:
            attempt.reaches = plain.reaches
            return partial(self._string, plain, work)
        attempt.reaches = True
        plan = self._cells.plan(work.code, work.cell)
        return partial(self._cell_in_loop if plan.is_async else self._cell, plan, work)

    def _string(self, plain: Plain, work: StringWork) -> bytes:
        names = self._namespace.names
        pushed = self._namespace.push(work.push) if work.push is not None else ()
        bound = task_names.bound_by(pushed, (plain.body, plain.last)) if task_names.brought else None
        with task_names.preferred(bound) if bound else _NOTHING_BOUND:
            try:
                if plain.body is not None:
                    exec(plain.body, names)
                if plain.last is not None:
                    value = eval(plain.last, names)
                    if value is not None:
                        self._cells.show(value)
            finally:
                helpers = sys.modules.get("matplotlib._pylab_helpers")
                if helpers is not None and helpers.Gcf.figs:
                    self._cells.flush_figures()
            return self._pull(work.pull)

    def _cell(self, plan: Any, work: StringWork) -> bytes:
        with task_names.preferred(self._bound_by_cell(plan, work)):
            self._cells.run(plan)
            if self._interrupts.raised is not None:
                raise self._interrupts.raised  # IPython swallows a KeyboardInterrupt while a ``!command`` runs
            return self._pull(work.pull)

    def _bound_by_cell(self, plan: Any, work: StringWork) -> frozenset[str]:
        """Push a cell's names, and return those that functions in the namespace find there while the cell runs."""
        pushed = self._namespace.push(work.push) if work.push is not None else []
        if not task_names.brought:
            return frozenset()
        return task_names.bound_by({*pushed, *assigned_names(plan.transformed)}, ())

    async def _cell_in_loop(self, plan: Any, work: StringWork) -> bytes:
        with task_names.preferred(self._bound_by_cell(plan, work)):
            await self._cells.run_in_loop(plan)
            return self._pull(work.pull)

    def _call(self, attempt: RunningAttempt, job: QueuedRun, work: CallWork) -> bytes | Coroutine[Any, Any, bytes]:
        try:
            value = self._call_function(attempt, job, work)
        finally:
            helpers = sys.modules.get("matplotlib._pylab_helpers")
            if helpers is not None and helpers.Gcf.figs:
                self._cells.flush_figures()
        if type(value) is CoroutineType:
            return self._call_in_loop(value)
        if attempt.chunk is not None:
            return pack_values(attempt.chunk, self._writer)
        return pack(value, "value", self._writer)

    def _call_concurrently(self, attempt: RunningAttempt, job: QueuedRun) -> Any:
        """Return the coroutine of a run that shares the engine with others."""
        work = attempt.work = self._decoder.decode(job.run.payload)
        assert isinstance(work, CallWork)  # only functions run concurrently
        special = job.run.special
        try:
            if special is not None and special.inputs:
                give_inputs(giver(special.inputs, self._namespace.names))
            return self._call_function(attempt, job, work)
        finally:
            give_inputs(None)

    def _call_function(self, attempt: RunningAttempt, job: QueuedRun, work: CallWork) -> Any:
        """Unpack the function and its arguments, and call it."""
        known = self._function(job)
        attempt.reaches = known.reaches
        if active:
            begin_run(known.bundles | known.brought)
        used.clear()
        try:
            args, kwargs = unpack(work.arguments, self._namespace.names) if work.arguments is not None else ((), {})
        except Exception as error:
            note_rebuild(error, "the arguments were rebuilt on the engine, before the function was called")
            raise
        if active and (used or known.brought) and known.note_brought(used, active):
            begin_run(known.bundles | known.brought)
        if came:
            attempt.brought = Brought(take_came())
        own: Brought | None = getattr(known.function, "came", None)
        begin = [each.begin for each in (own, attempt.brought) if each is not None and each.assigned]
        for each in begin:
            each()
        if active:
            prepare_older()
        if not work.each:
            function = known.function if work.values is None else fill_template(known.function, unpack(work.values))
            return function(*args, **kwargs)
        return self._call_items(attempt, known, ItemNames(known.function, *args), begin)

    def _call_items(
        self, attempt: RunningAttempt, known: Known, names: ItemNames, begin: Sequence[Callable[[], None]]
    ) -> Any:
        """Call the function with one item, and return its value; or with each item of a chunk."""
        special = attempt.run.special
        part = special.part if special is not None else None
        if part is None and len(names.items) > 1:
            freeze = partial(self._freeze_item, attempt) if special is not None and special.freeze else None
            interrupts = self._interrupts
            attempt.chunk = ChunkCalls(
                known, self._baseline, names, self._recorder.begin_items, begin, freeze,
                is_interrupted=lambda: interrupts.raised is not None,
            )  # fmt: skip
            call_each(attempt.chunk)
            return None
        index = part or 0
        attempt.item = names, index
        return names.call(index)

    async def _call_in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> bytes:
        return pack(await coroutine, "value", self._writer)

    def _function(self, job: QueuedRun) -> Known:
        digest = job.run.function
        if digest is None or job.code is None:
            raise ValueError("this task is a call, and no function came with it")
        found = self._callables.get(digest)
        if found is not None and not getattr(found.function, "renews", False):
            return found
        if active and IMPORT_SETTINGS.records:
            begin_run()  # what modules of other programs have set must not meet the imports of this one
        came.clear()
        try:
            function = unpack_function(job.code, self._namespace.names)
        except Exception as error:
            note_rebuild(error, "the function was rebuilt on the engine, with its globals, before it was called")
            raise
        if hasattr(function, "brought"):
            function.came = Brought(take_came(), function.brought[0])  # type: ignore[attr-defined]
        return self._callables.add(digest, function, len(job.code))

    def _brought(self) -> list[Brought]:
        """Return the objects that the running task brought by value, those of its arguments first.

        Looked up only on demand.
        """
        attempt = self._attempt or attempt_here()
        if attempt is None:
            return [Brought(came)] if came else []  # a command of a MultiEngineClient
        found = [attempt.brought] if attempt.brought is not None else []
        if isinstance(attempt.work, CallWork):
            known = self._callables.get(attempt.run.function or "")
            function: Any = known.function if known is not None else None
            if hasattr(function, "came"):
                found.append(function.came)
        return found

    def _pull(self, names: tuple[str, ...]) -> bytes:
        written_globals.take()
        if not names:
            return self._nothing
        try:
            values = {name: self._namespace.pull(name) for name in names}
        except NameError as error:
            near = did_you_mean(error.name, self._namespace.user_keys())
            text = f"{error} when the code has ended: pull={error.name!r} asks for it{near}"
            raise NameError(text, name=error.name) from None
        return pack_names(values, self._namespace.names, self._writer)

    # -- the end of a run

    def _end(self, attempt: RunningAttempt, value: bytes | None, error: BaseException | None) -> None:
        now_s = time.perf_counter()
        run_s = now_s - attempt.begun
        if os.getpid() != self._pid:
            leave_fork(error, *source_of(attempt.work))
        if self._cpu_profiler.running:
            self._cpu_profiler.end()
        run, work, sink = attempt.run, attempt.work, attempt.sink
        # Before the result is made, which leaves the exception without its frames.
        package = half_imported(self._interrupts.raised) if self._interrupts.raised is not None else ""
        self._capture.end(sink)
        if attempt.current is not None:
            attempt.current.end(error is not None, self._interrupts.raised is not None)
        self._attempt = None  # only now, because replies to the run are delivered to it
        if run.special is not None:
            give_inputs(None)
        attempt.raised = told(self._interrupts.raised)
        if error is self._interrupts.raised:
            error = attempt.raised
        if error is not None and attempt.chunk is None and run.special is not None and run.special.freeze:
            self._freeze(attempt, error)
        record = self._records.record(attempt, run_s, value, error)
        forget_added()
        if attempt.frozen is not None:
            self._recorder.end_with(record, run.task, run.attempt)
            self._recorder.leave()
            self.freezer.offer(*source_of(work))
            self._finished(run_s)
            return
        if work is not None and work.clear_after:
            error = None  # its traceback holds the frames, and the frames hold the values
            self._namespace.clear()
        self._recorder.end_with(record, run.task, run.attempt)
        self._recorder.leave()
        self._finished(run_s)  # first, so that the result is on its way while the engine puts things in order
        # The items of a chunk are looked after by `call_each`.
        self._baseline.restore(attempt.reaches or (run_s > LONG_S and attempt.chunk is None))
        LOKY_WORKERS.end_unlike()
        if package:
            self._baseline.spoiled = (
                f"a task has spoiled its process: {package}, a package with compiled modules, was interrupted while it "
                "was imported"
            )
        if self._baseline.spoiled:
            self._send(SetUp(self._engine, "", self._baseline.spoiled))
        if self._interrupts.raised is not None:
            # Objects that the interrupt left half-built must die now: a __del__ with a bare except would swallow the
            # next interrupt.
            del error
            self._interrupts.raised = None
            gc.collect()
        elif now_s >= self._garbage.due_s:
            del error
            self._garbage.look(now_s)

    def _freeze(self, attempt: RunningAttempt, error: BaseException) -> None:
        """Freeze the engine if the run has failed in a way that leaves frames to look at."""
        if self._records.outcome(attempt, error) in FREEZES:
            self.freezer.keep(attempt.key, attempt.run.task, error)
            attempt.frozen = self.freezer.run

    def _freeze_item(self, attempt: RunningAttempt, index: int, error: BaseException) -> None:
        """Freeze the engine because an item of a chunk has failed, whose id follows that of the chunk."""
        self.freezer.keep(attempt.key, attempt.run.task + 1 + index, error)
        attempt.frozen = self.freezer.run
