"""What ends a frozen engine: its agent's death, its memory, the node's memory; each on real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.conftest import Dirs
from tests.support.failing import divide
from tests.support.farms import DEADLINE_S, engines, module_farm, until_engines
from tests.support.polling import eventually

LIMIT_MIB = 150


def freeze(tc: TaskClient) -> tuple[int, psutil.Process]:
    """Return a task that has failed, and the process of its frozen engine."""
    failed = tc.run(Task(divide, args=(3,), on_failure="hold"))
    tc.barrier([failed], timeout=DEADLINE_S)
    eventually(lambda: [row.task for row in tc.frozen()] == [failed], DEADLINE_S)
    return failed, psutil.Process(tc.frozen()[0].pid)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def agent_of(farm: Farm) -> int:
    return next(int(record["pid"]) for record in farm._home.read_processes() if record["kind"] == "agent-0")


def test_the_death_of_its_agent() -> None:
    with module_farm(1) as farm, farm.task_client() as tc:
        failed, engine = freeze(tc)
        before = agent_of(farm)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: is_gone(engine), DEADLINE_S, what="the frozen engine ends with its agent")
        eventually(lambda: not tc.frozen().rows, DEADLINE_S, what="the farm knows that")
        eventually(lambda: agent_of(farm) != before, DEADLINE_S)
        until_engines(farm, 1)
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed)  # it runs here
        again, _ = freeze(tc)
        assert [row.task for row in tc.frozen()] == [again], "the dead one counts as one of the node's"


def test_the_limit_of_memory_holds_for_a_frozen_engine_too() -> None:
    with module_farm(1, memory_limit=f"{LIMIT_MIB} MiB") as farm, farm.task_client() as tc:
        failed, engine = freeze(tc)
        debugger = subprocess.run(
            [
                sys.executable, "-c",
                "import sys, time; from jupyter_client import BlockingKernelClient as Client\n"
                "client = Client(connection_file=sys.argv[1]); client.load_connection_file(); client.start_channels()\n"
                "client.wait_for_ready(timeout=60); client.execute('kept = [bytearray(10**6) for _ in range(400)]')\n"
                "time.sleep(0.5); client.stop_channels()",
                tc.frozen()[0].connection_file,
            ],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert debugger.returncode == 0, debugger.stderr
        eventually(lambda: is_gone(engine), DEADLINE_S, what="an engine over its limit ends")
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        assert len(engines(farm)) == 1, "it counted as an engine of the farm"
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed)


NODE_MEMORY = """
import os, sys, time
from pathlib import Path
from ipytaskfarm import Farm, Task
from tests.support.failing import divide
group = Path("/sys/fs/cgroup")
def used(share):
    (group / "next").write_text(str(int(share * 10**12)))
    os.replace(group / "next", group / "memory.current")
(group / "memory.max").write_text(str(10**12))
(group / "memory.stat").write_text("inactive_file 0\\n")
used(0.5)
with Farm(n=2) as farm, farm.task_client() as tc:
    failed = tc.run(Task(divide, args=(3,), on_failure="hold"))
    tc.barrier([failed], timeout=60)
    (row,) = tc.frozen()
    code = "import os, time\\nkept = b'x' * 50_000_000\\nwhile not os.path.exists(done): time.sleep(0.02)"
    busy = tc.run(Task(code, push={"done": str(group / "done")}))
    deadline = time.monotonic() + 60
    while tc.status(busy).state != "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if sys.argv[1] == "idle":
        (group / "done").touch()
        tc.barrier([busy], timeout=60)
    used(0.97)
    while tc.frozen().rows:
        assert time.monotonic() < deadline, "the frozen engine holds memory that the node needs"
        time.sleep(0.02)
    used(0.5)
    (group / "done").touch()
    print("busy:", tc.run(Task("b = 1"), block=True).status, tc.get_task_result(busy, block=True).status)
"""


@pytest.mark.parametrize("others", ["busy", "idle"])
def test_the_nodes_memory_runs_short(farm_dirs: Dirs, others: str) -> None:
    """The files of a control group say so; the engines are real, and the larger one, which runs a task, goes on."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    mount = f'mount -t tmpfs none /sys/fs/cgroup && exec {sys.executable} -c "$1" {others}'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [unshare, "-rm", "sh", "-c", mount, "sh", NODE_MEMORY],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "busy: succeeded succeeded"
