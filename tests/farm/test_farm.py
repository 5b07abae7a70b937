"""Farms as people start and stop them: by `Farm` and by the command; killed, started twice, interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

import ipytaskfarm.ipyparallel as ipp
import ipytaskfarm.joblib  # noqa: F401  # the backend's name
from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.cli.json_output import farm_shape
from ipytaskfarm.cli.status import farm_state
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.deployment.settings import FarmSettings, agent_flags, controller_flags
from ipytaskfarm.system import farm_paths
from tests.conftest import Dirs, processes_of
from tests.support.ended import has_ended
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

COMMAND = [sys.executable, "-m", "ipytaskfarm"]


def command(*words: str, timeout_s: float = 60.0, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, pass_fds=pass_fds,
    )  # fmt: skip


def status(farm: str = "default") -> dict[str, Any]:
    """Return the document of ``ipytaskfarm status --json``, without a process for each look."""
    try:
        with connect(farm) as questioner:
            state: dict[str, Any] = msgspec.to_builtins(farm_shape(farm_state(questioner)))
    except errors.TaskFarmError as error:
        raise AssertionError(f"farm {farm} does not answer: {error}") from error
    return state


def test_no_output_of_the_farms_processes_grows_without_end(farm_dirs: Dirs) -> None:
    with Farm(n=0, name="long") as farm:
        outputs = [farm._home.output(kind) for kind in ("controller", "agent-0", "supervisor")]
        for output in outputs:
            output.write_bytes(b"line\n" * (3 << 20))
        farm._supervisor._trim_at = 0.0
        eventually(lambda: all(output.stat().st_size < 1000 for output in outputs), what="the outputs are cut")


def test_the_end_of_waiting_for_a_stop_is_not_the_end_of_the_stop(farm_dirs: Dirs) -> None:
    with Farm(n=1, name="slow") as farm, farm.task_client() as tc:
        task = tc.run(Task("import time; time.sleep(300)"))
        eventually(lambda: tc.status(task).state == "running", what="the task runs")
        words = ["-m", "ipytaskfarm", "stop", "--farm", "slow", "--drain"]
        with pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=60, dimensions=(24, 200)) as child:
            child.expect("stopping: 1 task running")
            child.sendintr()
            child.expect_exact("goes on stopping; `ipytaskfarm stop --farm slow --wait 0` does not wait")
            child.expect(pexpect.EOF)
        assert child.exitstatus == 130
        assert command("stop", "--farm", "slow", "--wait", "0").returncode == 0


def ready_engines(farm: str = "default") -> list[int]:
    return [row["pid"] for row in status(farm)["engines"] if row["state"] in ("idle", "busy")]


@contextmanager
def background_farm(*words: str, farm: str = "default") -> Iterator[Home]:
    started = command("start", "--daemonize", "--farm", farm, *words)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield Home.of(farm)
    finally:
        command("stop", "--wait", "0", "--farm", farm)


def pid_of(home: Home, kind: str) -> int:
    return next(int(record["pid"]) for record in home.read_processes() if record["kind"] == kind)


def temporary_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("ipytaskfarm-temporary-*"))


# ---------------------------------------------------------------------------------------- Farm


def test_a_temporary_farm_works_and_leaves_nothing(farm_dirs: Dirs) -> None:
    before = temporary_folders()
    with Farm(n=1) as farm:
        assert "1 of 1 engines" in repr(farm)
        assert len(farm.await_engines(1)) == 1
        assert temporary_folders() - before
        with farm.task_client() as tc:
            assert tc.run(Task("a = 6 * 7", pull="a"), block=True)["a"] == 42
    assert "stopped" in repr(farm)
    assert temporary_folders() == before
    assert not list(farm_dirs.runtime.iterdir())
    assert not processes_of(farm_dirs.root)
    farm.stop()
    for kind in (TaskClient, MultiEngineClient):
        with pytest.raises(errors.FarmNotRunning, match="make a new Farm"):
            kind(farm)


def test_clients_take_the_farm_itself(farm_dirs: Dirs) -> None:
    with Farm(n=1) as farm, TaskClient(farm) as tc, MultiEngineClient(farm) as mec:
        assert tc.farm == mec.farm == farm.name
        rc = ipp.Client(farm)
        assert rc.ids == [0]
        rc.close()
        with parallel_config("ipytaskfarm", client=farm):
            assert Parallel()(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
        with pytest.raises(TypeError, match="client must be a TaskClient or a Farm, not a int: 3"):
            parallel_config("ipytaskfarm", client=3)


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ({"n": -1}, ValueError, "0 or more"),
        ({"n": "4"}, TypeError, "must be an int"),
        ({"name": "a/b"}, ValueError, "cannot be a farm's name"),
        ({"startup": 5}, TypeError, "startup must be"),
        ({"startup": Path("/nowhere/x.py")}, FileNotFoundError, "/nowhere/x.py"),
        ({"queue_policy": "nonsense"}, ValueError, "mine:Policy"),
        ({"drain": "long"}, TypeError, "drain must be"),
        ({"unmet_timeout": -1}, ValueError, "unmet_timeout must be 0"),
        ({"lease": 4}, ValueError, "lease must be 5 seconds or more"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], part: str, farm_dirs: Dirs) -> None:
    before = temporary_folders()
    with pytest.raises(error, match=part):
        Farm(**arguments)
    assert temporary_folders() == before


def test_controller_and_agents_are_told_the_same_lease() -> None:
    def lease(owned: bool, lease_s: float | None) -> set[str | None]:
        settings = FarmSettings(name="x", engines=1, owned=owned, passed={} if lease_s is None else {"lease": lease_s})
        told = (controller_flags(settings), agent_flags(settings))
        return {words[words.index("--lease") + 1] if "--lease" in words else None for words in told}

    assert lease(False, None) == {None}
    assert lease(True, None) == {"60.0"}
    assert lease(True, 8.0) == lease(False, 8.0) == {"8.0"}


def test_a_policy_of_main_is_refused_with_advice() -> None:
    policy = type("Mine", (), {"__module__": "__main__"})
    with pytest.raises(ValueError, match="Put it in a file"):
        Farm(0, queue_policy=policy)


def test_a_policy_that_does_not_load_ends_the_start(farm_dirs: Dirs) -> None:
    with pytest.raises(errors.QueuePolicyError, match="nowhere_to_be_found"):
        Farm(0, queue_policy="nowhere_to_be_found:Policy")
    eventually(lambda: not processes_of(farm_dirs.root), what="a zygote that had just begun has seen its agent's end")


def test_one_name_one_supervisor_also_within_a_process(farm_dirs: Dirs) -> None:
    with Farm(0, name="one"):
        with pytest.raises(errors.FarmExists, match=str(os.getpid())):
            Farm(0, name="one")
        refused = command("start", "-n", "0", "--farm", "one")
        assert refused.returncode == 4
        assert str(os.getpid()) in refused.stderr
        connect("one").close()


def test_a_named_farm_keeps_its_results(farm_dirs: Dirs) -> None:
    with Farm(1, name="kept") as farm, farm.task_client() as tc:
        ids = [tc.run(Task(f"a = {n}", pull="a")) for n in range(20)]
        tc.barrier(ids)
    with Farm(1, name="kept") as farm, farm.task_client() as tc:
        assert [tc.get_task_result(task)["a"] for task in ids] == list(range(20))
        assert tc.run(Task("pass")) > max(ids)
    assert "kept" in command("list").stdout


def test_start_up_code_runs_on_every_engine(farm_dirs: Dirs) -> None:
    with Farm(1, startup="here_first = 'yes'") as farm, farm.task_client() as tc:
        assert tc.run(Task("a = here_first", pull="a"), block=True)["a"] == "yes"


OWNER = """
import os, sys, time
from ipytaskfarm import Farm
farm = Farm(n=1)
if sys.argv[1] == "fork" and os.fork() == 0:
    time.sleep(60)
