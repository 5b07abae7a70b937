"""A farm in which a test delivers every message: the real scheduler between a store, agents and engines in memory.

Messages between controller and agents wait in queues and are delivered one by one. So a test decides which messages are
late, which are lost with a crash, and which come twice. `SimulatedFarm` delivers them all at once; the package's own
tests use this class directly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..controller import replies
from ..core import messages as m
from ..core.messages.evaluator import Evaluate, Evaluated, Verdict
from ..core.messages.result_cache import CacheKey
from ..core.messages.running_task import TaskCall, TaskQuestion, TaskReply
from ..core.messages.task_types import (
    Deferral,
    Ended,
    FailureSummary,
    FrozenRun,
    Function,
    ItemsEnded,
    JobSpec,
    LostInputs,
    Needs,
    Rules,
    RunKey,
    Submission,
    encode_runs,
)
from ..core.requirements import Allotment, Environment, Recycle
from ..core.scheduler.decision import Assignment, Decision, Now, ToRun
from ..core.scheduler.events import Event, Gone, Joined, LookedUp, Silent, Tick
from ..core.scheduler.failed_answers import MessageFailed
from ..core.scheduler.restore import restored_farm
from ..core.scheduler.scheduler import Scheduler
from ..core.scheduler.settings import SchedulerSettings
from ..core.states import FREEZES
from .memory_store import MemoryReader, MemoryStore

BEGINNING = Now(1000.0, 1_700_000_000.0)


@dataclass
class SteppedEngine:
    """An engine: its assigned runs, the present run, and finished runs that are not acknowledged."""

    name: str
    id: int
    queue: deque[RunKey] = field(default_factory=deque)
    given: dict[RunKey, ToRun] = field(default_factory=dict)
    """Its runs, as they were assigned."""
    running: RunKey | None = None
    beside: dict[RunKey, None] = field(default_factory=dict)
    """Concurrent runs that have begun, beside `running`."""
    concurrent: bool = False
    """Whether its runs are concurrent."""
    done: dict[RunKey, Ended] = field(default_factory=dict)
    prepared: bool = False
    environment: Environment | None = None
    holding: tuple[RunKey, Allotment] | None = None
    finished: int = 0
    recycling: tuple[tuple[str, Recycle], ...] = ()
    heard: list[TaskReply] = field(default_factory=list)
    calls: int = 0
    commands: list[m.EngineCommand] = field(default_factory=list)
    """The commands that it has run, each once."""
    frozen: FrozenRun | None = None
    """The failed run after which it has frozen itself."""

    def turn_to(self, run: RunKey) -> None:
        """Let one of the begun runs be the one that ends, or asks a question, next."""
        if self.running is not None and run in self.beside:
            self.beside[self.running] = None
            del self.beside[run]
            self.running = run

    def held(self) -> list[RunKey]:
        return [*self.done, *([self.running] if self.running else []), *self.beside, *self.queue]


@dataclass
class SteppedAgent:
    """An agent: its engines, and the messages in both directions."""

    session: str
    engines: dict[str, SteppedEngine] = field(default_factory=dict)
    lost: dict[str, m.EngineDown] = field(default_factory=dict)
    """Losses that the controller has not processed."""
    inbox: deque[m.Message | Assignment] = field(default_factory=deque)
    outbox: deque[m.Message] = field(default_factory=deque)
    started: int = 0
    shut: bool = False
    resources: dict[str, float] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    priority: int = 0
    utc_offset_s: int = 0
    node: str = "node"
    facts: dict[str, object] = field(default_factory=dict)
    """The facts of each of its engines."""
    name: str = ""
    brings: int | None = None
    ends_s: float | None = None
    """The monotonic time at which its time is over."""
    leaving: bool = False
    """Whether it was told to end; it ends with its engines."""
    failing: frozenset[bytes] = frozenset()
    """The bodies of commands that fail on its engines."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """Verb -> the body with which its engines answer."""


class SteppedFarm:
    """Controller, store, agents, and one clock."""

    def __init__(self, settings: SchedulerSettings | None = None, now: Now = BEGINNING) -> None:
        self.settings = settings or SchedulerSettings()
        self.now = now
        self.store = MemoryStore()
        self.agents: dict[str, SteppedAgent] = {}
        self.told: dict[str, list[m.Message]] = {}
        """Messages to each client since the controller's start."""
        self.begun: dict[int, list[RunKey]] = {}
        """Task -> the runs of it that an engine really began, over all lives of the controller."""
        self.verdict: bool | None = True
        """The result of depend functions. None: they raise."""
        self.scores: dict[str, int] = {}
        """The results of locality functions: engine -> score."""
        self.evaluate: Callable[[Evaluate], Evaluated] = self._fixed_verdicts
        """Answers for depend and locality functions; by default from `verdict` and `scores`."""
        self.finished = False
        self.start()

    # -- the controller

    def start(self) -> None:
        """Start a controller (again) from the store."""
        self.scheduler = Scheduler(restored_farm("sim", self.store.load(), self.settings, self.now))
        self.scheduler.check()
        self.told = {}

    def crash(self) -> None:
        """Kill the controller: messages under way are lost, and agents report their state again."""
        self.start()
        for agent in self.agents.values():
            agent.inbox.clear()
            agent.outbox.clear()
            self.restate(agent)

    def handle(self, event: Event, session: str = "") -> Decision:
        """Make one turn, with everything that the shell does with its decision.

        An exception is raised as it is: a controller keeps the peer away whose message has met it, a test fails.
        """
        try:
            out = self.scheduler.handle(event, self.now, session)
        except MessageFailed as failure:
            raise (failure.__cause__ or failure) from None
        self.scheduler.check()
        self.store.commit(out.saves)
        for assignment in out.assignments:
            for task_id, attempt, *_ in assignment.tasks:
                recorded = [h for h in self.store.handouts.values() if (task_id, attempt) in h.runs]
                assert recorded, f"run {(task_id, attempt)} was handed out unrecorded"
                self._check_needs(task_id)
                self._check_time(assignment.agent, task_id)
        for receiver, message in out.sends:
            self._send(receiver, message)
        for assignment in out.assignments:
            if assignment.agent in self.agents:
                self.agents[assignment.agent].inbox.append(assignment)
        self.finished = self.finished or out.finished
        for result in out.cache_results:
            if result.final.body is not None:
                self.store.results[result.full_key] = result.final.body
        for mistake in out.cache_mistakes:
            self.store.forget_result(mistake)
        for look_up in out.look_ups:
            self.handle(LookedUp([self.store.look_up(wanted) for wanted in look_up.wanted]))
        for load in out.loads:
            asker, reply = replies.answer(MemoryReader(self.store), load)
            if isinstance(reply, m.Answer | TaskReply):
                self._send(asker, reply)
            else:
                self.handle(reply, asker)
        for question in out.evaluations:
            self.handle(self.evaluate(question))
        return out

    def _check_time(self, session: str, task_id: int) -> None:
        """Check that there is time for a task that is handed out."""
        agent, rules = self.agents.get(session), self.scheduler.farm.tasks.unfinished[task_id].rules
        if agent is not None and agent.ends_s is not None and rules is not None and rules.time_limit_s is not None:
            left_s = agent.ends_s - self.now.mono_s
            assert rules.time_limit_s <= left_s + 1e-6, f"task {task_id} was handed to an agent with {left_s} s left"

    def _check_needs(self, task_id: int) -> None:
        """Check that a task that is handed out has nothing left to wait for."""
        needs = self.store.tasks[task_id].needs
        assert needs is None or not needs.join, f"join {task_id} was handed to an engine"
        for other in needs.after if needs is not None else ():
            end = self.store.finals.get(other) or self.store.finals.get(self.store.chunk_of(other))
            assert end is not None or other in self.store.cleared or other in self.store.refusals, (
                f"task {task_id} was handed out before task {other} had ended"
            )
            failed = end is not None and end.reason
            assert not failed or (needs is not None and needs.if_failed == "run"), (
                f"task {task_id} was handed out although task {other} had failed"
            )

    def _fixed_verdicts(self, question: Evaluate) -> Evaluated:
        verdicts = [self._verdict(x.engine, x.version, question.scored) for x in question.subjects]
        return Evaluated(question.n, question.depend, verdicts, question.scored)

    def _verdict(self, engine: str, version: int, scored: bool) -> Verdict:
        score = self.scores.get(engine, 0)
        error = "" if self.verdict is not None else "raised"
        return Verdict(engine, version, score >= 0 if scored else bool(self.verdict), error, score)

    def _send(self, receiver: str, message: m.Message) -> None:
        if receiver in self.agents:
            self.agents[receiver].inbox.append(message)
            return
        if isinstance(message, m.Finals):
            for final in message.finals:
                known = (
                    not {final.id, self.store.chunk_of(final.id)}.isdisjoint(self.store.finals)
                    or final.id in self.store.refusals
                )
                assert known or final.reason == "refused", f"the end of {final.id} was told unsaved"
        self.told.setdefault(receiver, []).append(message)

    def advance(self, seconds: float) -> None:
        """Let time pass.  Timers run when they are due."""
        self.advance_to(self.now.mono_s + seconds)

    def advance_to(self, end_s: float) -> None:
        """Let time pass until this moment (monotonic seconds). Timers run when they are due."""
        while (deadline := self.scheduler.next_deadline()) is not None and deadline <= end_s:
            at_s = max(deadline, self.now.mono_s)
            self.now = Now(at_s, self.now.wall_s + at_s - self.now.mono_s)
            self.handle(Tick())
        self.now = Now(end_s, self.now.wall_s + end_s - self.now.mono_s)
        self.handle(Tick())

    # -- a client

    def join_client(self, session: str = "client") -> None:
        self.handle(Joined("client", session), session)

    def ids(self, session: str = "client") -> m.IdBlock:
        """Give a client a block of 1,024 ids or more, so that its first one is large enough for most tests."""
        client = self.scheduler.farm.clients.of(session)
        client.next_block = max(1024, client.next_block)
        self.handle(m.NeedIds(), session)
        return next(x for x in reversed(self.told[session]) if isinstance(x, m.IdBlock))

    def submit(
        self,
        task_id: int,
        rules: Rules | None = None,
        session: str = "client",
        jobs: Sequence[JobSpec] = (),
        needs: Needs | None = None,
        items: int = 0,
        cache: CacheKey | None = None,
    ) -> None:
        """Submit a task.

        items: the task is a chunk of a map with this number of items, which have the ids after its own.
        cache: the key of its result in the result cache.
        """
        asks = rules.asks if rules is not None else None
        needed = [rules.depend if rules else None, asks.identity if asks else None, asks.locality if asks else None]
        functions = [Function(digest, b"code") for digest in needed if digest is not None]
        submission = Submission(task_id, b"work", self.now.wall_s, None, rules, (), needs, items, None, cache)
        self.handle(m.Submit([submission], functions, list(jobs)), session)

    def ask(self, question: m.Question, session: str = "client") -> m.Reply:
        self.handle(m.AskQuestion(7, question), session)
        return next(x.reply for x in reversed(self.told[session]) if isinstance(x, m.Answer))

    # -- agents and engines

    def join_agent(self, session: str, **what: Any) -> SteppedAgent:
        agent = self.agents[session] = SteppedAgent(session, **what)
        self.restate(agent)
        return agent

    def restate(self, agent: SteppedAgent) -> None:
        """Queue the first message of an agent in an epoch, then its unacknowledged results and unreported losses."""
        self.handle(Joined("agent", agent.session), agent.session)
        reports = [
            m.EngineReport(
                e.name, e.id, 1, True, self.now.wall_s, agent.facts, encode_runs(e.held()), prepared=e.prepared,
                finished=e.finished, environment=e.environment, set_up=e.environment is not None,
                holding=e.holding, recycling=e.recycling, concurrent=e.concurrent, frozen=e.frozen,
            )
            for e in agent.engines.values()
        ]  # fmt: skip
        agent.outbox.append(
            m.AgentState(
                agent.node, 1, 2, 2**30, "linux", "3.11", reports, None, [],
                agent.resources, agent.gpus, agent.priority, agent.utc_offset_s, agent.name, agent.brings,
                None if agent.ends_s is None else agent.ends_s - self.now.mono_s,
            )
        )  # fmt: skip
        if agent.leaving:
            agent.outbox.append(m.Leaving(5.0))
        for engine in agent.engines.values():
            if engine.done:
                agent.outbox.append(m.Results(engine.name, list(engine.done.values())))
        agent.outbox.extend(agent.lost.values())

    def process(self, agent: SteppedAgent) -> None:
        """Let the controller take the agent's oldest message, and acknowledge it."""
        if not agent.outbox:
            return
        message = agent.outbox.popleft()
        self.handle(message, agent.session)  # type: ignore[arg-type]
        if isinstance(message, m.Results) and message.engine in agent.engines:
            for ended in message.ended:
                agent.engines[message.engine].done.pop((ended.task, ended.attempt), None)
        elif isinstance(message, m.EngineDown):
            agent.lost.pop(message.engine, None)
        self._perhaps_end(agent)

    def _perhaps_end(self, agent: SteppedAgent) -> None:
        empty = not (agent.engines or agent.outbox or agent.lost)
        if agent.leaving and empty and self.agents.pop(agent.session, None) is not None:
            self.handle(Gone(), agent.session)

    def tell_to_end(self, agent: SteppedAgent, within_s: float) -> None:
        """Tell an agent to end, as its launcher does."""
        agent.leaving = True
        agent.outbox.append(m.Leaving(within_s))

    def die(self, agent: SteppedAgent) -> None:
        """Kill the agent and all its engines at once: no more messages come from it."""
        del self.agents[agent.session]
        self.handle(Silent(), agent.session)

    def deliver(self, agent: SteppedAgent) -> None:
        """Let the agent take the controller's oldest message."""
        if not agent.inbox:
            return
        message = agent.inbox.popleft()
        if isinstance(message, m.StartEngine):
            self._start_engine(agent, message.id)
        elif isinstance(message, m.Leave):
            agent.leaving = True
            self._perhaps_end(agent)
        elif isinstance(message, m.Shutdown):
            agent.shut = True
            for engine in list(agent.engines.values()):
                self.kill(agent, engine, expected=True)
        else:
            engine_found = agent.engines.get(getattr(message, "engine", ""))
            if engine_found is not None:
                self._to_engine(agent, engine_found, message)

    def _to_engine(self, agent: SteppedAgent, engine: SteppedEngine, message: m.Message | Assignment) -> None:
        if isinstance(message, Assignment):
            assert engine.environment in (None, message.environment), "an engine was given another environment"
            assert all(task[5] in (None, _identity(message.environment)) for task in message.tasks)
            engine.environment = message.environment
            engine.recycling = message.recycling
            if message.allotment is not None:
                engine.holding = message.tasks[0][:2], message.allotment
            mixed = bool(engine.running or engine.queue) and engine.concurrent != message.concurrent
            assert not mixed, "coroutines were handed to an engine beside other runs"
            engine.concurrent = message.concurrent
            engine.queue.extend((task_id, attempt) for task_id, attempt, *_ in message.tasks)
            engine.given.update(((task[0], task[1]), task) for task in message.tasks)
            self._give_back(agent, engine)
        elif isinstance(message, m.Recall):
            back = [run for run in message.runs if run in engine.queue]
            for run in back:
                engine.queue.remove(run)
            if back:
                agent.outbox.append(m.Returned(engine.name, back))
        elif isinstance(message, m.Interrupt):
            if message.run == engine.running or message.run in engine.beside:
                engine.turn_to(message.run)
                self.end(agent, engine, "aborted")
            elif message.run in engine.queue:
                engine.queue.remove(message.run)
                agent.outbox.append(m.Returned(engine.name, [message.run]))
        elif isinstance(message, m.EngineCommand):
            names = {command.replays or (command.session, command.n) for command in engine.commands}
            if (message.replays or (message.session, message.n)) not in names:
                engine.commands.append(message)
            ok = message.body not in agent.failing and engine.frozen is None
            body = agent.answers.get(message.verb, b"")
            agent.outbox.append(m.CommandDone(engine.name, message.session, message.n, ok, body))
        elif isinstance(message, m.EnginePrepared):
            engine.prepared = True
        elif isinstance(message, TaskReply):
            engine.heard.append(message)
        elif isinstance(message, m.StopEngine):
            self.kill(agent, engine, expected=True)

    def _start_engine(self, agent: SteppedAgent, engine_id: int) -> None:
        if agent.leaving:
            agent.outbox.append(m.EngineNote(engine_id, "the agent is ending", failed_start=True))
            return
        agent.started += 1
        engine = SteppedEngine(f"{agent.session}.{agent.started}", engine_id)
        agent.engines[engine.name] = engine
        agent.outbox.append(m.EngineUp(m.EngineReport(engine.name, engine_id, 1, True, self.now.wall_s, agent.facts)))

    def begin(self, engine: SteppedEngine) -> bool:
        """Begin the next run, if the engine can."""
        if not engine.queue or (engine.running is not None and not engine.concurrent):
            return False
        run = engine.queue.popleft()
        self.begun.setdefault(run[0], []).append(run)
        if engine.running is not None:
            engine.beside[engine.running] = None
        engine.running = run
        return True

    def call(self, agent: SteppedAgent, engine: SteppedEngine, question: TaskQuestion) -> int:
        """Let the running task ask a question, and return the number of its call."""
        assert engine.running is not None
        engine.calls += 1
        agent.outbox.append(TaskCall(engine.name, engine.running, engine.calls, question))
        return engine.calls

    def end(
        self,
        agent: SteppedAgent,
        engine: SteppedEngine,
        outcome: str = "",
        run_s: float = 0.001,
        memory: int = 0,
        detail: Deferral | LostInputs | ItemsEnded | None = None,
    ) -> m.Results | None:
        """End the engine's run with this outcome."""
        if engine.running is None:
            return None
        run, failure = engine.running, FailureSummary("ValueError", "planted") if outcome else None
        ended = Ended(*run, outcome, self.now.wall_s, run_s, failure, b"body", (), memory, detail)
        task = _failed_task(ended)
        wants = engine.given[run][7] if run in engine.given else None
        if task is None or wants is None or not wants.freeze:
            return self.end_with(agent, engine, ended)
        engine.frozen = FrozenRun(run, task, "ValueError: planted", "", self.now.wall_s)
        results = self.end_with(agent, engine, msgspec.structs.replace(ended, frozen=engine.frozen))
        agent.outbox.append(m.Frozen(engine.name, engine.frozen))
        self._give_back(agent, engine)
        return results

    def _give_back(self, agent: SteppedAgent, engine: SteppedEngine) -> None:
        """Let a frozen engine return the runs that it was given behind the failed one."""
        if engine.frozen is not None and engine.queue:
            agent.outbox.append(m.Returned(engine.name, list(engine.queue), "frozen"))
            engine.queue.clear()

    def use(self, agent: SteppedAgent, engine: SteppedEngine) -> None:
        """Use a frozen engine, as the cell of a console does."""
        assert engine.frozen is not None
        engine.frozen = msgspec.structs.replace(engine.frozen, used_s=self.now.wall_s)
        agent.outbox.append(m.Frozen(engine.name, engine.frozen))

    def end_with(self, agent: SteppedAgent, engine: SteppedEngine, ended: Ended) -> m.Results:
        """End the engine's run; its agent reports it."""
        engine.running = next(iter(engine.beside), None)
        engine.beside.pop(engine.running or (-1, -1), None)
        engine.finished += 1
        engine.done[ended.task, ended.attempt] = ended
        engine.given.pop((ended.task, ended.attempt), None)
        results = m.Results(engine.name, [ended])
        agent.outbox.append(results)
        return results

    def kill(self, agent: SteppedAgent, engine: SteppedEngine, known: bool = True, expected: bool = False) -> None:
        """Kill the engine's process. Without its recorder, all its runs count as begun."""
        del agent.engines[engine.name]
        if not known:
            engine.done.clear()
        elif engine.done:
            agent.outbox.append(m.Results(engine.name, list(engine.done.values())))
        running, beside = (engine.running, tuple(engine.beside)) if known else (None, ())
        lost = m.EngineDown(engine.name, engine.id, running, known, m.Crash(9), expected, None, beside)
        agent.lost[engine.name] = lost
        agent.outbox.append(lost)

    # -- until there is no more activity

    def move(self, agent: SteppedAgent) -> None:
        """Deliver all messages. Engines do nothing."""
        while agent.inbox or agent.outbox:
            self.deliver(agent)
            self.process(agent)

    def settle(self, rounds: int = 400) -> None:
        """Deliver all messages, run all tasks, and let time pass, until everything has ended that can end."""
        for _ in range(rounds):
            for agent in list(self.agents.values()):
                self.move(agent)
                for engine in list(agent.engines.values()):
                    while engine.running or self.begin(engine):
                        self.end(agent, engine)
            if not self.busy():
                self.advance(0.5)
                if not self.busy():
                    return
            self.advance(0.05)
        raise AssertionError("the farm does not come to rest")

    def settle_start(self, agent: SteppedAgent) -> None:
        """Let wanted engines come up; nothing runs."""
        for _ in range(100):
            self.move(agent)
            if len(self.scheduler.farm.engines.by_name) >= self.scheduler.farm.lifecycle.wanted:
                return
            self.advance(0.1)
        raise AssertionError("the engines do not come up")

    def busy(self) -> bool:
        """Return whether a message is under way or a task runs."""
        return any(
            a.inbox or a.outbox or any(e.running or e.queue for e in a.engines.values()) for a in self.agents.values()
        )

    def leave_client(self, session: str = "client", said: bool = False) -> None:
        """End a client's session. `said`: it said good-bye; otherwise it was silent for too long."""
        self.handle(Gone(said), session)


def _failed_task(ended: Ended) -> int | None:
    """Return the task, or the item of a chunk, whose failure lets its engine freeze itself; None: there is none."""
    if isinstance(ended.detail, ItemsEnded):
        last = next((told for told in ended.detail.told if told.index == ended.detail.done - 1), None)
        return ended.task + 1 + last.index if last is not None and last.outcome in FREEZES else None
    return ended.task if ended.outcome in FREEZES else None


def _identity(environment: Environment | None) -> str | None:
    return environment.identity if environment is not None else None
