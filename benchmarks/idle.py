"""Measure a farm of four engines without tasks."""

from __future__ import annotations

import time

from benchmarks.harness import Options, Row, cpu_s, farm_with_client, processes


def measure(options: Options) -> list[Row]:
    """Measure the CPU time of all its processes, and their private memory."""
    with farm_with_client(4) as (farm, _):
        time.sleep(2.0)
        found = {name: process for name, process in processes(farm).items() if name != "client"}
        before, began_s = cpu_s(found), time.monotonic()
        time.sleep(max(2.0, 20.0 * options.scale))
        spent = sum(after - before[name] for name, after in cpu_s(found).items())
        share = 100 * spent / (time.monotonic() - began_s)
        memory = {name: process.memory_full_info() for name, process in found.items()}
    engine = max(info.uss for name, info in memory.items() if name.startswith("engine")) / 2**20
    controller = memory["controller"].rss / 2**20
    return [
        Row("idle farm of 4 engines: CPU in all", f"{share:.2f} % of a core", "", share, 1.5, 0.5, False, "%"),
        Row("… controller's memory (RSS)", f"{controller:.0f} MiB", "", controller, 80.0, 60.0, False, "MiB"),
        Row("… an engine's own memory (USS)", f"{engine:.0f} MiB", "", engine, 30.0, 18.0, False, "MiB"),
    ]
