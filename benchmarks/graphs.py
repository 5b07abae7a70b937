"""Measure graphs: layers of tasks with joins against the same tasks without edges; and graphs with many edges."""

from __future__ import annotations

import time

from benchmarks.harness import Options, Row, farm_with_client, in_turn
from benchmarks.peers import nothing
from ipytaskfarm import Join, Task, TaskClient

WIDTH = 100


def measure(options: Options) -> list[Row]:
    """Measure the tasks per second of a loop that submits 1,000 layers of 100 tasks."""
    layers, links = options.count(1000), options.count(500)
    with farm_with_client(options.engines) as (_, tc):

        def independent() -> float:
            began_s = time.perf_counter()
            tc.barrier([tc.run(Task(nothing, args=(n,))) for n in range(layers * WIDTH)])
            return _rate(tc, layers, began_s)

        def layered() -> float:
            began_s = time.perf_counter()
            join = None
            for _ in range(layers):
                after = () if join is None else join
                join = tc.run(Join(after=[tc.run(Task(nothing, args=(n,), after=after)) for n in range(WIDTH)]))
            assert join is not None
            tc.barrier(join)
            return _rate(tc, layers, began_s)

        rates = in_turn({"graph": layered, "independent": independent}, options.rounds)
        edges_s = _bipartite(tc)
        link_s = in_turn({"chain": lambda: _link_s(tc, links)}, options.rounds)["chain"]
    ratio = rates["graph"] / rates["independent"]
    return [
        Row(
            f"{layers:,} layers of {WIDTH} through joins, against as many without edges",
            f"{rates['graph']:,.0f}/s", f"{rates['independent']:,.0f}/s", ratio, 0.8, 0.8,
        ),
        Row("500 tasks each after each of 500 others: 250,000 edges", f"{edges_s:.2f} s", "–", edges_s, unit=" s"),
        Row(
            f"a chain of {links} tasks, per link", f"{link_s * 1e3:.2f} ms", "–", link_s * 1e3, 0.6, 0.6, False, "ms",
        ),
    ]  # fmt: skip


def _rate(tc: TaskClient, layers: int, began_s: float) -> float:
    rate = layers * WIDTH / (time.perf_counter() - began_s)
    tc.clear()
    return rate


def _link_s(tc: TaskClient, links: int) -> float:
    """Return the seconds for each task of a chain, from its submission to its end."""
    began_s = time.perf_counter()
    last = tc.run(Task(nothing, args=(0,)))
    for n in range(1, links):
        last = tc.run(Task(nothing, args=(n,), after=last))
    tc.barrier(last)
    return (time.perf_counter() - began_s) / links


def _bipartite(tc: TaskClient) -> float:
    """Return the seconds from the submission of the first task to the end of the last one."""
    began_s = time.perf_counter()
    first = [tc.run(Task(nothing, args=(n,))) for n in range(500)]
    tc.barrier([tc.run(Task(nothing, args=(n,), after=first)) for n in range(500)])
    return time.perf_counter() - began_s
