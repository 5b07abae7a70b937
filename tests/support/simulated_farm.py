"""Farms with `ipytaskfarm.testing.stepped_farm`, in which a test delivers every message, with defaults
for most tests.
"""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.testing.stepped_farm import (
    SteppedAgent as SimAgent,
    SteppedEngine as SimEngine,
    SteppedFarm as SimFarm,
)

__all__ = ["SimAgent", "SimEngine", "SimFarm", "farm_with_engines", "final_of", "move", "one_engine", "run_next"]

move = SimFarm.move


def farm_with_engines(count: int, settings: SchedulerSettings | None = None) -> SimFarm:
    """Return a settled farm with a client, and an agent with this number of engines."""
    sim = SimFarm(settings)
    sim.join_client()
    sim.join_agent("agent")
    sim.ask(m.SetWanted(count))
    sim.settle()
    return sim


def one_engine(settings: SchedulerSettings | None = None) -> tuple[SimFarm, SimAgent, SimEngine]:
    """A settled farm with one engine and a client that has ids."""
    sim = farm_with_engines(1, settings)
    agent = sim.agents["agent"]
    sim.ids()
    return sim, agent, next(iter(agent.engines.values()))


def run_next(sim: SimFarm, agent: SimAgent, engine: SimEngine, outcome: str = "", run_s: float = 0.001) -> int:
    """The engine runs one task; its id."""
    assert engine.running or sim.begin(engine), "the engine has nothing to run"
    assert engine.running is not None
    task_id = engine.running[0]
    sim.end(agent, engine, outcome, run_s)
    move(sim, agent)
    return task_id


def final_of(sim: SimFarm, task_id: int) -> Final:
    """Return the end of a task from the store."""
    return sim.store.finals[task_id]
