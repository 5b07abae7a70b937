"""Packs the tasks that a running task submits as its children."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Protocol

import msgspec

from ..core.errors import DependencyFailed, InputsLost, TaskAborted
from ..core.messages import Input
from ..core.messages.dependencies import Needs
from ..core.messages.payload import CallWork, ResultBody
from ..core.messages.task_types import FailureSummary, Packed, Rules, Submission
from ..core.states import ABORTS
from ..serialization.cache import damage_of
from ..serialization.memory_maps import naming_files
from ..serialization.pack import is_coroutine_function, pack, pack_function, unpack, unpack_error
from ..serialization.references import noting
from ..storage.blobs import BlobStore, BlobWriter

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
    """Pack a `Task`, or a function with its arguments.

    Raises:
        TypeError: `what` is something else.
        UnpickleableException: a part cannot travel.
    """
    packs_itself: Callable[[BlobStore | None], Packed] | None = getattr(what, "_pack", None)
    if packs_itself is not None:
        if args or kwargs:
            raise TypeError("a Task has its arguments already: submit(Task(f, args=(…)))")
        return packs_itself(blobs)
    if not callable(what):
        raise TypeError(f"submit() takes a Task or a function, not {type(what).__name__}")
    writer = BlobWriter(blobs) if blobs is not None else None
    function = pack_function(what, writer)
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
    return Packed(_encode(CallWork(arguments)), function.digest, rules, (function,), False, taken, needs)


def submission(number: int, packed: Packed, job: str | None = None) -> Submission:
    """Make the submission of a packed child. The controller replaces `number` with the task's id."""
    rules = packed.rules
    if job is not None:
        rules = msgspec.structs.replace(rules or Rules(), job=job)
    return Submission(
        number, packed.payload, 0.0, packed.function, rules, packed.blobs, packed.needs, cache=packed.cache
    )


class ParentTask(Protocol):
    """The methods of `CurrentTask` that its child job calls; they are documented there."""

    def packed(self, what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed: ...
    def spawn(self, made: list[Packed], job: str = "", abort_on_failure: bool = False) -> list[int]: ...
    def wait(self, ids: Iterable[int] | None = None, timeout: float | None = None) -> int: ...
    def results(self, ids: Iterable[int] | None = None, return_exceptions: bool = False) -> list[Any]: ...


class ChildJob:
    """A job that a running task submits: `add_task`, `submit`, `wait`, `results`.

    ``current_task().create_job(name)`` creates it. Clients find it by its name (``tc.job(name)``). Waiting for it lends
    the task's place, like ``current_task().wait``. This follows STK Parallel Computing's child jobs.
    """

    def __init__(self, parent: ParentTask, name: str, abort_on_failure: bool) -> None:
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
