"""The tasks that users submit: `StringTask`, `CallTask`, `MapTask`, `Join`, and `Task`, which makes the right kind.

A task object is a description.  Running it never changes it, and it may be run any number of times.  One table
(`_CHECKS`) checks each attribute when it is set, in the constructor and later, so a mistake raises where it is made.
`task_arguments` has the checks of what a task does, `rules` those of its rules; `packing.pack_task` packs a description
for sending.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Never, Self, Unpack

import msgspec

from ..core.arguments import check_name, check_names, wrong
from ..core.messages.payload import CallWork, CellPlace, StringWork
from ..core.messages.task_types import FAIL, Function, Packed
from ..core.signatures import execute_object as execute_object, is_executed
from ..core.text import did_you_mean, shown
from ..environment import TaskEnvironment
from ..serialization.pack import is_coroutine_function
from ..storage.blobs import BlobStore
from .old_names import OldNames, remedy
from .packing import PackedOnce, TaskData, pack_task
from .python2 import tell_of_code
from .rules import CHECKS, DEFAULTS, Asking, flag, keyword_parameters
from .task_arguments import (
    check_args,
    check_expression,
    check_function,
    check_kwargs,
    check_pull,
    check_push,
    misplaced_arguments,
    name_of,
    not_a_function,
    not_a_task,
    note_rules_of,
    run_code,
    unknown_argument,
)

_encode = msgspec.msgpack.Encoder().encode
_ZERO = 0
"""The default of numbers, to be compared by identity: this is quick, and True and 0.0 are not it."""


def _recovery_task(value: Any) -> Task | None:
    if value is not None and not isinstance(value, Task):
        raise TypeError(f"{wrong('recovery_task', 'a Task or None', value)}; make it one: Task({shown(value, 40)})")
    return value


def _after(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    alone = isinstance(value, (Task, str, type)) or hasattr(value, "__index__")
    several = not alone and hasattr(value, "__iter__")
    found = tuple(value) if several else (value,)
    for each in found:
        if not isinstance(each, Task) and (isinstance(each, type) or not hasattr(each, "__index__")):
            raise wrong("after", "an id, a future, a Task of the same job, or several of them", each)
    return found


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "expression": check_expression,
    "pull": check_pull,
    "push": check_push,
    "function": check_function,
    "args": check_args,
    "kwargs": check_kwargs,
    "clear_before": partial(flag, "clear_before"),
    "clear_after": partial(flag, "clear_after"),
    "recovery_task": _recovery_task,
    "after": _after,
    **CHECKS,
}

_RULES = frozenset(DEFAULTS)
_EDGES = frozenset({"after", "if_failed", "on_duplicate", "cache"})
"""Attributes that are not sent as rules: dependencies, and what `run` does with duplicates and with kept results."""


# --------------------------------------------------------------------------------------------------
# The classes


class Task(OldNames):
    """One unit of work: ``Task("a = 1", pull="a")`` or ``Task(f, args=(1,), kwargs={})``.

    A str makes a `StringTask`, a callable a `CallTask`; ``isinstance(x, Task)`` holds for every kind.  Every argument
    is an attribute that can be assigned later, and is checked then too.

    Arguments of every kind:
        clear_before, clear_after: empty the engine's namespace before or after the run.
        retries: how often the task runs again after a failure.
        recovery_task: the task that runs under the same id when the retries are used up.
        depend: a function of an engine's properties (a dict); the task runs only on engines where it returns true.
        name: a name for users, and for ``tc.tasks(name=…)``.
        priority: tasks with a higher number run first.
        time_limit: the seconds (or a timedelta) that one run may take, without the time in the queue.
        targets: the ids of engines that may run the task (an int or several); None: any.
        environment, requires, resources, exclusive, group, max_parallel, max_parallel_per_node, force, fail_if_unmet,
        placement, locality, grace, lost_retries: requirements for engine and node, see `rules.Requirements`.
        after, if_failed: the tasks that must end first, see `rules.Asking` and `rules.Requirements`.
        retry_delay, retry_on, defer_time, defer_max, warn_after, on_failure: repetition, warnings, debugging, see
            `rules.Requirements`.
        idempotent: a second copy may run beside a slow run, see `rules.Requirements`.
        cache: results that are kept for equal tasks, see `rules.Requirements`; not for code.
        unique, on_duplicate: duplicates, see `rules.Asking`.

    Raises TypeError or ValueError, which names the attribute.  The first four, `depend`, `pull` and `push` are those of
    IPython 0.10's task interface.
    """

    clear_before: bool = False
    clear_after: bool = False
    retries: int = 0
    recovery_task: Task | None = None
    depend: Any = None
    name: str | None = None
    priority: int = 0
    time_limit: float | timedelta | None = None
    targets: Any = None
    environment: TaskEnvironment | None = None
    requires: Any = ()
    resources: Any = ()
    exclusive: bool = False
    group: str | None = None
    max_parallel: int | None = None
    max_parallel_per_node: int | None = None
    force: bool = False
    fail_if_unmet: bool = False
    placement: str | None = None
    locality: Callable[[dict[str, Any]], int] | None = None
    grace: float | timedelta | None = None
    lost_retries: int | None = None
    after: Any = ()
    if_failed: str = FAIL
    retry_delay: Any = 0.0
    retry_on: Any = ()
    defer_time: float | timedelta = 300.0
    defer_max: float | timedelta = 3600.0
    warn_after: float | timedelta | None = None
    on_failure: str = FAIL
    cache: bool | str = False
    idempotent: bool = False
    unique: str | None = None
    on_duplicate: str = "refuse"

    push: dict[str, Any] | None = None

    _ruled: bool = False
    """Whether any rule was set; packing looks at rules only then."""
    _is_code: ClassVar[bool] = False
    _is_join: ClassVar[bool] = False
    _items: int = 0
    """See `core.messages.task_types.Submission.items`."""
    _value_first: ClassVar[bool] = False
    """See `core.messages.result_cache.CacheKey.value_first`."""
    __signature__: ClassVar[Signature]
    _raw: ClassVar[bool] = False
    """Whether ``get_task_result`` returns the bare value."""
    _attributes: ClassVar[frozenset[str]] = frozenset()

    if TYPE_CHECKING:  # `__new__` makes an object of a subclass, and the subclass's `__init__` runs
        expression: str
        pull: tuple[str, ...] | list[str] | str | None
        function: Callable[..., Any]
        args: tuple[Any, ...] | list[Any] | None
        kwargs: dict[str, Any] | None

        def __init__(
            self,
            expression: str | Callable[..., Any],
            pull: str | list[str] | tuple[str, ...] | None = None,
            push: dict[str, Any] | None = None,
            clear_before: bool = False,
            clear_after: bool = False,
            retries: int = 0,
            recovery_task: Task | None = None,
            depend: Any = None,
            *,
            args: tuple[Any, ...] | list[Any] | None = None,
            kwargs: dict[str, Any] | None = None,
            name: str | None = None,
            priority: int = 0,
            time_limit: float | timedelta | None = None,
            targets: Any = None,
            **asking: Unpack[Asking],
        ) -> None: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls is Task:
            what = args[0] if args else kwargs.get("expression", kwargs.get("function"))
            if isinstance(what, str) or "expression" in kwargs:
                return object.__new__(StringTask)  # type: ignore[return-value]
            if callable(what):
                return object.__new__(CallTask)  # type: ignore[return-value]
            if not args and not kwargs:
                raise TypeError("a Task needs work: code, Task('a = 1', pull='a'), or a function, Task(f, args=(1,))")
            raise not_a_function("Task's first argument (expression)", "a str of code or a callable", what)
        return object.__new__(cls)

    def _assign(self, attribute: str, value: Any) -> None:
        if attribute in self._attributes:
            value = _CHECKS[attribute](value)
            if attribute == "cache" and value and self._is_code:
                raise TypeError(
                    "cache: code may use any name of its engine's namespace, which no key can hold: "
                    "make it a function, Task(f, args=(1,), cache=True)"
                )
            if attribute in _RULES and attribute not in _EDGES:
                self.__dict__["_ruled"] = True
        elif type(self).__module__ == __name__:
            # A subclass of the user may have any attributes; in a class of this module an unknown one is a typing
            # error.
            near = remedy("Task", attribute) or did_you_mean(attribute, self._attributes)
            known = near or f"; it has {', '.join(sorted(self._attributes))}"
            raise AttributeError(f"a {type(self).__name__} has no attribute {attribute!r}{known}")
        self.__dict__[attribute] = value

    if not TYPE_CHECKING:  # with this method type checkers would allow any attribute
        __setattr__ = _assign

    def _set_rules(
        self,
        clear_before: bool,
        clear_after: bool,
        retries: int,
        recovery_task: Task | None,
        depend: Any,
        name: str | None,
        priority: int,
        time_limit: float | timedelta | None,
        targets: Any,
        asking: Asking,
    ) -> None:
        # Without a loop, for speed: a program makes thousands of tasks, and most arguments are defaults.
        if clear_before is not False:
            self.clear_before = clear_before
        if clear_after is not False:
            self.clear_after = clear_after
        if retries.__class__ is not int or retries != 0:
            self.retries = retries
        if recovery_task is not None:
            self.recovery_task = recovery_task
        if depend is not None:
            self.depend = depend
        if name is not None:
            self.name = name
        if priority.__class__ is not int or priority != 0:
            self.priority = priority
        if time_limit is not None:
            self.time_limit = time_limit
        if targets is not None:
            self.targets = targets
        for attribute, value in asking.items():
            if attribute not in Asking.__annotations__:
                kind = type(self)
                raise unknown_argument(kind.__name__, kind._is_code, kind._attributes, attribute, value)
            setattr(self, attribute, value)

    def _first(self) -> str:
        """Return the first argument as text."""
        return ""

    def _short(self) -> str:
        return f"{type(self).__name__}({self._first():.60})"

    def __repr__(self) -> str:
        rest = []
        for name, value in self.__dict__.items():
            if (
                name in ("expression", "function")
                or name.startswith("_")
                or (value.__class__ in (tuple, dict) and not value)
            ):
                continue
            # Shortened, because a chain of recovery tasks may be long, or a loop by mistake.
            rest.append(f"{name}={value._short() if isinstance(value, Task) else shown(value, 60)}")
        return f"{type(self).__name__}({', '.join([self._first(), *rest])})"

    def _pack(self, blobs: BlobStore | None) -> Packed:
        """Pack the task; a running task that submits it calls this."""
        return pack_task(self, blobs)

    def _shares_engine(self) -> bool:
        """Return whether an engine may run the task beside others: it calls a coroutine function."""
        return False

    def _payload(self, data: TaskData, functions: dict[str, Function]) -> tuple[bytes, str | None]:
        """Return the encoded work and the digest of its function; add the function to `functions`."""
        raise TypeError(f"a StringTask, CallTask or MapTask is needed, not {type(self).__name__}")

    def _cached_call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]:
        """Return function, arguments and keyword arguments of the call whose result is kept, and the result's form."""
        raise TypeError(f"a {type(self).__name__} has no result that could be kept")

    def run_local(self) -> Any:
        """Run the task here, in the caller's own kernel, to debug it: exceptions have the frames of the code.

        Returns the pulled names (StringTask) or the return value (other kinds).  Rules, `clear_before` and
        `clear_after` do not apply: the namespace is not emptied.
        """
        raise NotImplementedError


