"""The scheduler under everything that can happen to it, in any order: Hypothesis looks for an order that breaks it.

`Scheduler.check` runs after each event, `SimStore` refuses double ends, and at the end of each run the world heals and
every task that some engine can serve must come to its end.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.demands import Asks, Environment, Recycle, Want
from ipytaskfarm.core.events import Back, Gone, Silent
from ipytaskfarm.core.farm import Settings
from ipytaskfarm.core.parcels import JobSpec, Recovery, Rules, RunKey

from .simulated_farm import SimAgent, SimEngine, SimFarm

ASKS = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        Asks,
        environment=st.one_of(st.none(), st.sampled_from([Environment(identity=x, name=x) for x in "AB"])),
        recycle=st.one_of(
            st.none(),
            st.builds(
                Recycle,
                after_tasks=st.one_of(st.none(), st.integers(1, 3)),
                idle_s=st.one_of(st.none(), st.just(1.0)),
                on_failure=st.booleans(),
                on_job_end=st.booleans(),
                when_unreferenced=st.booleans(),
            ),
        ),
        resources=st.one_of(st.just(()), st.just((Want("cores", 1, 2),)), st.just((Want("gpu", 1, 1),))),
        exclusive=st.sampled_from([False, False, True]),
        group=st.just("g"),
        max_parallel=st.one_of(st.none(), st.just(1)),
        max_parallel_per_node=st.one_of(st.none(), st.just(1)),
        placement=st.sampled_from([None, "random", "most_recent", "nearest_environment"]),
        locality=st.one_of(st.none(), st.just("loc")),
    ),
)

RULES = st.one_of(
    st.none(),
    st.builds(
        Rules,
        retries=st.integers(0, 2),
        lost_retries=st.one_of(st.none(), st.integers(0, 2)),
        priority=st.integers(-1, 1),
        targets=st.one_of(st.none(), st.just((0,)), st.just((0, 1))),
        depend=st.one_of(st.none(), st.none(), st.just("dep")),
        asks=ASKS,
        job=st.one_of(st.none(), st.sampled_from(["j", "k"])),
        recovery=st.one_of(
            st.none(), st.none(), st.just(Recovery(b"r", None, Rules(retries=1, recovery=Recovery(b"s"))))
        ),
    ),
)


class FarmMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sim = SimFarm(Settings(lease_s=50.0, lease_margin_s=5.0, load_limit=0.9))
        self.block = m.IdBlock(0, -1)
        self.next_id = 0
        self.agent_count = 0
        self.old: list[tuple[str, m.Results]] = []
        self.handed_in: dict[int, Rules | None] = {}
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
        for _ in range(count):
            if self.next_id > self.block.last:
                self.block = self.sim.ids()
                self.next_id = self.block.first
            self.handed_in[self.next_id] = rules
            name = rules.job if rules is not None else None
            jobs = [JobSpec(name, name, 3, abort_on_failure=name == "k")] if name is not None else []
            self.sim.submit(self.next_id, rules, jobs=jobs)
            self.next_id += 1

    @precondition(lambda self: self.handed_in)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.handed_in)))
        self.sim.submit(task_id, self.handed_in[task_id])

    @rule(data=st.data(), interrupt=st.booleans())
    def abort(self, data: st.DataObject, interrupt: bool) -> None:
        self.sim.ask(m.Abort([self.some_id(data)], interrupt))

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        self.sim.ask(m.Clear([self.some_id(data)]))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        reply = self.sim.ask(m.Retry([self.some_id(data)]))
        if isinstance(reply, m.Retried):
            for old, new in reply.ids:
                self.handed_in[new] = self.sim.store.tasks[new].rules
                assert self.sim.store.tasks[new].rules.retry_of == old  # type: ignore[union-attr]

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        task_id = self.some_id(data)
        self.sim.ask(m.Explain(task_id)) if task_id in self.sim.scheduler.farm.tasks else None
        self.sim.ask(m.Watch([task_id]), "other")
        self.sim.ask(m.QueueStatus(True))
        self.sim.handle(m.Ask(1, m.Tasks(state="unfinished")), "other")

    @rule(on=st.booleans())
    def hold(self, on: bool) -> None:
        self.sim.ask(m.Hold(on))

    @rule(verdict=st.sampled_from([True, False, None]))
    def spin(self, verdict: bool | None) -> None:
        self.sim.verdict = verdict
        self.sim.ask(m.Spin())

    @rule(count=st.integers(0, 3))
    def want(self, count: int) -> None:
        self.sim.ask(m.SetWanted(count))

    # -- agents and engines

    @precondition(lambda self: self.agent_count < 3)
    @rule()
    def add_agent(self) -> None:
        self.agent_count += 1
        self.sim.join_agent(f"agent{self.agent_count}", resources={"gpu": 1.0}, gpus=("0",))

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
            farm_engine = self.sim.scheduler.farm.engines.get(found[1].name)
            version = farm_engine.version + 1 if farm_engine else 1
            found[0].outbox.append(m.Properties(found[1].name, version, name.encode()))

    @rule(data=st.data(), load=st.sampled_from([0.0, 1.0]))
    def say_load(self, data: st.DataObject, load: float) -> None:
        self.agent(data).outbox.append(m.NodeState(load, 2**30, 2**30))

    @rule(data=st.data(), cores=st.sampled_from([0.0, 1.0, 2.0, 9.0]))
    def demand(self, data: st.DataObject, cores: float) -> None:
        found = self.engine(data)
        if found and found[1].running is not None:
            found[0].outbox.append(m.Demand(found[1].name, found[1].running, 1, {"cores": cores}))

    @precondition(lambda self: self.sim.agents)
    @rule(data=st.data())
    def fail_setup(self, data: st.DataObject) -> None:
        found = self.engine(data)
        if found and found[1].environment is not None and found[1].running is not None:
            self.sim.end(*found, "environment setup")
            found[0].outbox.append(m.SetUp(found[1].name, found[1].environment.identity, 0.0, "planted"))

    @rule()
    def crash_controller(self) -> None:
        self.sim.crash()
        self.sim.join_client()

    @rule()
    def forget_client(self) -> None:
        self.sim.handle(Gone(), "other")

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.5, 3.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.sim.advance(seconds)

    # -- what must hold

    @invariant()
    def no_repeat_without_budget(self) -> None:
        """A task without budget for losses began at most once per answer that allowed another run."""
        for task_id, runs in self.sim.begun.items():
            assert len(set(runs)) == len(runs), f"run {runs} began twice"
            rules = self.handed_in.get(task_id)
            if rules is None and task_id not in self.vague:
                rejected = len({r for r in runs if self._was(task_id, r, "rejected")})
                assert len(runs) <= 1 + rejected, f"task {task_id} without retries began {len(runs)} times"

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
            agent.outbox.append(m.NodeState(0.0, 2**30, 2**30))
        sim.verdict = True
        sim.ask(m.Hold(False))
        sim.ask(m.SetWanted(0))
        sim.settle()
        sim.advance(70.0)
        # Ids are given anew from 0 on, so targets exist again.
        sim.ask(m.SetWanted(3))
        sim.settle()
        sim.ask(m.Spin())
        sim.settle()
        left = {i: t.place for i, t in sim.scheduler.farm.tasks.items()}
        assert not left, f"tasks wait for ever: {left}; {[e.state for e in sim.scheduler.farm.engines.values()]}"
        sim.ask(m.Stop(0.0))
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
