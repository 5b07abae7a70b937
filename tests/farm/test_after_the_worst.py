"""The worst on real farms: reboots, kill storms, tasks that spoil their agent's files, folders that were copied."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.storage.beside import recorders_folder
from tests.conftest import Dirs, processes_of
from tests.farm.test_farm import COMMAND, background_farm, command, pid_of
from tests.support.polling import eventually
from tests.support.reboot import booted, cut_power

pytestmark = pytest.mark.farm

THOROUGH = bool(os.environ.get("THOROUGH"))
"""Whether more moments and places are tried: `make worst`."""
COUNT = 400
TASK_S = 0.01
ALL_DONE_S = 30.0


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file to which each run of a task appends its number: what really ran, whatever the farm says."""
    return tmp_path / "ledger"


def appending(ledger: Path, number: int, then: str = f"time.sleep({TASK_S})", **rules: Any) -> Task:
    code = (
        "import os, time\n"
        f"fd = os.open({str(ledger)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
        f"os.write(fd, b'{number}\\n')\n"
        "os.close(fd)\n"
        f"{then}\n"
    )
    return Task(code, **rules)


def ran(ledger: Path) -> Counter[int]:
    return Counter(int(line) for line in ledger.read_text().split()) if ledger.exists() else Counter()


def has_run(ledger: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(ran(ledger).values()) >= count


@pytest.mark.parametrize("recorders", ["kept", "lost"])
def test_a_reboot(recorders: str, farm_dirs: Dirs, ledger: Path, tmp_path: Path) -> None:
    """Power cut, start, all work done within half a minute; what had not begun is not failed as if it had."""
    with booted("before", tmp_path), background_farm("-n", "2") as home:
        with TaskClient() as tc:
            ids = [tc.run(appending(ledger, n)) for n in range(COUNT)]
            tc.flush()
            eventually(has_run(ledger, COUNT // 8), 30.0)
            cut_power(farm_dirs)
        before = ran(ledger)
        assert sum(before.values()) < COUNT, "nothing is left to do after the reboot"
        if recorders == "lost":
            for recorder in recorders_folder(home.folder / "store.sqlite").rglob("*.rec"):
                recorder.unlink()
        with booted("after", tmp_path):
            began_s = time.monotonic()
            started = command("start", "--daemonize", "-n", "2")
            assert started.returncode == 0, started.stdout + started.stderr
            with TaskClient() as tc:
                tc.barrier(ids, timeout=ALL_DONE_S)
                assert time.monotonic() - began_s < ALL_DONE_S
                failed = [row for row in tc.tasks(ids=ids).rows if row.state == "failed"]
                for row in failed:
                    text = str(tc.explain(row.id))
                    assert "its machine was started again" in text, text
                    assert "the task may have run" in text, text
    after = ran(ledger)
    assert max(after.values()) == 1, "a task without retries was begun twice"
    numbers = {id: n for n, id in enumerate(ids)}
    never = [row.id for row in failed if numbers[row.id] not in after]
    assert len(after) + len(never) == COUNT
    if recorders == "kept":
        assert len(never) <= 2 * (1 + 0.05 / TASK_S), f"{len(never)} tasks had not begun, and failed"


# -- storms of kills, and owners that are killed amid the start


STORM_S = 6.0
RECOVERS_S = 45.0
"""The longest pause between two starts, and the start."""


def test_a_storm_of_kills_delays_the_work_and_ends_nothing(farm_dirs: Dirs, ledger: Path) -> None:
    """Controller, agent and zygote are killed every 0.7 s: the farm goes on when the storm is over."""
    with background_farm("-n", "2") as home, TaskClient() as tc:
        supervisor = pid_of(home, "supervisor")
        ids = [tc.run(appending(ledger, n, retries=50)) for n in range(COUNT // 4)]
        tc.flush()
        ends_s = time.monotonic() + STORM_S
        while time.monotonic() < ends_s:
            for process in processes_of(farm_dirs.root):
                title = " ".join(process.cmdline())
                if any(word in title for word in ("controller", "agent", "zygote")):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.7)
        tc.barrier(ids, timeout=RECOVERS_S)
        assert tc.queue_status()["succeeded"] == len(ids)
        assert pid_of(home, "supervisor") == supervisor
        assert "in a row" not in home.output("supervisor").read_text()


OWNER = """
from ipytaskfarm import Farm

print("starting", flush=True)
with Farm(n=1) as farm:
    print("ready", flush=True)
    input()
"""
MOMENTS_S = (0.0, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6) if THOROUGH else (0.05, 0.2, 0.8)


def test_an_owner_that_is_killed_amid_the_start_leaves_nothing(farm_dirs: Dirs) -> None:
    """No agent and no zygote waits out a lease: at whatever moment the owner is killed."""
    for moment_s in MOMENTS_S:
        owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"starting\n"
        time.sleep(moment_s)
        owner.kill()
        owner.communicate()
    eventually(lambda: not processes_of(farm_dirs.root), 20.0, what="nothing is left of the farms")


@pytest.mark.parametrize("moment_s", [0.3, 0.45, 0.6, 0.8, 1.2] if THOROUGH else [0.5])
def test_a_start_after_a_supervisor_that_was_killed_amid_its_start(farm_dirs: Dirs, moment_s: float) -> None:
    killed = subprocess.Popen([*COMMAND, "start", "-n", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment_s)
    killed.kill()
    killed.wait()
    with background_farm("-n", "1"), TaskClient() as tc:
        assert tc.run(Task("a = 1", pull="a"), block=True).ns.a == 1
    eventually(lambda: not processes_of(farm_dirs.root), 20.0, what="nothing is left of the farm")
