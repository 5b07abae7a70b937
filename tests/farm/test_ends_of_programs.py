"""Programs and their forked children that end while calls are pending, as with the executors of Python."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import ipytaskfarm.ipyparallel as ipp
from ipytaskfarm import Farm, TaskClient
from tests.conftest import Dirs
from tests.support.farms import Gate, until_engines
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm


def ends_with(script: Path, text: str) -> tuple[int, str, str]:
    """Run a program; return its status, and what it has written."""
    script.write_text(text)
    ended = subprocess.run([sys.executable, script], timeout=DEADLINE_S, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


FORKS = """
import os, signal, sys, time, warnings
from ipytaskfarm import Executor, Farm, FarmClusterExecutor, Pool

warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # Python 3.12 says so of each fork

def late(x, other=None):
    time.sleep(0.5)
    return x

if __name__ == "__main__":
    with {made} as calls:
        future = {submit}
        child = os.fork()
        if child == 0:
            {child}
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        print(os.waitstatus_to_exitcode(ended[1]), {result}, flush=True)
"""
KINDS = {
    "executor": ("Executor(1)", "calls.submit(late, 5)", "future.result()"),
    "pool": ("Pool(1)", "calls.apply_async(late, (5,))", "future.get()"),
    "executorlib": ("FarmClusterExecutor(1)", "calls.submit(late, 5, calls.submit(late, 1))", "future.result()"),
}
CHILDREN = {
    "its exit in the block": "sys.exit(7)",
    "its exit behind the block": "calls.__exit__(None, None, None); sys.exit(7)",
    "a refused call": """
            try:
                calls.submit(late, 1) if hasattr(calls, "submit") else calls.apply(late, (1,))
            except ConnectionError as error:
                sys.exit(7 if "forked" in str(error) else 8)""",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("child", CHILDREN)
def test_a_forked_child_ends_while_calls_of_its_parent_are_pending(kind: str, child: str, tmp_path: Path) -> None:
    made, submit, result = KINDS[kind]
    text = FORKS.format(made=made, submit=submit, result=result, child=CHILDREN[child])
    assert ends_with(tmp_path / "script.py", text) == (0, "7 5\n", "")


UNREAD = """
from ipytaskfarm import Farm

def double(x):
    return 2 * x

if __name__ == "__main__":
    client = Farm(n=1).task_client()
    values = client.imap(double, range(5), chunksize=1)
    print(next(values))
"""


def test_a_program_ends_with_an_iterator_that_was_not_read_to_its_end(tmp_path: Path) -> None:
    assert ends_with(tmp_path / "script.py", UNREAD) == (0, "0\n", "")


IN_CALLBACK = """
from ipytaskfarm import Executor, Pool

if __name__ == "__main__":
    pool = Pool(1)
    pool.apply_async(divmod, (1, 0), error_callback=lambda error: pool.terminate())
    pool.close()
    pool.join()
    executor = Executor(1)
    future = executor.submit(pow, 2, 3)
    future.add_done_callback(lambda _: executor.shutdown())
    print(future.result())
"""


def test_a_callback_ends_the_pool_that_calls_it(tmp_path: Path) -> None:
    assert ends_with(tmp_path / "script.py", IN_CALLBACK) == (0, "8\n", "")


VIEW = """
import os, time
from ipytaskfarm import Farm
from ipytaskfarm.ipyparallel import Client

def hold(begun):
    open(begun, "w").close()
    time.sleep(600)

if __name__ == "__main__":
    with Farm(n=1) as farm:
        client = Client(farm.name)
        view = client[:] if {direct} else client.load_balanced_view()
        try:
            with view.executor as calls:
                running, waiting = [calls.submit(hold, {begun!r}) for _ in range(2)]
                client.tasks.flush()
                while not os.path.exists({begun!r}):
                    time.sleep(0.01)
                raise KeyboardInterrupt
        finally:
            print(type(waiting.exception(30)).__name__, running.done())
"""


@pytest.mark.parametrize("direct", [False, True])
def test_a_ctrl_c_in_the_block_of_a_views_executor_ends_the_block(direct: bool, tmp_path: Path) -> None:
    status, out, err = ends_with(tmp_path / "script.py", VIEW.format(direct=direct, begun=str(tmp_path / "begun")))
    assert (status != 0, out) == (True, "TaskAborted False\n")
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_the_calls_that_wait_in_a_views_executor_are_dropped_together(farm: Farm, gate: Gate) -> None:
    """Otherwise the engine, which becomes free in the meantime, would begin those that are not dropped yet."""
    until_engines(farm, 2)
    client = ipp.Client(farm.connection_file)
    client[0].execute(gate.code, block=False)
    calls = client[0].executor
    waiting = [calls.submit(abs, number) for number in range(200)]
    for each in waiting:
        each.add_done_callback(lambda _: gate.open())
    calls.shutdown(cancel_futures=True)
    assert all(isinstance(each.exception(DEADLINE_S), ipp.TaskAborted) for each in waiting)


def ignores(process: psutil.Process, number: int) -> bool:
    """Return whether a process ignores a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("words", [["nohup"], []], ids=["nohup", "plain"])
def test_a_farm_that_nohup_started_outlives_its_terminal(words: list[str], farm_dirs: Dirs) -> None:
    command = [*words, sys.executable, "-m", "ipytaskfarm", "start", "-n", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as farm:
        assert farm.stdout is not None
        try:
            assert any("is ready: " in line for line in farm.stdout)
            supervisor = psutil.Process(farm.pid)
            (agent,) = [each for each in supervisor.children() if "agent" in " ".join(each.cmdline())]
            assert [ignores(each, signal.SIGHUP) for each in (supervisor, agent)] == [bool(words)] * 2
            farm.send_signal(signal.SIGHUP)
            if words:
                agent.send_signal(signal.SIGHUP)
                with TaskClient() as tc:
                    assert tc.map(abs, [-1], block=True) == [1]
        finally:
            if words:
                farm.terminate()
        assert "has stopped" in farm.stdout.read()
    assert farm.returncode == 0
