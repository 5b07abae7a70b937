"""The running task's view of itself: `ipytaskfarm.engine.current_task`, its children and their values."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import msgspec

from ..core.arguments import check_int, check_seconds, check_text, check_timeout, one_of, wrong
from ..core.errors import DependencyFailed, InputsLost, TaskAborted
from ..core.lost_ids import lost_ids
from ..core.messages import Granted, Input, Run, Special
from ..core.messages.payload import CallWork, Message, ResultBody
from ..core.messages.running_task import Await, Children, Letter, Receive, Spawn, Take, TaskReply, trial_name
from ..core.messages.task_types import (
    Deferral,
    FailureSummary,
    Final,
    Function,
    JobSpec,
    LostInputs,
    Needs,
    Packed,
    Rules,
    Submission,
)
from ..core.signatures import execute_object, is_executed
from ..core.states import ABORTS, DEFERS, LOSES_INPUTS, SEVERAL_STATES, STATE_WORDS
from ..core.text import text_of
from ..serialization.cache import damage_of
from ..serialization.memory_maps import naming_files
from ..serialization.pack import is_coroutine_function, pack, pack_called, unpack, unpack_error
from ..serialization.references import noting
from ..storage.blobs import BlobStore, BlobWriter
from .calls import Calls, NodeLock, RunResources

_decode = msgspec.msgpack.Decoder(ResultBody).decode


def value_of(
    task: int, reason: str, body: bytes | None, failure: FailureSummary | None, names: MutableMapping[str, Any]
) -> Any:
    """Return a task's value, or the exception with which it failed (returned, not raised)."""
    left = _decode(body) if body else ResultBody()
    if not reason:
        return unpack(left.value, names) if left.value is not None else None
    text = f"task {task} failed ({reason}): {failure.value if failure is not None else ''}"
    if reason in ABORTS:
        return TaskAborted(text)
    return unpack_error(left.failure) if left.failure is not None else DependencyFailed(text)


def kept_value(task: int, body: bytes, names: MutableMapping[str, Any]) -> Any:
    """Return a task's value that was taken from the result cache.

    Raises:
        InputsLost: it cannot be read, so the task has to run again.
    """
    value = _decode(body).value
    try:
        if value is None:
            return None
        if not damage_of(value):
            return unpack(value, names)
    except Exception as error:  # a large value or a class is gone, and a class may raise anything
        raise InputsLost([task]) from error
    raise InputsLost([task])


def giver(inputs: list[Input], names: MutableMapping[str, Any]) -> Callable[[int], Any]:
    """Return a function that gives the value of an input by its number in the arguments.

    Each input is unpacked once.
    """
    by_number = {each.number: each for each in inputs}
    made: dict[int, Any] = {}

    def give(number: int) -> Any:
        if number not in made:
            each = by_number[number]
            if each.body is None:
                text = f"the result of task {each.task}, an argument of this one, was cleared before it was taken"
                raise DependencyFailed(text)
            if each.from_cache:
                value = kept_value(each.task, each.body, names)
            else:
                value = value_of(each.task, each.reason, each.body, each.failure, names)
            made[number] = value if each.item is None or each.reason else value[each.item]
        return made[number]

    return give


_encode = msgspec.msgpack.Encoder().encode


def packed_child(what: Any, args: tuple[Any, ...], kwargs: dict[str, Any], blobs: BlobStore | None) -> Packed:
    """Pack a `Task`, or a function, or an object with ``execute()``, with its arguments.

    Raises:
        TypeError: `what` is something else.
        UnpickleableException: a part cannot travel.
    """
    packs_itself: Callable[[BlobStore | None], Packed] | None = getattr(what, "_pack", None)
    if packs_itself is not None:
        if args or kwargs:
            raise TypeError("a Task has its arguments already: submit(Task(f, args=(…)))")
        return packs_itself(blobs)
    called = callable(what) and (args or kwargs or not isinstance(what, type))  # a class alone may have `execute`
    if not called and is_executed(what):
        what, args = execute_object, (what, *args)
    if not callable(what):
        raise TypeError(f"submit() takes a Task, a function or an object with execute(), not {type(what).__name__}")
    writer = BlobWriter(blobs) if blobs is not None else None
    function, values = pack_called(what, writer)
    inputs: dict[int, None] = {}

    def note(task: object) -> int:
        inputs[int(task)] = None  # type: ignore[call-overload]
        return int(task)  # type: ignore[call-overload, no-any-return]

    arguments = None
    if args or kwargs:
        with noting(note), naming_files(writer):
            arguments = pack((args, kwargs), ("args", "kwargs"), writer)
    needs = Needs(after=tuple(inputs), inputs=tuple((i, i) for i in inputs)) if inputs else None
    taken = writer.taken() if writer is not None else ()
    rules = Rules(coroutine=True) if is_coroutine_function(what) else None
    return Packed(_encode(CallWork(arguments, values=values)), function.digest, rules, (function,), False, taken, needs)


