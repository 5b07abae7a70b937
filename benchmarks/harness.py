"""What the measurements share: rounds in turn, medians and ratios, the machine, the disk, CPU time by process."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
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
    """What a run is to be like."""

    rounds: int = 5
    scale: float = 1.0
    """Of the numbers of tasks: 1.0 as the table says, less for a quick look."""
    engines: int = 2

    def count(self, full: int, least: int = 10) -> int:
        """So many of something."""
        return max(least, int(full * self.scale))


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, and how it stands to what was hoped for."""

    question: str
    ours: str
    beside: str
    figure: float
    """The number that floor and target are about."""
    floor: float | None = None
    target: float | None = None
    """None: nothing was hoped for."""
    more_is_better: bool = True
    unit: str = "×"

    def verdict(self) -> str:
        """target, floor or missed; – where nothing was hoped for"""
        for word, bound in (("target", self.target), ("floor", self.floor)):
            if bound is None:
                return "–"
            if self.figure >= bound if self.more_is_better else self.figure <= bound:
                return word
        return "missed"

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {**asdict(self), "verdict": self.verdict()}


NOTES: list[str] = []
"""What else the run has found, for the page."""


ROUNDS: list[dict[str, list[float]]] = []
"""The figures of which `in_turn` gave the medians, in order: how far they lie apart says what a median is worth."""


def note(text: str) -> None:
    """Say it now, and on the page."""
    print(f"    {text}", flush=True)
    NOTES.append(text)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Medians of each one's figure.  One after the other, again and again: a shared machine is fast at one moment and
    slow at the next, and only figures of the same moments can be compared."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    # What the peers have imported is not to be looked through by the collector in everybody's rounds.
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, measure in contestants.items():
            found[name].append(measure())
    ROUNDS.append(found)
    return {name: statistics.median(values) for name, values in found.items()}


@contextlib.contextmanager
def farm_with_client(engines: int, **settings: Any) -> Iterator[tuple[Farm, TaskClient]]:
    """A farm whose store lies on a real disk, and a client that shows no bars."""
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
    """Where the farm's store lies."""
    blobs = tc._session.blobs
    assert blobs is not None
    return blobs.folder.parent


def file_system(folder: Path) -> str:
    """The kind of the file system that holds a folder."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda p: len(p.mountpoint), reverse=True)
    return next((p.fstype for p in mounts if folder.is_relative_to(p.mountpoint)), "unknown")


def commit_s(folder: Path, times: int = 200) -> float:
    """The median of a FULL commit of one row there."""
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
    """The farm's processes by what they call themselves, and this one, the client."""
    found = {"client": psutil.Process()}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith("ipytaskfarm ") and farm.name in words:
            found[words.partition(" --farm")[0].removeprefix("ipytaskfarm ")] = process
    return found


def cpu_s(found: dict[str, psutil.Process]) -> dict[str, float]:
    """CPU seconds of each until now."""
    return {name: sum(process.cpu_times()[:2]) for name, process in found.items()}


def machine() -> dict[str, str]:
    """What it was measured on."""
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
