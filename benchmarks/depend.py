"""Tasks with a depend function that suits half the engines, against tasks without."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Options, Row, farm_with_client, in_turn, seconds
from ipytaskfarm import Task


def suits(properties: dict[str, Any]) -> bool:
    """The lower half of the engines."""
    return bool(properties["id"] < properties["half"])


def measure(options: Options) -> list[Row]:
    """The same number of tasks, the same number of engines that may run them."""
    count = options.count(20_000)
    with farm_with_client(2 * options.engines) as (farm, tc), farm.multiengine_client() as mec:
        mec.set_properties({"half": options.engines})
        lower = list(range(options.engines))

        def run(**rules: Any) -> float:
            def all_of_them() -> None:
                tc.barrier([tc.run(Task("a = 1", pull="a", **rules)) for _ in range(count)])

            rate = count / seconds(all_of_them)
            tc.clear()
            return rate

        rates = in_turn({"depend": lambda: run(depend=suits), "without": lambda: run(targets=lower)}, options.rounds)
    ratio = rates["depend"] / rates["without"]
    question = f"{count:,} tasks with a depend function, against targets"
    return [Row(question, f"{rates['depend']:,.0f}/s", f"{rates['without']:,.0f}/s", ratio, 0.7, 0.8)]