def submission(number: int, packed: Packed, job: str | None = None) -> Submission:
    """Make the submission of a packed child. The controller replaces `number` with the task's id."""
    rules = packed.rules
    if job is not None:
        rules = msgspec.structs.replace(rules or Rules(), job=job)
    return Submission(
        number, packed.payload, 0.0, packed.function, rules, packed.blobs, packed.needs, cache=packed.cache
    )


class ChildJob:
    """A job that a running task submits: `add_task`, `submit`, `wait`, `results`.

    ``current_task().create_job(name)`` creates it. Clients find it by its name (``tc.job(name)``). Waiting for it lends
    the task's place, like ``current_task().wait``. This follows STK Parallel Computing's child jobs.
    """

    def __init__(self, parent: CurrentTask, name: str, abort_on_failure: bool) -> None:
        self._parent = parent
        self._made: list[Packed] = []
        self.name = name
        self.abort_on_failure = abort_on_failure
        self.ids: list[int] = []
        """The ids of the tasks, after `submit`."""

    def add_task(self, what: Any, *args: Any, **kwargs: Any) -> None:
        """Add a `Task`, or the call ``what(*args, **kwargs)``. `submit` submits it."""
        if self.ids:
            raise ValueError(f"child job {self.name!r} was submitted: create another one")
        self._made.append(self._parent.packed(what, args, kwargs))

    def submit(self) -> list[int]:
        """Submit the tasks, and return their ids.

        Raises:
            ValueError: the job has no tasks.
        """
        if not self._made:
            raise ValueError(f"child job {self.name!r} has no tasks to submit: call add_task() first")
        self.ids = self._parent.spawn(self._made, self.name, self.abort_on_failure)
        return self.ids

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all tasks have ended, and return how many of them failed.

        Raises:
            TimeoutError: not all have ended within `timeout` seconds.
        """
        return self._parent.wait(self.ids, timeout)

    def results(self, return_exceptions: bool = False) -> list[Any]:
        """Wait, and return the values of the tasks in the order in which they were added."""
        return self._parent.results(self.ids, return_exceptions)


STATE_BYTES_MAX = 64 * 1024
IDS_AT_ONCE = 10_000
"""The number of tasks for which one question waits."""
SPAWNED_AT_ONCE, SPAWNED_BYTES = 5000, 8 << 20
"""The number of children, and the bytes of their payloads and functions, that are submitted with one question."""
FLUSH_S = 5.0
"""How long a failed run waits until its messages are on disk. A run that ends well waits as long as it takes."""
FLUSH_INTERRUPTED_S = 0.5
"""How long an interrupted run waits: its engine is killed if it does not end within ``grace``."""

_NOTHING_SPECIAL = Special()
_decode_deferral = msgspec.msgpack.Decoder(Deferral).decode


class Deferred(BaseException):
    """Ends a run that asks to be run again later.

    It is not an Exception, so that a task's own ``except Exception`` does not catch it.
    """

    def __init__(self, word: Deferral) -> None:
        super().__init__(word.message or "deferred")
        self.word = word


def details_of(error: BaseException, outcome: str) -> Deferral | LostInputs | None:
    """Return what the controller is told of an outcome beside the error itself.

    Raises:
        ValueError: the error's attributes, which a task may set, are not what the controller can read.
    """
    if outcome == DEFERS and isinstance(error, Deferred):
        try:
            return _decode_deferral(_encode(error.word))
        except Exception as problem:
            raise ValueError(f"the deferral cannot be told to the farm: {text_of(problem)}") from None
    if outcome == LOSES_INPUTS and isinstance(error, InputsLost):
        return LostInputs(tuple(lost_ids("task", error.ids)), tuple(lost_ids("engine", error.engines)))
    return None


class Interruptible(Protocol):
    """The part that knows whether the task was interrupted."""

    raised: BaseException | None
    """What the farm has raised in it."""


class CurrentTask:
    """The running task. Its methods may be called until the task has ended.

    Questions to the farm survive a restart of the controller: each is repeated until it is answered.
    """

    def __init__(
        self,
        engine: str,
        run: Run,
        send: Callable[[Any], None],
        names: MutableMapping[str, Any],
        blobs: BlobStore | None,
        interrupted: Interruptible,
        environment: Any = None,
    ) -> None:
        self._run = run
        self._special = run.special or _NOTHING_SPECIAL
        self._names = names
        self._blobs = blobs
        self._interrupted = interrupted
        self._environment = environment
        self._holding = RunResources(engine, (run.task, run.attempt), run.allotment, send)
        self.calls = Calls(engine, (run.task, run.attempt), send)
        self._state: dict[str, Any] | None = None
        self._submitted = 0
        self._inbox: deque[Letter] = deque()
        self._read = self._special.received

    # -- identity

    @property
    def id(self) -> int:
        """Return the task's id."""
        return self._run.task

    @property
    def attempt(self) -> int:
        """Return the number of this run of the task, from 1."""
        return self._run.attempt

    @property
    def trial(self) -> int:
        """Return 1 + the number of earlier runs that ended with `defer`."""
        return self._special.trial

    @property
    def parent(self) -> int | None:
        """Return the id of the task that submitted this one; None if a client did."""
        return self._special.parent

    @property
    def environment(self) -> Any:
        """Return the task's environment as `setup` left it (``env`` in the code of a notebook); None if it has none."""
        return self._environment

    @property
    def is_aborting(self) -> bool:
        """Return whether the task was asked to stop: `TaskCancelled` was raised in it."""
        return self._interrupted.raised is not None

    @property
    def state(self) -> dict[str, Any]:
        """Return the task's own small dict, which `defer` saves from trial to trial (at most 64 KiB packed)."""
        if self._state is None:
            self._state = unpack(self._special.state, self._names) if self._special.state else {}
        return self._state

    # -- resources

    @property
    def allotment(self) -> dict[str, Any]:
        """Return what the task holds of its node, as ``{"cores": 2.0, "memory": 2147483648.0, "gpu": 1.0, "gpus":
        ("0",)}``.

        Memory is in bytes. ``gpus`` has the names of the devices, if the task holds any. ``exclusive`` is there if the
        task has the node to itself.
        """
        return self._holding.amounts

    def yield_resources(self, **amounts: float | str) -> dict[str, Any]:
        """Give back a part of the resources that the task holds, or all of them, so that other tasks can use them.

        Args:
            amounts: the amounts to give back, as in ``yield_resources(cores=1)``; none for everything.

        Returns:
            The allotment that is left.

        Raises:
            ValueError: the task does not hold this much.
        """
        return self._holding.yield_resources(**amounts)

    def reserve_resources(self, timeout: float | None = None, **amounts: float | str) -> dict[str, Any]:
        """Take more resources, or the original allotment again, and wait until they are free.

        The task's time limit goes on during the wait.

        Args:
            timeout: seconds to wait; None for no limit.
            amounts: the additional amounts, as in ``reserve_resources(cores=2)``; none for the original allotment.

        Returns:
            The allotment.

        Raises:
            TimeoutError: the resources were not free within `timeout`.
            ValueError: the node does not have this much at all.
        """
        return self._holding.reserve_resources(timeout, **amounts)

    # -- deferral

    def defer(self, message: str = "", after: float | None = None) -> NoReturn:
        """End this run; the task runs again later as the next trial.

        A deferral is not charged as a retry, and `state` is kept. When `defer_max` seconds have passed since the begin
        of the first trial, the task fails instead. This follows core4.

        Args:
            message: a text for those who look at the task.
            after: seconds until the next trial; None for the task's `defer_time`.

        Raises:
            ValueError: the packed `state` has more than 64 KiB.
        """
        after_s = check_seconds("after", after)
        state = pack(self._state, "state") if self._state is not None else self._special.state
        if len(state) > STATE_BYTES_MAX:
            raise ValueError(
                f"the state is {len(state):,} bytes packed, more than {STATE_BYTES_MAX:,}: keep less in it"
            )
        raise Deferred(Deferral(after_s, text_of(message), state, self._read))

    # -- progress and messages

    def progress(self, value: float, total: float | None = 1.0, message: str = "") -> None:
        """Report how far the task has come: ``progress(0.3)`` or ``progress(30, 100, "reading")``.

        It may be called as often as wanted. Readers get the latest report within some tenths of a second, and always
        the last.
        """
        self.calls.tell(_number("value", value), None if total is None else _number("total", total), text_of(message))

    def send(self, obj: Any) -> None:
        """Send a message to the readers of ``tc.messages(id)``. Messages stay in order, and are kept with the result.

        A run that succeeds or is deferred ends only when its messages are on the farm's disk. A run that fails waits at
        most 5 s for that, and one that is interrupted 0.5 s.

        Raises:
            UnpickleableException: the object cannot travel.
        """
        self.calls.post(pack(obj, "message"))

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for the next message that was sent to this task (``tc.send(id, obj)``), and return it with its sender.

        A later trial continues with the next message. A repeated attempt starts with the first message again.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            TimeoutError: no message came within `timeout`.
        """
        timeout_s = check_timeout("timeout", timeout)
        if not self._inbox:
            found = self.calls.ask(Receive(self._read), timeout_s)
            if found is None:
                raise TimeoutError(f"task {self.id} was sent no message within {timeout_s:g} s")
            self._inbox.extend(found.letters)
        letter = self._inbox.popleft()
        self._read = letter.seq
        return Message(unpack(letter.body, self._names), letter.sender, letter.at_s)

    # -- children

    def submit(self, what: Any, *args: Any, **kwargs: Any) -> int:
        """Run a `Task`, or ``what(*args, **kwargs)``, or an object by its ``execute()``, as a child of this task.

        If a repeated run of the same trial submits the same tasks in the same order, it gets the same children.

        Returns:
            The child's id, once the child is on disk.

        Raises:
            RuntimeError: a repeated run submits another payload in the place of this child.
        """
        return self.spawn([self.packed(what, args, kwargs)])[0]

    def submit_all(self, tasks: Iterable[Any]) -> list[int]:
        """Submit several children at once: `Task` objects, or functions without arguments. Return their ids."""
        made = [self.packed(task) for task in tasks]
        return self.spawn(made) if made else []

    def map(self, function: Callable[..., Any], *sequences: Iterable[Any]) -> list[int]:
        """Submit ``function(item)`` for each item, or for items of several sequences side by side.

        Return the children's ids.
        """
        made = [self.packed(function, args) for args in zip(*sequences, strict=True)]
        return self.spawn(made) if made else []

    def create_job(self, name: str | None = None, abort_on_failure: bool = False) -> ChildJob:
        """Return a `ChildJob`: children that clients see together under a name."""
        name = check_text("name", name)
        return ChildJob(self, name or f"children of task {self.id}", bool(abort_on_failure))

    def packed(self, what: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Packed:
        """Return a child that is ready to travel."""
        return packed_child(what, args, kwargs or {}, self._blobs)

    def spawn(self, made: list[Packed], job: str = "", abort_on_failure: bool = False) -> list[int]:
        """Submit packed children, as a job if `job` gives a name. Many are submitted in parts, in their order."""
        # The same run of the same trial gives the job the same id.
        trial = trial_name(self.trial, self._special.recovery)
        job_id = f"{self.id}.{trial}.{self._submitted + 1}" if job else None
        spec = None
        if job_id is not None:
            spec = JobSpec(job_id, job, len(made), abort_on_failure=abort_on_failure, opened_s=time.time())
        found: list[int] = []
        for part in _parts(made):
            self._submitted += 1
            functions: dict[str, Function] = {f.digest: f for packed in part for f in packed.functions}
            tasks = [submission(-1 - number, packed, job_id) for number, packed in enumerate(part)]
            found += self.calls.ask(Spawn(self._submitted, tasks, list(functions.values()), spec)).ids
        return found

    def children(self, state: str | None = None) -> list[int]:
        """Return the ids of all tasks that this task has submitted, including those of earlier trials.

        Args:
            state: only children in this state: scheduled, running, succeeded, failed; unfinished, finished.
                ValueError: it is no such word.
        """
        named = "" if state is None else one_of("state", (*STATE_WORDS, *SEVERAL_STATES), state)
        rows: list[tuple[int, str]] = self.calls.ask(Children()).rows
        wanted = SEVERAL_STATES.get(named, (named,))
        return [child for child, found in rows if not named or found in wanted]

    def wait(self, ids: Iterable[Any] | None = None, timeout: float | None = None) -> int:
        """Wait until these tasks have ended, and return how many of them failed.

        During the wait this task lends its place: the resources that it holds of the node are free for others, and one
        more engine is started, so that children run even if there is only one slot. The task's own time limit goes on.

        Args:
            ids: the tasks; None for all children.
            timeout: seconds to wait; None for no limit.

        Raises:
            TimeoutError: not all of them have ended within `timeout`.
        """
        wanted = self.children() if ids is None else [check_int("ids", i) for i in ids]
        timeout_s = check_timeout("timeout", timeout)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        failed = 0
        # In parts: many ids in one question would hold up the other engines of the node.
        for first in range(0, len(wanted), IDS_AT_ONCE) or (0,):
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            found = self.calls.ask(Await(wanted[first : first + IDS_AT_ONCE]), left_s)
            if found is None:
                self.calls.ask(Await([]))  # the task takes its place back
                raise TimeoutError(f"not all of {len(wanted)} tasks have ended within {timeout_s:g} s")
            failed += int(found.value)
        return failed

    def results(self, ids: Iterable[Any] | None = None, return_exceptions: bool = False) -> list[Any]:
        """Wait for these tasks and return their values in order.

        Args:
            ids: the tasks; None for all children.
            return_exceptions: whether the exception of a failed task stands in its place. Otherwise the first one is
                raised.
        """
        wanted = self.children() if ids is None else [check_int("ids", i) for i in ids]
        self.wait(wanted)
        values = []
        for first in range(0, len(wanted), 256):
            some = wanted[first : first + 256]
            finals: dict[int, Final] = {}
            left = some
            while left:
                taken = self.calls.ask(Take(left))
                finals.update((final.id, final) for final in taken.finals)
                left = taken.left
            for task in some:
                if task not in finals:
                    raise IndexError(f"task {task} has no result: it was cleared, or never was")
                final = finals[task]
                if final.from_cache and final.body:
                    values.append(kept_value(task, final.body, self._names))
                    continue
                value = value_of(task, final.reason, final.body, final.failure, self._names)
                if final.reason and not return_exceptions:
                    raise value
                values.append(value)
        return values

    # -- the node

    @contextmanager
    def node_lock(self, name: str) -> Iterator[None]:
        """Hold a lock that one task at a time can hold, among all tasks of this user on this machine.

        ``with current_task().node_lock("download"):`` is an example. The operating system releases the lock when the
        engine ends, however it ends.
        """
        lock = NodeLock(name)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # -- for the runner

    def apply(self) -> None:
        """Limit the threads of libraries to the allotment."""
        self._holding.apply()

    def granted(self, answer: Granted) -> None:
        """Take the answer to a request for resources. Called by the lane's thread."""
        self._holding.granted(answer)

    def answered(self, reply: TaskReply) -> None:
        """Take the reply to a question. Called by the lane's thread."""
        self.calls.answered(reply)

    def end(self, failed: bool, interrupted: bool) -> None:
        """Finish when the run has ended: a failed run flushes its messages, and the resources are closed."""
        if failed:
            self.calls.flush(FLUSH_INTERRUPTED_S if interrupted else FLUSH_S)
        self._holding.end()


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except Exception:  # no float holds the number, or its class is the user's own
        raise wrong(what, "a number", value) from None


def _parts(made: list[Packed]) -> Iterator[list[Packed]]:
    """Yield children in parts of which each fits into one message with its functions."""
    part: list[Packed] = []
    code: dict[str, int] = {}
    size = 0
    for packed in made:
        own_code = {function.digest: len(function.code) for function in packed.functions}
        more = len(packed.payload) + sum(own_code[digest] for digest in own_code.keys() - code.keys())
        if part and (len(part) == SPAWNED_AT_ONCE or size + more > SPAWNED_BYTES):
            yield part
            part, code, size = [], {}, 0
            more = len(packed.payload) + sum(own_code.values())
        part.append(packed)
        code.update(own_code)
        size += more
    if part:
        yield part
