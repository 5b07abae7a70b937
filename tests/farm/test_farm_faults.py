"""Test faults of a whole farm of real processes; docs/guarantees.md states the promise for each."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.client import io as client_io
from ipytaskfarm.deployment.home import Home
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command, pid_of
from tests.farm.test_farm_restart import assert_all_there, ran, recorded, submit, under_way
from tests.support.farms import DEADLINE_S, Gate, incarnations, until_engines, until_running
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm


def test_a_second_controller_on_the_store_is_refused_by_name(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        words = ["--farm", "default", "--farm-folder", str(home.folder)]
        second = subprocess.run(
            [sys.executable, "-m", "ipytaskfarm.controller", *words], capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert second.returncode == 4
        assert "controller of farm 'default'" in second.stderr
        assert str(pid_of(home, "controller")) in second.stderr
        with TaskClient() as tc:
            assert tc.run(Task("a = 1", pull="a"), block=True).ns.a == 1


def test_a_controller_that_is_away_for_long(farm_dirs: Dirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The absence is longer than any client waits for an answer: engines finish their tasks, and the
    barrier continues.
    """
    monkeypatch.setattr(client_io, "GONE_S", 2.0)
    with background_farm("-n", "2") as home, TaskClient() as tc:
        ids = submit(tc, tmp_path / "ledger")
        tc.flush(timeout=DEADLINE_S)
        eventually(under_way(tmp_path / "ledger"), DEADLINE_S)
        for kind in ("supervisor", "controller"):
            os.kill(pid_of(home, kind), signal.SIGKILL)
        waiting = threading.Thread(target=tc.barrier, args=(ids,), daemon=True)
        waiting.start()
        began_s = time.monotonic()
        eventually(lambda: time.monotonic() - began_s > client_io.GONE_S + 1.0)
        held = sum(ran(tmp_path / "ledger").values())
        assert waiting.is_alive(), "the barrier waits"
        assert command("start", "--daemonize", "-n", "2").returncode == 0
        waiting.join(DEADLINE_S)
        assert not waiting.is_alive(), "the barrier goes on"
        assert_all_there(tc, ids)
        assert max(ran(tmp_path / "ledger").values()) == 1
        assert 0 < held < len(ids), "some were held, and the others had to wait"
        assert recorded(home) == len(ids)


def test_a_client_that_was_killed_leaves_its_tasks(farm: Farm, tc: TaskClient, gate: Gate) -> None:
    code = (
        "import os, sys\n"
        "from ipytaskfarm import TaskClient, Task\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        f"ids = [tc.run(Task({gate.code + 'a = 7'!r}, pull='a')) for _ in range(10)]\n"
        "tc.flush()\n"
        "print(*ids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        ids = [int(word) for word in client.stdout.readline().split()]
        client.kill()
    assert len(ids) == 10
    gate.open()
    tc.barrier(ids, timeout=DEADLINE_S)
    assert [tc.get_task_result(i).ns.a for i in ids] == [7] * 10


def test_an_abort_at_any_moment_has_one_winner(tc: TaskClient) -> None:
    """Each task of a few milliseconds is aborted at some moment of its life."""
    before = tc.queue_status()
    ids = []
    for n in range(300):
        ids.append(tc.run(Task("import time; time.sleep(0.002); a = 1", pull="a")))
        if n >= 5:
            with contextlib.suppress(IndexError):  # it has ended, or it was not there yet
                tc.abort(ids[n - n % 6])
    tc.barrier(ids, timeout=60)
    results = [tc.get_task_result(i, raw=False) for i in ids]
    assert {result.reason for result in results} <= {None, "", "aborted"}
    aborted = sum(result.reason == "aborted" for result in results)
    after = tc.queue_status()
    assert after["failed"] - before["failed"] == aborted
    assert after["succeeded"] - before["succeeded"] == len(ids) - aborted
    assert 0 < aborted < len(ids)
    assert [tc.get_task_result(i, raw=False).reason for i in ids] == [result.reason for result in results]


def test_a_result_that_was_sent_stands_when_its_engine_dies(farm: Farm, tc: TaskClient) -> None:
    tr = tc.run(Task("a = 5", pull="a"), block=True)
    before = incarnations(farm)
    for row in farm.multiengine_client().engines():
        os.kill(row.pid, signal.SIGKILL)
    eventually(lambda: not before & incarnations(farm), DEADLINE_S)
    until_engines(farm, 2)
    again = tc.get_task_result(tr.taskid)
    assert (again.ns.a, len(again.attempts)) == (5, 1)


def test_a_stopped_engine_holds_nobody_else_up(farm: Farm, tc: TaskClient, gate: Gate) -> None:
    """After SIGSTOP the tasks behind the running one go elsewhere; after SIGCONT the engine ends its task as usual."""
    held = tc.run(Task(gate.code + "a = 1", pull="a"))
    until_running(tc, held)
    row = next(row for row in farm.multiengine_client().engines() if row.task == held)
    process = psutil.Process(row.pid)
    process.suspend()
    try:
        others = [tc.run(Task("a = 2", pull="a", retries=1)) for _ in range(50)]
        tc.barrier(others, timeout=DEADLINE_S)
    finally:
        process.resume()
    gate.open()
    assert tc.get_task_result(held, block=True).ns.a == 1


def test_nothing_is_imported_from_the_working_folder(farm_dirs: Dirs, tmp_path: Path) -> None:
    """A hostile folder: modules that would tell of themselves, and a profile."""
    told = tmp_path / "told"
    hostile = tmp_path / "cwd"
    hostile.mkdir()
    for name in (
        "zmq",
        "msgspec",
        "sqlite3",
        "psutil",
        "IPython",
        "ipykernel",
        "sitecustomize",
        "random",
        "ipytaskfarm",
    ):
        (hostile / f"{name}.py").write_text(f"open({str(told)!r}, 'a').write('{name}\\n')\n")
    (hostile / "ipytaskfarm_config.py").write_text(f"open({str(told)!r}, 'a').write('config\\n')\n")
    script = Path(sys.executable).with_name("ipytaskfarm")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(script), *words], cwd=hostile, capture_output=True, text=True, timeout=60)

    started = run("start", "-n", "1", "--daemonize")
    try:
        assert started.returncode == 0, started.stderr
        with TaskClient() as tc:
            assert tc.run(Task("import os; a = os.getcwd()", pull="a"), block=True).ns.a == str(hostile)
        assert not told.exists(), told.read_text()
    finally:
        run("stop", "--wait", "0")
    assert not told.exists(), told.read_text()


