"""What a client leaves behind, and what it does while its farm does not answer or its session ends."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.client.futures import future_of
from ipytaskfarm.client.session import Session
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus, tables
from tests.support.farms import Gate
from tests.support.polling import DEADLINE_S, eventually

pytestmark = pytest.mark.farm

SUBMITTER = """
import sys
from ipytaskfarm import Task, TaskClient
tc = TaskClient(sys.argv[1])
print(tc.run(Task("import time; time.sleep(600)")))
tc.flush()
"""


def square(x: int) -> int:
    return x * x


@contextlib.contextmanager
def silent(tc: TaskClient) -> Iterator[None]:
    """Let the farm's controller answer nothing during the block."""
    pid = tc.session.ask_for(FarmStatus(), tables.FarmState).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """Return what a call returns or raises, which must not last for ever."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert found, "it still waits"
    return found[0]


def test_the_threads_and_the_session_of_a_client_end_with_it(farm: Farm) -> None:
    def futures_threads() -> int:
        return sum(thread.name == "ipytaskfarm futures" for thread in threading.enumerate())

    def sessions() -> int:
        gc.collect()
        return sum(isinstance(each, Session) for each in gc.get_objects())

    def use() -> None:
        with farm.task_client() as tc:
            assert tc.submit(square, 3).result(DEADLINE_S) == 9

    use()
    threads, before = futures_threads(), sessions()
    for _ in range(3):
        use()
    eventually(lambda: futures_threads() <= threads)
    assert sessions() <= before


def test_callbacks_are_called_though_the_client_is_closed(tc: TaskClient, gate: Gate) -> None:
    session, called = tc.session, threading.Event()
    future = tc.submit(Task(gate.code))
    future.add_done_callback(lambda _: called.set())
    session.close(0.0)
    assert called.wait(DEADLINE_S)
    assert isinstance(future.exception(DEADLINE_S), ConnectionError)


def test_the_events_of_a_job_end_with_the_client_in_silence(
    tc: TaskClient, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    def follows() -> bool:
        return any(thread.name == "ipytaskfarm job followed" for thread in threading.enumerate())

    job = tc.create_job("followed")
    job.on_progress(lambda job, share: None)
    job.add_task(Task(gate.code))
    job.submit()
    tc.flush()
    assert follows()
    tc.session.close(0.0)
    eventually(lambda: not follows())
    assert "Traceback" not in capsys.readouterr().err


def test_a_future_of_a_task_of_which_nothing_more_is_heard(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code))
    tc.session.io._fail(errors.ConnectionError("it was lost"))
    assert isinstance(future_of(tc, task).exception(DEADLINE_S), ConnectionError)


def test_a_wait_that_the_garbage_collector_closes(tc: TaskClient, gate: Gate) -> None:
    """It may do so in a thread that holds the session's lock, which deadlocked."""
    ids = [tc.run(Task("a = 1")), tc.run(Task(gate.code))]
    waiting = tc.as_completed(ids)
    assert next(waiting) == ids[0]

    def close() -> bool:
        with tc.session._lock:
            waiting.close()  # type: ignore[attr-defined]  # it is a generator
        return True

    assert in_a_thread(close) is True
    assert not tc.session.arrivals._waiters


def test_no_wait_is_kept_when_it_is_over(tc: TaskClient, gate: Gate) -> None:
    ended, open_ = tc.run(Task("a = 1")), tc.run(Task(gate.code))
    tc.barrier([ended], DEADLINE_S)
    for _ in range(3):
        assert tc.wait([ended, open_], return_when="first") == ([ended], [open_])
    assert not tc.session.arrivals._waiters
    progress = tc.progress([ended, open_])
    assert "1/2" in repr(progress)
    gate.open()
    tc.barrier([open_], DEADLINE_S)
    assert not tc.session.arrivals._waiters


