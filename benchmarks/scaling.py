"""Compare two engines with one, beside plain processes that do the same."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness import Options, Row, farm_with_client, rounds_in_turn, seconds
from ipytaskfarm import Task

Work = tuple[Callable[..., object], tuple[Any, ...]]


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


def serve(orders: Connection) -> None:
    """Do the work that comes, in a plain process: no scheduler, no store, no results."""
    while (share := orders.recv()) is not None:
        for function, args in share:
            function(*args)
        orders.send(True)


@contextlib.contextmanager
def plain_processes(count: int) -> Iterator[Callable[[list[Work]], None]]:
    """Provide a function that divides work among plain processes in advance, and waits until it is done."""
    context = multiprocessing.get_context("spawn")  # not forked, because the farm's client has threads
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=serve, args=(theirs,), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()

    def run(work: list[Work]) -> None:
        for at, (ours, _) in enumerate(pipes):
            ours.send(work[at::count])
        for ours, _ in pipes:
            ours.recv()

    try:
        run([])
        yield run
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in processes:
            process.join()


def measure(options: Options) -> list[Row]:
    """Do the same work with one and with two engines, and with one and with two plain processes, in turn."""
    naps, upto, step = options.count(150), options.count(500_000, 5_000), 5_000
    rows = []
    with contextlib.ExitStack() as stack:
        farms = {n: stack.enter_context(farm_with_client(n))[1] for n in (1, 2)}
        plain = {n: stack.enter_context(plain_processes(n)) for n in (1, 2)}
        questions: list[tuple[str, list[Work]]] = [
            (f"{naps} tasks of 20 ms", [(spin, (0.02,))] * naps),
            (f"primes below {upto:,}", [(primes, (n, n + step)) for n in range(0, upto, step)]),
        ]
        for question, work in questions:

            def with_engines(count: int, work: list[Work] = work) -> float:
                tc = farms[count]
                return seconds(lambda: tc.barrier([tc.run(Task(function, args=args)) for function, args in work]))

            def with_processes(count: int, work: list[Work] = work) -> float:
                return seconds(lambda: plain[count](work))

            times = rounds_in_turn(
                {
                    "one engine": lambda with_engines=with_engines: with_engines(1),  # type: ignore[misc]
                    "two engines": lambda with_engines=with_engines: with_engines(2),  # type: ignore[misc]
                    "one process": lambda with_processes=with_processes: with_processes(1),  # type: ignore[misc]
                    "two processes": lambda with_processes=with_processes: with_processes(2),  # type: ignore[misc]
                },
                options.rounds,
            )
            # Of each round by itself: two rounds in which the machine has another speed say nothing of scaling.
            ours = _quotients(times["one engine"], times["two engines"])
            theirs = _quotients(times["one process"], times["two processes"])
            ratio = statistics.median(_quotients(ours, theirs))
            text = f"two engines against one, {question}, beside plain processes"
            shown = f"{statistics.median(ours):.2f} ×", f"{statistics.median(theirs):.2f} ×"
            rows.append(Row(text, *shown, ratio, 0.97, 0.99))
    return rows


def _quotients(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
