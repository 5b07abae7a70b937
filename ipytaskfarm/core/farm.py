"""The farm's state: every task, engine, agent and client that the scheduler decides about.

Plain data with the small questions one asks of it.  Handlers change it; `core.transition` alone moves tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple, TypeAlias

from .messages import Evaluate, Final, Incarnation, Message, Properties, Retried, Rules, RunKey, TaskRow
from .queue import Heads, PolicyKey, TaskClass, fifo_key
from .saves import Save, SaveSticky
from .states import State
from .task import Task


class Now(NamedTuple):
    """The time, read once per turn by the shell."""

    mono_s: float
    """Durations, leases and limits."""
    wall_s: float
    """What people are shown, and what the store holds."""


@dataclass(frozen=True)
class Settings:
    """What a farm's owner may set.  Durations in seconds."""

    lease_s: float = 900.0
    lease_margin_s: float = 30.0
    failure_penalty_s: float = 0.0
    """How long an engine gets nothing after a task failed on it."""
    unmet_timeout_s: float | None = None
    """How long a task waits when no engine can serve it; None: for ever."""
    max_engine_losses: int = 3
    node_failures: int = 10
    """Failed attempts in a row, of at least five tasks, after which a node gets no more, if work elsewhere succeeds."""
    prefetch_s: float = 0.050
    """How much measured work an engine is kept ahead."""
    recall_after_s: float = 0.020
    """When the running task lasts longer, what was sent behind it may be recalled."""
    recall_patience_s: float = 2.0
    """A task that may repeat goes elsewhere when its recall was not answered for so long."""
    reject_again_s: float = 1.0
    max_rejections: int = 10
    depend_again_s: float = 5.0
    grace_s: float = 1.0
    policy: PolicyKey = fifo_key


class Assignment(NamedTuple):
    """Tasks for an engine; the shell adds their payloads and sends one `HandOut`."""

    agent: str
    engine: Incarnation
    tasks: list[tuple[int, int, str | None, float | None, int | None]]
    """(task id, attempt, function, time limit, properties version)"""


class LoadFinals(NamedTuple):
    """Read results from the store: answer the client's question `n` with `Fetched`."""

    session: str
    n: int
    ids: list[int]
    unfinished: list[int]
    unknown: list[int]
    refusals: list[Final]


class LoadTable(NamedTuple):
    """Read final tasks' rows, merge with these, and answer question `n` with the last of them in a `TaskTable`."""

    session: str
    n: int
    ids: list[int]
    rows: list[TaskRow]
    unknown: list[int]
    name: str | None
    last: int = 0
    omitted: int = 0


class LoadOriginals(NamedTuple):
    """Read these tasks as they were handed in; they come back as `events.Originals`."""

    session: str
    n: int
    ids: list[int]
    missing: list[int]
    not_failed: list[int]


class LoadExplanation(NamedTuple):
    """Explain a final task from the store: answer question `n` with `Text`."""

    session: str
    n: int
    id: int


class LoadCompacted(NamedTuple):
    """Compact the store: answer question `n` with `Text`."""

    session: str
    n: int


Load: TypeAlias = LoadFinals | LoadTable | LoadOriginals | LoadExplanation | LoadCompacted


@dataclass(slots=True)
class Decision:
    """What the shell must do after a turn: commit all `saves`, and only then everything else."""

    saves: list[Save] = field(default_factory=list)
    sends: list[tuple[str, Message]] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    evaluations: list[Evaluate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """One line each, for the log."""
    finished: bool = False
    """The farm has stopped: the controller ends."""


@dataclass(slots=True)
class Batch:
    """One recorded hand-out: its row is dropped when all of it is answered."""

    number: int
    runs: dict[RunKey, None]
    at_s: float


@dataclass(slots=True)
class Handing:
    """One run that an engine holds and has not answered."""

    batch: Batch
    cost_s: float
    """Its share of the engine's work ahead."""
    quick: bool
    """Of a class that may have others sent behind it."""
    task_class: TaskClass | None
    recalled_s: float | None = None


class EngineState:
    """What an engine is doing, as `EngineRow.state` shows it."""

    PREPARING = "preparing"
    UP = "up"
    AWAY = "unreachable"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False)
