"""The common parts of the measurements: alternating rounds, medians and ratios, the machine, the disk, CPU time by
process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import random
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from ipytaskfarm import Farm, TaskClient, __version__


@dataclass(frozen=True)
class Options:
    """The settings of a run."""

    rounds: int = 5
    scale: float = 1.0
    """Factor for the numbers of tasks: 1.0 as in the table, less for a quick look."""
    engines: int = 2

    def count(self, full: int, least: int = 10) -> int:
        """Return a number of tasks, scaled."""
        return max(least, int(full * self.scale))


@dataclass(frozen=True)
class Row:
    """One line of the table: a measurement, its figure, and the floor and the target."""

    question: str
    ours: str
    beside: str
    figure: float
    """The number to which floor and target apply."""
    floor: float | None = None
    target: float | None = None
    """The aim; None: there is none."""
    more_is_better: bool = True
    unit: str = "×"

    def verdict(self) -> str:
        """Return target, floor or missed, or – without an aim."""
        aims = [(word, bound) for word, bound in (("target", self.target), ("floor", self.floor)) if bound is not None]
        for word, bound in aims:
            if self.figure >= bound if self.more_is_better else self.figure <= bound:
                return word
        return "missed" if aims else "–"

    def as_dict(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        return {**asdict(self), "verdict": self.verdict()}


NOTES: list[str] = []
"""Additional remarks of a run, for the page."""


ROUNDS: list[dict[str, list[float]]] = []
"""The figures behind the medians of `in_turn`, in order; their spread shows how reliable a median is."""


def note(text: str) -> None:
    """Print a remark now, and keep it for the page."""
    print(f"    {text}", flush=True)
    NOTES.append(text)


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of each contestant's figure, see `rounds_in_turn`."""
    return {name: statistics.median(values) for name, values in rounds_in_turn(contestants, rounds).items()}


def rounds_in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return each contestant's figures, round by round.

    The contestants run one after the other, again and again.  A shared machine is fast at one moment and slow at the
    next, so only figures of the same moments are comparable.  Each round has another order, the same in each run of the
    benchmarks: a contestant that always ran after the same other one would be measured with what that one leaves
    behind, such as memory that the machine has at hand.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    # Otherwise the garbage collector would scan the modules that other systems have imported in every round.
    gc.collect()
    gc.freeze()
    for order in orders(list(contestants), rounds):
        for name in order:
            found[name].append(contestants[name]())
    ROUNDS.append(found)
    return found


def orders(names: list[str], rounds: int) -> list[list[str]]:
    """Return the order of the names in each round: by chance, but the same at each call."""
    chance = random.Random(rounds)
    return [chance.sample(names, len(names)) for _ in range(rounds)]


@contextlib.contextmanager
def farm_with_client(engines: int, **settings: Any) -> Iterator[tuple[Farm, TaskClient]]:
    """Provide a farm with its store on a real disk, and a client without progress bars."""
    with Farm(n=engines, **settings) as farm, farm.task_client() as tc:
        kind = file_system(store_folder(tc))
        if kind == "tmpfs":
            raise RuntimeError(
                f"the farm's store lies in memory ({store_folder(tc)}): set TMPDIR to a folder on a disk"
            )
        tc.progress = False
        if not any(text.startswith("the store lies") for text in NOTES):
            folder = store_folder(tc)
            note(f"the store lies on {kind}; a FULL commit of one row takes {commit_s(folder) * 1e3:.2f} ms there")
        yield farm, tc


def store_folder(tc: TaskClient) -> Path:
    """Return the folder of the farm's store."""
    blobs = tc._session.io.folder_of_blobs
    assert blobs is not None
    return blobs.folder.parent


def file_system(folder: Path) -> str:
    """Return the type of the file system of a folder."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda p: len(p.mountpoint), reverse=True)
    return next((p.fstype for p in mounts if folder.is_relative_to(p.mountpoint)), "unknown")


def commit_s(folder: Path, times: int = 200) -> float:
    """Return the median duration of a FULL commit of one row in a folder."""
    path = folder / "one-row.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, payload BLOB)")
        taken = [
            seconds(lambda: db.execute("INSERT INTO rows (payload) VALUES (?)", (b"x" * 100,))) for _ in range(times)
        ]
    for left in folder.glob("one-row.sqlite*"):
        left.unlink()
    return statistics.median(taken)


def processes(farm: Farm) -> dict[str, psutil.Process]:
    """Return the farm's processes by their names, and this process, the client."""
    found = {"client": psutil.Process()}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith("ipytaskfarm ") and farm.name in words:
            found[words.partition(" --farm")[0].removeprefix("ipytaskfarm ")] = process
    return found


def cpu_s(found: dict[str, psutil.Process]) -> dict[str, float]:
    """Return the CPU seconds of each process until now."""
    return {name: sum(process.cpu_times()[:2]) for name, process in found.items()}


def machine() -> dict[str, str]:
    """Return a description of the machine."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "processor": f"{os.cpu_count()} × {model}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "ipytaskfarm": __version__,
        "sqlite": f"{sqlite3.sqlite_version}, WAL, synchronous=FULL",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
