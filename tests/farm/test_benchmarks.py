"""The measurements run, at a small size; what they find is for `make bench` to say."""

from __future__ import annotations

import gc
import tracemalloc
from types import ModuleType

import pytest

from benchmarks import adapters, data, depend, functions, latency, maps, million, report, scaling, simulated
from benchmarks.harness import Options, Row, in_turn
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Submission

TINY = Options(rounds=1, scale=0.005)
ROWS = {"functions": 1, "latency": 3, "maps": 1, "million": 6, "depend": 1, "data": 2, "adapters": 2, "scaling": 2}
"""How many lines each measurement has without peers."""


@pytest.mark.farm
@pytest.mark.parametrize(
    "module", [functions, latency, maps, million, depend, data, adapters, scaling], ids=lambda m: m.__name__
)
def test_a_measurement_gives_its_rows(module: ModuleType, farm_dirs: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (functions, data, adapters):
        monkeypatch.setattr(each, "installed", lambda name: False)  # peers take seconds to start
    monkeypatch.setattr(adapters, "has_libraries", lambda: False)
    rows = module.measure(TINY)
    assert len(rows) == ROWS[module.__name__.rpartition(".")[2]]
    assert all(row.figure > 0 for row in rows if row.unit != "B")  # so few tasks may need no further page


@pytest.mark.alone
def test_many_engines_and_classes_cost_little_more_than_few() -> None:
    """The small form of the simulated measurement: no step may look through all engines or all classes."""
    few = simulated.Simulation(20, 2)
    many = simulated.Simulation(2_000, 40)
    few.rate(2_000, 20)
    many.rate(2_000, 2_000)
    rates = in_turn({"few": lambda: few.rate(4_000, 20), "many": lambda: many.rate(4_000, 2_000)}, 3)
    assert rates["many"] > rates["few"] / 5


@pytest.mark.alone
def test_idle_engines_cost_those_that_work_nothing() -> None:
    """Tasks that any engine may run, a few hundred at a time: who gets them is found without looking at all."""
    few = simulated.Simulation(2_000, 40)
    many = simulated.Simulation(10_000, 200)
    rates = in_turn({"few": lambda: few.rate(6_000, 1), "many": lambda: many.rate(6_000, 1)}, 3)
    assert rates["many"] > rates["few"] / 2


def test_a_waiting_task_costs_few_bytes_and_none_of_its_payload() -> None:
    """The small form of the measurement with a million tasks: nothing grows faster than their number, and payloads are
    kept on disk alone."""

    def bytes_per_task(count: int, payload: bytes) -> float:
        simulation = simulated.Simulation(0, 1)
        ids = simulation.take_ids(count)
        gc.collect()
        tracemalloc.start()
        try:
            for at in range(0, count, simulated.BATCH):
                simulation.handle(
                    "client", m.Submit([Submission(i, payload, 0.0) for i in ids[at : at + simulated.BATCH]])
                )
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / count
        finally:
            tracemalloc.stop()

    few = bytes_per_task(2_000, b"work")
    assert 50 < few < 2_000
    assert bytes_per_task(20_000, b"work") < 1.3 * few
    assert bytes_per_task(2_000, b"work" * 1_000) < 1.3 * few


def test_a_verdict_knows_which_way_is_better() -> None:
    assert Row("q", "", "", 2.0, 1.3, 2.0).verdict() == "target"
    assert Row("q", "", "", 1.5, 1.3, 2.0).verdict() == "floor"
    assert Row("q", "", "", 1.0, 1.3, 2.0).verdict() == "missed"
    assert Row("q", "", "", 1.2, 1.5, 1.0, False).verdict() == "floor"
    assert "| q |" in report.table([Row("q", "1", "2", 1.0, 1.0, 1.0)])
