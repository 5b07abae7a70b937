"""What a user hands in: `StringTask`, `CallTask`, `MapTask`, and `Task`, which makes the fitting one.

A task object is a description.  Running it never changes it, and it may be run as often as one
likes.  Its attributes are checked wherever they are set, in the constructor and later, by one table
(`_CHECKS`), so that a mistake is found where it is made.

`pack_task` turns a description into what travels.  It runs once per `run` call, so a plain
StringTask takes a path of its own through it that builds one payload and nothing else.
"""

from __future__ import annotations

import builtins
import linecache
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Unpack

import msgspec

from ..core.arguments import wrong
from ..core.messages.dependencies import FAIL
from ..core.messages.task_types import Packed
from ..core.text import exactly, shown
from ..environment import TaskEnvironment
from ..storage.blobs import Blobs
from .rules import CHECKS, DEFAULTS, Asking, flag

_encode = msgspec.msgpack.Encoder().encode


# --------------------------------------------------------------------------------------------------
# Checks: (class name, attribute, value) -> the value as it is kept


def _expression(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong("expression", "a str of code", value)
    return exactly(value)


def _function(value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise wrong("function", "a callable", value)
    return value  # type: ignore[no-any-return]


def _pull(value: Any) -> tuple[str, ...] | list[str]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (exactly(value),)
    if not isinstance(value, (list, tuple)):
        raise wrong("pull", "a name, or a list or tuple of names", value)
    for name in value:
        if not isinstance(name, str):
            raise wrong("pull", "a name, or a list or tuple of names", name)
    return value if all(type(name) is str for name in value) else tuple(map(exactly, value))


def _push(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return _names("push", value)


def _kwargs(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return _names("kwargs", value)


def _names(attribute: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(attribute, "a dict of names and values", value)
    for name in value:
        if not isinstance(name, str):
            raise wrong(attribute, "a dict whose keys are names", name)
    return value if isinstance(value, dict) else dict(value)


def _args(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise wrong("args", "a list or tuple of arguments", value)
    return tuple(value)


def _recovery_task(value: Any) -> Task | None:
    if value is not None and not isinstance(value, Task):
        raise wrong("recovery_task", "a Task or None", value)
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
    "expression": _expression,
    "pull": _pull,
    "push": _push,
    "function": _function,
    "args": _args,
    "kwargs": _kwargs,
    "clear_before": partial(flag, "clear_before"),
    "clear_after": partial(flag, "clear_after"),
    "recovery_task": _recovery_task,
    "after": _after,
    **CHECKS,
}

_RULES = frozenset(DEFAULTS)
_EDGES = frozenset({"after", "if_failed", "on_duplicate"})
"""Of these, what a task waits for, and what is said to whoever runs it: no rules that travel."""


# --------------------------------------------------------------------------------------------------
# The classes


class Task:
    """One unit of work: ``Task("a = 1", pull="a")`` or ``Task(f, args=(1,), kwargs={})``.

    A str makes a `StringTask`, a callable a `CallTask`; ``isinstance(x, Task)`` holds for every kind.
    Every argument is an attribute that can be assigned later, and is checked then too.

    Arguments of every kind:
        clear_before, clear_after: empty the engine's namespace before or after the run.
        retries: how often it is run again after a failure.
        recovery_task: the task that runs under the same id when the retries are used up.
        depend: a function of an engine's properties (a dict); it runs only where that is true.
        name: for people, and for ``tc.tasks(name=…)``.
        priority: higher runs first.
        time_limit: seconds (or a timedelta) that one run may take; waiting does not count.
        targets: engine ids on which it may run (an int or several); None: any.
        environment, requires, resources, exclusive, group, max_parallel, max_parallel_per_node, force, fail_if_unmet,
        placement, locality, grace, lost_retries: what it asks of its engine and its node, see `rules.Asking`.
        after, if_failed: what it waits for; retry_delay, retry_on, defer_time, defer_max, warn_after, unique,
        on_duplicate: how it is repeated, watched, and kept from standing there twice; see there too.

    Raises TypeError (or ValueError) that names the attribute.  The first four, `depend`, `pull` and
    `push` are those of IPython 0.10's task interface.
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
    unique: str | None = None
    on_duplicate: str = "refuse"

    _ruled: bool = False
    """Some rule was set: only then is there anything to look at when it is packed."""
    _attributes: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, *args: Any, **kwargs: Any) -> Task:
        if cls is Task:
            what = args[0] if args else kwargs.get("expression", kwargs.get("function"))
            if isinstance(what, str) or "expression" in kwargs:
                return object.__new__(StringTask)
            if callable(what):
                return object.__new__(CallTask)
            raise wrong("Task's first argument (expression)", "a str of code or a callable", what)
        return object.__new__(cls)

    def __init__(self, expression: Any, *args: Any, **kwargs: Any) -> None:
        # Never run: __new__ makes one of the kinds below. It gives editors the right arity.
        raise NotImplementedError

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute in self._attributes:
            value = _CHECKS[attribute](value)
            if attribute in _RULES and attribute not in _EDGES:
                self.__dict__["_ruled"] = True
        elif type(self).__module__ == __name__:
            # A class of the user's own may keep what it likes on its tasks; on ours it is a slip of the pen.
            raise AttributeError(
                f"a {type(self).__name__} has no attribute {attribute!r}; it has {', '.join(sorted(self._attributes))}"
            )
        self.__dict__[attribute] = value

    def _set(self, **given: Any) -> None:
        for attribute, value in given.items():
            if value is not None and value is not False:
                setattr(self, attribute, value)

    def _ask(self, asking: Asking) -> None:
        for attribute, value in asking.items():
            if attribute not in Asking.__annotations__:
                raise TypeError(f"a {type(self).__name__} has no argument {attribute!r}")
            setattr(self, attribute, value)

    def _first(self) -> str:
        """The first argument, as text."""
        return ""

    def _short(self) -> str:
        return f"{type(self).__name__}({self._first():.60})"

    def __repr__(self) -> str:
        rest = []
        for name, value in self.__dict__.items():
            if name in ("expression", "function", "_ruled") or (value.__class__ in (tuple, dict) and not value):
                continue
            # Short: chains of recovery tasks may be long, and may form a loop by mistake.
            rest.append(f"{name}={value._short() if isinstance(value, Task) else shown(value, 60)}")
        return f"{type(self).__name__}({', '.join([self._first(), *rest])})"

    def _pack(self, blobs: Blobs | None) -> Packed:
        """As it travels from within a running task."""
        from .packing import pack_task  # it knows all kinds of tasks, and stands above them

        return pack_task(self, blobs)

    def run_local(self) -> Any:
        """Run it here, in the caller's own kernel, to debug it: what it raises is raised with the code's own frames.

        Returns what ``get_task_result(id)`` gives in `results` (StringTask) or the return value (the others).
        Rules, `clear_before` and `clear_after` do not apply: your namespace is not emptied.
        """
        raise NotImplementedError


class StringTask(Task):
    """Code for an engine: push, execute, pull.  Its result is a `TaskResult` with the pulled names.

    Arguments:
        expression: a str of IPython code (magics, ``!cmd`` and top-level await work).
        pull: a name, or a list or tuple of names, to be brought back as the results.
        push: a dict of names and values put into the engine's namespace first.
    The others: see `Task`.
    """

    expression: str
    pull: tuple[str, ...] | list[str] | str | None
    push: dict[str, Any] | None

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
        # Written out, not looped over: a thousand of these are made in a line, and most arguments are defaults.
        d = self.__dict__
        d["expression"] = expression if expression.__class__ is str else _expression(expression)
        d["pull"] = (pull,) if pull.__class__ is str else _pull(pull)
        d["push"] = {} if push is None else _push(push)
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
        if asking:
            self._ask(asking)

    def _first(self) -> str:
        return repr(self.expression)

    def run_local(self) -> dict[str, Any]:
        # Jupyter puts get_ipython among the builtins while it runs a cell; without it there is only __main__.
        find_shell = getattr(builtins, "get_ipython", None)
        shell = find_shell() if find_shell is not None else None
        code = self.expression
        if shell is not None:
            namespace: dict[str, Any] = shell.user_ns
            code = shell.transform_cell(code)
        else:
            import __main__

            namespace = __main__.__dict__
        namespace.update(_push(self.push))
        filename = f"<task {self.name or id(self)}>"
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        exec(compile(code, filename, "exec"), namespace)
        missing = [name for name in _pull(self.pull) if name not in namespace]
        if missing:
            raise NameError(f"name {missing[0]!r} is not defined")
        return {name: namespace[name] for name in _pull(self.pull)}


class CallTask(Task):
    """A function call: what ``Task(f, args=(…), kwargs={…})`` makes.  Its `TaskResult` has the value in ``.result``.

    Arguments:
        function: any callable; it travels with its closure, defaults and the globals it uses.
        args, kwargs: what it is called with.
    The others: see `Task`.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] | list[Any] | None
    kwargs: dict[str, Any] | None

    _attributes = _RULES | {"function", "args", "kwargs", "clear_before", "clear_after"}
    _raw: ClassVar[bool] = False
    _each: ClassVar[bool] = False

    def __init__(
        self,
        function: Callable[..., Any],
        *,
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
        d = self.__dict__
        d["function"] = _function(function)
        d["args"] = _args(args)
        d["kwargs"] = _kwargs(kwargs)
        if clear_before is not False:
            self.clear_before = clear_before
        if clear_after is not False:
            self.clear_after = clear_after
        if retries.__class__ is not int or retries != 0:
            self.retries = retries
        if priority.__class__ is not int or priority != 0:
            self.priority = priority
        self._set(recovery_task=recovery_task, depend=depend, name=name, time_limit=time_limit, targets=targets)
        if asking:
            self._ask(asking)

    def _first(self) -> str:
        return getattr(self.function, "__qualname__", None) or shown(self.function)

    def run_local(self) -> Any:
        return self.function(*_args(self.args), **_kwargs(self.kwargs))


class MapTask(CallTask):
    """A function call whose ``get_task_result`` gives the bare return value, and raises when it failed.

    As in IPython 0.10.  New code uses ``tc.map``, or ``Task(f, args=…)`` and its `TaskResult`;
    ``get_task_result(id, raw=False)`` gives a TaskResult of this one too.
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
        **ours: Any,
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
            **ours,
        )


class Join(Task):
    """Ends when the tasks that it waits for have ended: no code, no engine.

    n tasks before it and m after it are n + m edges, where each after each would be n × m::

        join = job.add_task(Join(after=first))
        for task in second: task.after = join

    With ``if_failed="run"`` it ends well whatever became of them.
    """

    _attributes = _RULES

    def __init__(self, after: Any = (), *, name: str | None = None, if_failed: str = FAIL) -> None:
        self.after = after
        self._set(name=name)
        self.if_failed = if_failed

    def _first(self) -> str:
        return f"after={len(self.after)} tasks"


class EachTask(MapTask):
    """A chunk of a map: ``args=(items, star)``, see `core.messages.payload.CallWork.each`.  Made by `maps` alone."""

    _each = True


def execute_object(thing: Any) -> Any:
    """What runs on the engine for an object with ``execute()``: the result is what that returns, or ``.result``."""
    value = thing.execute()
    return getattr(thing, "result", None) if value is None else value


def as_task(thing: Any) -> Task:
    """The task that `run` makes of what it is given: a Task, a callable, or an object with ``execute()``."""
    if isinstance(thing, Task):
        return thing
    if not isinstance(thing, type) and callable(getattr(thing, "execute", None)):
        return CallTask(execute_object, args=(thing,), name=type(thing).__name__)
    if callable(thing):
        return CallTask(thing)
    hint = "; code goes into Task('…')" if isinstance(thing, str) else ""
    raise TypeError(f"a Task, a callable or an object with execute() is needed, not {type(thing).__name__}{hint}")