def test_timeouts_hold_while_the_farm_does_not_answer(tc: TaskClient, mec: MultiEngineClient) -> None:
    printed = subprocess.run([sys.executable, "-c", SUBMITTER, tc.farm], capture_output=True, check=True).stdout
    others = int(printed)
    pending = mec.execute("import time; time.sleep(600)", block=False)
    with silent(tc):
        began_s = time.monotonic()
        assert in_a_thread(lambda: tc.wait([others], timeout=0.1)) == ([], [others])
        for late in (
            lambda: tc.get_task_result(others, block=True, timeout=0.1),
            lambda: tc.barrier([others], timeout=0.1),
            lambda: list(tc.as_completed([others], timeout=0.1)),
            lambda: pending.get_result(timeout=1.5),
        ):
            assert isinstance(in_a_thread(late), TimeoutError)
        assert isinstance(in_a_thread(lambda: tc.await_engines(9, 0.1, 0.1)), errors.NoEnginesRegistered)
        assert time.monotonic() - began_s < DEADLINE_S / 2
    tc.abort(others)
    mec.interrupt()
    pending.cancel()


def test_the_timeout_of_a_future_holds_while_its_value_is_fetched(tc: TaskClient) -> None:
    future = tc.submit(square, 3)
    assert future.result(DEADLINE_S) == 9
    tc.session.forget_results([future.id])
    with silent(tc):
        assert isinstance(in_a_thread(lambda: future.result(0.1)), TimeoutError)
    assert future.result(DEADLINE_S) == 9


def test_a_progress_ends_with_the_client(tc: TaskClient, gate: Gate) -> None:
    """In a notebook a thread follows the work; it went on for as long as the kernel."""
    job = tc.map(exec, [gate.code] * 2, block=False)
    shown = [tc.progress([tc.run(Task(gate.code))]), job._live()]
    tc.flush()
    followers = [threading.Thread(target=each._follow, daemon=True) for each in shown]
    for each in followers:
        each.start()
    tc.session.close(0.0)
    for each in followers:
        each.join(DEADLINE_S)
        assert not each.is_alive()


def test_a_farm_that_does_not_answer_holds_up_no_client_of_another_one(tc: TaskClient) -> None:
    with Farm(n=1) as other:
        with other.task_client() as its_client, silent(tc):
            its_client.close()
            tc.close()
            waits = threading.Thread(
                target=lambda: in_a_thread(lambda: TaskClient(tc.farm, timeout=20).close()), daemon=True
            )
            waits.start()
            eventually(lambda: any("client of " + tc.farm in thread.name for thread in threading.enumerate()))
            with TaskClient(other.name, timeout=DEADLINE_S / 2) as quick:
                assert quick.queue_status()
            assert waits.is_alive()
        waits.join(DEADLINE_S)


def test_an_interrupt_while_a_client_connects_leaves_nothing(tc: TaskClient) -> None:
    def threads() -> int:
        return sum(thread.name == f"ipytaskfarm client of {tc.farm}" for thread in threading.enumerate())

    with silent(tc):
        tc.close()
        before = threads()
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            TaskClient(tc.farm, timeout=DEADLINE_S)
        assert threads() == before


def test_threads_that_wait_for_one_farm_wait_no_longer_than_they_said(tc: TaskClient) -> None:
    with silent(tc):
        tc.close()
        began_s = time.monotonic()
        waits = threading.Thread(
            target=lambda: in_a_thread(lambda: TaskClient(tc.farm, timeout=20).close()), daemon=True
        )
        waits.start()
        eventually(lambda: any("client of " + tc.farm in thread.name for thread in threading.enumerate()))
        with pytest.raises(errors.FarmNotRunning, match="another thread of this process waits for it too"):
            TaskClient(tc.farm, timeout=0.6)
        assert time.monotonic() - began_s < 15
    waits.join(DEADLINE_S)


def test_a_wrong_timeout_of_an_engines_client_is_named(farm: Farm) -> None:
    with pytest.raises(TypeError, match="timeout must be seconds"):
        MultiEngineClient(farm.name, timeout="soon")  # type: ignore[arg-type]
