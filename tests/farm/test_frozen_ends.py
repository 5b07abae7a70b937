"""What ends a frozen engine: its agent's death, its memory, the node's memory; each on real processes.

And what ends others when the node's memory runs short faster than the agent looks.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from ipytaskfarm import Farm, Task, TaskClient, errors
from tests.conftest import Dirs
from tests.support.ended import has_ended
from tests.support.failing import divide
from tests.support.far import NODE, far_engines, far_node
from tests.support.farms import DEADLINE_S, Gate, engines, module_farm, until_engines
from tests.support.memory_group import memory_group
from tests.support.polling import eventually

LIMIT_MIB = 150


def freeze(tc: TaskClient, **rules: Any) -> tuple[int, psutil.Process]:
    """Return a task that has failed, and the process of its frozen engine."""
    failed = tc.run(Task(divide, args=(3,), on_failure="hold", **rules))
    tc.barrier([failed], timeout=DEADLINE_S)
    eventually(lambda: [row.task for row in tc.frozen()] == [failed], DEADLINE_S)
    return failed, psutil.Process(tc.frozen()[0].pid)


def run_on(connection_file: str, code: str) -> None:
    """Have the kernel of a frozen engine begin to run this, as a console does."""
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=DEADLINE_S)
        client.execute(code)
        eventually(lambda: client.get_iopub_msg(timeout=DEADLINE_S)["content"].get("code") == code, DEADLINE_S)
    finally:
        client.stop_channels()


def agent_of(farm: Farm) -> int:
    return next(int(record["pid"]) for record in farm._home.read_processes() if record["kind"] == "agent-0")


def test_the_death_of_its_agent() -> None:
    with module_farm(1) as farm, farm.task_client() as tc:
        failed, engine = freeze(tc)
        before = agent_of(farm)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: has_ended(engine), DEADLINE_S, what="the frozen engine ends with its agent")
        eventually(lambda: not tc.frozen().rows, DEADLINE_S, what="the farm knows that")
        eventually(lambda: agent_of(farm) != before, DEADLINE_S)
        until_engines(farm, 1)
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed)  # it runs here
        again, _ = freeze(tc)
        assert [row.task for row in tc.frozen()] == [again], "the dead one counts as one of the node's"


def test_the_limit_of_memory_holds_for_a_frozen_engine_too(capsys: pytest.CaptureFixture[str]) -> None:
    with module_farm(1, memory_limit=f"{LIMIT_MIB} MiB") as farm, farm.task_client() as tc:
        failed, engine = freeze(tc)
        run_on(tc.frozen()[0].connection_file, "kept = [bytearray(10**6) for _ in range(400)]")
        eventually(lambda: has_ended(engine), DEADLINE_S, what="an engine over its limit ends")
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        assert len(engines(farm)) == 1, "it counted as an engine of the farm"
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed)
        said = capsys.readouterr().out
        assert f"the engine that was frozen for task {failed} on" in said
        assert re.search(rf"memory: \d+ MiB in use, the limit is {LIMIT_MIB} MiB.*; hold a smaller case", said), said
        assert f"tc.debug({failed}, run=False)" in said
        assert "the limit is" in tc.explain(failed)


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


ROOM = 400 << 20
FILL = """
import time
kept = []
for _ in range(3000):
    with open({used!r}) as file:
        left = {room} - {room} // 33 - int(file.read())
    if left > 1 << 20:  # at first, and where others have given memory back
        kept.append(bytearray(b"x") * left)
    time.sleep(0.02)
"""


def test_the_memory_of_a_control_group_runs_short(tmp_path: Path) -> None:
    """The group is real and filled for real: the frozen engine goes, and the larger one, which runs a task, goes on."""
    gate = Gate(tmp_path / "gate")
    with (
        memory_group(ROOM) as group, module_farm(2) as farm, farm.task_client() as tc,
        far_engines(farm, tmp_path, 2, group.entering),
    ):  # fmt: skip
        assert far_node(farm).memory == ROOM
        of_frozen, of_busy = [row.id for row in engines(farm) if row.node == NODE]
        failed, engine = freeze(tc, targets=of_frozen)
        room = ROOM - group.used_bytes
        busy = tc.run(Task(f"kept = bytearray(b'x') * {room * 2 // 3}\n{gate.code}", targets=of_busy))
        eventually(lambda: group.used_bytes > ROOM - room // 2, DEADLINE_S, what="the task has its memory")
        assert [row.pid for row in tc.frozen()] == [engine.pid], "there was room for both"
        run_on(tc.frozen()[0].connection_file, FILL.format(used=str(group.used), room=ROOM))
        eventually(lambda: has_ended(engine), DEADLINE_S, what="the frozen engine goes")
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        said = (tmp_path / "agent.log").read_text()
        assert re.search(r"memory: the node had \d+ MiB of 400 MiB left, and this engine is frozen and has", said), said
        assert group.kills == 0, "the kernel was faster"
        gate.open()
        assert tc.get_task_result(busy, block=True).status == "succeeded"
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed)


def test_the_kernel_ends_an_engine_for_its_memory(tmp_path: Path) -> None:
    with (
        memory_group(ROOM) as group, module_farm(1) as farm, farm.task_client() as tc,
        far_engines(farm, tmp_path, 1, group.entering),
    ):  # fmt: skip
        (there,) = [row.id for row in engines(farm) if row.node == NODE]
        for _ in range(5):  # the agent looks at memory too, and may be faster
            greedy = tc.run(Task(f"bytearray(b'x') * {4 * ROOM}", targets=there))
            tc.barrier([greedy], timeout=DEADLINE_S)
            if group.kills:
                break
        assert group.kills
        with pytest.raises(errors.MemoryLimitExceeded, match="memory: the kernel had none left"):
            tc.get_task_result(greedy).raise_exception()
