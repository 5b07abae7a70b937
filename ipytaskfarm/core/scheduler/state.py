"""The scheduler's state: every task, engine, agent and client that it decides about.

The state is plain data, one part for each subject.  A part is a small dataclass, with the functions that need nothing
else; most of them are in files of their own.  Handlers change the state; `core.scheduler.transitions` alone moves
tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..messages.task_types import Incarnation
from ..states import State
from .acceptance import AcceptanceOrder
from .agent_entry import AgentRegistry
from .cache_uses import CacheUses
from .chunks import ChunkRegistry
from .clients import ClientRegistry
from .decision import Timers
from .dependencies import DependencyGraph
from .entries import EngineEntry, EngineState, TaskEntry
from .environment_uses import EnvironmentRegistry
from .failed_answers import FailedAnswers
from .followers import Followers
from .frozen_engines import FrozenRegistry
from .functions import FunctionRegistry
from .jobs import JobRegistry
from .large_rules import LargeRules
from .queue import Queues, StartLimits
from .readiness import Readiness
from .requests import EngineRequests
from .running_tasks import Conversations, NestedWaits
from .second_copies import SecondCopies
from .settings import SchedulerSettings
from .sweep import Sweep
from .task import Assigned

LOSSES_KEPT = 20
"""The number of lost engines that ``ipytaskfarm status`` names."""


@dataclass(slots=True)
class TaskRegistry:
    """The tasks that were not cleared."""

    unfinished: dict[int, TaskEntry] = field(default_factory=dict)
    finals: dict[int, str] = field(default_factory=dict)
    """Ended task -> the reason of its failure.  "": it succeeded."""
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Refused task -> (error, text)."""
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    """How many unfinished and ended tasks are in each state."""
    unique: dict[str, int] = field(default_factory=dict)
    """Unique key -> the unfinished task that has it."""
    kept: set[int] = field(default_factory=set)
    """Ended tasks that are cleared only when a client names their ids."""
    order: AcceptanceOrder = field(default_factory=AcceptanceOrder)
    """The order in which they were accepted."""
    chunks: ChunkRegistry = field(default_factory=ChunkRegistry)
    """The chunks among them, and what has become of their items."""
    of_parts: dict[int, int] = field(default_factory=dict)
    """Ended task that runs an item of a chunk -> the chunk."""
    large: LargeRules = field(default_factory=LargeRules)
    """The memory that large rules and edges of unfinished tasks take."""

    def holder(self, task_id: int) -> int:
        """Return the id under which a task is kept: its own, or that of the chunk of which it is a silent item."""
        if task_id in self.unfinished or task_id in self.finals:
            return task_id
        chunk = self.chunks.of(task_id)
        return task_id if chunk is None else chunk

    def is_known(self, task_id: int) -> bool:
        """Return whether there is a task of this id: unfinished, ended or refused."""
        return (
            task_id in self.unfinished
            or task_id in self.finals
            or task_id in self.refusals
            or self.chunks.of(task_id) is not None
        )

    def state_of(self, task_id: int) -> State | None:
        """Return the state of a task as people see it.  None: there is none of this id.

        Of a chunk that runs, the first silent item counts as running, and the others as scheduled."""
        if task_id in self.refusals:
            return State.FAILED
        holder = self.holder(task_id)
        if holder == task_id and task_id in self.chunks.items:
            return None
        task = self.unfinished.get(holder)
        if task is not None:
            state = task.state
            waits = state is State.PENDING and holder != task_id and task_id != self.chunks.first(holder)
            return State.SCHEDULED if waits else state
        if holder in self.finals:
            return State.FAILED if self.finals[holder] else State.SUCCEEDED
        return None

    def all_ids(self) -> Iterator[int]:
        """Yield the ids of all unfinished and ended tasks, as people see them."""
        for held in (self.unfinished, self.finals):
            for task_id in held:
                if task_id in self.chunks.items:
                    yield from self.chunks.ids(task_id)
                else:
                    yield task_id

    def in_run(self, task_id: int, attempt: int) -> TaskEntry | None:
        """Return the task of a run; None: the run is over."""
        task = self.unfinished.get(task_id)
        place = task.place if task is not None else None
        return task if type(place) is Assigned and place.attempt == attempt else None

    def has_ended(self, task_id: int) -> bool:
        """Return whether a task has succeeded, failed, or was refused."""
        return self.holder(task_id) in self.finals or task_id in self.refusals

    def has_failed(self, task_id: int) -> bool:
        """Return whether a task has failed, or was refused."""
        return bool(self.finals.get(self.holder(task_id))) or task_id in self.refusals


@dataclass(slots=True)
class EngineRegistry:
    """The engines."""

    by_name: dict[Incarnation, EngineEntry] = field(default_factory=dict)
    """Changed by `SchedulerState.add_engine` and `remove_engine` alone."""
    by_id: dict[int, dict[EngineEntry, None]] = field(default_factory=dict)
    """The engines by the ids that people see. For a while, two engines may have the same id."""

    def visible(self) -> list[EngineEntry]:
        """Return the engines that commands may go to, by id."""
        present = (e for e in self.by_name.values() if e.state == EngineState.UP and not e.kept)
        return sorted(present, key=lambda e: e.id)

    def in_order(self) -> list[EngineEntry]:
        """Return all engines, by id."""
        return sorted(self.by_name.values(), key=lambda e: e.id)


