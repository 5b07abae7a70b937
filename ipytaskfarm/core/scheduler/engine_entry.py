"""An engine as the scheduler knows it, and the runs that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..messages import PropertiesChanged
from ..messages.task_types import Incarnation, RunKey
from ..requirements import Environment, Recycle
from .queue import Heads, TaskClass
from .resources import Claim
from .running_tasks import NestedWait


@dataclass(slots=True)
class RecordedBatch:
    """Runs that were sent to an engine together.  The store's row of the batch is dropped when all are answered."""

    number: int
    runs: dict[RunKey, None]
    """The runs that have not been answered."""
    at_s: float
    """When the batch was sent (wall clock)."""


@dataclass(slots=True)
class AssignedRun:
    """One run that an engine holds and has not answered."""

    batch: RecordedBatch
    cost_s: float
    """The run's share of `EngineEntry.ahead_s`."""
    quick: bool
    """Whether the run's class is one of short tasks, behind which others may be sent."""
    task_class: TaskClass | None
    recalled_s: float | None = None
    """When (monotonic) the run was recalled."""
    claim: Claim | None = None
    nested_wait: NestedWait | None = None
    """Set while the run waits, inside itself, for other tasks."""


class EngineState:
    """The states of an engine, as `tables.EngineRow.state` shows them."""

    PREPARING = "preparing"
    UP = "up"
    AWAY = "unreachable"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False)
class EngineEntry:
    """One incarnation of an engine."""

    name: Incarnation
    id: int
    agent: str
    """The session of the engine's agent."""
    node: str
    pid: int = 0
    started_s: float = 0.0
    state: str = EngineState.PREPARING
    facts: dict[str, Any] = field(default_factory=dict)
    connection_file: str = ""
    note: str = ""
    assigned: dict[RunKey, AssignedRun] = field(default_factory=dict)
    """The runs that the engine holds, in the order in which it runs them."""
    ahead_s: float = 0.0
    """How long the engine will take for the runs that it holds, as far as their durations are known."""
    current: RunKey | None = None
    """The oldest run that the engine held when it was last looked at."""
    since_s: float = 0.0
    """Since when (monotonic) that has been its oldest run."""
    last_key: Any = None
    """The policy key of the task that was assigned last."""
    not_quick: int = 0
    """How many of the assigned runs are not quick: nothing is sent behind them."""
    heads: Heads = field(default_factory=Heads)
    """The restricted classes that the engine may serve."""
    properties: PropertiesChanged | None = None
    preparing: set[int] = field(default_factory=set)
    """Numbers of the start-up commands that have not been answered."""
    withheld_until_s: float = 0.0
    """The engine gets no tasks before this time (monotonic)."""
    retiring: bool = False
    """Whether the engine is ended as soon as it is empty."""
    recycled: str = ""
    """Why the engine is retiring, where its slot is filled again.  "": it is not retiring, or its slot goes too."""
    finished: int = 0
    """How many runs the engine has answered."""
    environment: Environment | None = None
    """None: the engine is blank."""
    set_up: bool = False
    """Whether the environment's setup has ended."""
    recycling: dict[tuple[str, Recycle], None] = field(default_factory=dict)
    """(scope, settings) of the tasks that the engine ran.  The scope is an environment's identity, or a job."""
    runs: dict[str, int] = field(default_factory=dict)
    """Scope -> how many of its runs have ended here."""
    ran_commands: bool = False
    """Whether MultiEngine commands ran here: such an engine is the last to be recycled for another environment."""
    last_batch: int = 0
    """The number of the batch that was sent to the engine last."""
    idle_s: float = 0.0
    """Since when (monotonic) the engine holds nothing.  0: it holds something."""

    @property
    def counts_as_wanted(self) -> bool:
        """Return whether the engine is one of those that the farm's owner wants."""
        return not self.retiring or bool(self.recycled)

    @property
    def version(self) -> int:
        """Return the version of the engine's properties.  0: none were set."""
        return self.properties.version if self.properties else 0

    def add_run(self, run: RunKey, assigned: AssignedRun) -> None:
        """Let the engine hold a run, behind those that it holds already."""
        self.assigned[run] = assigned
        assigned.batch.runs[run] = None
        self.ahead_s += assigned.cost_s
        self.not_quick += not assigned.quick

    def remove_run(self, run: RunKey) -> AssignedRun | None:
        """Let the engine hold a run no longer.  None: it did not hold the run."""
        assigned = self.assigned.pop(run, None)
        if assigned is not None:
            # What is left of the sum when nothing is left of the runs is an error of rounding.
            self.ahead_s = self.ahead_s - assigned.cost_s if self.assigned else 0.0
            self.not_quick -= not assigned.quick
            del assigned.batch.runs[run]
        return assigned

    def oldest(self) -> RunKey | None:
        """Return the run that the engine is running, as far as is known."""
        return next(iter(self.assigned), None)

    def runs_ahead(self) -> list[RunKey]:
        """Return the runs that the engine holds behind its oldest one."""
        return list(self.assigned)[1:]
