"""Pack a task for sending: payload, rules, code and dependencies.

`pack_task` runs once per `run` call, so a plain StringTask takes a short path that builds only a payload.  The payload
itself is built by the task's class in `tasks`; this module knows tasks only as `PackableTask`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from ..core.arguments import check_int
from ..core.messages.payload import with_content
from ..core.messages.result_cache import CacheKey
from ..core.messages.task_types import Function, Needs, Packed, Recovery, Rules
from ..serialization import kept_changes
from ..serialization.changeable_types import cannot_change
from ..serialization.function_templates import (
    SplitFunction,
    alike as alike,
    fill_template,
    lasting as lasting,
    split_function,
)
from ..serialization.kept_changes import changes_itself as changes_itself
from ..serialization.memory_maps import naming_files
from ..serialization.pack import PLAIN, notice, pack, pack_arguments, pack_called, pack_function, split_called, unpack
from ..serialization.recipes import Content
from ..serialization.references import Ref, noting
from ..storage.blobs import TOUCH_S, BlobStore, BlobWriter
from .cache_keys import cache_key
from .ids import check_farm
from .rules import pack_rules

notice.on = True


class PackableTask(Protocol):
    """The attributes of `tasks.Task` that this module uses."""

    after: Any
    if_failed: str
    push: dict[str, Any] | None
    recovery_task: Any
    _is_code: ClassVar[bool]
    _is_join: ClassVar[bool]
    _raw: ClassVar[bool]
    cache: bool | str
    _ruled: bool
    _items: int
    _value_first: ClassVar[bool]

    def _shares_engine(self) -> bool: ...

    def _short(self) -> str: ...

    def _cached_call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]: ...

    def _payload(self, data: TaskData, functions: dict[str, Function]) -> tuple[bytes, str | None]: ...


def refuse_task(task: PackableTask) -> int:
    """Raise TypeError for a reference to a task that has no id."""
    raise TypeError(
        f"{task._short()} has no id yet: wait for, or refer to, the id that run() gave; within a job a Task will do, "
        "once both were added to it"
    )


class PackedOnce(NamedTuple):
    """A function that many tasks call, as it was packed for all of them."""

    code: Function
    blobs: tuple[str, ...] = ()
    """The digests of its large values, which each of the tasks needs."""


def pack_once(function: Callable[..., Any], blobs: BlobStore | None) -> PackedOnce:
    """Pack a function for many tasks.  Raises UnpickleableException if something that it uses cannot travel."""
    writer = BlobWriter(blobs) if blobs is not None else None
    code = pack_function(function, writer)
    return PackedOnce(code, writer.taken() if writer is not None else ())


class ReusedPack:
    """The packed function of a map whose items are all there, so that no code of the user changes it between them.

    To examine it for each of a thousand tasks would take a minute and more if it uses a list of a million numbers, or a
    table of strings.  Blobs are removed some time after their last use if no task needs them, so packs are not kept for
    long.
    """

    def __init__(self, function: Callable[..., Any], blobs: BlobStore | None) -> None:
        self._function = function
        self._blobs = blobs
        self._packed: PackedOnce | None = None
        self._began_s = 0.0
        self.pack_s = 0.0
        """The seconds that the function took to pack."""

    def get(self) -> PackedOnce:
        """Return the packed function.  Raises UnpickleableException if something that it uses cannot travel."""
        now_s = time.monotonic()
        if self._packed is None or now_s - self._began_s >= TOUCH_S:
            self._packed = pack_once(self._function, self._blobs)
            self._began_s, self.pack_s = now_s, time.monotonic() - now_s
        return self._packed


def split_for_many(function: Callable[..., Any], blobs: BlobStore | None) -> SplitFunction | None:
    """Return a function in two parts, of which many calls share the first; None: it is called as a whole."""
    split = split_function(function)
    if split is None or not split.has_objects:
        return split
    parts = split_called(function, BlobWriter(blobs) if blobs is not None else None)
    return None if parts is None else parts[0]


def filled(function: Callable[..., Any], values: bytes) -> Callable[..., Any]:
    """Return the function of a template and its packed values."""
    return fill_template(function, unpack(values))


def may_change_shared(function: Callable[..., Any], arguments: Collection[Any]) -> bool:
    """Return whether calls may change an object that is among their arguments several times."""
    return kept_changes.may_change_shared(function, arguments, cannot_change)


def items_may_change_shared(function: Callable[..., Any], items: Sequence[Any], star: bool) -> bool:
    """Return the same for the items of a map.  star: each is a tuple of arguments."""
    return may_change_shared(function, [*itertools.chain.from_iterable(items)] if star else items)


class Shared(NamedTuple):
    """What all tasks of a job have in common."""

    given: Mapping[str, Any]
    """The job's rules; they apply to a task that does not set the rule itself."""
    job: str
    """The job's id."""
    rules: Rules | None
    """The packed rules of a task that sets no rule itself."""
    functions: tuple[Function, ...]
    """The functions that `rules` need."""
    place: Callable[[Any], int] = refuse_task
    """Function that returns the id of another task of the job, or -1 - its position."""


