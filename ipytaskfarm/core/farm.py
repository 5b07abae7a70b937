"""The farm's state: every task, engine, agent and client that the scheduler decides about.

Plain data with the small questions one asks of it.  Handlers change it; `core.transition` alone moves tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple, TypeAlias

from .demands import Allotment, Environment, Recycle
from .inside import Family, Lending, Mailbox
from .messages import Demand, NodeState, Properties, Retried
from .parcels import Final, Incarnation, JobSpec, Rules, RunKey
from .queue import Heads, PolicyKey, TaskClass, fifo_key
from .saves import SaveSticky
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
    """So long after an agent last heard the controller, it ends its engines."""
    lease_margin_s: float = 30.0
    """An agent that was silent for the lease and so much more is given up, see `handlers.losses`."""
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
    warm: int | None = None
    """How many free slots hold a blank engine; None: all."""
    warm_s: float = 10.0
    """A blank engine more than that ends when it has been idle for so long."""
    environment_patience_s: float | None = 10.0
    """A task that waits longer is no longer passed over by tasks of the environment that an engine has; None: off."""
    resource_patience_s: float = 10.0
    """A task that waits longer for resources has those kept for it that become free on one node."""
    load_limit: float | None = None
    """The load guard: nothing is started on a node that is busier than this share of its cores, …"""
    free_memory_limit: int | None = None
    """… or has less than so many bytes of memory free."""
    placement: str = "default"
    """See `core.choice`."""
    seed: int = 1
    """Of the random placement."""


@dataclass(slots=True)
class Batch:
    """One recorded hand-out: its row is dropped when all of it is answered."""

    number: int
    runs: dict[RunKey, None]
    at_s: float


@dataclass(slots=True)
class Claim:
    """What one run takes of its node, and where it counts."""

    amounts: dict[str, float] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    exclusive: bool = False
    group: str | None = None
    """What `max_parallel` counts."""

    @property
    def allotment(self) -> Allotment:
        """As its task is told."""
        return Allotment(dict(self.amounts), self.gpus, self.exclusive)


@dataclass(slots=True)
class Group:
    """What runs of one group."""

    running: int = 0
    on: dict[str, int] = field(default_factory=dict)
    """Agent's session -> how many there."""
    parked: dict[TaskClass, None] = field(default_factory=dict)
    """Classes that wait until fewer run."""


@dataclass(slots=True)
class Use:
    """One environment: who has it, and who needs it."""

    environment: Environment
    engines: dict[Engine, None] = field(default_factory=dict)
    """Those that have it, or are being prepared for it."""
    unfinished: int = 0
    """Tasks that need it and have not ended."""
    jobs: set[str] = field(default_factory=set)
    """Jobs that use it and have not ended."""

    @property
    def referenced(self) -> bool:
        """Whether anybody may still need it."""
        return bool(self.unfinished or self.jobs)


@dataclass(slots=True)
class Job:
    """A job, as far as its end has consequences."""

    spec: JobSpec
    session: str
    arrived: int = 0
    unfinished: int = 0
    ended: bool = False
    environments: set[str] = field(default_factory=set)
    """Identities that it keeps referenced while it has not ended."""
    tasks: dict[int, None] = field(default_factory=dict)
    """Those that have not ended, where one that fails ends the others."""
    failed: str = ""
    """Why all its tasks are aborted; "": they are not."""
    paused: bool = False

    @property
    def complete(self) -> bool:
        """All its tasks have come, and have ended."""
        return self.unfinished == 0 and self.arrived >= self.spec.total


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
    claim: Claim | None = None
    waiting: Lending | None = None
    """It waits, inside its run, for other tasks."""


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
    recycled: str = ""
    """Why it is retiring, where its slot is to be filled again; "": it is not, or the slot goes with it."""
    finished: int = 0
    """Runs answered."""
    environment: Environment | None = None
    """None: it is blank."""
    set_up: bool = False
    recycling: dict[tuple[str, Recycle], None] = field(default_factory=dict)
    """(scope, when): settings of the tasks that it ran; the scope is an environment's identity, or a job."""
    runs: dict[str, int] = field(default_factory=dict)
    """Scope -> runs ended."""
    touched: bool = False
    """MultiEngine commands ran here: it is the last to be recycled for another environment."""
    given: int = 0
    """Number of its last hand-out."""
    idle_s: float = 0.0
    """Since when (monotonic) it holds nothing; 0: it holds something."""

    @property
    def occupies(self) -> bool:
        """Whether it counts among the engines that are wanted."""
        return not self.retiring or bool(self.recycled)

    @property
    def version(self) -> int:
        """Of its properties; 0: none were set."""
        return self.properties.version if self.properties else 0

    def oldest(self) -> RunKey | None:
        """What it is running, as far as is known."""
        return next(iter(self.handed), None)


