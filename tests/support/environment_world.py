"""A simulated node whose engines set up environments and run tasks one by one, on command."""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import JobSpec, Rules
from ipytaskfarm.core.requirements import Asks, Environment, Recycle
from ipytaskfarm.core.scheduler.settings import SchedulerSettings

from .simulated_farm import SimAgent, SimEngine, SimFarm, move


def env(name: str, **more: object) -> Environment:
    return Environment(identity=name, name=name, **more)  # type: ignore[arg-type]


def rules(name: str | None, recycle: Recycle | None = None, job: str | None = None, **more: object) -> Rules:
    environment = env(name) if name is not None else None
    return Rules(asks=Asks(environment=environment, recycle=recycle), job=job, **more)  # type: ignore[arg-type]


class World:
    """A node with a number of slots; its engines run tasks one by one, on command."""

    def __init__(self, slots: int, **settings: object) -> None:
        self.sim = SimFarm(SchedulerSettings(**settings))  # type: ignore[arg-type]
        self.sim.join_client()
        self.agent: SimAgent = self.sim.join_agent("agent")
        self.sim.settle()
        self.sim.ask(m.SetWanted(slots))
        self.move()
        self.next_id = self.sim.ids().first
        self.ran: list[tuple[str, int]] = []
        """(engine, task) in the order of beginning."""

    def move(self) -> None:
        for _ in range(20):
            move(self.sim, self.agent)
            self.sim.advance(0.0)
            if not self.agent.inbox and not self.agent.outbox:
                return

    def submit(self, task_rules: Rules | None, jobs: list[JobSpec] | None = None) -> int:
        self.sim.submit(self.next_id, task_rules, jobs=jobs or [])
        self.next_id += 1
        self.move()
        return self.next_id - 1

    def run(self, outcome: str = "", run_s: float = 0.1, memory: int = 0) -> list[int]:
        """Every engine that holds something runs one task; their ids."""
        ids = []
        for engine in list(self.agent.engines.values()):
            if self.sim.begin(engine):
                assert engine.running is not None
                ids.append(engine.running[0])
                self.ran.append((engine.name, engine.running[0]))
                self.sim.end(self.agent, engine, outcome, run_s, memory)
                self.move()
        return ids

    def run_all(self) -> None:
        for _ in range(10_000):
            if not self.run():
                return
        raise AssertionError("it does not end")

    @property
    def has(self) -> dict[str, str | None]:
        """Engine -> its environment."""
        return {e.name: e.environment.name if e.environment else None for e in self.agent.engines.values()}

    @property
    def environments(self) -> list[str | None]:
        return sorted(self.has.values(), key=str)

    @property
    def notes(self) -> int:
        """Return how many engines were started."""
        return self.agent.started

    def engine_of(self, name: str) -> SimEngine:
        return next(e for e in self.agent.engines.values() if e.environment and e.environment.name == name)

    def recycled(self) -> list[str]:
        return [engine.recycled for engine in self.sim.scheduler.farm.engines.by_name.values() if engine.recycled]
