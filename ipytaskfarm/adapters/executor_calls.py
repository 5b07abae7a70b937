"""Calls that an `Executor` makes on engines, the environment of its calls, and the farm that it was given.

Engines import this module, so it imports nothing of the client until an executor is made.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ipytaskfarm.core import errors
from ipytaskfarm.core.text import did_you_mean
from ipytaskfarm.environment import TaskEnvironment

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.deployment.farm import Farm

T = TypeVar("T")

RETRIES = 2
"""Number of repetitions of a call after the loss of its engine; an exception of the call itself is final."""
_OWN = (
    "max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child", "thread_name_prefix", "prints",
    "gathers",
)  # fmt: skip
"""The arguments of an `Executor` that are no rules of a task."""


def call_all(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Call a function with each tuple of arguments, and return the list of its values."""
    return [function(*arguments) for arguments in chunk]


@dataclass(frozen=True)
class Initializing:
    """Calls an initializer; this is the `setup` of an executor's environment."""

    initializer: Callable[..., object]
    initargs: tuple[Any, ...]

    def __call__(self, environment: TaskEnvironment) -> None:
        """Call it."""
        self.initializer(*self.initargs)


def environment_of(
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks_per_child: int | None,
    given: TaskEnvironment | None,
) -> TaskEnvironment | None:
    """Return the environment of the calls; None: they need none."""
    if initializer is None and max_tasks_per_child is None:
        return given
    if given is not None:
        raise ValueError("give either environment, or initializer and max_tasks_per_child: an engine has one of them")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None and (not isinstance(max_tasks_per_child, int) or max_tasks_per_child < 1):
        kind = ValueError if isinstance(max_tasks_per_child, int) else TypeError
        raise kind(f"max_tasks_per_child must be {'>= 1' if kind is ValueError else 'an integer'}")
    made = TaskEnvironment.of(Initializing(initializer, initargs) if initializer is not None else _nothing)
    if max_tasks_per_child is not None:
        made.recycle.after_tasks = max_tasks_per_child
    return made


def _nothing(environment: TaskEnvironment) -> None:
    """Prepare nothing: the environment exists only for its recycle settings."""


def workers_or_client(argument: str, value: int | TaskClient | Farm | None) -> int | TaskClient | None:
    """Return the number of workers, or the client, that an executor or a pool was given.

    A number is anything that Python takes for one, such as a ``numpy.int64``.  Raises TypeError for anything else, and
    FarmNotRunning for a farm that was stopped.
    """
    if value is None:
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a client raises TypeError
    except TypeError:
        pass
    client = client_of(value)
    if client is None:
        kind = type(value).__name__
        raise TypeError(f"{argument} must be an integer, None, a TaskClient or a Farm, not a {kind}: {value!r:.80}")
    return client


def client_of(value: object) -> TaskClient | None:
    """Return the client that a user gave: itself, or one of the `Farm` that was given; None for anything else.

    Raises FarmNotRunning for a farm that was stopped.
    """
    from ipytaskfarm.client import TaskClient

    if isinstance(value, TaskClient):
        return value
    from ipytaskfarm.deployment.farm import Farm

    return value.task_client() if isinstance(value, Farm) else None


class Context(Protocol):
    """A context of ``multiprocessing`` or of a library like it, or the module itself."""

    def get_start_method(self) -> str: ...


def check_context(argument: str, value: Context | str | None, remedy: str = "") -> None:
    """Raise TypeError for what is neither a context, nor a text, nor None.

    Whatever the start method, engines keep its promise: the initializer runs, the main module's guard holds, and a
    function has the values that its globals have here, as after a fork.  What of the session does not come with it is
    told, or refused, where a function uses it.
    """
    if value is not None and not isinstance(value, str) and not callable(getattr(value, "get_start_method", None)):
        kind = type(value).__name__
        raise TypeError(f"{argument} must be a context of multiprocessing or None, not a {kind}: {value!r:.80}{remedy}")


def rules_of_calls(
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks_per_child: int | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Return the rules of an executor's calls.

    given: those that the program gives.  Raises TypeError and ValueError for wrong ones.
    """
    check_context("context", given.pop("context", None))  # loky's name
    environment = environment_of(initializer, initargs, max_tasks_per_child, given.pop("environment", None))
    check_rules(given, "an Executor", _OWN)
    rules = {"retries": RETRIES, "retry_on": errors.EngineLost, "environment": environment, **given}
    check_rules(rules)
    return rules


def check_rules(rules: dict[str, Any], whose: str = "this call", others: Iterable[str] = ()) -> None:
    """Raise what the first call would raise for wrong rules, before a farm is started.

    Args:
        rules: the rules, by name.
        whose: what was called, for the error about an unknown name.
        others: its own arguments, of which one may be meant.
    """
    from ipytaskfarm.client.old_names import ARGUMENTS
    from ipytaskfarm.client.tasks import CallTask

    known = CallTask._attributes
    for name, value in rules.items():
        if name not in known:
            instead = f"; instead: {ARGUMENTS[name]}" if name in ARGUMENTS else ""
            near = did_you_mean(name, others) or instead or did_you_mean(name, known)
            if "client" not in others and (hasattr(value, "task_client") or hasattr(value, "get_task_result")):
                near = "; a TaskClient is the first argument, in place of the number of workers"
            raise TypeError(f"{whose} has no argument {name!r}{near}")
    CallTask(call_all, **rules)
