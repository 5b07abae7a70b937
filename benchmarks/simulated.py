"""Measure the scheduler alone, without processes, sockets or disks, in tasks per second of CPU time."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Iterator

from benchmarks.harness import Options, Row
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Ended, Rules, Submission
from ipytaskfarm.core.scheduler.decision import Now
from ipytaskfarm.core.scheduler.events import Joined
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.scheduler.state import SchedulerState
from ipytaskfarm.system.process import spare_the_collector

BATCH = 250


class Simulation:
    """Agents and engines that answer each hand-out at once."""

    def __init__(self, engines: int, agents: int) -> None:
        self.farm = SchedulerState("simulated", "incarnation", SchedulerSettings(), 1)
        self.farm.lifecycle.wanted = engines
        self.scheduler = Scheduler(self.farm)
        self.now = Now(0.0, 1_000_000.0)
        self.done = 0
        self.ids: list[m.IdBlock] = []
        self.handle("client", Joined("client", "client"))
        per_agent = engines // agents
        for a in range(agents):
            session = f"a{a}"
            self.handle(session, Joined("agent", session))
            reports = [
                m.EngineReport(
                    f"{session}.{e}", a * per_agent + e, 1, True, 0.0, {"id": a * per_agent + e}, prepared=True
                )
                for e in range(per_agent)
            ]
            self.handle(session, m.AgentState(session, 1, per_agent, 2**30, "linux", "3", reports, per_agent))

    def handle(self, session: str, event: object) -> None:
        """Handle an event, and the answers of engines to its effects."""
        waiting: list[tuple[str, object]] = [(session, event)]
        while waiting:
            out = self.scheduler.turn(waiting, self.now)  # type: ignore[arg-type]
            self.now = Now(self.now.mono_s + 0.001, self.now.wall_s + 0.001)
            waiting = []
            for assignment in out.assignments:
                ended = [Ended(task[0], task[1], "", self.now.wall_s, 0.001) for task in assignment.tasks]
                waiting.append((assignment.agent, m.Results(assignment.engine, ended)))
                self.done += len(ended)
            for receiver, message in out.sends:
                if receiver == "client" and isinstance(message, m.IdBlock):
                    self.ids.append(message)

    def take_ids(self, count: int) -> range:
        """Return ids in order, from one block that is large enough."""
        while True:
            self.handle("client", m.NeedIds())
            block = self.ids.pop()
            if block.last - block.first + 1 >= count:
                return range(block.first, block.first + count)

    def rate(self, count: int, classes: int) -> float:
        """Return the tasks per CPU second; classes: the number of different rules among the tasks."""
        ids = self.take_ids(count)
        rules = [None] if classes == 1 else [Rules(targets=(n,)) for n in range(classes)]
        batches = [
            m.Submit([Submission(i, b"work", 0.0, None, rules[i % len(rules)]) for i in ids[at : at + BATCH]])
            for at in range(0, count, BATCH)
        ]
        gc.collect()
        began = self.done
        began_s = time.process_time()
        for batch in batches:
            self.handle("client", batch)
        taken_s = time.process_time() - began_s
        assert self.done - began == count, (self.done - began, count)
        return count / taken_s


@contextlib.contextmanager
def collecting_like_a_controller() -> Iterator[None]:
    """Collect garbage as seldom as the controller does."""
    before = gc.get_threshold()
    spare_the_collector()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def measure(options: Options) -> list[Row]:
    """Measure two engines, and ten thousand engines of two hundred agents with as many task classes."""
    count = options.count(30_000, 2_000)
    many = options.count(10_000, 200)
    small = Simulation(2, 1)
    large = Simulation(many, max(1, many // 50))
    small.rate(min(count, 2_000), 1)
    few_rates, many_rates = [], []
    with collecting_like_a_controller():
        for _ in range(options.rounds):
            few_rates.append(small.rate(count, 1))
            many_rates.append(large.rate(count, many))
    few_rate, many_rate = statistics.median(few_rates), statistics.median(many_rates)
    question = f"scheduler alone, {many:,} engines and classes, against 2"
    return [
        Row("scheduler alone, 2 engines", f"{few_rate:,.0f}/s", "", few_rate / 1000, 80.0, 120.0, True, "thousand/s"),
        Row(question, f"{many_rate:,.0f}/s", f"{few_rate:,.0f}/s", many_rate / few_rate, 0.4, 0.6),
    ]
