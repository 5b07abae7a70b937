"""`SimulatedFarm`: the real scheduler, with engines, runs and time under a test's control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, TypeVar

import msgspec

from ..client.ids import Ids, id_list, not_registered, task_id
from ..client.packing import Shared, pack_task
from ..client.results import TaskResult, decode_body, error_named, error_of
from ..client.tables import TaskStatus
from ..client.tasks import Task, as_task
from ..controller.evaluator.server import Evaluator
from ..core import errors, messages as m
from ..core.arguments import check_count, check_seconds
from ..core.messages import tables
from ..core.messages.evaluator import Evaluate, Evaluated
from ..core.messages.pages import ask_in_pages
from ..core.messages.task_types import Ended, Final, JobSpec, Rules, RunKey, Submission
from ..core.requirements import bytes_of
from ..core.scheduler.decision import Now
from ..core.scheduler.queue_policy import PolicyKey, fifo_key
from ..core.scheduler.settings import SchedulerSettings
from ..core.states import ABORTS, Reason
from ..core.text import Text
from ..policies import QueuePolicy
from ..serialization.pack import pack
from . import runs
from .outcomes import Call, Fail, Hang, LoseEngine, Outcome, OutcomeOf, Succeed, check_outcome
from .stepped_farm import SteppedAgent, SteppedEngine, SteppedFarm

_R = TypeVar("_R")
_BEGINNING = Now(0.0, 1_700_000_000.0)
_MEMORY = 8 * 2**30
_TURNS_MAX = 100_000
"""This many exchanges without any time passing are an endless loop."""


@dataclass
class SimulatedRun:
    """One run of a task.  Times are seconds of the farm's clock."""

    task: int
    attempt: int
    engine: int
    began_s: float
    ended_s: float | None = None
    """None while it runs."""
    outcome: str = ""
    """"" while it runs or if it has succeeded; else the reason of its end, as in the history of a real task."""


class _RunningRun:
    """A run in progress: its record, its engine, and its outcome."""

    __slots__ = ("agent", "engine", "key", "outcome", "record", "started_s")

    def __init__(
        self, agent: SteppedAgent, engine: SteppedEngine, record: SimulatedRun, outcome: Outcome, started_s: float
    ) -> None:
        self.agent = agent
        self.engine = engine
        self.record = record
        self.key: RunKey = (record.task, record.attempt)
        self.outcome = outcome
        self.started_s = started_s

    @property
    def goes_on(self) -> bool:
        return self.agent.engines.get(self.engine.name) is self.engine and self.engine.running == self.key


