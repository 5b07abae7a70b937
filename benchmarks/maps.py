"""Measure maps of many calls that do nothing."""

from __future__ import annotations

import multiprocessing

from benchmarks.harness import Options, Row, farm_with_client, in_turn, seconds
from benchmarks.peers import nothing


def measure(options: Options) -> list[Row]:
    """Compare `tc.map` with `Pool.map`, both in chunks."""
    count = options.count(2_000_000)
    expected = list(range(count))
    with (
        multiprocessing.get_context("spawn").Pool(options.engines) as pool,
        farm_with_client(options.engines) as (_, tc),
    ):

        def ours() -> float:
            found: list[int] = []
            taken_s = seconds(lambda: found.extend(tc.map(nothing, range(count))))
            assert found == expected
            return count / taken_s

        tc.map(nothing, range(1_000))
        pool.map(nothing, range(1_000))
        rates = in_turn(
            {"farm": ours, "Pool": lambda: count / seconds(lambda: pool.map(nothing, range(count)))}, options.rounds
        )
    ratio = rates["farm"] / rates["Pool"]
    return [
        Row(
            f"map over {count:,}, against Pool.map",
            f"{rates['farm']:,.0f}/s",
            f"{rates['Pool']:,.0f}/s",
            ratio,
            0.3,
            0.5,
        )
    ]