class Engine:
    """One engine, by incarnation."""

    name: Incarnation
    id: int
    agent: str
    node: str
    pid: int = 0
    started_s: float = 0.0
    state: str = EngineState.PREPARING
    facts: dict[str, Any] = field(default_factory=dict)
    connection_file: str = ""
    note: str = ""
    handed: dict[RunKey, Handing] = field(default_factory=dict)
    ahead_s: float = 0.0
    current: RunKey | None = None
    """The oldest run it holds, as of the last look, and since when (monotonic)."""
    since_s: float = 0.0
    last_key: Any = None
    """Policy key of what it was handed last."""
    closed: int = 0
    """How many of `handed` are not quick: while any is, nothing is sent behind it."""
    heads: Heads = field(default_factory=Heads)
    properties: Properties | None = None
    preparing: set[int] = field(default_factory=set)
    """Numbers of the start-up commands that have not been answered."""
    withheld_until_s: float = 0.0
    retiring: bool = False
    """To be ended as soon as it is empty."""
    finished: int = 0
    """Runs answered."""

    @property
    def version(self) -> int:
        """Of its properties; 0: none were set."""
        return self.properties.version if self.properties else 0

    def oldest(self) -> RunKey | None:
        """What it is running, as far as is known."""
        return next(iter(self.handed), None)


Kind: TypeAlias = tuple[str | None, tuple[int, ...] | None]
"""Of a task: (depend, targets), the part of its class that says what it is."""
Charge: TypeAlias = Literal["error", "loss", "error and loss"]
"""What a failed attempt cost its task."""


class FailedAttempt(NamedTuple):
    """One failed attempt, as a node's streak remembers it."""

    task: int
    recovery: int
    """How far down its chain the task was: the next link has a budget of its own."""
    kind: Kind
    charge: Charge


@dataclass(slots=True)
class Agent:
    """One agent, by session."""

    session: str
    node: str
    pid: int = 0
    cores: int = 1
    memory_bytes: int = 0
    platform: str = ""
    python: str = ""
    slots: int | None = None
    here: bool = True
    reachable: bool = True
    starting: dict[int, float] = field(default_factory=dict)
    """Engine id -> when its start was asked for."""
    engines: dict[Incarnation, Engine] = field(default_factory=dict)
    deadline_s: float | None = None
    """When it is given up, while it is away."""
    streak: list[FailedAttempt] = field(default_factory=list)
    """Attempts that failed here since the last that succeeded here."""
    elsewhere: set[Kind] = field(default_factory=set)
    """Kinds of tasks that succeeded on other nodes meanwhile."""
    aside: str = ""
    """Why it gets no more tasks; "": it does."""

    @property
    def able(self) -> bool:
        """Whether its engines may be given tasks."""
        return self.here and self.reachable and not self.aside


@dataclass(slots=True)
class Block:
    """A range of task ids given to a client."""

    first: int
    last: int
    next: int
    session: str
    """The next id expected: ids of a block arrive in order."""


@dataclass(slots=True)
class Client:
    """One client session."""

    session: str
    name: str = ""
    here: bool = False
    blocks: list[Block] = field(default_factory=list)
    next_block: int = 1024
    started: int = 0
    finals: list[Final] = field(default_factory=list)
    accepted: dict[int, int] = field(default_factory=dict)
    """Block's first id -> accepted up to, since the last turn."""
    watching: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Depend:
    """What one depend function has said."""

    digest: str
    verdicts: dict[Incarnation, tuple[int, bool, str]] = field(default_factory=dict)
    """Engine -> (properties version, fits, error)."""
    asked: dict[Incarnation, int] = field(default_factory=dict)
    again_s: float | None = None


@dataclass(slots=True)
class PendingCommand:
    """A MultiEngine command on its way."""

    session: str
    n: int
    engine: Incarnation
    verb: str
    text: str = ""


