"""The scheduler under everything that can happen to it, in any order: Hypothesis looks for an order that breaks it.

`Scheduler.check` runs after each event, `MemoryStore` refuses double ends, and at the end of each run the world heals
and every task that some engine can serve must come to its end.
"""

from __future__ import annotations

import os

import msgspec
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.explain import explain
from ipytaskfarm.core.messages.engine_commands import CHECKPOINT, SavedCheckpoint
from ipytaskfarm.core.messages.result_cache import MODES, CacheKey
from ipytaskfarm.core.messages.running_task import Await, Children, Post, ProgressReport, Receive, Spawn, TaskQuestion
from ipytaskfarm.core.messages.task_types import (
    Deferral,
    FailureSummary,
    ItemEnd,
    ItemsEnded,
    JobSpec,
    LostInputs,
    Needs,
    Rules,
    RunKey,
    Submission,
)
from ipytaskfarm.core.scheduler.decision import Decision
from ipytaskfarm.core.scheduler.events import Back, Event, Gone, Silent
from ipytaskfarm.core.scheduler.kept_engines import KEPT_S
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.scheduler.task import DEFAULT_RULES
from ipytaskfarm.core.states import DEFERS, LOSES_INPUTS, State

from ..support.simulated_farm import SimAgent, SimEngine, SimFarm
from ..support.task_rules import PLAIN_COROUTINE, RULES

VERBS = ["push", "push", "execute", "reset", CHECKPOINT, "properties"]
ANSWERS = {CHECKPOINT: msgspec.msgpack.encode(SavedCheckpoint(b"session", {}, 1, {"lock": "a lock"}))}


