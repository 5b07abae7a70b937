"""The outcome of a simulated run, and its duration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..client.tasks import Task
from ..core.arguments import check_seconds


@dataclass(frozen=True)
class Succeed:
    """The run succeeds.

    Args:
        value: the function's return value; for a StringTask the dict of the names that it pulls.
        seconds: how long the run takes.
    """

    value: Any = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


@dataclass(frozen=True)
class Fail:
    """The run raises an error. A `TaskRejectError` rejects the engine, as in a real farm.

    Args:
        error: the exception.
        seconds: the time after which it is raised.
    """

    error: BaseException
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)
        if not isinstance(self.error, BaseException):
            raise TypeError(f"error must be an exception, like ValueError('no'), not {self.error!r}")


@dataclass(frozen=True)
class LoseEngine:
    """The engine's process dies during the run.

    Args:
        seconds: the time after which it dies.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


@dataclass(frozen=True)
class Hang:
    """The run does not end without help: a time limit, an abort, the loss of its engine or `SimulatedFarm.finish` ends
    it.
    """


@dataclass(frozen=True)
class Call:
    """The task's function or code is run in this process when the run ends, and decides the end by its result or error.

    The code of a StringTask must be plain Python, without magics. Names live as long as their simulated engine.

    Args:
        seconds: how long the run takes on the farm's clock, whatever the real time.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


Outcome: TypeAlias = Succeed | Fail | LoseEngine | Hang | Call
"""The outcome of a run."""

OutcomeOf: TypeAlias = Callable[[Task, int], Outcome]
"""A function of the task and the number of the attempt (1, 2 …) that returns the outcome of the run."""


def check_outcome(outcome: object) -> Outcome:
    """Return the outcome.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(outcome, Outcome):
        raise TypeError(f"what a run does must be one of Succeed, Fail, LoseEngine, Hang and Call, not {outcome!r:.80}")
    return outcome
