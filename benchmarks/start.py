"""Starting a farm, and replacing an engine that died."""

from __future__ import annotations

import os
import signal
import statistics
import time

from benchmarks.harness import Options, Row, seconds
from ipytaskfarm import Farm


def measure(options: Options) -> list[Row]:
    """Four engines to ready; from the kill to the next engine's readiness."""
    started: list[float] = []
    replaced: list[float] = []
    for _ in range(options.rounds):
        farms: list[Farm] = []
        started.append(seconds(lambda farms=farms: farms.append(Farm(n=4))))  # type: ignore[misc]
        with farms[0] as farm, farm.multiengine_client() as mec:
            victim = mec.engines()[0]
            began_s = time.perf_counter()
            os.kill(victim.pid, signal.SIGKILL)
            while not any(
                row.id == victim.id and row.pid != victim.pid and row.state == "idle" for row in mec.engines()
            ):
                time.sleep(0.002)
            replaced.append(time.perf_counter() - began_s)
    ready_s, again_s = statistics.median(started), statistics.median(replaced)
    return [
        Row("`Farm(n=4)`, to ready", f"{ready_s:.2f} s", "", ready_s, 1.5, 1.0, False, "s"),
        Row("a killed engine, to its successor's readiness", f"{again_s:.2f} s", "", again_s, 0.4, 0.2, False, "s"),
    ]
