"""What a simulated run does, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..client.tasks import Task
from ..core.arguments import check_seconds


@dataclass(frozen=True)
class Succeed:
    """The run ends well.

    Args:
        value: the function's return value; of a StringTask the dict of the names that it pulls.
        seconds: how long the run takes.
    """

    value: Any = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


@dataclass(frozen=True)
class Fail:
    """The run raises an error.  A `TaskRejectError` rejects the engine, as in a real farm.

    Args:
        error: the exception.
        seconds: after how long it is raised.
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
        seconds: after how long it dies.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


@dataclass(frozen=True)
class Hang:
    """The run never ends by itself.

    A time limit, an abort, the loss of its engine or `SimulatedFarm.finish` ends it.
    """


@dataclass(frozen=True)
class Call:
    """The task's function or code is run in this process when the run ends.  What it returns or raises is its end.

    The code of a StringTask must be plain Python, without magics; names live as long as their simulated engine.

    Args:
        seconds: how long the run takes on the farm's clock, whatever it takes here.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_seconds("seconds", self.seconds)


Outcome: TypeAlias = Succeed | Fail | LoseEngine | Hang | Call
"""What a run does."""

OutcomeOf: TypeAlias = Callable[[Task, int], Outcome]
"""A function of the task and the number of the attempt (1, 2 …) that returns what the run does."""


def check_outcome(outcome: object) -> Outcome:
    """Return the outcome.  Raises TypeError for anything else."""
    if not isinstance(outcome, Outcome):
        raise TypeError(f"what a run does must be one of Succeed, Fail, LoseEngine, Hang and Call, not {outcome!r:.80}")
    return outcome
