"""Links by unix socket on a real farm: who uses them, a socket file that is gone, clients killed or stopped within a
message, and the way back to TCP.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from ipytaskfarm import Farm, MapTask, Task, TaskClient
from ipytaskfarm.agent.engines import FILES_EACH, SPARE_FILES
from ipytaskfarm.core.messages import FarmStatus, SetWanted
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.system.farm_paths import read_connection_file, write_connection_file
from ipytaskfarm.transport.curve_connection import CurveConnection
from ipytaskfarm.transport.peer import Link
from ipytaskfarm.transport.unix_connection import UnixConnection
from tests.support.farms import DEADLINE_S, ask, engines, farm_state, until_engines
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def link_of(tc: TaskClient) -> Link:
    return tc._session.io._link


def square(n: int) -> int:
    return n * n


def works(tc: TaskClient) -> bool:
    return bool(tc.get_task_result(tc.run(MapTask(square, (7,))), block=True) == 49)


def socket_of(farm: Farm) -> Path:
    return Path(read_connection_file(farm.connection_file).socket)


def by_tcp(farm: Farm, folder: Path) -> Path:
    """A connection file that names no socket."""
    info = msgspec.structs.replace(read_connection_file(farm.connection_file), socket="")
    write_connection_file(info, folder / "tcp" / "client.json")
    return folder / "tcp" / "client.json"


def established(pid: int) -> list[object]:
    """The established TCP connections of a process."""
    return [one for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]


def agent_of(farm: Farm) -> psutil.Process:
    title = f"ipytaskfarm agent --farm {farm.name}"
    (found,) = [each for each in psutil.process_iter(["cmdline"]) if title in " ".join(each.info["cmdline"] or [])]
    return found


@contextmanager
def files_left(process: psutil.Process, count: int) -> Iterator[None]:
    """Let a process open so many further files and no more."""
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + count, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


def busy_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_client_and_agent_of_this_machine_use_the_socket(farm: Farm, tc: TaskClient) -> None:
    assert works(tc)
    assert isinstance(link_of(tc)._connection, UnixConnection)
    assert not established(agent_of(farm).pid)


def test_an_agent_without_a_free_descriptor_keeps_its_engines(farm: Farm, tc: TaskClient) -> None:
    agent = agent_of(farm)
    lane = next(str(one.laddr) for one in agent.net_connections("unix") if str(one.laddr).endswith("lane.sock"))
    with files_left(agent, 0), socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(lane)
        before_s = busy_s(agent)
        tc.get_task_result(tc.run(MapTask(time.sleep, (2.5,))), block=True)
        assert busy_s(agent) - before_s < 1.0, "it does not try to accept the connection all the time"
    assert agent.is_running()


def test_engines_for_which_no_descriptors_are_left_cost_no_others(farm: Farm, tc: TaskClient) -> None:
    agent, there = agent_of(farm), len(engines(farm))
    with files_left(agent, SPARE_FILES + FILES_EACH + 1):
        ask(farm, SetWanted(there + 4))
        eventually(lambda: "Too many open files" in str(farm_state(farm).losses), DEADLINE_S)
        assert works(tc)
    until_engines(farm, there + 4)
    ask(farm, SetWanted(there))
    until_engines(farm, there)
    assert agent.is_running()


def test_a_controller_without_a_free_descriptor_does_not_spin(farm: Farm, tc: TaskClient) -> None:
    controller = psutil.Process(read_connection_file(farm.connection_file).controller_pid)
    with files_left(controller, 0), socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(socket_of(farm)))
        before_s = busy_s(controller)
        tc.get_task_result(tc.run(MapTask(time.sleep, (2.5,))), block=True)
        assert busy_s(controller) - before_s < 0.5
    assert works(tc)


def test_a_process_with_many_open_files_asks_a_farm(farm: Farm) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with connect(str(farm.connection_file)) as questioner:
            assert min(questioner.fds()) > 1023, "which `select` does not take"
            assert questioner.answer(FarmStatus())
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_without_the_socket_uses_tcp_beside_it(farm: Farm, tc: TaskClient, tmp_path: Path) -> None:
    with connect(str(by_tcp(farm, tmp_path))) as other:
        other.answer(FarmStatus())
        assert isinstance(other._link._connection, CurveConnection)
        assert works(tc)


def test_a_socket_file_that_is_gone_stops_nobody_and_comes_back(farm: Farm, tc: TaskClient) -> None:
    path = socket_of(farm)
    path.unlink()
    assert works(tc)
    with connect(str(farm.connection_file)) as other:
        other.answer(FarmStatus(), DEADLINE_S)
    eventually(path.is_socket, DEADLINE_S, what="the socket file is made again")
    assert path.stat().st_mode & 0o777 == 0o600


HANDS_IN = """
import sys
from ipytaskfarm import TaskClient, MapTask
tc = TaskClient(sys.argv[1])
ids = [tc.run(MapTask(len, (bytes(30_000),))) for _ in range(50)]
tc.flush()
print(ids[0], ids[-1], flush=True)
while True:
    tc.run(MapTask(len, (bytes(60_000),)))
"""


def test_a_client_killed_within_a_message_loses_nothing_that_was_accepted(farm: Farm, tc: TaskClient) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANDS_IN, str(farm.connection_file)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            first, last = map(int, child.stdout.readline().split())
        finally:
            child.kill()
    assert works(tc)
    ids = list(range(first, last + 1))
    tc.barrier(ids, timeout=DEADLINE_S)
    assert [tc.get_task_result(i) for i in ids] == [30_000] * 50


READS_NOTHING = """
import sys
from ipytaskfarm import TaskClient, MapTask
tc = TaskClient(sys.argv[1])
tc.flush()
ids = [tc.run(MapTask(bytes, (60_000,))) for _ in range(400)]
tc.flush()
print(ids[0], ids[-1], flush=True)
tc.barrier()
print(sum(len(tc.get_task_result(i)) for i in ids), flush=True)
"""


def test_a_client_that_stops_reading_delays_nobody_and_goes_on_later(farm: Farm, tc: TaskClient) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", READS_NOTHING, str(farm.connection_file)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            ids = range(*map(int, child.stdout.readline().split()))
            os.kill(child.pid, signal.SIGSTOP)
            tc.barrier(list(ids), timeout=DEADLINE_S)
            assert works(tc)
            os.kill(child.pid, signal.SIGCONT)
            assert child.stdout.readline().strip() == str(400 * 60_000)
            assert child.wait(DEADLINE_S) == 0
        finally:
            child.kill()


def test_the_thread_naps_in_a_loop_and_not_after_a_task_alone(farm: Farm) -> None:
    with farm.task_client() as tc:
        io = tc._session.io

        def one() -> bool:
            assert works(tc)
            return not io._naps

        def many() -> bool:
            for number in range(200):
                tc.run(MapTask(square, (number,)))
            tc.barrier(timeout=DEADLINE_S)
            return io._naps

        for _ in range(2):
            eventually(one, DEADLINE_S, what="no naps with one task at a time")
            eventually(many, DEADLINE_S, what="naps in a loop")


def test_a_wait_rings_only_for_what_was_not_sent(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    with farm.task_client() as tc:
        io = tc._session.io
        task = tc.run(Task("import time; time.sleep(0.3)"))
        tc.flush()
        rung: list[bool] = []
        monkeypatch.setattr(io, "ring", lambda: rung.append(True))
        tc.barrier([task], timeout=DEADLINE_S)
        assert not rung
        monkeypatch.undo()