@dataclass(slots=True)
class Lifecycle:
    """How many engines are wanted, and how far the farm's end has come."""

    wanted: int = 0
    """How many engines the farm's owner wants."""
    held: bool = False
    """Whether no task is started, by the will of the farm's owner."""
    full: str | None = None
    """Why no task is accepted now.  None: tasks are accepted."""
    stopping: bool = False
    shut: bool = False
    """Whether the agents have been told to end."""
    shut_by_s: float | None = None
    """When (monotonic) the controller ends even if agents are still there."""
    balance_due: bool = False
    """Whether the number of engines is compared with the number wanted within this turn."""


@dataclass(slots=True)
class Diagnostics:
    """Information for people who look for a fault."""

    losses: deque[str] = field(default_factory=lambda: deque(maxlen=LOSSES_KEPT))
    """The last lost engines and agents, one line each."""
    dropped: int = 0
    """How many messages of agents, or parts of them, were dropped because their sender may not send them."""


@dataclass(slots=True)
class SchedulerState:
    """All that the scheduler decides from."""

    name: str
    incarnation: str
    settings: SchedulerSettings = field(default_factory=SchedulerSettings)
    epoch: int = 1
    mono_s: float = 0.0
    """When (monotonic) this turn began."""
    numbers: int = 0
    """The last number that `number` has given."""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    """How many engines are wanted, and the farm's end."""
    timers: Timers = field(default_factory=Timers)
    """Actions at given times."""
    tasks: TaskRegistry = field(default_factory=TaskRegistry)
    """Unfinished, ended and refused tasks."""
    graph: DependencyGraph = field(default_factory=DependencyGraph)
    """Which tasks wait for which others."""
    queues: Queues = field(default_factory=Queues)
    """The classes of waiting tasks."""
    jobs: JobRegistry = field(default_factory=JobRegistry)
    """Jobs, and those to be looked at in this turn."""
    sweep: Sweep = field(default_factory=Sweep)
    """The pass over the waiting tasks that follows when jobs were paused or resumed."""
    clients: ClientRegistry = field(default_factory=ClientRegistry)
    """Clients, their ids, and the messages for them at the end of the turn."""
    agents: AgentRegistry = field(default_factory=AgentRegistry)
    """Agents, and their nodes."""
    engines: EngineRegistry = field(default_factory=EngineRegistry)
    """Engines by name and id."""
    frozen: FrozenRegistry = field(default_factory=FrozenRegistry)
    """Engines that are kept for a debugger."""
    readiness: Readiness = field(default_factory=Readiness)
    """Which engines can take work."""
    environments: EnvironmentRegistry = field(default_factory=EnvironmentRegistry)
    """Which engines have which environment, and which tasks and jobs need it."""
    functions: FunctionRegistry = field(default_factory=FunctionRegistry)
    """Stored code, and the verdicts of depend and locality functions."""
    limits: StartLimits = field(default_factory=StartLimits)
    """Limits that may keep a task from starting although an engine is free."""
    cache_uses: CacheUses = field(default_factory=CacheUses)
    """The tasks that use the result cache."""
    second_copies: SecondCopies = field(default_factory=SecondCopies)
    """The idempotent tasks, and runs beside their first ones."""
    nested_waits: NestedWaits = field(default_factory=NestedWaits)
    """Runs that wait inside themselves for other tasks."""
    conversations: Conversations = field(default_factory=Conversations)
    """Children, messages and progress of running tasks."""
    requests: EngineRequests = field(default_factory=EngineRequests)
    """Commands and queries that engines have not answered, and sticky commands."""
    followers: Followers = field(default_factory=Followers)
    """Sessions that follow the farm, and what they are told next."""
    failed_answers: FailedAnswers = field(default_factory=FailedAnswers)
    """Questions that are not tried again, because their answers failed."""
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    """Information for people who look for a fault."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.limits.load_guard = settings.load_limit is not None or settings.free_memory_limit is not None

    def number(self) -> int:
        """Return a number that was never given before in this life of the controller."""
        self.numbers += 1
        return self.numbers

    def command_number(self) -> int:
        """Return a number for one of the farm's own commands.

        Engines remember (session, n) and never run one twice: numbers of another epoch must differ."""
        return self.epoch * 1_000_000 + self.number()

    def kept_number(self) -> int:
        """Return a number for a command that is kept for replacements.

        These numbers grow from one life of the controller to the next, and no engine hears one twice."""
        return self.epoch * 2**40 + self.number()

    def add_engine(self, engine: EngineEntry) -> None:
        """Count a new engine among the farm's engines."""
        self.engines.by_name[engine.name] = engine
        self.engines.by_id.setdefault(engine.id, {})[engine] = None
        if engine.environment is not None:
            self.environments.uses[engine.environment.identity].engines[engine] = None

    def remove_engine(self, engine: EngineEntry) -> None:
        """Forget an engine that is gone."""
        del self.engines.by_name[engine.name]
        if engine.environment is not None:
            self.environments.uses[engine.environment.identity].engines.pop(engine, None)
        same = self.engines.by_id[engine.id]
        del same[engine]
        if not same:
            del self.engines.by_id[engine.id]

    def renumber_engine(self, engine: EngineEntry, engine_id: int) -> None:
        """Give an engine another id: its agent reports a different one than was known."""
        if engine.id != engine_id:
            self.remove_engine(engine)
            engine.id = engine_id
            self.add_engine(engine)
