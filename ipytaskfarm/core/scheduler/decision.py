"""The time of a turn, timers, and the scheduler's decisions of a turn, which the controller's loop carries out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..messages import Answer, Message, Reply
from ..messages.evaluator import Evaluate
from ..messages.result_cache import CacheKey
from ..messages.running_task import ChildTable, Counted, Declined, Spawned, Taken, TaskCall, TaskMessages, TaskReply
from ..messages.tables import JobRow, TaskRow
from ..messages.task_types import Final, Incarnation
from ..requirements import Allotment, Environment, Recycle
from ..saves import Save

DUE_AT_ONCE = 2_000
"""The most timers of one turn: each of a million tasks may have one for the same moment."""


NEAR_S = 60.0
"""Clocks that differ by less are taken for equal."""


class Now(NamedTuple):
    """The time, read once per turn by the controller's loop."""

    mono_s: float
    """Monotonic seconds, for durations, leases and limits."""
    wall_s: float
    """Seconds since the epoch, for people and for the store."""

    def since_s(self, wall_s: float) -> float:
        """Return how long ago a moment of the wall clock was.

        What lies in the future was long ago, or may have been: the clock was set back since.
        """
        ago_s = self.wall_s - wall_s
        return ago_s if ago_s >= -NEAR_S else float("inf")


@dataclass(slots=True)
class Timers:
    """Actions at given times; `handlers.timers` defines them."""

    heap: list[tuple[float, int, str, Any]] = field(default_factory=list)
    """(monotonic seconds, number, name in `handlers.timers.TIMERS`, data)."""
    _numbers: int = 0
    clean_at: int = 10_000
    """The number of timers above which `clean` looks for those that have become useless."""

    def set(self, at_s: float, what: str, data: Any = None) -> None:
        """Call the function `what` of `handlers.timers.TIMERS` with `data` at this time (monotonic seconds).

        A time that is not a number means at once: in the heap it would break the order of all other timers.
        """
        if at_s != at_s:
            at_s = 0.0
        self._numbers += 1
        heappush(self.heap, (at_s, self._numbers, what, data))

    def clean(self, what: str, is_useful: Callable[[Any], bool]) -> None:
        """Remove useless timers of this name, if the number of all timers has doubled since the last time.

        Without this a million short runs leave a million timers, each until its time."""
        if len(self.heap) > self.clean_at:
            self.heap[:] = [each for each in self.heap if each[2] != what or is_useful(each[3])]
            heapify(self.heap)
            self.clean_at = max(10_000, 2 * len(self.heap))

    def due(self, mono_s: float) -> Iterator[tuple[str, Any]]:
        """Remove and yield the expired timers, the oldest first.  If there are too many, the next turn goes on."""
        heap = self.heap
        for _ in range(DUE_AT_ONCE):
            if not heap or heap[0][0] > mono_s:
                break
            _, _, what, data = heappop(heap)
            yield what, data

    def next_s(self) -> float | None:
        """Return the time (monotonic seconds) of the next timer."""
        return self.heap[0][0] if self.heap else None


class Wants(NamedTuple):
    """Data from the store that is sent with a run."""

    inputs: tuple[tuple[int, int], ...] = ()
    """See `core.messages.task_types.Needs.inputs`."""
    chunks: tuple[tuple[int, int], ...] = ()
    """(source, its chunk) of the inputs that shared their run with other items of a map."""
    trial: int = 1
    received: int = 0
    parent: int | None = None
    part: int | None = None
    """The index of the item that is run, of the chunk whose payload the task has."""
    concurrent: bool = False
    """See `core.messages.agent.Special.concurrent`."""
    freeze: bool = False
    """See `core.messages.agent.Special.freeze`."""
    recovery: int = 0
    """See `core.messages.agent.Special.recovery`."""


ToRun: TypeAlias = tuple[int, int, str | None, float | None, int | None, str | None, bool, Wants | None]
"""(task id, attempt, function, time limit, version of the properties, environment, whether its memory is measured,
rarely used extras)"""


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """Tasks for an engine.  The controller's loop adds their payloads and sends one `HandOut`."""

    agent: str
    engine: Incarnation
    tasks: list[ToRun]
    environment: Environment | None = None
    """The engine's environment from now on."""
    allotment: Allotment | None = None
    """The resources of the assignment's only task."""
    recycling: tuple[tuple[str, Recycle], ...] = ()
    """See `EngineEntry.recycling`."""
    graces: dict[int, float] | None = None
    """Task -> its own time between the interrupt of a time limit and the signals, for tasks that have one."""
    concurrent: bool = False
    """Whether the engine runs the tasks concurrently, as coroutines."""
    number: int = 0
    """The number of the hand-out."""
    newest_s: float = 0.0
    """When the latest of the tasks was submitted (wall clock)."""


class LoadFinals(NamedTuple):
    """Read results from the store, and answer the client's question `n` with `Fetched`."""

    session: str
    n: int
    ids: list[int]
    unfinished: list[int]
    unknown: list[int]
    refusals: list[Final]


class LoadTable(NamedTuple):
    """Read rows of ended tasks, merge them with these rows, and answer question `n` with the last of them."""

    session: str
    n: int
    ids: list[int]
    rows: list[TaskRow]
    unknown: list[int]
    name: str | None
    last: int = 0
    omitted: int = 0
    order: Sequence[int] = ()
    """The ids by acceptance, the latest first; empty where all rows are wanted."""
    items: Mapping[int, tuple[int, list[int]]] = MappingProxyType({})
    """Chunk -> (how many silent items it has, those that are wanted); the chunk itself is among `ids`."""
    end: int | None = None
    """Where the next page begins."""
    unretried: bool = False
    """Leave out tasks that were submitted again."""


