"""Test the demand of a group of agents: the work of its own engines, and the tasks that wait for any engine."""

from __future__ import annotations

import pytest

from ipytaskfarm.core.messages.tables import EngineRow, FarmState
from ipytaskfarm.core.scheduler.autoscaling import AGENT_PATIENCE_S, Limits, Scaler
from ipytaskfarm.deployment.group_manager import load_of


def engine(number: int, agent: str, state: str) -> EngineRow:
    return EngineRow(number, f"{agent}:0123456789abcdef.{number}", "node", 1, state, None, 0, 0.0, {})


STATE = FarmState(
    name="farm",
    incarnation="i",
    epoch=1,
    pid=1,
    started_s=0.0,
    wanted=6,
    held=False,
    stopping=False,
    counts={},
    engines=[
        engine(0, "agent", "busy"),
        engine(1, "agent", "busy"),
        engine(2, "slurm-1.0", "busy"),
        engine(3, "slurm-1.0", "idle"),
        engine(4, "slurm-10.0", "busy"),
        engine(5, "dask-1.host", "busy"),
    ],
    agents=[],
    clients=1,
    store_bytes=0,
    waiting=0,
    waiting_s=0.0,
)


@pytest.mark.parametrize(
    ("names", "busy"),
    [
        (["agent"], 2),
        (["slurm-1.0", "slurm-1.1"], 1),
        (["slurm-10.0"], 1),
        (["dask-1"], 1),
        ([], 0),
    ],
)
def test_engines_elsewhere_keep_no_agent_of_a_group_busy(names: list[str], busy: int) -> None:
    assert load_of(STATE, names).busy == busy


def test_busy_engines_of_this_machine_call_for_no_agents() -> None:
    scaler = Scaler(Limits(0, 10), AGENT_PATIENCE_S)
    assert scaler.wanted(load_of(STATE, []), 0, 0.0) == 0