class StringTask(Task):
    """Code for an engine: push, execute, pull.  Its result is a `TaskResult` with the pulled names.

    Arguments:
        expression: a str of IPython code (magics, ``!cmd`` and top-level await work).
        pull: a name, or a list or tuple of names, whose values are the results.
        push: a dict of names and values put into the engine's namespace first.
    The others: see `Task`.
    """

    expression: str
    pull: tuple[str, ...] | list[str] | str | None

    _is_code = True
    _cell: CellPlace | None = None
    _attributes = _RULES | {"expression", "pull", "push", "clear_before", "clear_after"}

    def __init__(
        self,
        expression: str,
        pull: str | list[str] | tuple[str, ...] | None = None,
        push: dict[str, Any] | None = None,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        *,
        name: str | None = None,
        priority: int = 0,
        time_limit: float | timedelta | None = None,
        targets: Any = None,
        **asking: Unpack[Asking],
    ) -> None:
        d = self.__dict__
        d["expression"] = expression if expression.__class__ is str else check_expression(expression)
        d["pull"] = (pull,) if pull.__class__ is str and "," not in pull else check_pull(pull)
        d["push"] = {} if push is None else check_push(push)
        if (
            clear_before is not False or clear_after is not False or retries is not _ZERO or recovery_task is not None
            or depend is not None or name is not None or priority is not _ZERO or time_limit is not None
            or targets is not None or asking
        ):  # fmt: skip
            self._set_rules(
                clear_before, clear_after, retries, recovery_task, depend, name, priority, time_limit, targets, asking
            )

    def stands_in(self, cell: CellPlace) -> Self:
        """Set the cell of a notebook in which the code stands; tracebacks name it.  Returns the task."""
        self.__dict__["_cell"] = cell
        return self

    def _first(self) -> str:
        return repr(self.expression)

    def _payload(self, data: TaskData, functions: dict[str, Function]) -> tuple[bytes, str | None]:
        push = self.push
        tell_of_code(self.expression, push)
        work = StringWork(
            self.expression,
            tuple(self.pull),  # type: ignore[arg-type]
            data.pack(push, "push") if push else None,
            self.clear_before,
            self.clear_after,
            self._cell,
        )
        try:
            return _encode(work), None
        except (UnicodeEncodeError, TypeError):
            # The names are checked only here, after an error: checking every task would cost too much.
            names = tuple(check_names("pull", work.pull))
            code = check_name("expression", work.code)
            return _encode(msgspec.structs.replace(work, code=code, pull=names)), None

    def run_local(self) -> dict[str, Any]:
        return run_code(
            self.expression, check_push(self.push), check_pull(self.pull), f"<task {self.name or id(self)}>"
        )


