"""Measure tasks with a depend function that suits half of the engines, against tasks that may run on all engines."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Options, Row, farm_with_client, in_turn, seconds
from ipytaskfarm import Task


def suits(properties: dict[str, Any]) -> bool:
    """Accept the lower half of the engines."""
    return bool(properties["id"] < properties["half"])


def measure(options: Options) -> list[Row]:
    """Measure on a farm with twice the engines, half of which are suitable."""
    count = options.count(100_000, 500)
    with farm_with_client(2 * options.engines) as (farm, tc), farm.multiengine_client() as mec:
        mec.set_properties({"half": options.engines})

        def run(**rules: Any) -> float:
            def all_of_them() -> None:
                tc.barrier([tc.run(Task("a = 1", pull="a", **rules)) for _ in range(count)])

            rate = count / seconds(all_of_them)
            tc.clear()
            return rate

        rates = in_turn({"depend": lambda: run(depend=suits), "without": run}, options.rounds)
    ratio = rates["depend"] / rates["without"]
    question = f"{count:,} tasks with a depend function, against tasks without"
    return [Row(question, f"{rates['depend']:,.0f}/s", f"{rates['without']:,.0f}/s", ratio, 0.7, 0.8)]
