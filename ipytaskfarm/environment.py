"""Classes that users subclass to prepare an engine once for many tasks, and settings for recycling engines.

    class Database(TaskEnvironment):
        def __init__(self, path):
            self.path = path

        def setup(self):                       # once per engine, before its first task
            self.connection = connect(self.path)

        def teardown(self):                    # before the engine ends
            self.connection.close()

    tc.run(Task("rows = env.connection.count()", pull="rows", environment=Database("a.db")))

They follow STK Parallel Computing's TaskEnvironment and HostRecycleSettings.
"""

from __future__ import annotations

import copy
import datetime
import re
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from .core.arguments import check_bytes, check_count, check_seconds
from .core.requirements import Recycle
from .core.signatures import signature_of
from .core.text import exactly, shown

__all__ = ["RecycleSettings", "TaskEnvironment"]

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?\Z")


class RecycleSettings:
    """The conditions under which an engine is replaced with a fresh one after a task. Each may be assigned later.

    Args:
        after_tasks: after this number of tasks.
        idle_timeout: after this time without work (seconds or timedelta).
        interval: after this time since its start (seconds or timedelta).
        at_times: at these times of day, ``["09:00", "15:00"]``, in the local time of the engine's node.
        max_memory: when its private memory has reached this size, ``"300 MiB"`` or bytes.
        on_job_end: when a job that uses the environment has ended.
        when_unreferenced: when no unfinished task and no unfinished job uses the environment any more.
        on_failure: when a task has failed.
        keep_session: whenever it is recycled, the fresh engine begins with its names.  What cannot be saved is named by
            `explain` and `status`.

    None of them ends an engine during a task.

    Raises:
        TypeError, ValueError: a setting is not valid. The message names it.
    """

    after_tasks: int | None
    idle_timeout: float | datetime.timedelta | None
    interval: float | datetime.timedelta | None
    at_times: list[str] | None
    max_memory: int | str | None
    on_job_end: bool
    when_unreferenced: bool
    on_failure: bool
    keep_session: bool

    def __init__(
        self,
        after_tasks: int | None = None,
        idle_timeout: float | datetime.timedelta | None = None,
        interval: float | datetime.timedelta | None = None,
        at_times: list[str] | None = None,
        max_memory: int | str | None = None,
        on_job_end: bool = False,
        when_unreferenced: bool = False,
        on_failure: bool = False,
        keep_session: bool = False,
    ) -> None:
        self.after_tasks = after_tasks
        self.idle_timeout = idle_timeout
        self.interval = interval
        self.at_times = at_times
        self.max_memory = max_memory
        self.on_job_end = on_job_end
        self.when_unreferenced = when_unreferenced
        self.on_failure = on_failure
        self.keep_session = keep_session

    def __setattr__(self, name: str, value: Any) -> None:
        check = _CHECKS.get(name)
        if check is None:
            instead = f"instead: {_OF_STK[name]}" if name in _OF_STK else f"it has {', '.join(_CHECKS)}"
            raise AttributeError(f"RecycleSettings has no {name!r}; {instead}")
        check(name, value)
        self.__dict__[name] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecycleSettings) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.__dict__.items() if value not in (None, False)]
        return f"RecycleSettings({', '.join(given)})"

    def as_message(self) -> Recycle | None:
        """Return the settings as a message; None if nothing is set."""
        at_times = tuple(sorted(_seconds_of_day("at_times", text) for text in self.at_times or ()))
        made = Recycle(
            after_tasks=check_count("after_tasks", self.after_tasks, least=1),
            idle_s=check_seconds("idle_timeout", self.idle_timeout),
            interval_s=check_seconds("interval", self.interval),
            at_times_s=at_times,
            memory_bytes=check_bytes("max_memory", self.max_memory),
            on_job_end=bool(self.on_job_end),
            when_unreferenced=bool(self.when_unreferenced),
            on_failure=bool(self.on_failure),
            keep_session=bool(self.keep_session),
        )
        return None if made == Recycle() else made


def _times(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list of times of day like ['09:00', '15:00'], not {shown(value)}")
    for text in value:
        _seconds_of_day(name, text)


def _seconds_of_day(name: str, text: Any) -> int:
    if isinstance(text, datetime.time):
        return text.hour * 3600 + text.minute * 60 + text.second
    found = _TIME.match(exactly(text)) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{name} must hold times of day like '09:00' or '15:30:10', not {shown(text)}")
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}: {shown(value)}")


_OF_STK = {
    "fixed_number_of_tasks": "after_tasks", "regular_interval": "interval", "specific_times": "at_times",
    "private_memory_usage_maximum": "max_memory", "job_completion": "on_job_end",
    "task_environment_no_longer_referenced": "when_unreferenced",
}  # fmt: skip
_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "after_tasks": partial(check_count, least=1),
    "idle_timeout": partial(check_seconds, zero=False),
    "interval": partial(check_seconds, zero=False),
    "at_times": _times,
    "max_memory": check_bytes,
    "on_job_end": _flag,
    "when_unreferenced": _flag,
    "on_failure": _flag,
    "keep_session": _flag,
}