print(farm.state.pid, flush=True)
if sys.argv[1] == "exit":
    sys.exit()
if sys.argv[1] == "interrupt":
    with farm:
        raise KeyboardInterrupt
time.sleep(60)
"""


@pytest.mark.parametrize("end", ["kill", "exit", "fork", "interrupt"])
def test_an_owned_farm_goes_with_its_owner(end: str, farm_dirs: Dirs) -> None:
    """Also when it is killed; also while a process that it forked lives on."""
    before = temporary_folders()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER, end], stdout=pipe, stderr=pipe, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        controller = int(owner.stdout.readline())
        children = psutil.Process(owner.pid).children() if end == "fork" else []
        if end in ("kill", "fork"):
            owner.kill()
        owner.wait(60)
        if end == "interrupt":
            assert "the temporary farm has ended, and its tasks with it" in owner.stderr.read()
        eventually(lambda: has_ended(controller))
        eventually(lambda: temporary_folders() == before)
        eventually(lambda: not list(farm_dirs.runtime.iterdir()))
        for child in children:
            if child.is_running() and child.name().startswith("python"):
                child.kill()
    eventually(lambda: not processes_of(farm_dirs.root))


# ---------------------------------------------------------------------------------------- the command


def test_start_says_how_to_connect_and_stop_says_when_it_is_over(farm_dirs: Dirs) -> None:
    ours, theirs = os.pipe()
    started = command("start", "-n", "2", "--daemonize", pass_fds=(theirs,))
    os.close(theirs)
    assert started.returncode == 0, started.stderr
    assert select.select([ours], [], [], 0)[0], "the farm keeps a descriptor of its starter open"
    os.close(ours)
    supervisor = psutil.Process(pid_of(Home.of("default"), "supervisor"))
    assert os.getsid(supervisor.pid) == supervisor.pid
    assert supervisor.cmdline()[0].startswith("ipytaskfarm supervisor")
    assert "farm 'default' is ready: 2 engines" in started.stdout
    assert "TaskClient()" in started.stdout
    assert "ipytaskfarm stop" in started.stdout
    assert "starting" in started.stderr
    assert len(ready_engines()) == 2
    shown = command("status", "--json")
    assert shown.returncode == 0, shown.stderr
    assert [row["pid"] for row in json.loads(shown.stdout)["engines"]] == ready_engines()
    again = command("start", "-n", "2", "--daemonize")
    assert again.returncode == 4
    assert str(pid_of(Home.of("default"), "supervisor")) in again.stderr
    stopped = command("stop")
    assert stopped.returncode == 0
    assert not processes_of(farm_dirs.root)
    assert not list(farm_dirs.runtime.iterdir())


def test_engines_come_and_go(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1"):
        assert "2 engines wanted" in command("engines", "add").stdout
        eventually(lambda: len(ready_engines()) == 2)
        shown = command("engines", "list").stdout
        assert shown.splitlines()[0].split()[:2] == ["engine", "state"]
        assert json.loads(command("engines", "remove", "1", "--json").stdout) == {"wanted": 1}
        eventually(lambda: len(ready_engines()) == 1)
        assert command("engines", "remove", "77").returncode == 1
        assert json.loads(command("engines", "release", "--json").stdout) == {"released": 0}


def test_tasks_from_the_command_line(farm_dirs: Dirs) -> None:
    from ipytaskfarm import TaskClient

    with background_farm("-n", "1"):
        with TaskClient() as tc:
            good, bad = tc.run(Task("a = 1", pull="a", name="good")), tc.run(Task("1/0"))
            tc.barrier([good, bad])
            assert "good" in command("tasks").stdout
            rows = json.loads(command("tasks", "--state", "failed", "--json").stdout)
            assert [row["id"] for row in rows] == [bad]
            assert "ZeroDivisionError" in command("tasks", str(bad)).stdout
            assert str(good) in command("explain", str(good)).stdout
            assert command("explain", "999999").returncode == 1
            assert command("abort", "999999").returncode == 1
            assert command("abort", str(good)).returncode == 0
            assert "submitted again" in command("retry", str(bad)).stdout
            assert command("retry", str(good)).returncode == 1
            assert "is paused" in command("pause").stdout
            waiting = tc.run(Task("b = 2", pull="b"))
            tc.flush()
            assert json.loads(command("tasks", str(waiting), "--json").stdout)[0]["state"] == "scheduled"
            assert "is running" in command("resume").stdout
            tc.barrier(waiting, timeout=60)
            assert "forgot 4 results" in command("clean", "--yes").stdout
            assert tc.queue_status()["succeeded"] == 0
        assert "listening" in command("logs").stdout
        assert "agent" in command("logs", "agent").stdout
        assert command("logs", "engine", "9").returncode == 1


def test_fresh_begins_anew_and_sets_the_old_store_aside(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0") as home:
        from ipytaskfarm import TaskClient

        with TaskClient() as tc:
            tc.run(Task("a = 1"))
            tc.flush()
        incarnation = status()["incarnation"]
    resumed = command("start", "-n", "0", "--daemonize")
    assert "1 unfinished, 0 results kept; --fresh starts with an empty store" in resumed.stdout
    assert status()["incarnation"] == incarnation
    command("stop")
    with background_farm("-n", "0", "--fresh", "--hold"):
        state = status()
        assert state["incarnation"] != incarnation
        assert (state["counts"]["scheduled"], state["held"]) == (0, True)
        assert len(home.set_aside()) >= 1
    asked = command("clean")
    assert asked.returncode == 1
    assert "use --yes" in asked.stderr
    assert command("clean", "--yes").returncode == 0
    assert not home.set_aside()
    assert command("clean", "--all", "--yes").returncode == 0
    assert not home.folder.exists()


def test_another_host_is_refused_unless_it_takes_over(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0", "--store-dir", str(farm_dirs.work)) as home:
        pass
    record = farm_paths.read_farm_record(home.folder)
    assert record is not None
    assert Path(record.store).parent == farm_dirs.work
    moved = farm_paths.FarmRecord(
        name=record.name, incarnation=record.incarnation, host=record.host, port=0, store=record.store, node="elsewhere"
    )
    farm_paths.write_farm_record(moved, home.folder)
    refused = command("start", "-n", "0", "--daemonize")
    assert refused.returncode == 4
    assert "elsewhere" in refused.stderr
    assert "--take-over" in refused.stderr
    with background_farm("-n", "0", "--take-over"):
        assert status()["incarnation"] != record.incarnation


def test_a_killed_controller_is_back_by_itself(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        before = status()
        os.kill(before["pid"], signal.SIGKILL)

        def restarted() -> dict[str, Any] | None:
            state = status()
            return None if state["pid"] == before["pid"] else state

        after = eventually(restarted)
        assert after is not None
        assert after["epoch"] == before["epoch"] + 1
        eventually(lambda: ready_engines() == [row["pid"] for row in before["engines"]])
        record = farm_paths.read_farm_record(home.folder)
        assert record is not None
        assert farm_paths.read_connection_file(home.client_file).port == record.port


def test_a_farm_whose_port_was_taken_meanwhile_takes_another(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1"):
        port = client_port()
        command("stop", "--wait", "0")
        with socket.create_server(("127.0.0.1", port)):
            started = command("start", "--daemonize", "-n", "1")
            assert started.returncode == 0, started.stderr
            assert client_port() != port


def client_port() -> int:
    return farm_paths.read_connection_file(farm_paths.connection_path("default")).port


def test_a_killed_agent_is_replaced_with_its_engines(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        (before,) = ready_engines()
        os.kill(pid_of(home, "agent-0"), signal.SIGKILL)
        eventually(lambda: ready_engines() not in ([], [before]))
        assert farm_paths.process_started(before) is None


def test_a_controller_that_keeps_crashing_is_given_up(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0") as home:
        supervisor = pid_of(home, "supervisor")

        def kill() -> bool:
            controller = home.living_info()
            if controller is not None:
                os.kill(controller.controller_pid, signal.SIGKILL)
            return has_ended(supervisor)

        eventually(kill, every_s=0.05)
        assert "after 3 restarts in a row" in home.output("supervisor").read_text()


def test_a_new_supervisor_adopts_what_lives(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        before = status()
        os.kill(pid_of(home, "supervisor"), signal.SIGKILL)
        started = command("start", "-n", "2", "--daemonize")
        assert started.returncode == 0, started.stderr
        assert "adopted the controller" in started.stdout
        after = status()
        assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])
        assert before["engines"][0]["pid"] in ready_engines()
        assert len(ready_engines()) == 2


def test_supervisor_and_controller_killed_and_started_again(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        before = status()
        for kind in ("supervisor", "controller"):
            os.kill(pid_of(home, kind), signal.SIGKILL)
        eventually(lambda: home.living_info() is None)
        gone = command("status")
        assert gone.returncode == 4
        assert "has ended without a good-bye" in gone.stderr
        started = command("start", "-n", "1", "--daemonize")
        assert started.returncode == 0, started.stderr
        after = status()
        assert after["epoch"] == before["epoch"] + 1
        assert ready_engines() == [row["pid"] for row in before["engines"]]


def test_stop_ends_a_farm_whose_controller_hangs(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0") as home:
        os.kill(pid_of(home, "controller"), signal.SIGSTOP)
        stopped = command("stop", timeout_s=60)
        assert stopped.returncode == 0, stopped.stderr
        eventually(lambda: not processes_of(farm_dirs.root))


# ---------------------------------------------------------------------------------------- a terminal


@contextmanager
def terminal(*words: str) -> Iterator[pexpect.spawn]:
    with warnings.catch_warnings():
        # ptyprocess forks, and warns about threads that this test session may have.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = pexpect.spawn(sys.executable, ["-m", "ipytaskfarm", *words], timeout=60, encoding="utf-8")
    try:
        yield child
    finally:
        child.close(force=True)
        command("stop", "--wait", "0")


def test_ctrl_c_stops_all(farm_dirs: Dirs) -> None:
    with terminal("-n", "1") as child:
        child.expect("farm 'default' is ready: 1 engine,")
        child.expect(r"Stop: Ctrl-C")
        os.kill(ready_engines()[0], signal.SIGKILL)
        child.expect("engine 0 .*SIGKILL")
        child.expect("engine 0 is ready")
        child.sendintr()
        child.expect("no process is left")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    assert not processes_of(farm_dirs.root)
    assert not list(farm_dirs.runtime.iterdir())


def test_a_closed_terminal_stops_all(farm_dirs: Dirs) -> None:
    with terminal("-n", "1") as child:
        child.expect(r"Stop: Ctrl-C")
        with contextlib.suppress(pexpect.ExceptionPexpect):  # it has not ended within 0.3 s
            child.close(force=False)
        eventually(lambda: not processes_of(farm_dirs.root))
    assert not list(farm_dirs.runtime.iterdir())


def test_a_second_ctrl_c_does_not_wait(farm_dirs: Dirs) -> None:
    from ipytaskfarm import TaskClient

    with terminal("-n", "1", "--drain", "600") as child:
        child.expect("is ready")
        with TaskClient() as tc:
            task = tc.run(Task("import time; time.sleep(600)"))
            eventually(lambda: tc.get_task_result(task, block=False) is None and tc.queue_status()["pending"] == 1)
            child.sendintr()
            child.expect("waiting for 1 running task")
            child.sendintr()
            child.expect("not waiting any more")
            child.expect("no process is left")
            child.expect(pexpect.EOF)
    assert not processes_of(farm_dirs.root)


def test_ctrl_c_while_starting_leaves_nothing(farm_dirs: Dirs) -> None:
    with terminal("-n", "1") as child:
        child.expect("starting")
        child.sendintr()
        child.expect(pexpect.EOF)
    eventually(lambda: not processes_of(farm_dirs.root))
    assert not list(farm_dirs.runtime.iterdir())


def test_the_demo_shows_the_quick_start(farm_dirs: Dirs) -> None:
    before = temporary_folders()
    shown = command("demo", "-n", "1", "--tasks", "200", timeout_s=90)
    assert shown.returncode == 0, shown.stderr
    assert "TaskResult[ID:73]:{'a': 73}" in shown.stdout
    assert "([0, 1, 2, 3, 4], 999)" in shown.stdout
    assert "tasks/s" in shown.stdout
    assert temporary_folders() == before