IdleEntry: TypeAlias = tuple[bool, int, int, int, Engine]
"""(it has an environment, number of its last hand-out, id, which entry it is, the engine)"""
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
    name: str = ""
    """By which its launcher knows it; "": none placed it."""
    brings: int | None = None
    """How many engines it brings, beside those that the farm wants; None: it takes its share of those."""
    ends_s: float | None = None
    """When (monotonic) its time is over, where that is limited."""
    former: frozenset[str] = frozenset()
    """Sessions of dead agents for whose engines it speaks, having found their folder."""
    here: bool = True
    reachable: bool = True
    starting: dict[int, float] = field(default_factory=dict)
    """Engine id -> when its start was asked for."""
    backoff_s: float = 0.0
    """How long the last failed start, or the last of several, makes the next one wait; 0: the last one was well."""
    start_after_s: float = 0.0
    """When (monotonic) that may be."""
    engines: dict[Incarnation, Engine] = field(default_factory=dict)
    deadline_s: float | None = None
    """When it is given up, while it is away."""
    streak: list[FailedAttempt] = field(default_factory=list)
    """Attempts that failed here since the last that succeeded here."""
    elsewhere: set[Kind] = field(default_factory=set)
    """Kinds of tasks that succeeded on other nodes meanwhile."""
    aside: str = ""
    """Why it gets no more tasks; "": it does."""
    leaving: bool = False
    """It ends when its engines have."""
    priority: int = 0
    capacity: dict[str, float] = field(default_factory=dict)
    """Resource -> how much there is."""
    used: dict[str, float] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    gpus_used: set[str] = field(default_factory=set)
    exclusive: RunKey | None = None
    """The run that has the node to itself."""
    state: NodeState | None = None
    """Its last word on load and room."""
    utc_offset_s: int = 0
    clock_ahead_s: float | None = None
    """Of its local time."""
    parked: dict[TaskClass, None] = field(default_factory=dict)
    """Classes that wait until something changes here."""
    reserving: bool = False
    """Something is kept here for the head of a class, see `core.gates`."""
    demands: list[Demand] = field(default_factory=list)
    """Running tasks that wait for more."""
    given: int = 0
    """Number of the last hand-out to one of its engines."""

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
    scored: bool = False
    """It is a locality function."""
    verdicts: dict[Incarnation, tuple[int, bool, str, int]] = field(default_factory=dict)
    """Engine -> (properties version, fits, error, score)."""
    asked: dict[Incarnation, int] = field(default_factory=dict)
    again_s: float | None = None


