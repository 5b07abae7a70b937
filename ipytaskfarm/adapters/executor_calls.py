"""Calls that an `Executor` makes on engines, and the environment of its calls.

Engines import this module, so it imports nothing of the client.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ipytaskfarm.environment import TaskEnvironment

T = TypeVar("T")


def call_all(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Call a function with each tuple of arguments, and return the list of its values."""
    return [function(*arguments) for arguments in chunk]


def initialize(initializer: Callable[..., object], initargs: tuple[Any, ...], environment: TaskEnvironment) -> None:
    """Call an initializer; this is the `setup` of an executor's environment."""
    initializer(*initargs)


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
    made = TaskEnvironment.of(partial(initialize, initializer, initargs) if initializer is not None else _nothing)
    if max_tasks_per_child is not None:
        made.recycle.after_tasks = max_tasks_per_child
    return made


def _nothing(environment: TaskEnvironment) -> None:
    """Prepare nothing: the environment exists only for its recycle settings."""
