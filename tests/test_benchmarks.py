"""The measurements run, at a small size; what they find is for `make bench` to say."""

from __future__ import annotations

import pytest

from benchmarks import data, depend, functions, latency, maps, million, report, simulated
from benchmarks.harness import Options, Row, in_turn

TINY = Options(rounds=1, scale=0.005)


@pytest.mark.farm
@pytest.mark.parametrize("module", [functions, latency, maps, million, depend, data], ids=lambda m: m.__name__)
def test_a_measurement_gives_its_rows(module: object, farm_dirs: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (functions, data):
        monkeypatch.setattr(each, "installed", lambda name: False)  # peers take seconds to start
    rows = module.measure(TINY)  # type: ignore[attr-defined]
    assert rows
    assert all(row.figure >= 0 for row in rows)


def test_many_engines_and_classes_cost_little_more_than_few() -> None:
    """The small form of the simulated measurement: no step may look through all engines or all classes."""
    few = simulated.Simulation(20, 2)
    many = simulated.Simulation(2_000, 40)
    few.rate(2_000, 20)
    many.rate(2_000, 2_000)
    rates = in_turn({"few": lambda: few.rate(4_000, 20), "many": lambda: many.rate(4_000, 2_000)}, 3)
    assert rates["many"] > rates["few"] / 5


def test_a_verdict_knows_which_way_is_better() -> None:
    assert Row("q", "", "", 2.0, 1.3, 2.0).verdict() == "target"
    assert Row("q", "", "", 1.5, 1.3, 2.0).verdict() == "floor"
    assert Row("q", "", "", 1.0, 1.3, 2.0).verdict() == "missed"
    assert Row("q", "", "", 1.2, 1.5, 1.0, False).verdict() == "floor"
    assert "| q |" in report.table([Row("q", "1", "2", 1.0, 1.0, 1.0)])