class WatchedFarm(SimFarm):
    """Checks after each event that no more engines are kept than were additional during nested waits shortly before."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.lent: list[tuple[float, dict[str, int]]] = []
        super().__init__(settings)

    def handle(self, event: Event, session: str = "") -> Decision:
        self.lent.append((self.now.mono_s, dict(self.scheduler.farm.nested_waits.lent_slots)))
        out = super().handle(event, session)
        farm = self.scheduler.farm
        self.lent.append((self.now.mono_s, dict(farm.nested_waits.lent_slots)))
        self.lent = [entry for entry in self.lent if entry[0] >= self.now.mono_s - KEPT_S - 1]
        for session_, places in farm.nested_waits.kept_places.items():
            most = max(lent.get(session_, 0) for _, lent in self.lent)
            assert len(places) + farm.nested_waits.lent_slots.get(session_, 0) <= most, f"{session_} keeps too many"
        for assignment in out.assignments:
            assert not farm.engines.by_name[assignment.engine].kept, "a kept engine got a task"
        return out


class FarmMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sim = WatchedFarm(
            SchedulerSettings(
                lease_s=50.0, lease_margin_s=5.0, load_limit=0.9, coroutines=3, frozen_s=20.0, second_copy_after=1.5,
                second_copy_least=1, second_copies_on="any engine", second_copy_share=0.5,
            )
        )  # fmt: skip
        self.block = m.IdBlock(0, -1)
        self.next_id = 0
        self.agent_count = 0
        self.marks = 0
        self.placed = 0
        self.commands = 0
        self.old: list[tuple[str, m.Results]] = []
        self.submitted: dict[int, Rules | None] = {}
        """The rules of tasks and of items of maps, by the ids that users see."""
        self.chunks: dict[int, tuple[int, Rules | None]] = {}
        """Chunk -> (number of its items, their rules)."""
        self.vague: set[int] = set()
        """Tasks of which a hand-out's fate was unknown to the controller: those may have run twice only with budget."""

    @initialize()
    def begin(self) -> None:
        self.sim.join_client()
        self.add_agent()
        self.sim.ask(m.SetWanted(2))

    # -- choosing

    def agent(self, data: st.DataObject) -> SimAgent:
        return self.sim.agents[data.draw(st.sampled_from(sorted(self.sim.agents)))]

    def engine(self, data: st.DataObject) -> tuple[SimAgent, SimEngine] | None:
        agent = self.agent(data)
        if not agent.engines:
            return None
        return agent, agent.engines[data.draw(st.sampled_from(sorted(agent.engines)))]

    def some_id(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, max(0, self.next_id)))

    # -- the client

    @rule(rules=RULES, count=st.integers(1, 4))
    def submit(self, rules: Rules | None, count: int) -> None:
        self.send_tasks(rules, count, None)

    @precondition(lambda self: self.submitted)
    @rule(
        data=st.data(), rules=RULES, count=st.integers(1, 3), join=st.booleans(), takes=st.booleans(),
        if_failed=st.sampled_from(["fail", "skip", "run"]),
    )  # fmt: skip
    def submit_after(
        self, data: st.DataObject, rules: Rules | None, count: int, join: bool, takes: bool, if_failed: str
    ) -> None:
        recent = sorted(self.submitted)[-8:]
        after = tuple(data.draw(st.lists(st.sampled_from(recent), min_size=1, max_size=3, unique=True)))
        inputs = ((after[0], after[0]),) if takes and not join else ()
        self.send_tasks(rules, count, Needs(after=after, inputs=inputs, if_failed=if_failed, join=join))

    @rule(data=st.data(), rules=RULES, items=st.integers(2, 5), waits=st.booleans())
    def submit_map(self, data: st.DataObject, rules: Rules | None, items: int, waits: bool) -> None:
        """Submit a chunk of a map, whose items may wait for an earlier task or item."""
        recent = sorted(self.submitted)[-8:]
        needs = Needs(after=(data.draw(st.sampled_from(recent)),)) if waits and recent else None
        self.send_tasks(rules, 1, needs, items)

    @rule(data=st.data(), rules=RULES, key=st.sampled_from("ab"), mode=st.sampled_from(MODES), takes=st.booleans())
    def submit_cached(self, data: st.DataObject, rules: Rules | None, key: str, mode: str, takes: bool) -> None:
        recent = sorted(self.submitted)[-6:]
        needs = None
        if takes and recent:
            source = data.draw(st.sampled_from(recent))
            needs = Needs(after=(source,), inputs=((source, source),))
        self.send_tasks(rules, 1, needs, 0, CacheKey(key, "f", "recipe", (), mode))

    def send_tasks(
        self, rules: Rules | None, count: int, needs: Needs | None, items: int = 0, cache: CacheKey | None = None
    ) -> None:
        for _ in range(count):
            if self.next_id + items > self.block.last:
                self.block = self.sim.ids()
                self.next_id = self.block.first
            if items:
                self.chunks[self.next_id] = items, rules
                self.submitted.update((self.next_id + 1 + index, rules) for index in range(items))
            else:
                self.submitted[self.next_id] = rules
            name = rules.job if rules is not None else None
            jobs = [JobSpec(name, name, 3, abort_on_failure=name == "k")] if name is not None else []
            self.sim.submit(self.next_id, rules, jobs=jobs, needs=needs, items=items, cache=cache)
            self.next_id += 1 + items

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted({*self.submitted, *self.chunks})))
        items, rules = self.chunks.get(task_id, (0, self.submitted.get(task_id)))
        self.sim.submit(task_id, rules, items=items)

    @rule(data=st.data(), interrupt=st.booleans(), running=st.booleans())
    def abort(self, data: st.DataObject, interrupt: bool, running: bool) -> None:
        task_id = self.some_id(data)
        tasks = self.sim.scheduler.farm.tasks
        task = tasks.unfinished.get(tasks.holder(task_id))
        runs = task is not None and task.state is State.PENDING
        reply = self.sim.ask(m.AbortTasks([task_id], interrupt, running=running))
        assert not (runs and reply != m.Aborted([(task_id, "aborted" if running else "running")]))

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        self.sim.ask(m.Clear([self.some_id(data)]))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        reply = self.sim.ask(m.RetryTasks([self.some_id(data)]))
        if isinstance(reply, m.Retried):
            for old, new in reply.ids:
                self.submitted[new] = self.sim.store.tasks[new].rules
                assert self.sim.store.tasks[new].rules.retry_of == old  # type: ignore[union-attr]

    @rule(data=st.data(), well=st.booleans())
    def mark(self, data: st.DataObject, well: bool) -> None:
        task_id = self.some_id(data)
        self.sim.ask(m.MarkTasksDone(task_id, b"body") if well else m.MarkTasksFailed(task_id, "planted"))

    @rule(on=st.booleans(), job=st.sampled_from(["j", "k"]))
    def pause(self, on: bool, job: str) -> None:
        self.sim.ask(m.PauseJobs([job], on))

    @rule(data=st.data(), priority=st.integers(-2, 2), job=st.sampled_from([None, None, "j", "k"]))
    def set_priority(self, data: st.DataObject, priority: int, job: str | None) -> None:
        """A repeated question has the same answer, and changes nothing."""
        ids = [self.some_id(data), self.some_id(data)]
        question = m.SetPriority(ids, priority) if job is None else m.SetJobPriority(job, priority)
        reply = self.sim.ask(question)
        changed = len(self.sim.store.priorities)
        assert self.sim.ask(question) == reply
        assert len(self.sim.store.priorities) == changed

    @rule(on=st.booleans())
    def drain(self, on: bool) -> None:
        self.sim.ask(m.DrainNode(["node"], on))

    @rule(data=st.data(), count=st.integers(1, 3))
    def write(self, data: st.DataObject, count: int) -> None:
        self.marks += 1
        self.sim.ask(m.SendToTask(self.some_id(data), [b"letter"] * count, f"client:{self.marks}"))

    @rule(data=st.data(), after=st.integers(0, 2))
    def read(self, data: st.DataObject, after: int) -> None:
        self.sim.handle(m.AskQuestion(3, m.ReadTaskMessages(self.some_id(data), after)), "client")
        self.sim.ask(m.ProgressOf([self.some_id(data)]))

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        task_id = self.some_id(data)
        self.sim.ask(m.ExplainTasks(task_id)) if task_id in self.sim.scheduler.farm.tasks.unfinished else None
        self.sim.ask(m.WatchTasks([task_id]), "other")
        self.sim.ask(m.QueueStatus(True))
        self.sim.handle(m.AskQuestion(1, m.ListTasks(state="unfinished")), "other")

    @rule(on=st.booleans())
    def hold(self, on: bool) -> None:
        self.sim.ask(m.HoldFarm(on))

    @rule(verdict=st.sampled_from([True, False, None]))
    def spin(self, verdict: bool | None) -> None:
        self.sim.verdict = verdict
        self.sim.ask(m.SpinFarm())

    @rule(count=st.integers(0, 3))
    def want(self, count: int) -> None:
        self.sim.ask(m.SetWanted(count))

    # -- agents and engines

    @precondition(lambda self: self.agent_count < 3)
    @rule()
    def add_agent(self) -> None:
        self.agent_count += 1
        self.sim.join_agent(f"agent{self.agent_count}", resources={"gpu": 1.0}, gpus=("0",), answers=ANSWERS)

    @precondition(lambda self: len(self.sim.agents) < 4)
    @rule(brings=st.integers(0, 2), time_left_s=st.sampled_from([None, 3.0, 60.0]))
    def place_agent(self, brings: int, time_left_s: float | None) -> None:
        """A launcher does: it brings engines, and its time may be limited."""
        self.placed += 1
        ends_s = None if time_left_s is None else self.sim.now.mono_s + time_left_s
        self.sim.join_agent(
            f"placed{self.placed}",
            name=f"slurm-1.{self.placed}",
            brings=brings,
            ends_s=ends_s,
            answers=ANSWERS,
            resources={"gpu": 1.0},
            gpus=("0",),
        )

    def placed_one(self, data: st.DataObject) -> SimAgent | None:
        names = sorted(session for session, agent in self.sim.agents.items() if agent.name)
        return self.sim.agents[data.draw(st.sampled_from(names))] if names else None

    @rule(data=st.data(), within_s=st.sampled_from([0.0, 2.0, 30.0]))
    def tell_to_end(self, data: st.DataObject, within_s: float) -> None:
        agent = self.placed_one(data)
        if agent is not None:
            self.sim.tell_to_end(agent, within_s)

    @rule(data=st.data(), within_s=st.sampled_from([None, 0.0, 2.0]))
    def send_away(self, data: st.DataObject, within_s: float | None) -> None:
        agent = self.placed_one(data)
        if agent is not None:
            self.sim.ask(m.RemoveAgents([agent.name], within_s))

    @rule(data=st.data(), known=st.booleans())
    def lose_agent(self, data: st.DataObject, known: bool) -> None:
        """Lose an agent with its machine; its launcher may know of it."""
        agent = self.placed_one(data)
        if agent is not None:
            self.vague.update(run[0] for engine in agent.engines.values() for run in engine.held())
            self.sim.die(agent)
            if known:
                self.sim.ask(m.AgentsEnded([agent.name], "the node failed"))

    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data: st.DataObject, count: int) -> None:
        agent = self.agent(data)
        for _ in range(count):
            self.sim.deliver(agent)

    @rule(data=st.data(), count=st.integers(1, 5))
    def process(self, data: st.DataObject, count: int) -> None:
        agent = self.agent(data)
        for _ in range(count):
            self.sim.process(agent)

    @rule(data=st.data())
    def begin_run(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found:
            self.sim.begin(found[1])

    @rule(
        data=st.data(),
        outcome=st.sampled_from(["", "", "", "error", "rejected", "time limit", "aborted"]),
        run_s=st.sampled_from([0.0001, 0.005, 1.0]),
    )
    def end_run(self, data: st.DataObject, outcome: str, run_s: float) -> None:
        found = self.engine(data)
        if found:
            results = self.sim.end(*found, outcome, run_s)
            if results is not None:
                self.old.append((found[0].session, results))

    @rule(data=st.data(), early=st.booleans(), waits=st.booleans())
    def end_chunk(self, data: st.DataObject, early: bool, waits: bool) -> None:
        """End the run of a chunk, perhaps before its last item, or let an item wait; of some items there is news."""
        found = self.engine(data)
        if found and found[1].running is not None and (of := self.chunks.get(found[1].running[0])) is not None:
            done = data.draw(st.integers(1, of[0])) if early else of[0]
            outcomes = st.sampled_from(["", "error", "rejected", "aborted", DEFERS])
            planted, later = FailureSummary("ValueError", "planted"), Deferral(0.5, "later", b"state", 1)
            told = [
                ItemEnd(index, word, 0.001, planted if word else None, b"body", later if word == DEFERS else None)
                for index, word in sorted(data.draw(st.dictionaries(st.integers(0, done - 1), outcomes)).items())
            ]
            if waits:
                found[0].outbox.append(m.running_task.ItemsLeft(found[1].name, found[1].running, done, told))
            elif (results := self.sim.end(*found, detail=ItemsEnded(done, told))) is not None:
                self.old.append((found[0].session, results))

    @rule(data=st.data())
    def use_frozen(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found and found[1].frozen is not None:
            self.sim.use(*found)

    @rule(data=st.data(), everything=st.booleans())
    def release_frozen(self, data: st.DataObject, everything: bool) -> None:
        tasks = [engine.run.task for engine in self.sim.scheduler.farm.frozen.by_name.values()] or [0]
        self.sim.ask(m.ReleaseFrozen(None if everything else [data.draw(st.sampled_from(tasks))]))

    @rule(data=st.data())
    def turn_to_another_coroutine(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found and found[1].beside:
            found[1].turn_to(data.draw(st.sampled_from(sorted(found[1].beside))))

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.5, 4.0]))
    def defer_run(self, data: st.DataObject, seconds: float) -> None:
        found = self.engine(data)
        if found:
            results = self.sim.end(*found, DEFERS, detail=Deferral(seconds, "later", b"state", 1))
            if results is not None:
                self.old.append((found[0].session, results))

    @rule(data=st.data(), engines=st.sampled_from([(), (0,)]))
    def lose_inputs(self, data: st.DataObject, engines: tuple[int, ...]) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            saved = self.sim.store.tasks.get(found[1].running[0])
            ids = saved.needs.after if saved is not None and saved.needs is not None else (self.some_id(data),)
            results = self.sim.end(*found, LOSES_INPUTS, detail=LostInputs(ids, engines))
            assert results is not None
            self.old.append((found[0].session, results))

    @rule(data=st.data(), n=st.integers(1, 2), count=st.integers(1, 3))
    def spawn(self, data: st.DataObject, n: int, count: int) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            children = [Submission(-1 - i, b"work", 0.0) for i in range(count)]
            if count == 3:
                children[2] = Submission(-3, b"", 0.0, None, None, (), Needs(after=(-1, -2), join=True))
            self.sim.call(*found, Spawn(n, children))

    @rule(data=st.data())
    def talk(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            run = found[1].running
            said: list[TaskQuestion] = [Children(), Receive(0), Receive(1), Post(1, [b"a", b"b"])]
            self.sim.call(*found, data.draw(st.sampled_from(said)))
            found[0].outbox.append(ProgressReport(found[1].name, run, 1.0, 2.0))

    @rule(data=st.data(), nothing=st.booleans(), keeps=st.booleans())
    def await_children(self, data: st.DataObject, nothing: bool, keeps: bool) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            parent = found[1].running[0]
            children = [i for i, t in self.sim.store.tasks.items() if t.parent == parent]
            self.sim.call(*found, Await([] if nothing else children, keeps))

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        session, results = data.draw(st.sampled_from(self.old[-20:]))
        engine = self.sim.agents[session].engines.get(results.engine)
        run = (results.ended[0].task, results.ended[0].attempt)
        if engine is None or run not in engine.done:
            self.sim.handle(results, session)

    @rule(data=st.data(), known=st.booleans())
    def kill(self, data: st.DataObject, known: bool) -> None:
        found = self.engine(data)
        if found:
            if not known:
                self.vague.update(run[0] for run in found[1].held())
                # Without the recorder, results that were on their way are gone with it.
                gone = found[1].name
                found[0].outbox = type(found[0].outbox)(
                    x for x in found[0].outbox if not (isinstance(x, m.Results) and x.engine == gone)
                )
            self.sim.kill(*found, known=known)

    @rule(data=st.data())
    def silence(self, data: st.DataObject) -> None:
        self.sim.handle(Silent(), self.agent(data).session)

    @rule(data=st.data())
    def back(self, data: st.DataObject) -> None:
        self.sim.handle(Back(), self.agent(data).session)

    @rule(name=st.sampled_from(["p", "q"]), data=st.data())
    def set_properties(self, name: str, data: st.DataObject) -> None:
        found = self.engine(data)
        if found:
            farm_engine = self.sim.scheduler.farm.engines.by_name.get(found[1].name)
            version = farm_engine.version + 1 if farm_engine else 1
            found[0].outbox.append(m.PropertiesChanged(found[1].name, version, name.encode()))

    @rule(data=st.data(), load=st.sampled_from([0.0, 1.0]))
    def say_load(self, data: st.DataObject, load: float) -> None:
        self.agent(data).outbox.append(m.NodeState(load, 2**30, 2**30))

    @rule(data=st.data(), cores=st.sampled_from([0.0, 1.0, 2.0, 9.0]))
    def demand(self, data: st.DataObject, cores: float) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            found[0].outbox.append(m.ResourceRequest(found[1].name, found[1].running, 1, {"cores": cores}))

    @precondition(lambda self: self.sim.agents)
    @rule(data=st.data())
    def fail_setup(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found and found[1].environment is not None and found[1].running is not None:
            self.sim.end(*found, "environment setup")
            found[0].outbox.append(m.SetUp(found[1].name, found[1].environment.identity, "planted"))

    @rule(
        everyone=st.booleans(), engine_id=st.integers(0, 2), verb=st.sampled_from(VERBS),
        name=st.sampled_from("ab"), opted_out=st.sampled_from([False, False, True]),
    )  # fmt: skip
    def command(self, everyone: bool, engine_id: int, verb: str, name: str, opted_out: bool) -> None:
        """Send a command of a client to engines."""
        self.commands += 1
        names = (name,) if verb in ("push", "properties") else ()
        keep = None if verb in ("reset", "checkpoint") else m.Keep(names, opted_out=opted_out)
        engines = None if everyone else [engine_id]
        body = f"{verb} {self.commands}".encode()
        self.sim.handle(m.SendCommand(self.commands, engines, verb, body, verb, keep), "client")

    @rule()
    def crash_controller(self) -> None:
        self.sim.crash()
        self.sim.join_client()

    @rule()
    def forget_client(self) -> None:
        self.sim.handle(Gone(), "other")

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.5, 3.0, 6.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.sim.advance(seconds)

    # -- what must hold

    @invariant()
    def kept_commands_are_in_the_store(self) -> None:
        kept = self.sim.scheduler.farm.requests.kept
        store = self.sim.store
        assert {(i, n) for i, each in kept.items() for n in each.commands} == {
            key for key, place in store.kept_on.items() if not place.why
        }
        assert {n for each in kept.values() for n in each.commands} == store.kept.keys()

    @invariant()
    def replacements_do_each_command_again_once_and_in_order(self) -> None:
        for agent in self.sim.agents.values():
            for engine in agent.engines.values():
                again = [-command.n for command in engine.commands if command.n < 0]
                assert len(set(again)) == len(again), "a command was done again twice"
                first = next((k for k, c in enumerate(engine.commands) if c.session), len(engine.commands))
                before = [-command.n for command in engine.commands[:first] if command.n < 0]
                assert before == sorted(before), "commands were done again out of order"

    @invariant()
    def priorities_are_on_disk(self) -> None:
        for task in self.sim.scheduler.farm.tasks.unfinished.values():
            stored = self.sim.store.tasks[task.id].rules
            for _ in range(task.past.recovery):
                stored = stored.recovery.rules if stored and stored.recovery else None
            assert (stored or DEFAULT_RULES) == (task.rules or DEFAULT_RULES), f"task {task.id} is another on disk"
            assert task.key == -(task.rules or DEFAULT_RULES).priority

    @invariant()
    def every_item_is_counted_once(self) -> None:
        """Each item that was accepted and not cleared is in one state, under its own id."""
        tasks = self.sim.scheduler.farm.tasks
        for chunk, (items, _) in self.chunks.items():
            ids = range(chunk + 1, chunk + 1 + items)
            shown = {i for i in ids if tasks.state_of(i) is not None}
            if chunk in tasks.unfinished:
                known = shown | (self.sim.store.cleared & set(ids))
                assert known == set(ids), f"of the items of chunk {chunk} only {known} are known"
            assert chunk in tasks.refusals or tasks.state_of(chunk) is None, f"people see chunk {chunk} itself"

    @invariant()
    def no_repeat_without_budget(self) -> None:
        """A task without budget for losses began at most once per answer that allowed another run."""
        for task_id, runs in self.sim.begun.items():
            assert len(set(runs)) == len(runs), f"run {runs} began twice"
            rules = self.submitted.get(task_id)
            if rules in (None, PLAIN_COROUTINE) and task_id not in self.vague:
                if task_id in self.sim.store.cleared:
                    continue
                rejected = len({r for r in runs if self._was(task_id, r, "rejected")})
                history = self.sim.store.history.get(task_id, [])
                again = sum(
                    1 for row in history if row.outcome in (DEFERS, LOSES_INPUTS) or row.outcome.startswith("marked")
                )
                assert len(runs) <= 1 + rejected + again, f"task {task_id} without retries began {len(runs)} times"

    def _was(self, task_id: int, run: RunKey, outcome: str) -> bool:
        return any(
            e.outcome == outcome
            for _, r in self.old
            for e in r.ended
            if (e.task, e.attempt) == run and e.task == task_id
        )

    def teardown(self) -> None:
        if not self.sim.agents:
            return
        sim = self.sim
        for agent in sim.agents.values():
            sim.handle(Back(), agent.session)
            if agent.ends_s is not None:  # its time is over at last: what waits for its engines gets others
                sim.tell_to_end(agent, 1.0)
            agent.outbox.append(m.NodeState(0.0, 2**30, 2**30))
        sim.verdict = True
        sim.ask(m.HoldFarm(False))
        sim.ask(m.DrainNode(["node"], False))
        for job in list(sim.scheduler.farm.jobs.by_id):
            sim.ask(m.PauseJobs([job], False))
        sim.ask(m.SetWanted(0))
        sim.settle()
        sim.advance(70.0)
        # Ids are given again from 0 on, so targets exist again.
        sim.ask(m.SetWanted(3))
        sim.settle()
        sim.ask(m.SpinFarm())
        sim.settle()
        left = {i: t.place for i, t in sim.scheduler.farm.tasks.unfinished.items()}
        why = {i: explain(sim.scheduler.farm, sim.scheduler.farm.tasks.unfinished[i], sim.now) for i in list(left)[:3]}
        assert not left, f"tasks wait for ever: {left}; {why}"
        sim.ask(m.StopFarm(0.0))
        sim.settle()
        for agent in sim.agents.values():
            sim.handle(Gone(), agent.session)
        sim.advance(20.0)
        assert sim.finished, "the farm does not stop"


TestFarmMachine = FarmMachine.TestCase
TestFarmMachine.settings = settings(
    max_examples=int(os.environ.get("MACHINE_EXAMPLES", "150")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