class LoadOriginals(NamedTuple):
    """Read these tasks as they were submitted. The result is the event `events.Originals`."""

    session: str
    n: int
    ids: list[int]
    missing: list[int]
    not_failed: list[int]
    chunks: Mapping[int, int] = MappingProxyType({})
    """Silent item -> its chunk."""
    earlier: Sequence[tuple[int, int, int]] = ()
    """See `RetryTasks.earlier`."""
    once: bool = False
    """Leave out tasks that were submitted again before."""
    latest: bool = False
    """See `RetryTasks.latest`."""
    function: str | None = None
    """The digest of the function to be called in the place of theirs."""
    blobs: tuple[str, ...] = ()
    """The blobs that it needs."""


class LoadEnded(NamedTuple):
    """Read these ended tasks, to run them again. The result is the event `events.EndedLoaded`.

    With `dependents`, also all tasks that used their results and have succeeded.
    """

    ids: list[int]
    outcome: str
    dependents: bool = False
    asker: tuple[str, int] | None = None
    """(session, question number) of the client that asked for it."""


class LoadMail(NamedTuple):
    """Read the messages of a task after number `after`, for question `n` of a client or for a call of the task.

    `outgoing`: messages from the task. `over`: no more will come.
    """

    session: str
    n: int
    task: int
    outgoing: bool
    after: int
    call: TaskCall | None = None
    over: bool = False


class LoadTaken(NamedTuple):
    """Read ends of tasks for a running task's `Take`."""

    agent: str
    call: TaskCall


class LoadJobs(NamedTuple):
    """Answer question `n` with those of these jobs that still have tasks."""

    session: str
    n: int
    rows: list[JobRow]
    tasks: bool
    """Whether the ids of the jobs' tasks are wanted too."""
    after: int = -1
    """Of the first job, only tasks with higher ids."""
    end: tuple[float, str, int] | None = None
    """Where the next page begins, unless this one has too many tasks."""


class LookForJobs(NamedTuple):
    """Look which of these ended jobs, each with the number of its tasks, have no tasks any more.

    The result is the event `events.JobsCleared`."""

    jobs: list[tuple[str, int]]


class Wanted(NamedTuple):
    """A task whose result may be kept."""

    task: int
    key: str
    """Its full key, if it is known, or its `CacheKey.key`, to which the inputs are added."""
    inputs: list[int]
    """The tasks whose results belong to the key, in order."""
    takes: bool
    """Whether a kept result is wanted, and not the full key alone."""
    value_first: bool = False
    """See `CacheKey.value_first`."""


class LookUp(NamedTuple):
    """Look for kept results of these tasks.  The result is the event `events.LookedUp`."""

    wanted: list[Wanted]


class CacheResult(NamedTuple):
    """A result for the cache."""

    full_key: str
    key: CacheKey
    final: Final


class LoadExplanation(NamedTuple):
    """Explain an ended task, or an item of a map, from the store, and answer question `n` with `TextReply`."""

    session: str
    n: int
    id: int
    item: int | None = None
    """The silent item of the chunk `id` that is asked about."""
    lines: list[str] | None = None
    """What there is to say of a task that has not ended."""
    more: tuple[str, ...] = ()
    """Lines for people that the scheduler adds."""
    unfrozen: str = ""
    """A line for a failed task that asks for a frozen engine, if it is not known why there is none."""


Load: TypeAlias = (
    LoadFinals | LoadTable | LoadOriginals | LoadEnded | LoadMail | LoadTaken | LoadJobs | LoadExplanation | LookForJobs
)  # fmt: skip
"""The requests to the store."""


TaskPayload: TypeAlias = Spawned | ChildTable | Counted | Taken | TaskMessages | Declined
"""The answers to running tasks' calls."""


class Decision(msgspec.Struct):
    """What the controller's loop must do after a turn: commit all `saves`, and only then everything else."""

    saves: list[Save] = []
    sends: list[tuple[str, Message]] = []
    assignments: list[Assignment] = []
    loads: list[Load] = []
    evaluations: list[Evaluate] = []
    notes: list[str] = []
    """Lines for the log."""
    given_up: list[str] = []
    """Agents with sessions that are over; an agent that is heard again begins a new session."""
    look_ups: list[LookUp] = []
    """Questions to the result cache, after the `cache_results`."""
    cache_results: list[CacheResult] = []
    """Results that the cache keeps."""
    cache_mistakes: list[int] = []
    """Tasks whose results are wrong or lost: the cache forgets them."""
    finished: bool = False
    """Whether the farm has stopped and the controller ends."""

    def add(self, later: Decision) -> None:
        """Add the decision of a turn that follows at once."""
        self.finished = self.finished or later.finished
        for name in _LISTS:
            if more := getattr(later, name):
                getattr(self, name).extend(more)

    def answer(self, session: str, n: int, payload: Reply) -> None:
        """Answer question number `n` of a client's session."""
        self.sends.append((session, Answer(n, payload)))

    def reply(self, agent: str, call: TaskCall, payload: TaskPayload) -> None:
        """Answer a running task's call, through its engine's agent (a session)."""
        self.sends.append((agent, TaskReply(call.engine, call.run, call.n, payload)))


_LISTS = tuple(name for name in Decision.__struct_fields__ if name != "finished")
"""The names of the lists of a decision."""