@by_hand
def test_two_farms_of_one_user_do_not_meet(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1", farm="one"), background_farm("-n", "1", farm="two"):
        with TaskClient("one") as one, TaskClient("two") as two:
            task = one.run(Task("a = 1", pull="a"), block=True)
            assert two.queue_status()["succeeded"] == 0
            with pytest.raises(IndexError):
                two.get_task_result(task.taskid)
        info = Home.of("one").living_info()
        assert info is not None
        stranger = info.__class__(**{**{f: getattr(info, f) for f in info.__struct_fields__}, "port": _port("two")})
        assert stranger.port != info.port
        with pytest.raises((errors.ConnectionError, errors.FarmReplaced, errors.SecurityError, errors.FarmNotRunning)):
            TaskClient((stranger.host, stranger.port), key_file=Home.of("one").client_file, timeout=3.0)


def _port(name: str) -> int:
    info = Home.of(name).living_info()
    assert info is not None
    return info.port


def test_a_controller_or_an_agent_without_further_descriptors_goes_on(farm_dirs: Dirs) -> None:
    """A question that needed one ended the controller, an evaluator kept the agent away, and the agent ended itself."""
    with background_farm("-n", "2") as home, TaskClient() as tc:
        gate = Gate(farm_dirs.root / "gate")
        long = tc.run(Task(f"{gate.code}\na = 1", pull="a", retries=0))
        until_running(tc, long)
        pids = {kind: pid_of(home, kind) for kind in ("controller", "agent-0")}
        for pid in pids.values():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds(), 4096))
        judged = tc.run(Task("a = 2", pull="a", depend=lambda properties: True))
        lost = tc.run(Task("import os; os._exit(3)", retries=0))
        with contextlib.suppress(errors.KernelError):
            tc.history()
        assert tc.get_task_result(lost, block=True).failure is not None
        eventually(lambda: "cannot be started" in str(tc.explain(judged)), DEADLINE_S)
        resource.prlimit(pids["controller"], resource.RLIMIT_NOFILE, (4096, 4096))
        no_recorder = "did not start: no flight recorder"
        eventually(lambda: no_recorder in command("status").stdout, DEADLINE_S, every_s=0.2)
        resource.prlimit(pids["agent-0"], resource.RLIMIT_NOFILE, (4096, 4096))
        assert {kind: pid_of(home, kind) for kind in pids} == pids
        gate.open()
        assert tc.get_task_result(long, block=True).ns.a == 1
        assert tc.get_task_result(judged, block=True).ns.a == 2
        assert len(tc.history()) > 0