def freezing(packed: Packed) -> Packed:
    """Return a packed task whose failure freezes its engine."""
    rules = msgspec.structs.replace(packed.rules or Rules(), freeze=True)
    return msgspec.structs.replace(packed, rules=rules)


def pack_task(
    task: PackableTask,
    blobs: BlobStore | None = None,
    shared: Shared | None = None,
    farm: str = "",
) -> Packed:
    """Pack a task and its chain of recovery tasks.

    Args:
        blobs: the store for large values; None: large values are sent inline.
        shared: what the tasks of its job have in common.
        farm: the name of the farm that gets the task, if it is known.

    Raises:
        ValueError: the recovery tasks form a loop, or an argument is a future of another farm.
        UnpickleableException: a value cannot be pickled.
    """
    is_plain = task._is_code and not task._ruled
    if is_plain and not task.push and not task.after:
        payload, _ = task._payload(_NO_DATA, {})
        return Packed(payload) if shared is None else Packed(payload, None, shared.rules, shared.functions)
    data = TaskData(
        BlobWriter(blobs) if blobs is not None else None,
        shared.place if shared is not None else refuse_task,
        farm,
    )
    if is_plain:
        payload, _ = task._payload(data, {})
        taken, needs = data.taken(), data.needs(task)
        if shared is None:
            return Packed(payload, blobs=taken, needs=needs)
        return Packed(payload, None, shared.rules, shared.functions, False, taken, needs)
    chain = _chain(task)
    functions: dict[str, Function] = {}
    recovery: Recovery | None = None
    for link in reversed(chain[1:]):
        payload, function = link._payload(data, functions)
        recovery = Recovery(payload, function, _rules(link, shared, recovery, functions))
    payload, function = task._payload(data, functions)
    rules = _rules(task, shared, recovery, functions)
    mode = task.cache or (shared.given.get("cache") if shared is not None else False)
    cache = None
    if mode and function is not None and not task._items:
        cache, content = _cache_key(task, data, rules, str(mode), functions)
        if content:
            payload = with_content(payload, content)
    return Packed(
        payload, function, rules, tuple(functions.values()), task._raw, data.taken(), data.needs(task), task._items,
        cache,
    )  # fmt: skip


def _cache_key(
    task: PackableTask, data: TaskData, rules: Rules | None, mode: str, functions: dict[str, Function]
) -> tuple[CacheKey, Content]:
    """Return the key of a function's result and the content of modules in it, and add the recipe to `functions`."""
    environment = rules.asks.environment if rules is not None and rules.asks is not None else None
    call, args, kwargs, form = task._cached_call()
    if not kwargs and PLAIN.issuperset(map(type, args)):  # no reference is among them
        key, recipe, content = cache_key(call, args, kwargs, form, environment, mode, data.input_number)
    else:
        with noting(data.note):
            key, recipe, content = cache_key(call, args, kwargs, form, environment, mode, data.input_number)
    functions[recipe.digest] = recipe
    return (msgspec.structs.replace(key, value_first=True) if task._value_first else key), content


