"""The report of an agent with many engines and full queues is one message that the controller accepts."""

from __future__ import annotations

import msgspec
import pytest

from ipytaskfarm.agent.engines import REPORTED_VALUES
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import decode_runs, encode_runs
from ipytaskfarm.core.requirements import Environment
from ipytaskfarm.core.validation import ENGINES_MAX
from ipytaskfarm.transport.message_parts import split

FACTS = {f"fact{n}": n for n in range(16)}


def state_of(engines: int, runs: int, plain: int = 0) -> m.AgentState:
    """Return the report of an agent with so many engines, each with so many runs and plain properties."""
    reports = [
        m.EngineReport(
            f"agent:0123456789abcdef.{n}", n, 1000 + n, True, 1e9, FACTS,
            encode_runs([(n * runs + i, 1) for i in range(runs)]),
            m.PropertiesChanged(f"agent:0123456789abcdef.{n}", 1, b"", {f"p{i}": i for i in range(plain)}),
            "/run/user/1000/ipytaskfarm/many/agent-0/kernel.json", True, 10**6,
            Environment(identity="e" * 64, name="lab"), True,
        )
        for n in range(engines)
    ]  # fmt: skip
    return m.AgentState("node", 1, 64, 2**38, "linux", "3.11", reports)


@pytest.mark.parametrize(("engines", "runs", "plain"), [(200, 4000, 0), (ENGINES_MAX, 10, REPORTED_VALUES)])
def test_the_controller_reads_it(engines: int, runs: int, plain: int) -> None:
    (read,) = split("agent", msgspec.msgpack.encode([state_of(engines, runs, plain)]))
    assert len(read.engines) == engines
    assert decode_runs(read.engines[-1].held)[-1] == (engines * runs - 1, 1)
