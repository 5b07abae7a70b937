"""The worst on real farms: reboots, kill storms, tasks that spoil their agent's files, folders that were copied."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.storage.beside import recorders_folder
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command
from tests.support.polling import eventually
from tests.support.reboot import booted, cut_power

pytestmark = pytest.mark.farm

COUNT = 400
TASK_S = 0.01
ALL_DONE_S = 30.0


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file to which each run of a task appends its number: what really ran, whatever the farm says."""
    return tmp_path / "ledger"


def appending(ledger: Path, number: int, then: str = f"time.sleep({TASK_S})", **rules: object) -> Task:
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
