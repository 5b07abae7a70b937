"""Real farms whose files were lost, or replaced by what is no file; and copies of a folder with all that it had."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.deployment.home import STORE_NAME, Home
from ipytaskfarm.storage.beside import count_file, recorders_folder
from ipytaskfarm.system.farm_paths import FARM_FILE
from ipytaskfarm.system.private_files import holder_of_removed
from ipytaskfarm.system.supervision import PROCESSES_FILE
from ipytaskfarm.transport.keys import KEYS_FILE, LOCK_FILE
from tests.conftest import Dirs, processes_of
from tests.farm.test_farm import background_farm, command, pid_of, status
from tests.support.odd_files import put
from tests.support.polling import DEADLINE_S, eventually
from tests.support.thorough import some_of

pytestmark = pytest.mark.farm


def started(*words: str) -> str:
    done = command("start", "--daemonize", "-n", "1", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_folder_that_was_copied_while_a_task_ran(farm_dirs: Dirs, tmp_path: Path) -> None:
    """The copy does not wait for the agent, which lives and works for the first farm. Its connection files lead there
    too, if they were copied with it."""
    wait = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\na = 'done'"
    with background_farm("-n", "1") as home, TaskClient() as tc:
        once, again = tc.run(Task(wait, pull="a")), tc.run(Task(wait, pull="a", retries=2))
        tc.flush()
        eventually(lambda: status()["counts"]["running"] == 1)
        shutil.copytree(home.folder, home.folder.with_name("copy"))
        copy = Home.of("copy")
        shutil.copy(home.client_file, copy.client_file)
        shutil.copy(home.agent_file, copy.agent_file)
        began_s = time.monotonic()
        with background_farm("-n", "1", farm="copy"), TaskClient("copy") as other:
            assert time.monotonic() - began_s < DEADLINE_S
            assert "a copy or an earlier state" in str(other.explain(once))
            assert {row["pid"] for row in status("copy")["engines"]}.isdisjoint(
                row["pid"] for row in status()["engines"]
            )
            (tmp_path / "go").touch()
            assert other.get_task_result(again, block=True).ns.a == "done"
            assert tc.get_task_result(once, block=True).ns.a == "done"


LOCKS = ("controller.lock", "supervisor.lock")
OWN = (FARM_FILE, PROCESSES_FILE, LOCK_FILE, *LOCKS, "logs/controller.log", "logs/controller.out", "logs/agent-0.log")


@pytest.mark.parametrize("kind", some_of(["folder", "pipe", "link", "socket", "null", "wrong records", "empty"], 2))
def test_files_that_are_lost_while_the_farm_runs(farm_dirs: Dirs, kind: str) -> None:
    """The next controller goes on from the store, `stop` finds the processes, and so does the next `start`."""
    with background_farm("-n", "1") as home, TaskClient() as tc:
        done = tc.run(Task("a = 1", pull="a"))
        tc.barrier(done)
        controller = pid_of(home, "controller")
        recorders = recorders_folder(home.folder / "store.sqlite")
        for path in [*(home.folder / name for name in OWN), count_file(home.folder / "store.sqlite")]:
            put(path, kind)
        psutil.Process(controller).kill()
        assert tc.run(Task("a = 2", pull="a"), block=True).ns.a == 2
        assert tc.get_task_result(done).ns.a == 1
        assert recorders.is_dir()
        put(home.folder / PROCESSES_FILE, kind)
        stopped = command("stop", "--wait", "0")
        assert stopped.returncode == 0, stopped.stderr
        assert not processes_of(farm_dirs.root)
        shutil.rmtree(recorders, ignore_errors=True)
        put(recorders, kind)
        (home.folder / FARM_FILE).unlink()
        assert "made again from its store" in started()
        assert tc.run(Task("a = 3", pull="a"), block=True).ns.a == 3


@pytest.mark.parametrize("kind", some_of(["folder", "pipe", "dangling link", "socket"], 1))
def test_locks_keys_and_a_log_that_are_lost(farm_dirs: Dirs, kind: str) -> None:
    """A start sets aside what is in their place. Clients and agents of the machine find the new keys."""
    lost = (*LOCKS, KEYS_FILE, f"{STORE_NAME}-wal", f"{STORE_NAME}-shm")
    with background_farm("-n", "1") as home, TaskClient() as tc:
        done = tc.run(Task("a = 1", pull="a"))
        tc.barrier(done)
        assert command("stop", "--wait", "0").returncode == 0
        for name in lost:
            put(home.folder / name, kind)
        started()
        assert tc.get_task_result(done).ns.a == 1
        assert tc.run(Task("a = 2", pull="a"), block=True).ns.a == 2
        for name in LOCKS:
            put(home.folder / name, kind)
        put(home.folder / KEYS_FILE, kind)
        psutil.Process(pid_of(home, "controller")).kill()
        assert tc.run(Task("a = 3", pull="a"), block=True).ns.a == 3
        assert all(list(home.folder.glob(f"{name}.spoiled-*")) for name in lost)
        assert command("stop", "--wait", "0").returncode == 0
        assert not processes_of(farm_dirs.root)


def test_locks_that_were_removed_while_the_farm_runs(farm_dirs: Dirs) -> None:
    """There is no second supervisor, and no second controller for its store; `stop` finds the processes."""
    with background_farm("-n", "1") as home, TaskClient() as tc:
        for name in (*LOCKS, PROCESSES_FILE):
            (home.folder / name).unlink()
        again = command("start", "--daemonize", "-n", "1")
        assert again.returncode != 0
        assert "runs already: process" in again.stderr
        assert tc.run(Task("a = 1", pull="a"), block=True).ns.a == 1
        controller = pid_of_lock(home, "controller.lock")
        psutil.Process(pid_of_lock(home, "supervisor.lock")).kill()
        assert f"adopted the controller that was running (pid {controller})" in started()
        assert tc.run(Task("a = 2", pull="a"), block=True).ns.a == 2
        assert command("stop", "--wait", "0").returncode == 0
        assert not processes_of(farm_dirs.root)


def pid_of_lock(home: Home, name: str) -> int:
    """Return the process that holds a lock whose file was removed."""
    found = holder_of_removed(home.folder / name)
    assert found is not None
    return found


def test_a_record_that_is_lost_while_the_store_is_elsewhere(farm_dirs: Dirs, tmp_path: Path) -> None:
    store_dir = tmp_path / "store"
    store_dir.mkdir(mode=0o700)
    with background_farm("-n", "1", "--store-dir", str(store_dir)) as home, TaskClient() as tc:
        done = tc.run(Task("a = 1", pull="a"))
        tc.barrier(done)
        (home.folder / FARM_FILE).unlink()
        psutil.Process(pid_of(home, "controller")).kill()
        assert tc.run(Task("a = 2", pull="a"), block=True).ns.a == 2
        assert tc.get_task_result(done).ns.a == 1
        assert not (home.folder / STORE_NAME).exists()


def test_a_fresh_start_without_the_record(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0") as home:
        pass
    os.unlink(home.folder / FARM_FILE)
    assert "set aside" in started("--fresh")
    assert command("stop", "--wait", "0").returncode == 0