@dataclass
class Farm:
    """Everything."""

    name: str
    incarnation: str
    settings: Settings = field(default_factory=Settings)
    epoch: int = 1
    tasks: dict[int, Task] = field(default_factory=dict)
    finals: dict[int, str] = field(default_factory=dict)
    """Final tasks not yet cleared: id -> reason ("" succeeded)."""
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    classes: dict[Any, TaskClass] = field(default_factory=dict)
    open_heads: Heads = field(default_factory=Heads)
    open_size: int = 0
    """Tasks waiting in unrestricted classes."""
    queued: int = 0
    """Tasks waiting in all classes."""
    blocks: list[Block] = field(default_factory=list)
    """Sorted by first id; wholly accepted ones are dropped."""
    next_id: int = 0
    next_queue_seq: int = 0
    next_handout: int = 0
    engines: dict[Incarnation, Engine] = field(default_factory=dict)
    """Changed by `enter` and `leave` alone."""
    numbered: dict[int, dict[Engine, None]] = field(default_factory=dict)
    """The same by the id that people see; for a while two may have the same."""
    agents: dict[str, Agent] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    """Agents with a streak."""
    clients: dict[str, Client] = field(default_factory=dict)
    hungry: dict[Engine, None] = field(default_factory=dict)
    """Engines with room that have not been looked at since something changed."""
    waiting: dict[Engine, None] = field(default_factory=dict)
    """Engines with room for which nothing was found, longest waiting first."""
    roomy: dict[Engine, None] = field(default_factory=dict)
    """Busy engines that could be sent more ahead, for which nothing was found."""
    laden: dict[Engine, None] = field(default_factory=dict)
    """Engines that hold more than what they run."""
    watchers: dict[int, list[str]] = field(default_factory=dict)
    depends: dict[str, Depend] = field(default_factory=dict)
    commands: dict[tuple[str, int, Incarnation], PendingCommand] = field(default_factory=dict)
    stacks: dict[int, tuple[str, int]] = field(default_factory=dict)
    outputs: dict[int, tuple[str, Incarnation]] = field(default_factory=dict)
    """(session, engine) by number: queries about output that have not been answered."""
    outputs_asked: dict[tuple[str, Incarnation], float] = field(default_factory=dict)
    """When (monotonic) they were asked."""
    """Number of a stack query -> (client session, question number)."""
    functions: set[str] = field(default_factory=set)
    """Digests whose code is in the store."""
    retried: dict[str, Retried] = field(default_factory=dict)
    """"session n" of a `Retry` -> what came of it: who asks again gets the same."""
    sticky: dict[str, SaveSticky] = field(default_factory=dict)
    wanted: int = 0
    held: bool = False
    full: str | None = None
    """Why nothing is accepted now."""
    stop_at_s: float | None = None
    """When running tasks are interrupted; None with `stopping`: never."""
    stopping: bool = False
    shut: bool = False
    """Agents have been told to end."""
    shut_by_s: float | None = None
    backoff_s: float = 0.0
    start_after_s: float = 0.0
    served: Any = None
    numbers: int = 0
    losses: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    touched: dict[str, Client] = field(default_factory=dict)
    """Clients with finals or acceptances to be told at the end of the turn."""
    timers: list[tuple[float, int, str, Any]] = field(default_factory=list)
    recall_check_s: float | None = None

    def number(self) -> int:
        """A number never given before in this life of the controller."""
        self.numbers += 1
        return self.numbers

    def set_timer(self, at_s: float, what: str, data: Any = None) -> None:
        """`what` names a function of `handlers.timers`."""
        heappush(self.timers, (at_s, self.number(), what, data))

    def due(self, mono_s: float) -> Iterator[tuple[str, Any]]:
        """Timers that have run out, oldest first."""
        while self.timers and self.timers[0][0] <= mono_s:
            _, _, what, data = heappop(self.timers)
            yield what, data

    def client(self, session: str) -> Client:
        """The client of that session, made if it is new."""
        client = self.clients.get(session)
        if client is None:
            client = self.clients[session] = Client(session)
            # It may have been here before, and have ids that it has not used yet.
            client.blocks = [block for block in self.blocks if block.session == session]
        return client

    def engine_by_id(self, engine_id: int) -> Engine | None:
        """The engine people call by that number."""
        for engine in self.engines.values():
            if engine.id == engine_id and engine.state in (EngineState.UP, EngineState.AWAY):
                return engine
        return None

    def enter(self, engine: Engine) -> None:
        """An engine joins."""
        self.engines[engine.name] = engine
        self.numbered.setdefault(engine.id, {})[engine] = None

    def leave(self, engine: Engine) -> None:
        """It is gone."""
        del self.engines[engine.name]
        same = self.numbered[engine.id]
        del same[engine]
        if not same:
            del self.numbered[engine.id]

    def renumber(self, engine: Engine, engine_id: int) -> None:
        """It has another id than was thought."""
        if engine.id != engine_id:
            self.leave(engine)
            engine.id = engine_id
            self.enter(engine)

    def visible_engines(self) -> list[Engine]:
        """Engines that commands may go to, by id."""
        return sorted((e for e in self.engines.values() if e.state == EngineState.UP), key=lambda e: e.id)

    def rules_of(self, rules: Rules | None, depth: int) -> Rules | None:
        """The rules of the n-th recovery task down the chain."""
        for _ in range(depth):
            recovery = rules.recovery if rules else None
            if recovery is None:
                return rules
            rules = recovery.rules
        return rules
