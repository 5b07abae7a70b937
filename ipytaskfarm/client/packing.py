"""Tasks as they travel: payload, rules, code, and what they wait for.

`pack_task` runs once per `run` call, so a plain StringTask takes a path of its own through it that builds one payload
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from ..core.arguments import check_int, check_name, check_names
from ..core.messages.dependencies import Needs
from ..core.messages.payload import CallWork, StringWork
from ..core.messages.task_types import Function, Packed, Recovery, Rules
from ..serialization.pack import pack, pack_function
from ..serialization.packing_notice import notice
from ..serialization.references import noting
from ..storage.blobs import Blobs, BlobWriter
from .rules import pack_rules
from .tasks import CallTask, Join, MapTask, StringTask, Task

notice.on = True
_encode = msgspec.msgpack.Encoder().encode


def refuse_task(task: Task) -> int:
    """A task is referred to that has no id."""
    raise TypeError(
        f"{task._short()} has no id yet: wait for, or refer to, the id that run() gave; within a job a Task will do, "
        "once both were added to it"
    )


class Shared(NamedTuple):
    """What a job's tasks have in common."""

    said: Mapping[str, Any]
    """Rules that hold where a task has none of its own."""
    job: str
    rules: Rules | None
    """As they travel with a task that has none at all, …"""
    functions: tuple[Function, ...]
    """… and the functions that they need."""
    place: Callable[[Task], int] = refuse_task
    """Where another task of the job stands: its id, or -1 - position."""


def pack_task(task: Task, blobs: Blobs | None = None, shared: Shared | None = None) -> Packed:
    """Pack a task and its chain of recovery tasks.  A loop: ValueError that shows it.

    Its large values go to `blobs`; None: they travel inside.  Raises UnpickleableException for what cannot travel.
    """
    if task.__class__ is StringTask and not task._ruled and not task.push and not task.after:
        payload = _string_work(task, _NOTHING)
        return Packed(payload) if shared is None else Packed(payload, None, shared.rules, shared.functions)
    noted = _Noted(
        BlobWriter(blobs) if blobs is not None else None, shared.place if shared is not None else refuse_task
    )
    if task.__class__ is StringTask and not task._ruled:
        payload, taken = _string_work(task, noted), noted.taken()
        needs = noted.needs(task)
        if shared is None:
            return Packed(payload, blobs=taken, needs=needs)
        return Packed(payload, None, shared.rules, shared.functions, False, taken, needs)
    chain = _chain(task)
    functions: dict[str, Function] = {}
    recovery: Recovery | None = None
    for link in reversed(chain[1:]):
        payload, function = _work(link, functions, noted)
        recovery = Recovery(payload, function, _rules(link, shared, recovery, functions))
    payload, function = _work(task, functions, noted)
    rules = _rules(task, shared, recovery, functions)
    raw = isinstance(task, MapTask)
    return Packed(payload, function, rules, tuple(functions.values()), raw, noted.taken(), noted.needs(task))


class _Noted:
    """What comes to light while a task's data is packed: large values, and tasks whose results are referred to."""

    __slots__ = ("_inputs", "_keeper", "_place")

    def __init__(self, keeper: BlobWriter | None, place: Callable[[Task], int]) -> None:
        self._keeper = keeper
        self._place = place
        self._inputs: dict[int, None] = {}

    def pack(self, data: Any, names: str | tuple[str, ...]) -> bytes:
        with noting(self.note):
            return pack(data, names, self._keeper)

    def taken(self) -> tuple[str, ...]:
        return self._keeper.taken() if self._keeper is not None else ()

    def note(self, task: object) -> int:
        number = self._number(task)
        self._inputs[number] = None
        return number

    def _number(self, task: object) -> int:
        if isinstance(task, Task):
            return self._place(task)
        number = check_int("after, or a Ref: the id of a task", task)
        if number < 0:
            raise IndexError(f"task ID not registered: {number} (ids are 0 and more)")
        return number

    def needs(self, task: Task) -> Needs | None:
        join = task.__class__ is Join
        if not task.after and not self._inputs and not join:
            return None
        after = dict.fromkeys([*map(self._number, task.after), *self._inputs])
        inputs = tuple((number, number) for number in self._inputs)
        return Needs(after=tuple(after), inputs=inputs, if_failed=task.if_failed, join=join)


_NOTHING = _Noted(None, refuse_task)


def _rules(
    task: Task, shared: Shared | None, recovery: Recovery | None, functions: dict[str, Function]
) -> Rules | None:
    if shared is None:
        return pack_rules(task.__dict__, {}, None, recovery, functions) if task._ruled else None
    if not task._ruled and recovery is None:
        functions.update((code.digest, code) for code in shared.functions)
        return shared.rules
    return pack_rules(task.__dict__, shared.said, shared.job, recovery, functions)


def _chain(task: Task) -> list[Task]:
    chain = [task]
    seen = {id(task)}
    link = task.recovery_task
    while link is not None:
        if id(link) in seen:
            loop = " -> ".join(t._short() for t in [*chain, link])
            raise ValueError(f"recovery tasks form a loop: {loop}")
        seen.add(id(link))
        chain.append(link)
        link = link.recovery_task
    return chain


def _string_work(task: StringTask, noted: _Noted) -> bytes:
    push = task.push
    work = StringWork(
        task.expression,
        tuple(task.pull),  # type: ignore[arg-type]
        noted.pack(push, "push") if push else None,
        task.clear_before,
        task.clear_after,
    )
    try:
        return _encode(work)
    except (UnicodeEncodeError, TypeError):
        # What is to blame is looked for here alone: of a thousand tasks that are well each look would cost something.
        names = tuple(check_names("pull", work.pull))
        return _encode(msgspec.structs.replace(work, code=check_name("expression", work.code), pull=names))


def _work(task: Task, functions: dict[str, Function], noted: _Noted) -> tuple[bytes, str | None]:
    if isinstance(task, StringTask):
        return _string_work(task, noted), None
    if isinstance(task, Join):
        return b"", None
    if not isinstance(task, CallTask):
        raise TypeError(f"a StringTask, CallTask or MapTask is needed, not {type(task).__name__}")
    function = pack_function(task.function)
    functions[function.digest] = function
    arguments = None
    if task.args or task.kwargs:
        arguments = noted.pack((task.args, task.kwargs), ("args", "kwargs"))
    work = CallWork(arguments, task.clear_before, task.clear_after, task._raw, task._each)
    return _encode(work), function.digest