_of_classes: weakref.WeakKeyDictionary[type[TaskEnvironment], RecycleSettings] = weakref.WeakKeyDictionary()
"""Class -> the settings that its body assigns."""


def _checked_settings(settings: object) -> RecycleSettings:
    if not isinstance(settings, RecycleSettings):
        raise TypeError(f"recycle must be RecycleSettings, not {type(settings).__name__}")
    return settings


class TaskEnvironment:
    """User code that prepares an engine once for many tasks. Override `setup` and `teardown`.

    The instance, with the attributes that `setup` has set, has the name ``env`` in the tasks' namespace.

    Environments with the same identity share engines. Without a `unique_id`, the identity is a digest of the class's
    code and of the attributes: if the same cell runs again, or runs in another kernel, it is the same environment;
    edited code is another one. With a `unique_id` (a str or UUID), the identity consists of `unique_id`,
    `additional_id` and the class's code. Other attributes are then ignored, and the first instance's are used.

    Attributes, of the class or of the instance:
        unique_id, additional_id: see above.
        cwd: the folder in which its tasks begin.
        preload: modules to import before `setup`.
        teardown_timeout: seconds until an engine with an unfinished `teardown` is killed (default 5).
        recycle: `RecycleSettings`; not part of the identity.

    A TaskEnvironment that is no subclass and has no `unique_id` is *empty*: its tasks run on any engine. The class
    follows STK Parallel Computing.
    """

    unique_id: Any = None
    additional_id: Any = None
    cwd: str | None = None
    preload: tuple[str, ...] | list[str] = ()
    teardown_timeout: float = 5.0

    _not_sent: ClassVar[frozenset[str]] = frozenset({"_recycle"})

    def setup(self) -> None:
        """Prepare the engine. Called once on each engine that gets the environment, before its first task."""

    def teardown(self) -> None:
        """Clean up. Called before such an engine ends, unless it is killed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("recycle", "recycle_settings"):
            if name in cls.__dict__ and not isinstance(cls.__dict__[name], property):
                # The settings are removed from the class, because its identity is a digest of its contents.
                _of_classes[cls] = _checked_settings(cls.__dict__[name])
                delattr(cls, name)

    @property
    def recycle(self) -> RecycleSettings:
        """Return the settings for recycling its engines; their attributes may be assigned."""
        found: RecycleSettings | None = self.__dict__.get("_recycle")
        if found is None:
            of_class = next((_of_classes[each] for each in type(self).__mro__ if each in _of_classes), None)
            found = RecycleSettings() if of_class is None else copy.copy(of_class)
            self.__dict__["_recycle"] = found
        return found

    @recycle.setter
    def recycle(self, settings: RecycleSettings) -> None:
        self.__dict__["_recycle"] = _checked_settings(settings)

    recycle_settings = recycle

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._not_sent}

    @property
    def is_empty(self) -> bool:
        """Return whether it prepares nothing, so that its tasks run on any engine."""
        return type(self) is TaskEnvironment and self.unique_id is None

    @property
    def name(self) -> str:
        """Return the name for people."""
        if self.unique_id is None:
            return type(self).__name__
        more = "" if self.additional_id is None else f"/{self.additional_id}"
        return f"{self.unique_id}{more}"

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r:.40}" for name, value in self.__getstate__().items())
        return f"{type(self).__name__}({given})"

    @staticmethod
    def of(setup: Callable[..., object]) -> FunctionEnvironment:
        """Return an environment made of one function; `on_teardown` adds a second one. It is used as a decorator.

        The functions take the environment, or nothing.

        @TaskEnvironment.of
        def database(env):
            env.connection = connect()

        @database.on_teardown
        def database(env):
            env.connection.close()
        """
        return FunctionEnvironment(setup)


class FunctionEnvironment(TaskEnvironment):
    """An environment that `TaskEnvironment.of` makes of functions, which may take the environment as their argument."""

    def __init__(self, setup: Callable[..., object]) -> None:
        if not callable(setup):
            raise TypeError(f"TaskEnvironment.of decorates a function of the environment, not {setup!r:.80}")
        self._setup = setup
        self._teardown: Callable[..., object] | None = None

    def on_teardown(self, teardown: Callable[..., object]) -> FunctionEnvironment:
        """Set the function that `teardown` calls. It is used as a decorator."""
        self._teardown = teardown
        return self

    def setup(self) -> None:
        """Call the function for `setup`."""
        _call(self._setup, self)

    def teardown(self) -> None:
        """Call the function for `teardown`, if there is one."""
        if self._teardown is not None:
            _call(self._teardown, self)

    @property
    def name(self) -> str:
        """Return the name of the function for `setup`, or the `unique_id`."""
        return super().name if self.unique_id is not None else getattr(self._setup, "__name__", "environment")


def _call(function: Callable[..., object], environment: FunctionEnvironment) -> None:
    try:
        takes_it = bool(signature_of(function).parameters)
    except (TypeError, ValueError):  # a function of C may have none
        takes_it = True
    function(environment) if takes_it else function()
