"""Fill a farm with tasks of many kinds; an earlier version made ``tests/data/stored`` with it.

The steps: ``ipytaskfarm start --farm old -n 2 --daemonize --record events.log``, then ``python -m
tests.support.stored_farm OUT``, then ``ipytaskfarm stop --farm old``; then the farm's folder and its connection file
were copied.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ipytaskfarm import MultiEngineClient, Ref, Task, TaskClient

SCALE = 3


class Point:
    """A class that travels by value."""

    def __init__(self, x: float, y: float) -> None:
        self.x, self.y = x, y

    def norm(self) -> float:
        """Return the distance from the origin."""
        return float((self.x**2 + self.y**2) ** 0.5)


def scaled(x: int) -> int:
    """A function with a global."""
    return SCALE * x


def make(x: float) -> Point:
    """Return an object of a class that is sent by value."""
    return Point(x, x + 1)


def boom(x: int) -> None:
    """A function that fails."""
    raise ValueError(f"no {x}")


def big(n: int) -> bytes:
    """Return a result that is a blob."""
    return bytes(n)


def fill(tc: TaskClient) -> dict[str, list[int]]:
    """Submit tasks that end, and tasks that wait because the farm is paused; return the ids of each kind."""
    ids: dict[str, list[int]] = {
        "strings": [tc.run(Task(f"a = {n}", pull="a")) for n in range(5)],
        "functions": [tc.run(Task(scaled, args=(n,))) for n in range(3)],
        "objects": [tc.run(Task(make, args=(2,)))],
        "failed": [tc.run(Task(boom, args=(1,)))],
        "large": [tc.run(Task(big, args=(200_000,)))],
        "pushed": [tc.run(Task("c = b + 1", push={"b": 41}, pull="c"))],
    }
    first = tc.run(Task(scaled, args=(7,)))
    ids["graph"] = [first, tc.run(Task(scaled, args=(Ref(first),)))]
    job: Any = tc.create_job("nightly", priority=2)
    for n in range(3):
        job.add_task(Task(scaled, args=(n,)))
    job.submit()
    job.wait()
    ids["job"] = list(job.ids)
    for each in ids.values():
        tc.barrier(each)
    MultiEngineClient("old").push({"placed": 5}, sticky=True)
    tc.pause()
    ids["waiting"] = [tc.run(Task(scaled, args=(n,), name=f"later-{n}", retries=2)) for n in range(4)]
    ids["waiting_graph"] = [tc.run(Task(scaled, args=(Ref(ids["waiting"][0]),)))]
    tc.flush()
    return ids


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ids.json").write_text(json.dumps(fill(TaskClient("old"))))
