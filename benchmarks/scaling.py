"""Compare two engines with one."""

from __future__ import annotations

from benchmarks.harness import Options, Row, farm_with_client, in_turn, seconds
from ipytaskfarm import Task


def spin(seconds_of_cpu: float) -> int:
    """Use the processor for this time."""
    import time

    until = time.process_time() + seconds_of_cpu
    n = 0
    while time.process_time() < until:
        n += 1
    return n


def primes(first: int, last: int) -> int:
    """Count the primes in a range, by a simple algorithm."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, first), last))


def measure(options: Options) -> list[Row]:
    """Run the same tasks on farms of one and of two engines, in turn."""
    naps, upto, step = options.count(150), options.count(500_000, 5_000), 5_000
    with farm_with_client(1) as (_, one), farm_with_client(2) as (_, two):
        rows = []
        for question, tasks in (
            (f"{naps} tasks of 20 ms", [Task(spin, args=(0.02,)) for _ in range(naps)]),
            (f"primes below {upto:,}", [Task(primes, args=(n, n + step)) for n in range(0, upto, step)]),
        ):
            times = in_turn(
                {
                    name: lambda tc=tc, tasks=tasks: seconds(lambda: tc.barrier([tc.run(task) for task in tasks]))  # type: ignore[misc]
                    for name, tc in (("one", one), ("two", two))
                },
                options.rounds,
            )
            ratio = times["one"] / times["two"]
            rows.append(
                Row(
                    f"two engines against one: {question}",
                    f"{times['two']:.2f} s",
                    f"{times['one']:.2f} s",
                    ratio,
                    1.8,
                    1.9,
                )
            )
    return rows
