"""``ipytaskfarm demo``: shows the QuickStart of the task interface on real engines of a temporary farm."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from traitlets import Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, Command, UsageError, flag
from ipytaskfarm.core.arguments import check_count
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.settings.checks import check_engines
from ipytaskfarm.system.process import usable_cores

QUICKSTART = 1000
SHOWN = 73
"""The id of the task that the QuickStart examines."""


class Demo(Command):
    """``ipytaskfarm demo``"""

    name = "demo"
    description = """
Starts a temporary farm, runs the QuickStart of IPython's task interface on it, line by line, and shows the speed of
the tasks and which engines ran them. Then the farm is removed with all its files. With --farm it uses a running farm,
and removes the results of the demonstration from it.
"""
    examples = """
        ipytaskfarm demo -n 4
        ipytaskfarm demo --farm nightly
    """
    n = flag("N", Int(None, allow_none=True, help="the number of engines (default: the usable cores)"), "n engines")
    tasks = flag("N", Int(5000, help="how many tasks to time after the QuickStart (default: 5000)"))
    farm = flag("NAME", Unicode("", help="use this running farm"))

    def carry_out(self) -> int:
        try:
            asked = check_engines("-n", self.n)
            check_count("-n", self.n, 1)
            check_count("--tasks", self.tasks, 0)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self.farm:
            if asked is not None:
                raise UsageError("-n is for a temporary farm: not with --farm")
            return self._on_running()
        from ipytaskfarm.deployment.farm import Farm

        engines = max(1, usable_cores() if asked is None else asked)
        print(f"A temporary farm with {printing.number(engines, 'engine')}:", flush=True)
        began = time.monotonic()
        with Farm(n=engines) as farm:
            print(f"    ready after {time.monotonic() - began:.1f} s\n")
            tc = farm.task_client()
            _quickstart(tc, "of the temporary farm")
            _timing(tc, self.tasks)
            tc.close()
        print("\nThe farm is gone, and all that belonged to it.")
        return OK

    def _on_running(self) -> int:
        connect(self.farm).close()  # without a farm this prints one line
        from ipytaskfarm.client import TaskClient

        with TaskClient(self.farm) as tc:
            ids = [*_quickstart(tc, f"of the farm {self.farm!r}"), *_timing(tc, self.tasks)]
            tc.clear(ids)
        print(f"\nThe results of these {printing.number(len(ids), 'task')} are removed again.")
        return OK


class _Session:
    """Prints typed lines and their results like IPython."""

    def __init__(self) -> None:
        self._number = 0

    def typed(self, *lines: str) -> None:
        self._number += 1
        first, *rest = lines
        print(f"In [{self._number}]: {first}")
        for line in rest:
            print(f"   ...: {line}")

    def out(self, value: object) -> None:
        print(f"Out[{self._number}]: {value!r}\n")


def _quickstart(tc: Any, whose: str) -> list[int]:
    from ipytaskfarm import client

    session = _Session()
    session.typed("from ipytaskfarm import client")
    session.typed(f"tc = client.TaskClient()  # {whose}")
    session.typed("tasklist = []")
    session.typed(f"for n in range({QUICKSTART}):", '    tasklist.append(client.Task("a = %i" % n, pull="a"))')
    tasklist = [client.Task("a = %i" % n, pull="a") for n in range(QUICKSTART)]  # noqa: UP031 - as in the QuickStart
    session.typed("taskids = [tc.run(t) for t in tasklist]")
    taskids = [tc.run(task) for task in tasklist]
    session.typed("taskids[:5], taskids[-1]")
    session.out((taskids[:5], taskids[-1]))
    session.typed("tc.barrier(taskids)")
    tc.barrier(taskids)
    session.typed("task_results = [tc.get_task_result(taskid) for taskid in taskids]")
    task_results = [tc.get_task_result(taskid) for taskid in taskids]
    session.typed(f"tr = task_results[{SHOWN}]")
    tr = task_results[SHOWN]
    session.typed("tr")
    session.out(tr)
    session.typed("tr.engineid")
    session.out(tr.engineid)
    session.typed("tr.submitted, tr.completed, tr.duration")
    session.out((tr.submitted, tr.completed, tr.duration))
    session.typed("tr.results['a']")
    session.out(tr.results["a"])
    session.typed("tr.ns.a")
    session.out(tr.ns.a)
    wrong = [n for n, result in enumerate(task_results) if result.results != {"a": n}]
    if wrong:
        raise RuntimeError(f"the results of {len(wrong)} tasks are wrong, the first is {wrong[0]}")
    return list(taskids)


def _timing(tc: Any, count: int) -> list[int]:
    """Run the same again, with a clock: a plain loop of `run`, a barrier, and fetching."""
    from ipytaskfarm import client

    if count < 1:
        return []
    stages = []
    began = time.perf_counter()
    ids = [tc.run(client.Task(f"a = {n}", pull="a")) for n in range(count)]
    stages.append(("submitted", time.perf_counter() - began))
    tc.barrier(ids)
    stages.append(("finished", time.perf_counter() - began))
    results = [tc.get_task_result(task) for task in ids]
    stages.append(("fetched", time.perf_counter() - began))
    print(f"{count} more tasks, one `tc.run` each, then a barrier, then every result:")
    sys.stdout.flush()
    printing.table(
        ("", "after", "tasks/s"),
        [(what, printing.span(seconds), f"{count / seconds:,.0f}") for what, seconds in stages],
        right=(1, 2),
    )
    by_engine: dict[int, list[float]] = {}
    for result in results:
        by_engine.setdefault(result.engineid, []).append(result.duration)
    counts = Counter({engine: len(durations) for engine, durations in by_engine.items()})
    printing.table(
        ("engine", "tasks", "share", "busy"),
        [(e, n, f"{100 * n / count:.0f} %", printing.span(sum(by_engine[e]))) for e, n in sorted(counts.items())],
        right=(0, 1, 2, 3),
    )
    return ids
