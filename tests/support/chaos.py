"""Run a farm of real processes under a nemesis, then check the results against the tasks' own records.

Each task writes its begin and its end into a ledger.  Meanwhile the nemesis kills engines every two seconds, the
controller every ten seconds, and the agent once, and resets the farm's connections (with ``ss -K``, if allowed).  In
half of the controller's lives it takes the unix socket away, so that peers come by TCP, where resets reach them.  Then
the checker compares the ledger, the store and the client's results.

``python -m tests.support.chaos [SECONDS]`` runs batches of ten thousand tasks until the time is over.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from tests.conftest import assert_nothing_left, isolated

TASKS = 10_000
ONCE_EVERY = 5
"""Every fifth task must not be repeated: it may be run once, or be lost."""
EVERY_S = {"engine": 2.0, "controller": 10.0, "resets": 1.0, "socket": 0.1}
"""Seconds between two deeds of one kind."""
CONTROLLER_LIVES_S = 8.0
"""The least time between two kills of the controller.  Lives below restarts.WORKED_S count as one storm, in which
the supervisor waits up to 30 s, and ends a farm that has no work any more, as is its rule: that is not what is tested.
"""
AGENT_AT_S = 15.0
CODE = """
import os, time
ledger = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(ledger, b"begin {number}\\n")
time.sleep({run_s})
os.write(ledger, b"end {number}\\n")
os.close(ledger)
a = {number}
"""


@dataclass
class Evidence:
    """The records that the checker compares."""

    submitted: dict[int, int]
    """Task id -> number."""
    once: set[int]
    """Numbers of tasks that must not be repeated."""
    finals: list[tuple[int, str]]
    """(id, reason) as the store has them."""
    told: dict[int, str]
    """Id -> reason, as the client knows it."""
    values: dict[int, int]
    """Id -> the number that a succeeded task gave back."""
    begun: Counter[int] = field(default_factory=Counter)
    ended: Counter[int] = field(default_factory=Counter)


def complaints(evidence: Evidence) -> Iterator[str]:
    """Return the violations in the records; none: all is well."""
    recorded = Counter(task for task, _ in evidence.finals)
    reasons = dict(evidence.finals)
    for task, number in evidence.submitted.items():
        if recorded[task] != 1:
            yield f"task {task} ({number}) is recorded {recorded[task]} times"
            continue
        reason = reasons[task]
        if evidence.told.get(task) != reason:
            yield f"task {task} ({number}): recorded {reason!r}, its client was told {evidence.told.get(task)!r}"
        if reason == "" and evidence.values.get(task) != number:
            yield f"task {task} ({number}) gave back {evidence.values.get(task)}"
        if reason == "" and not evidence.ended[number]:
            yield f"task {task} ({number}) succeeded, and never ran to its end"
        if number in evidence.once:
            if evidence.begun[number] > 1:
                yield f"task {task} ({number}) was not to be repeated, and was begun {evidence.begun[number]} times"
            if reason not in ("", "engine lost"):
                yield f"task {task} ({number}) failed: {reason}"
        elif reason:
            yield f"task {task} ({number}) may be repeated for ever, and failed: {reason}"
    yield from (f"task {task} was never submitted" for task in recorded.keys() - evidence.submitted.keys())


class Nemesis(threading.Thread):
    """Kills processes until it is told to end."""

    def __init__(self, home: Home, seed: int, haste: float = 1.0) -> None:
        """haste: how many times as often as usual it does everything."""
        super().__init__(name="nemesis", daemon=True)
        self.home = home
        self.ending = threading.Event()
        self.did: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._every_s = {what: every_s / haste for what, every_s in EVERY_S.items()}
        self._every_s["controller"] = max(self._every_s["controller"], CONTROLLER_LIVES_S)
        self._agent_at_s = time.monotonic() + AGENT_AT_S / haste
        self._by_tcp = False
        """Whether the unix socket is taken away in this life of the controller."""

    def run(self) -> None:
        """One look each tenth of a second."""
        due = dict.fromkeys(("engine", "controller", "resets", "socket"), time.monotonic() + 1.0)
        due["controller"] += self._every_s["controller"] / 2
        while not self.ending.wait(0.1):
            now = time.monotonic()
            for what in [what for what, at_s in due.items() if now >= at_s]:
                due[what] = now + self._every_s[what] * self._chance.uniform(0.8, 1.2)
                with contextlib.suppress(OSError, errors.TaskFarmError, StopIteration, TimeoutError):
                    self.did[what] += getattr(self, f"_{what}")()
            if self._agent_at_s and now >= self._agent_at_s:
                self._agent_at_s = 0.0
                self.did["agent"] += self._kill("agent-0")

    def _kill(self, kind: str) -> bool:
        pid = next(int(record["pid"]) for record in self.home.read_processes() if record["kind"] == kind)
        os.kill(pid, signal.SIGKILL)
        return True

    def _controller(self) -> bool:
        self._by_tcp = not self._by_tcp
        return self._kill("controller")

    def _engine(self) -> bool:
        with connect(self.home.name) as questioner:
            table = questioner.answer(messages.ListEngines(), timeout_s=1.0)
        assert isinstance(table, tables.EngineTable)
        # One that the controller knows from the store alone has no number yet: 0 would be our own process group.
        pids = [row.pid for row in table.rows if row.pid > 0]
        if pids:
            os.kill(self._chance.choice(pids), signal.SIGKILL)
        return bool(pids)

    def _socket(self) -> bool:
        """Take the unix socket away, which the controller makes again."""
        info = self.home.living_info()
        if info is None or not self._by_tcp or not info.socket:
            return False
        os.unlink(info.socket)
        return True

    def _resets(self) -> bool:
        """Reset all connections of this farm: those to its controller's port."""
        info = self.home.living_info()
        if info is None or shutil.which("ss") is None:
            return False
        command = ["ss", "-K", "-t", "-n", "dst", info.host, "dport", "=", f":{info.port}"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return str(info.port) in found.stdout


def submit(tc: TaskClient, ledger: Path, numbers: Iterable[int], run_s: float = 0.005) -> dict[int, int]:
    """Submit tasks with these numbers and this run time; return a dict of ids and numbers."""
    found = {}
    for number in numbers:
        code = CODE.format(path=str(ledger), number=number, run_s=run_s)
        retries = 0 if number % ONCE_EVERY == 0 else 10**6
        found[tc.run(Task(code, pull="a", retries=retries))] = number
    return found


def gather(tc: TaskClient, home: Home, ledger: Path, submitted: dict[int, int]) -> Evidence:
    """Collect all records: the ledger's, the store's and the client's."""
    results = {task: tc.get_task_result(task, raw=False) for task in submitted}
    with contextlib.closing(sqlite3.connect(f"file:{home.store_path()}?mode=ro", uri=True)) as db:
        finals = db.execute("SELECT task, reason FROM finals").fetchall()
    evidence = Evidence(
        submitted,
        {number for number in submitted.values() if number % ONCE_EVERY == 0},
        finals,
        {task: result.reason or "" for task, result in results.items() if result is not None},
        {task: result["a"] for task, result in results.items() if result is not None and not result.reason},
    )
    for line in ledger.read_text().splitlines():
        what, _, number = line.partition(" ")
        (evidence.begun if what == "begin" else evidence.ended)[int(number)] += 1
    return evidence


def torment(
    home: Home, ledger: Path, seconds: float, seed: int, tasks: int = TASKS, haste: float = 1.0
) -> tuple[Counter[str], list[str]]:
    """Run batches of tasks until the time is over; return the deeds of the nemesis and the complaints of
    the checker.
    """
    nemesis = Nemesis(home, seed, haste)
    nemesis.start()
    ends_s = time.monotonic() + seconds
    found: list[str] = []
    try:
        with TaskClient(home.name) as tc:
            tc.progress = False
            first = 0
            while not first or time.monotonic() < ends_s:
                submitted = submit(tc, ledger, range(first, first + tasks))
                tc.barrier(submitted, timeout=600)
                found += complaints(gather(tc, home, ledger, submitted))
                tc.clear()
                ledger.unlink()
                first += tasks
    finally:
        nemesis.ending.set()
        nemesis.join()
    return nemesis.did, found


def main(words: list[str]) -> int:
    """Start a farm, torment it, and stop it."""
    seconds = float(words[0]) if words else 600.0
    seed = int(words[1]) if len(words) > 1 else random.randrange(10**6)
    with isolated("itf-") as dirs:
        start = ["-m", "ipytaskfarm", "start", "-n", "3", "--daemonize", "--max-engine-losses", "1000000"]
        subprocess.run([sys.executable, *start], check=True)
        try:
            did, found = torment(Home.of("default"), dirs.root / "ledger", seconds, seed)
        finally:
            subprocess.run([sys.executable, "-m", "ipytaskfarm", "stop", "--wait", "0"], check=False)
        assert_nothing_left(dirs)
    print(f"seed {seed}: {dict(did)}; {len(found)} complaints")
    print("\n".join(found[:20]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