class SimulatedFarm:
    """A farm in memory: no process, thread, socket or sleep. Its clock only moves with `advance`.

    Tasks are real, with all their rules, and the scheduler is the one of every farm. The test decides the outcome of a
    run.

    Args:
        engines: the number of engines of the first node; 0 for no node yet.
        policy: the order of the queue: a `QueuePolicy`, its class, or None for FIFO. Its errors are raised.
        run: the outcome of runs for which `submit` gives none: an outcome, or a function of the task and the number of
            the
            attempt (1, 2 …) that returns one. Default: each succeeds after a second.
        resources: the resources of the first node, as ``{"cores": 4, "memory": "2 GiB", "licence": 1}``; default: as
            many
            cores as it has engines, and 8 GiB of memory.
        properties: facts of the first node's engines, for `depend`, `requires` and `locality`.
        hold: whether nothing begins until `resume`.
        seed: the seed of the random placement. The same calls with the same seed give the same runs.
        settings: other settings of the scheduler; `policy` and `seed` are put into them.
    """

    def __init__(
        self,
        engines: int = 1,
        policy: QueuePolicy | type[QueuePolicy] | None = None,
        run: Outcome | OutcomeOf | None = None,
        *,
        resources: Mapping[str, float | str] | None = None,
        properties: Mapping[str, Any] | None = None,
        hold: bool = False,
        seed: int = 1,
        settings: SchedulerSettings | None = None,
    ) -> None:
        chosen = replace(settings or SchedulerSettings(), policy=_key_of(policy), seed=seed)
        self._stepped = SteppedFarm(chosen, _BEGINNING)
        self._evaluator = Evaluator()
        self._stepped.evaluate = self._evaluate
        self._run: Outcome | OutcomeOf = Succeed() if run is None else run
        if not callable(self._run):
            check_outcome(self._run)
        self._tasks: dict[int, Task] = {}
        self._outcomes: dict[int, Sequence[Outcome]] = {}
        self._ids: dict[str, list[int]] = {}
        self._jobs: dict[str, int] = {}
        self._names: dict[str, dict[str, Any]] = {}
        """Engine -> its namespace."""
        self._running: dict[str, _RunningRun] = {}
        """Engine -> its run."""
        self._ends: list[tuple[float, int, str, RunKey]] = []
        """(time, number, engine, run): future ends."""
        self._versions: dict[str, int] = {}
        self.runs: list[SimulatedRun] = []
        """All runs, in the order in which they began."""
        if hold:
            self.pause()
        if check_count("engines", engines, least=0):
            self.add_node(engines, resources=resources, properties=properties)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.queue_status().items())
        return f"<SimulatedFarm at {self.now_s:g} s with {len(self.engines)} engines: {counts}>"

    # -- time

    @property
    def now_s(self) -> float:
        """Return the farm's clock: seconds since it was made."""
        return self._stepped.now.mono_s

    def advance(self, seconds: float) -> None:
        """Let seconds pass, with all events in them, in their order.

        Raises:
            ValueError: the number is negative, as time does not go back.
            TypeError: it is no number.
        """
        if check_seconds("seconds", seconds) is None:
            raise TypeError("seconds must be a number of seconds, not None")
        until_s = self.now_s + float(seconds)
        while (at_s := self._next_s()) is not None and at_s <= until_s:
            self._go_to(at_s)
        self._go_to(until_s)

    def advance_to_next(self) -> bool:
        """Let time pass until the next event (a run ends, a delay is over). Return False if there will be none."""
        at_s = self._next_s()
        if at_s is not None:
            self._go_to(at_s)
        return at_s is not None

    def run_until_idle(self, at_most: float = 86400.0) -> list[int]:
        """Let time pass until no task is left, or no event will come any more; return the ids of unfinished tasks.

        Args:
            at_most: seconds of the farm's clock after which it returns in any case.
        """
        until_s = self.now_s + at_most
        while self._unfinished() and (at_s := self._next_s()) is not None and at_s <= until_s:
            self._go_to(at_s)
        return self._unfinished()

    def _unfinished(self) -> list[int]:
        return sorted(self._stepped.scheduler.farm.tasks.unfinished)

    def _next_s(self) -> float | None:
        while self._ends and not self._is_current(self._ends[0]):
            heappop(self._ends)
        timer_s = self._stepped.scheduler.next_deadline()
        times = [at_s for at_s in (timer_s, self._ends[0][0] if self._ends else None) if at_s is not None]
        return max(self.now_s, min(times)) if times else None

    def _is_current(self, end: tuple[float, int, str, RunKey]) -> bool:
        running = self._running.get(end[2])
        return running is not None and running.key == end[3] and running.goes_on

    def _go_to(self, at_s: float) -> None:
        self._stepped.advance_to(at_s)
        self._settle()

    def _settle(self) -> None:
        """Do everything that happens at this moment: ends of runs, messages, timers, begins of runs."""
        for _ in range(_TURNS_MAX):
            moved = self._end_due() | self._exchange() | self._begin_runs()
            timer_s = self._stepped.scheduler.next_deadline()
            if timer_s is not None and timer_s <= self.now_s:
                self._stepped.advance_to(self.now_s)
            elif not moved:
                return
        raise RuntimeError(f"the farm finds no rest at {self.now_s:g} s: do runs of 0 seconds follow one another?")

    def _exchange(self) -> bool:
        moved = False
        for agent in list(self._stepped.agents.values()):
            moved = moved or bool(agent.inbox or agent.outbox)
            self._stepped.move(agent)
        for name, running in list(self._running.items()):
            if not running.goes_on:  # it was interrupted, or its engine has ended
                lost = running.agent.engines.get(name) is None
                self._close(running, Reason.ENGINE_LOST if lost else Reason.ABORTED)
        return moved

    # -- runs

    @property
    def started(self) -> list[int]:
        """Return the ids of tasks in the order in which their runs began. A task that ran twice is in it twice."""
        return [run.task for run in self.runs]

    def finish(self, taskid: int, outcome: Outcome | None = None) -> None:
        """End a running task now.

        Args:
            taskid: the task's id.
            outcome: how it ends; default: it succeeds. The outcome's seconds do not count.

        Raises:
            ValueError: the task does not run.
            IndexError: there is no such task.
        """
        status = self.status(taskid)
        running = next((each for each in self._running.values() if each.record.task == status.id), None)
        if running is None:
            why = f"{status.state}: {status.reason}" if status.reason else status.state
            raise ValueError(f"task {status.id} does not run ({why}): only what runs can be finished")
        if isinstance(outcome, Hang):
            raise ValueError(f"Hang() is no end: finish task {status.id} with Succeed, Fail, LoseEngine or Call")
        self._end(running, Succeed() if outcome is None else check_outcome(outcome))
        self._settle()

    def _begin_runs(self) -> bool:
        begun = False
        for agent in list(self._stepped.agents.values()):
            for engine in list(agent.engines.values()):
                if self._stepped.begin(engine):
                    self._begin(agent, engine)
                    begun = True
        return begun

    def _begin(self, agent: SteppedAgent, engine: SteppedEngine) -> None:
        assert engine.running is not None
        number, attempt = engine.running
        outcome = self._outcome_of(number, attempt)
        record = SimulatedRun(number, attempt, engine.id, self.now_s)
        self.runs.append(record)
        self._running[engine.name] = _RunningRun(agent, engine, record, outcome, self._stepped.now.wall_s)
        seconds = math.inf if isinstance(outcome, Hang) else outcome.seconds
        limit_s = engine.given[engine.running][3]
        if limit_s is not None and limit_s < seconds:
            error = errors.TimeLimitExceeded(f"the task ran longer than its time_limit of {limit_s:g} s")
            self._running[engine.name].outcome = Fail(error, limit_s)
            seconds = limit_s
        if seconds < math.inf:
            heappush(self._ends, (self.now_s + seconds, len(self.runs), engine.name, engine.running))

    def _outcome_of(self, number: int, attempt: int) -> Outcome:
        given = self._outcomes.get(number)
        if given is not None:
            return given[min(attempt, len(given)) - 1]
        return check_outcome(self._run(self._task_of(number), attempt) if callable(self._run) else self._run)

    def _task_of(self, number: int) -> Task:
        """Return the task that runs under this id: the task itself, or one of its chain of recovery tasks."""
        task = self._tasks[number]
        progress = self._stepped.store.progress.get(number)
        for _ in range(progress.recovery if progress is not None else 0):
            task = task.recovery_task or task
        return task

    def _end_due(self) -> bool:
        ended = False
        while self._ends and self._ends[0][0] <= self.now_s:
            end = heappop(self._ends)
            if self._is_current(end):
                running = self._running[end[2]]
                self._end(running, running.outcome)
                ended = True
        return ended

    def _end(self, running: _RunningRun, outcome: Outcome) -> None:
        if isinstance(outcome, LoseEngine):
            self._close(running, Reason.ENGINE_LOST)
            self._stepped.kill(running.agent, running.engine)
            return
        ended = self._ended(running, outcome)
        self._close(running, ended.outcome)
        self._stepped.end_with(running.agent, running.engine, ended)

    def _ended(self, running: _RunningRun, outcome: Outcome) -> Ended:
        task = self._task_of(running.record.task)
        times = (running.started_s, self.now_s - running.record.began_s)
        if isinstance(outcome, Fail):
            return runs.failed(running.key, task, outcome.error, *times)
        if not isinstance(outcome, Call):
            value = outcome.value if isinstance(outcome, Succeed) else None
            return runs.succeeded(running.key, task, value, *times)
        names = self._names.setdefault(running.engine.name, {"__name__": "__main__"})
        try:
            value = runs.call(self._stepped.store, running.record.task, names)
        except Exception as error:
            return runs.failed(running.key, task, error, *times)
        return runs.succeeded(running.key, task, value, *times)

    def _close(self, running: _RunningRun, outcome: str) -> None:
        running.record.ended_s = self.now_s
        running.record.outcome = str(outcome)
        del self._running[running.engine.name]

    # -- tasks

    def submit(
        self,
        task: Any,
        outcome: Outcome | Sequence[Outcome] | None = None,
        *,
        client: str = "client",
        job: str | None = None,
    ) -> int:
        """Submit a task and return its id. It begins at once if an engine is free.

        Args:
            task: a task as for ``TaskClient.run``.
            outcome: the outcome of its run, or of each of its runs; the last one is used for further runs too. Default:
                the
                farm's `run`.
            client: the name of the client that submits it.
            job: the name of its job.

        Raises:
            UnpickleableException: a part cannot travel; or another error with which a real farm refuses a task.
        """
        made = as_task(task)
        given = None if outcome is None else _all_checked(outcome)
        shared = None if job is None else Shared({}, job, Rules(job=job), ())
        packed = pack_task(made, None, shared)
        number = self._next_id(client)
        self._tasks[number] = made
        if given is not None:
            self._outcomes[number] = given
        jobs = []
        if job is not None:
            self._jobs[job] = self._jobs.get(job, 0) + 1
            jobs.append(JobSpec(job, job, self._jobs[job]))
        work = Submission(
            number, packed.payload, self._stepped.now.wall_s, packed.function, packed.rules, packed.blobs, packed.needs,
            cache=packed.cache,
        )  # fmt: skip
        self._stepped.handle(m.Submit([work], list(packed.functions), jobs), client)
        refusal = self._stepped.store.refusals.get(number)
        if refusal is not None:
            error = error_named(refusal[0], f"task {number}: {refusal[1]}")
            first = error.first if isinstance(error, errors.DuplicateTask) else None
            if made.on_duplicate == "return" and isinstance(first, int):
                return first
            raise error
        self._settle()
        return number

    def _next_id(self, client: str) -> int:
        left = self._ids.setdefault(client, [])
        if not left:
            self._stepped.join_client(client)
            block = self._stepped.ids(client)
            left.extend(range(block.last, block.first - 1, -1))
        return left.pop()

    def _ask(self, question: m.Question, expected: type[_R]) -> _R:
        reply = ask_in_pages(question, self._stepped.ask)
        if isinstance(reply, m.Refusal):
            raise error_named(reply.etype, reply.text)
        if not isinstance(reply, expected):
            raise TypeError(f"the scheduler answered {type(question).__name__} with {type(reply).__name__}")
        self._settle()
        return reply

    def status(self, taskid: int) -> TaskStatus:
        """Return state, reason, engine, attempts and times of a task, as ``TaskClient.status`` does.

        Raises:
            IndexError: there is no such task.
        """
        wanted = task_id(taskid)
        rows = self._ask(m.ListTasks([wanted]), tables.TaskRows).rows
        if not rows:
            raise not_registered([wanted])
        return TaskStatus(rows[0])

    def explain(self, taskid: int) -> Text:
        """Return a text for people on where a task is and why, like ``TaskClient.explain``."""
        return Text(self._ask(m.ExplainTasks(task_id(taskid)), m.TextReply).text)

    def queue_status(self) -> dict[str, int]:
        """Return how many tasks are scheduled, pending (running), succeeded and failed."""
        return dict(self._ask(m.QueueStatus(), tables.QueueStatusReply).counts)

    def get_task_result(self, taskid: int) -> TaskResult | None:
        """Return a task's result, like ``TaskClient.get_task_result(taskid, raw=False)``; None if it has not ended.

        Raises:
            TaskAborted: the task was aborted.
            IndexError: there is no such task.
        """
        wanted = self.status(taskid).id
        found = self._ask(m.FetchResults([wanted]), m.Fetched).finals
        if not found:
            return None
        final: Final = found[0]
        body = decode_body(final)
        if final.reason in ABORTS:
            raise error_of(final, body)
        return TaskResult(final, body)

    def abort(self, taskid: Ids) -> None:
        """Abort tasks, like ``TaskClient.abort``.

        Raises:
            IndexError: there are no tasks of these ids.
        """
        outcomes = self._ask(m.AbortTasks(id_list(taskid), True, ""), m.Aborted).outcomes
        unknown = [number for number, what in outcomes if what == "unknown"]
        if unknown:
            raise not_registered([unknown[0]])

    def set_priority(self, taskid: Ids, priority: int) -> list[int]:
        """Change the priority of tasks, like ``TaskClient.set_priority``.

        Raises:
            IndexError: there are no tasks of these ids.
        """
        ids = id_list(taskid)
        reply = self._ask(m.SetPriority(ids, priority), m.PrioritySet)
        if reply.unknown:
            raise not_registered([reply.unknown[0]])
        return [i for i in ids if i not in reply.ended]

    def pause(self) -> None:
        """Begin no more runs; present runs go on."""
        self._ask(m.HoldFarm(True), m.FlagReply)

    def resume(self) -> None:
        """Let a paused farm go on."""
        self._ask(m.HoldFarm(False), m.FlagReply)

    def spin(self) -> None:
        """Ask depend and locality functions again, like ``TaskClient.spin``."""
        self._ask(m.SpinFarm(), m.FlagReply)

    # -- nodes and engines

    @property
    def engines(self) -> list[int]:
        """Return the ids of the present engines."""
        return sorted(engine.id for agent in self._stepped.agents.values() for engine in agent.engines.values())

    def add_node(
        self,
        engines: int = 1,
        *,
        resources: Mapping[str, float | str] | None = None,
        properties: Mapping[str, Any] | None = None,
        name: str | None = None,
        priority: int = 0,
        time_left: float | None = None,
    ) -> list[int]:
        """Add a node and return the ids of its engines. An engine that dies is replaced, as in a real farm.

        Args:
            engines: the number of engines.
            resources: the node's resources, see `SimulatedFarm`.
            properties: facts of its engines, beside ``hostname``; they apply to replacements too.
            name: the node's name; default: node1, node2 …
            priority: nodes of a higher priority are given tasks first.
            time_left: seconds after which it has to leave. A task with a longer time limit does not begin there.

        Raises:
            ValueError: there is a node of this name.
        """
        number = len(self._stepped.agents) + 1
        name = f"node{number}" if name is None else name
        if name in self._stepped.agents:
            raise ValueError(f"there is a node {name!r} already: give another name")
        before = set(self.engines)
        there = {"cores": float(engines), "memory": float(_MEMORY)}
        there.update((key, _amount(value)) for key, value in (resources or {}).items())
        self._stepped.join_agent(
            name,
            node=name,
            brings=check_count("engines", engines, least=0),
            resources=there,
            gpus=tuple(map(str, range(int(there.get("gpu", 0))))),
            facts={"hostname": name, **(properties or {})},
            priority=priority,
            ends_s=None if time_left is None else self.now_s + time_left,
        )
        self._settle()
        return sorted(set(self.engines) - before)

    def set_properties(self, engine: int, properties: Mapping[str, Any]) -> None:
        """Replace the user's properties of an engine, for `depend`, `requires` and `locality`."""
        agent, found = self._engine(engine)
        version = self._versions[found.name] = self._versions.get(found.name, 0) + 1
        plain = {key: value for key, value in properties.items() if type(value) in (str, int, float, bool)}
        packed = pack(dict(properties), "properties")
        agent.outbox.append(m.PropertiesChanged(found.name, version, packed, plain))
        self._settle()

    def kill_engine(self, engine: int) -> None:
        """Make an engine's process die. Its run loses the engine, and the node starts another one."""
        agent, found = self._engine(engine)
        self._stepped.kill(agent, found)
        self._settle()

    def remove_engine(self, engine: int) -> None:
        """End an engine for good, when its run has ended."""
        self._engine(engine)
        self._ask(m.RemoveEngines([engine], True), m.NumberReply)

    def _engine(self, engine: int) -> tuple[SteppedAgent, SteppedEngine]:
        for agent in self._stepped.agents.values():
            for each in agent.engines.values():
                if each.id == engine:
                    return agent, each
        raise errors.InvalidEngineID(f"there is no engine {engine!r}: the farm has {self.engines}")

    def _evaluate(self, question: Evaluate) -> Evaluated:
        code = self._stepped.store.functions.get(question.depend)
        return self._evaluator.answer(msgspec.structs.replace(question, code=code))


def _key_of(policy: QueuePolicy | type[QueuePolicy] | None) -> PolicyKey:
    if policy is None:
        return fifo_key
    made = policy() if isinstance(policy, type) else policy
    if not isinstance(made, QueuePolicy):
        raise TypeError(f"policy must be a QueuePolicy or its class, not {policy!r:.80}")
    return made.key


def _all_checked(outcome: Outcome | Sequence[Outcome]) -> Sequence[Outcome]:
    found = [check_outcome(each) for each in outcome] if isinstance(outcome, Sequence) else [check_outcome(outcome)]
    if not found:
        raise ValueError("outcome must say what the first run does: an empty list does not")
    return found


def _amount(value: float | str) -> float:
    return float(bytes_of(value) if isinstance(value, str) else value)