class TaskData:
    """Packs the data of one task, and records its large values and the tasks whose results are its inputs."""

    __slots__ = ("_farm", "_inputs", "_known_blobs", "_place", "_refused", "_writer")

    def __init__(
        self,
        writer: BlobWriter | None,
        place: Callable[[Any], int],
        farm: str = "",
    ) -> None:
        self._farm = farm
        self._known_blobs: tuple[str, ...] = ()
        """The large values of the known function, if the task calls it."""
        self._refused: Exception | None = None
        """The error of a reference among the arguments."""
        self._writer = writer
        self._place = place
        self._inputs: dict[int, None] = {}

    def pack(self, data: Any, names: str | tuple[str, ...]) -> bytes:
        """Pack values; an error says by `names` which value cannot be pickled."""
        with noting(self._note_argument), naming_files(self._writer):
            return self._unless_refused(pack(data, names, self._writer))

    def _unless_refused(self, packed: bytes) -> bytes:
        if self._refused is not None:
            raise self._refused
        return packed

    def _note_argument(self, task: object) -> int:
        # The pickler would report an error from here as a value that cannot be pickled.
        try:
            return self.note(task)
        except (ValueError, IndexError) as error:
            self._refused = error
            return -1

    def pack_function(
        self, function: Callable[..., Any], is_whole: bool, known: PackedOnce | None
    ) -> tuple[Function, bytes | None]:
        """Pack the function that the task calls; see `pack_called`.

        Args:
            is_whole: it is that of a map's items.
            known: the function, if it was packed already.
        """
        if known is not None:
            self._known_blobs = known.blobs
            return known.code, None
        return (pack_function(function, self._writer), None) if is_whole else pack_called(function, self._writer)

    def pack_arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        """Pack the arguments of a call."""
        if not kwargs and PLAIN.issuperset(map(type, args)):
            return pack_arguments(args, kwargs)  # no reference is among them
        with noting(self._note_argument), naming_files(self._writer):
            return self._unless_refused(pack_arguments(args, kwargs, self._writer))

    def taken(self) -> tuple[str, ...]:
        """Return the digests of the large values."""
        own = self._writer.taken() if self._writer is not None else ()
        return tuple(dict.fromkeys((*self._known_blobs, *own))) if self._known_blobs else own

    def note(self, task: object) -> int:
        """Record a task as an input; return its id, or -1 - its position in the job."""
        number = self._number(task)
        self._inputs[number] = None
        return number

    def input_number(self, reference: Ref) -> int:
        """Return the place of a reference among the inputs, which is the same whatever ids the tasks have."""
        return list(self._inputs).index(self._number(reference.task))

    def _number(self, task: object) -> int:
        if hasattr(task, "_payload"):
            return self._place(task)
        if self._farm:
            check_farm(task, self._farm)
        number = check_int("after, or a Ref: the id of a task", task)
        if number < 0:
            raise IndexError(f"task ID not registered: {number} (ids are 0 and more)")
        return number

    def needs(self, task: PackableTask) -> Needs | None:
        """Return the dependencies of the packed task; None: it has none."""
        join = task._is_join
        if not task.after and not self._inputs and not join:
            return None
        after = dict.fromkeys([*map(self._number, task.after), *self._inputs])
        inputs = tuple((number, number) for number in self._inputs)
        return Needs(after=tuple(after), inputs=inputs, if_failed=task.if_failed, join=join)


def with_ids(needs: Needs, ids: Sequence[int]) -> Needs:
    """Replace positions in a job, which are -1, -2, …, by ids."""
    after = tuple(i if i >= 0 else ids[-1 - i] for i in needs.after)
    inputs = tuple((name, i if i >= 0 else ids[-1 - i]) for name, i in needs.inputs)
    return msgspec.structs.replace(needs, after=after, inputs=inputs)


_NO_DATA = TaskData(None, refuse_task)


def _rules(
    task: PackableTask, shared: Shared | None, recovery: Recovery | None, functions: dict[str, Function]
) -> Rules | None:
    rules = _given_rules(task, shared, recovery, functions)
    if not task._is_code and task._shares_engine():
        return _COROUTINE if rules is None else msgspec.structs.replace(rules, coroutine=True)
    return rules


_COROUTINE = Rules(coroutine=True)


def _given_rules(
    task: PackableTask, shared: Shared | None, recovery: Recovery | None, functions: dict[str, Function]
) -> Rules | None:
    if shared is None:
        return pack_rules(task.__dict__, {}, None, recovery, functions) if task._ruled else None
    if not task._ruled and recovery is None:
        functions.update((code.digest, code) for code in shared.functions)
        return shared.rules
    return pack_rules(task.__dict__, shared.given, shared.job, recovery, functions)


def _chain(task: PackableTask) -> list[PackableTask]:
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
