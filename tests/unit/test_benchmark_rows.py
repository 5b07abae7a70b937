"""The verdicts of benchmarks: a missed floor is shown, with a target or without one."""

from __future__ import annotations

import pytest

from benchmarks.harness import Row


@pytest.mark.parametrize(
    ("figure", "floor", "target", "more_is_better", "verdict"),
    [
        (2.0, 1.0, 2.0, True, "target"),
        (1.5, 1.0, 2.0, True, "floor"),
        (0.5, 1.0, 2.0, True, "missed"),
        (0.5, 1.0, None, True, "missed"),
        (1.0, 1.0, None, True, "floor"),
        (3.0, None, 2.0, True, "target"),
        (1.0, None, None, True, "–"),
        (1.0, 3.0, 2.0, False, "target"),
        (2.5, 3.0, 2.0, False, "floor"),
        (4.0, 3.0, None, False, "missed"),
    ],
)
def test_a_figure_is_judged_by_what_is_wanted_of_it(
    figure: float, floor: float | None, target: float | None, more_is_better: bool, verdict: str
) -> None:
    assert Row("question", "ours", "theirs", figure, floor, target, more_is_better).verdict() == verdict
