"""The rows of the flight recorder for coroutine tasks: who is in progress, and whom to interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm.system.concurrent_runs import ROWS, ConcurrentRuns
from ipytaskfarm.system.flight_recorder import ABORT, TIME_LIMIT, Recorder


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ConcurrentRuns, ConcurrentRuns]]:
    """Provide the engine's end and the agent's end of one recorder."""
    agent = Recorder.create(tmp_path / "a.rec", engine="s.1", engine_id=0)
    engine = Recorder.open(tmp_path / "a.rec")
    yield engine.concurrent, agent.concurrent
    engine.close()
    agent.close()


def test_those_in_progress_are_read(pair: tuple[ConcurrentRuns, ConcurrentRuns]) -> None:
    engine, agent = pair
    assert agent.read() == []
    rows = [engine.begin((task, 1), deadline_ns=task) for task in range(5)]
    assert [(each.run, each.deadline_ns) for each in agent.read()] == [((task, 1), task) for task in range(5)]
    engine.end(rows[2])
    assert [each.run[0] for each in agent.read()] == [0, 1, 3, 4]
    engine.begin((9, 2))
    assert sorted(each.run for each in agent.read()) == [(0, 1), (1, 1), (3, 1), (4, 1), (9, 2)]


def test_all_rows_are_used_again(pair: tuple[ConcurrentRuns, ConcurrentRuns]) -> None:
    engine, agent = pair
    for _ in range(2):
        rows = [engine.begin((task, 1)) for task in range(ROWS)]
        with pytest.raises(IndexError, match="at most 1,024"):
            engine.begin((ROWS, 1))
        assert len(agent.read()) == ROWS
        for row in rows:
            engine.end(row)
        assert agent.read() == []


def test_a_request_is_delivered_once(pair: tuple[ConcurrentRuns, ConcurrentRuns]) -> None:
    engine, agent = pair
    rows = [engine.begin((task, 1)) for task in range(3)]
    assert engine.requests() == []
    agent.want(agent.read()[1], TIME_LIMIT)
    agent.want(agent.read()[2], ABORT)
    found = engine.requests()
    assert [(request.row, request.cause) for request in found] == [(rows[1], TIME_LIMIT), (rows[2], ABORT)]
    engine.mark_delivered(found[0])
    assert [each.delivered for each in agent.read()] == [False, True, False]
    assert [request.row for request in engine.requests()] == [rows[2]]
    agent.want(agent.read()[1], ABORT)
    assert [each.delivered for each in agent.read()] == [False, False, False]
    assert len(engine.requests()) == 2


def test_a_request_for_one_that_has_ended_hits_nobody(pair: tuple[ConcurrentRuns, ConcurrentRuns]) -> None:
    engine, agent = pair
    row = engine.begin((1, 1))
    late = agent.read()[0]
    engine.end(row)
    assert engine.begin((2, 1)) == row
    agent.want(late, ABORT)
    assert engine.requests() == []
    assert [each.delivered for each in agent.read()] == [False]