class CallTask(Task):
    """A function call, as ``Task(f, args=(…), kwargs={…})`` makes it.

    Its `TaskResult` has the return value in ``.result``.

    Arguments:
        function: any callable; it is pickled with its closure, its defaults and the globals that it uses.
        args, kwargs: the arguments of the call.

    For the others see `Task`.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] | list[Any] | None
    kwargs: dict[str, Any] | None

    _attributes = _RULES | {"function", "args", "kwargs", "clear_before", "clear_after"}
    _each: ClassVar[bool] = False
    _packed: PackedOnce | None = None
    """The packed function of a map, which is the same for many of its tasks."""

    def __init__(
        self,
        function: Callable[..., Any],
        *misplaced: Never,
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        name: str | None = None,
        priority: int = 0,
        time_limit: float | timedelta | None = None,
        targets: Any = None,
        **asking: Unpack[Asking],
    ) -> None:
        if misplaced:
            raise misplaced_arguments("Task", function, misplaced)
        d = self.__dict__
        d["function"] = check_function(function)
        d["args"] = check_args(args)
        d["kwargs"] = check_kwargs(kwargs)
        self._set_rules(
            clear_before, clear_after, retries, recovery_task, depend, name, priority, time_limit, targets, asking
        )

    def _first(self) -> str:
        return name_of(self.function)

    def _shares_engine(self) -> bool:
        # clearing the names of an engine would take them from the others
        return is_coroutine_function(self.function) and not (self.clear_before or self.clear_after)

    def _payload(self, data: TaskData, functions: dict[str, Function]) -> tuple[bytes, str | None]:
        function, values = data.pack_function(self.function, self._each, self._packed)
        functions[function.digest] = function
        arguments = None
        if self.args or self.kwargs:
            arguments = data.pack_arguments(self.args or (), self.kwargs or {})
        work = CallWork(arguments, self.clear_before, self.clear_after, self._raw, self._each, values=values)
        return _encode(work), function.digest

    def _cached_call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]:
        return self.function, tuple(self.args or ()), self.kwargs or {}, "bare" if self._raw else ""

    def run_local(self) -> Any:
        return self.function(*check_args(self.args), **check_kwargs(self.kwargs))


class MapTask(CallTask):
    """A function call for which ``get_task_result`` returns the bare value, and raises the error if it failed.

    It is a task of IPython 0.10.  New code uses ``tc.map``, or ``Task(f, args=…)`` and its `TaskResult`;
    ``get_task_result(id, raw=False)`` returns a TaskResult for this one too.
    """

    _raw = True

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        *,
        name: str | None = None,
        priority: int = 0,
        time_limit: float | timedelta | None = None,
        targets: Any = None,
        **asking: Unpack[Asking],
    ) -> None:
        super().__init__(
            function,
            args=args,
            kwargs=kwargs,
            clear_before=clear_before,
            clear_after=clear_after,
            retries=retries,
            recovery_task=recovery_task,
            depend=depend,
            name=name,
            priority=priority,
            time_limit=time_limit,
            targets=targets,
            **asking,
        )


class Join(Task):
    """A task without code and engine that ends when the tasks that it waits for have ended.

    With a Join between n tasks and m later tasks there are n + m dependencies instead of n × m::

        join = job.add_task(Join(after=first))
        for task in second: task.after = join

    With ``if_failed="run"`` a Join succeeds even if tasks before it have failed.
    """

    _attributes = _RULES
    _is_join = True

    def __init__(self, after: Any = (), *, name: str | None = None, if_failed: str = FAIL) -> None:
        self.after = after
        if name is not None:
            self.name = name
        self.if_failed = if_failed

    def _first(self) -> str:
        return f"after={len(self.after)} tasks"

    def _payload(self, data: TaskData, functions: dict[str, Function]) -> tuple[bytes, str | None]:
        return b"", None


# --------------------------------------------------------------------------------------------------
# Signatures, as ``Task?``, ``help`` and `inspect.signature` show them


def _parameters(kind: type[Task]) -> dict[str, Parameter]:
    """Return the parameters of a constructor by name, including each keyword that `**asking` collects."""
    found = dict(signature(kind.__init__).parameters)
    for name in ("self", "misplaced", "asking"):
        found.pop(name, None)
    return found if kind is Join else found | keyword_parameters(Asking)


def _show_signatures() -> None:
    code, call = _parameters(StringTask), _parameters(CallTask)
    shown_by: dict[type[Task], dict[str, Parameter]] = {
        StringTask: code, CallTask: call, MapTask: _parameters(MapTask), Join: _parameters(Join)
    }  # fmt: skip
    for kind, own in shown_by.items():
        kind.__signature__ = Signature(list(own.values()))
    work = code.pop("expression").replace(annotation="str | Callable[..., Any]")
    positional = [each for each in code.values() if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    named = [each for name, each in (call | code).items() if name != "function" and each not in positional]
    Task.__signature__ = Signature([work, *positional, *[each.replace(kind=Parameter.KEYWORD_ONLY) for each in named]])


_show_signatures()


def as_task(thing: Any) -> Task:
    """Return the task for a Task, a callable, or an object with ``execute()``.

    Raises TypeError for any other object, and for a class with ``execute()``.
    """
    if isinstance(thing, Task):
        return thing
    if is_executed(thing):
        note_rules_of(thing)
        return CallTask(execute_object, args=(thing,), name=type(thing).__name__)
    if callable(thing):
        return CallTask(thing)
    raise not_a_task(thing)
