"""Nothing accepted is lost: engines, controller and supervisor killed amid a thousand tasks, power cut and all."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from tests.conftest import Dirs, processes_of
from tests.farm.test_farm import background_farm, command, pid_of, ready_engines, status
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

COUNT = 1000


@pytest.fixture
def default_farm(farm_dirs: Dirs) -> Iterator[Home]:
    with background_farm("-n", "2") as home:
        yield home


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file to which each run of a task appends its number: what really ran, whatever the farm says."""
    return tmp_path / "ledger"


def submit(tc: TaskClient, ledger: Path, **rules: Any) -> list[int]:
    """A thousand tasks of a millisecond or so, each of which writes itself into the ledger."""
    code = (
        "import os, time\n"
        "fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
        "os.write(fd, b'{number}\\n')\n"
        "os.close(fd)\n"
        "time.sleep(0.002)\n"
        "a = {number}"
    )
    return [tc.run(Task(code.format(path=str(ledger), number=n), pull="a", **rules)) for n in range(COUNT)]


def ran(ledger: Path) -> Counter[int]:
    return Counter(int(line) for line in ledger.read_text().split()) if ledger.exists() else Counter()


def under_way(ledger: Path) -> Callable[[], bool]:
    """Whether some have run and some have not."""
    return lambda: 100 <= sum(ran(ledger).values()) < COUNT


def assert_all_there(tc: TaskClient, ids: list[int]) -> None:
    assert [tc.get_task_result(i).ns.a for i in ids] == list(range(COUNT))
    assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": COUNT, "failed": 0}


def recorded(home: Home) -> int:
    """Ends in the store, as anybody may read it."""
    with contextlib.closing(sqlite3.connect(f"file:{home.folder / 'store.sqlite'}?mode=ro", uri=True)) as db:
        (count,) = db.execute("SELECT count(*) FROM finals").fetchone()
    return int(count)


def test_a_killed_engine_amid_a_thousand_tasks(default_farm: Home, ledger: Path) -> None:
    with TaskClient() as tc:
        ids = submit(tc, ledger, retries=1)
        eventually(under_way(ledger))
        os.kill(ready_engines()[0], signal.SIGKILL)
        tc.barrier(ids, timeout=60)
        assert_all_there(tc, ids)
        again = {n: times for n, times in ran(ledger).items() if times > 1}
        assert len(again) <= 1, f"more than what the engine ran was run again: {again}"
    eventually(lambda: len(ready_engines()) == 2)


def test_a_killed_controller_amid_a_thousand_tasks(default_farm: Home, ledger: Path) -> None:
    with TaskClient() as tc:
        ids = submit(tc, ledger)
        tc.flush(timeout=60)
        eventually(under_way(ledger))
        engines = ready_engines()
        os.kill(pid_of(default_farm, "controller"), signal.SIGKILL)
        tc.barrier(ids, timeout=60)
        assert_all_there(tc, ids)
        assert max(ran(ledger).values()) == 1, "a task without retries ran twice"
        assert ready_engines() == engines, "engines were lost with the controller"
    assert recorded(default_farm) == COUNT


def test_supervisor_and_controller_killed_and_started_again(default_farm: Home, ledger: Path) -> None:
    with TaskClient() as tc:
        ids = submit(tc, ledger)
        tc.flush(timeout=60)
        eventually(under_way(ledger))
        for kind in ("supervisor", "controller"):
            os.kill(pid_of(default_farm, kind), signal.SIGKILL)
        started = command("start", "--daemonize", "-n", "2")
        assert started.returncode == 0, started.stderr
        tc.barrier(ids, timeout=60)
        assert_all_there(tc, ids)
        assert max(ran(ledger).values()) == 1
    assert len(ready_engines()) == 2
    assert recorded(default_farm) == COUNT


def test_a_killed_agent_loses_no_task(default_farm: Home, ledger: Path) -> None:
    with TaskClient() as tc:
        ids = submit(tc, ledger, retries=1)
        eventually(under_way(ledger))
        os.kill(pid_of(default_farm, "agent-0"), signal.SIGKILL)
        tc.barrier(ids, timeout=60)
        assert_all_there(tc, ids)
        again = sum(times - 1 for times in ran(ledger).values())
        assert again <= 2, f"{again} runs were repeated, and two engines ran one task each"


def test_a_stop_and_a_start_keep_results_and_what_waits(farm_dirs: Dirs, ledger: Path) -> None:
    with background_farm("-n", "1"):
        with TaskClient() as tc:
            done = tc.run(Task("a = 1", pull="a"))
            tc.barrier(done)
            command("engines", "remove", "0")
            eventually(lambda: not ready_engines())
            waiting = tc.run(Task("a = 2", pull="a"))
            tc.flush()
        assert command("stop", "--wait", "0").returncode == 0
        assert not processes_of(farm_dirs.root)
        started = command("start", "--daemonize", "-n", "1")
        assert "1 unfinished, 1 results kept" in started.stdout + started.stderr
        with TaskClient() as tc:
            tc.barrier(waiting, timeout=60)
            assert tc.get_task_result(waiting).ns.a == 2
            assert tc.get_task_result(done).ns.a == 1
            assert tc.run(Task("a = 3")) > waiting


def test_an_engine_is_a_kernel_that_shows_what_tasks_left(default_farm: Home) -> None:
    with TaskClient() as tc:
        tc.barrier([tc.run(Task("left_here = 6 * 7", targets=[0])), tc.run(Task("left_here = 'other'", targets=[1]))])
    connection_file = status()["engines"][0]["connection_file"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ptyprocess forks, and this session has threads
        arguments = ["-m", "jupyter_console", "--existing", connection_file, "--simple-prompt"]
        console = pexpect.spawn(sys.executable, arguments, timeout=60, encoding="utf-8")
    try:
        console.expect(r"In \[\d*\]:")
        console.sendline("print('it holds', left_here)")
        console.expect("it holds 42")
        console.sendline("exit(keep_kernel=True)")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert len(ready_engines()) == 2, "the console took the engine with it"


def test_a_client_of_a_farm_that_began_anew_is_told(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1"), TaskClient() as tc:
        tc.run(Task("a = 1"), block=True)
        assert command("stop", "--wait", "0").returncode == 0
        assert command("start", "--daemonize", "--fresh", "-n", "1").returncode == 0
        with pytest.raises(errors.FarmReplaced):
            tc.run(Task("a = 2"), block=True)