@dataclass(slots=True)
class PendingCheck:
    """A `Check` that waits for a function's verdicts."""

    session: str
    n: int
    rules: Rules | None


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
    last_class: tuple[Rules, TaskClass] | None = None
    """The class of the last fresh task that had rules."""
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
    idle: dict[str, list[IdleEntry]] = field(default_factory=dict)
    """Agent -> a heap of its engines that wait, and of some that waited, see `core.choice`."""
    roomy: dict[Engine, None] = field(default_factory=dict)
    """Busy engines that could be sent more ahead, for which nothing was found."""
    laden: dict[Engine, None] = field(default_factory=dict)
    """Engines that hold more than what they run."""
    watchers: dict[int, list[str]] = field(default_factory=dict)
    depends: dict[str, Depend] = field(default_factory=dict)
    """Depend functions by digest, locality functions by `locality_key`."""
    barred: dict[Engine, None] = field(default_factory=dict)
    """Idle engines on nodes where nothing may start now."""
    freed: dict[str, None] = field(default_factory=dict)
    """Agents whose nodes have changed since the last look at what waits for that."""
    environments: dict[str, Use] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    """A user's own id of an environment -> the identity that came under it last."""
    environment_heads: Heads = field(default_factory=Heads)
    """All classes that need an environment."""
    groups: dict[str, Group] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    to_abort: dict[str, None] = field(default_factory=dict)
    """Jobs that have failed, with tasks that have not ended."""
    perhaps_ended: dict[str, None] = field(default_factory=dict)
    """Jobs to be looked at at the end of the turn, and environments."""
    perhaps_unused: dict[str, None] = field(default_factory=dict)
    dependents: dict[int, list[int]] = field(default_factory=dict)
    """Task -> those that wait for it, perhaps with some that have ended meanwhile."""
    ended_needs: deque[int] = field(default_factory=deque)
    """Tasks that have ended, with dependents that have not been told."""
    takers: dict[int, int] = field(default_factory=dict)
    """Task -> how many that have not ended take its result: it is not cleared."""
    undecided: dict[tuple[str, bool], None] = field(default_factory=dict)
    """Functions of tasks that came back to their queues: (digest, whether it scores)."""
    kept: set[int] = field(default_factory=set)
    """Final tasks that are cleared by their ids alone."""
    ready_joins: deque[int] = field(default_factory=deque)
    remade: dict[int, float] = field(default_factory=dict)
    """Reopened tasks that have ended again -> when (monotonic)."""
    families: dict[int, Family] = field(default_factory=dict)
    """Of tasks that have not ended: their children."""
    awaited: dict[int, set[tuple[Incarnation, RunKey]]] = field(default_factory=dict)
    """Task -> runs that wait for it, inside."""
    returning: dict[tuple[Incarnation, RunKey], None] = field(default_factory=dict)
    """Runs whose waiting is over."""
    lent: dict[str, int] = field(default_factory=dict)
    """Agent -> how many of its engines' places are lent."""
    mail: dict[int, Mailbox] = field(default_factory=dict)
    progress: dict[int, tuple[float, float | None, str]] = field(default_factory=dict)
    """Running task -> (value, total, message)."""
    refused_jobs: dict[str, str] = field(default_factory=dict)
    """Jobs whose key another one has -> that one's id."""
    drained: set[str] = field(default_factory=set)
    """Nodes whose engines get nothing more."""
    paused: set[str] = field(default_factory=set)
    """Jobs of which nothing is started."""
    unique: dict[str, int] = field(default_factory=dict)
    """Keys of tasks that have not ended."""
    checks: list[PendingCheck] = field(default_factory=list)
    guarded: bool = False
    """Whether there is a load guard."""
    choosy: bool = False
    """Some task had a placement or a locality of its own."""
    chance: int = 1
    commands: dict[tuple[str, int, Incarnation], PendingCommand] = field(default_factory=dict)
    stacks: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    """Number of a stack query -> (client session, question number, agent)."""
    outputs: dict[int, tuple[str, Incarnation, RunKey]] = field(default_factory=dict)
    """(session, engine, run) by number: queries about output that have not been answered."""
    outputs_asked: dict[tuple[str, Incarnation], float] = field(default_factory=dict)
    """When (monotonic) they were asked."""
    functions: set[str] = field(default_factory=set)
    """Digests whose code is in the store."""
    retried: dict[str, Retried] = field(default_factory=dict)
    """"session n" of a `Retry` -> what came of it: who asks again gets the same."""
    sticky: dict[str, SaveSticky] = field(default_factory=dict)
    wanted: int = 0
    held: bool = False
    full: str | None = None
    """Why nothing is accepted now."""
    stopping: bool = False
    shut: bool = False
    """Agents have been told to end."""
    shut_by_s: float | None = None
    balanced: bool = True
    """False: whether there are as many engines as wanted is to be looked at within this turn."""
    mortal: bool = False
    """Agents have been here whose time is limited: tasks with a time limit wait in classes of their own."""
    mono_s: float = 0.0
    """When (monotonic) this turn began."""
    served: Any = None
    numbers: int = 0
    dropped: int = 0
    """Messages of agents, and parts of such, that were not theirs to say."""
    losses: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    touched: dict[str, Client] = field(default_factory=dict)
    """Clients with finals or acceptances to be told at the end of the turn."""
    timers: list[tuple[float, int, str, Any]] = field(default_factory=list)
    recall_check_s: float | None = None

    @property
    def chooses(self) -> bool:
        """Whether it may matter which of several free engines takes a task, beyond their turns."""
        return bool(self.environments) or self.choosy or self.settings.placement != "default"

    def __post_init__(self) -> None:
        self.guarded = self.settings.load_limit is not None or self.settings.free_memory_limit is not None

    def number(self) -> int:
        """A number never given before in this life of the controller."""
        self.numbers += 1
        return self.numbers

    def set_timer(self, at_s: float, what: str, data: Any = None) -> None:
        """`what` names a function of `handlers.timers`.  at_s: what is no number would put all others out of order, and
        means at once."""
        if at_s != at_s:
            at_s = 0.0
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

    def enter(self, engine: Engine) -> None:
        """An engine joins."""
        self.engines[engine.name] = engine
        self.numbered.setdefault(engine.id, {})[engine] = None
        if engine.environment is not None:
            self.environments[engine.environment.identity].engines[engine] = None

    def leave(self, engine: Engine) -> None:
        """It is gone."""
        del self.engines[engine.name]
        if engine.environment is not None:
            self.environments[engine.environment.identity].engines.pop(engine, None)
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
