"""Measure the start of a farm, and the replacement of a dead engine."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import Options, Row, seconds
from ipytaskfarm import Farm


def command_s() -> float:
    """Return the duration of ``ipytaskfarm start -n 4 --daemonize``, which returns when four engines are ready."""
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        environment = {**os.environ, "JUPYTER_DATA_DIR": f"{folder}/data", "JUPYTER_RUNTIME_DIR": f"{folder}/run"}

        def run(*words: str) -> None:
            command = [sys.executable, "-m", "ipytaskfarm", *words, "--farm", "measured"]
            subprocess.run(command, env=environment, check=True, capture_output=True)

        try:
            return seconds(lambda: run("start", "-n", "4", "--daemonize"))
        finally:
            run("stop")


def measure(options: Options) -> list[Row]:
    """Measure the time until four engines are ready, and from a kill until the next engine is ready."""
    started: list[float] = []
    replaced: list[float] = []
    commanded = statistics.median(command_s() for _ in range(options.rounds))
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
    command = "`ipytaskfarm start -n 4 --daemonize`, to ready"
    return [
        Row(command, f"{commanded:.2f} s", "", commanded, 1.5, 1.0, False, "s"),
        Row("`Farm(n=4)`, to ready", f"{ready_s:.2f} s", "", ready_s, 1.5, 1.0, False, "s"),
        Row("a killed engine, to its successor's readiness", f"{again_s:.2f} s", "", again_s, 0.4, 0.2, False, "s"),
    ]
