"""Waiting on a real farm: why nothing moves, Ctrl-C, awaiting, and finding earlier tasks again."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from ipytaskfarm import Farm, MapTask, Task, TaskClient
from ipytaskfarm.client import wait_notices
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S, Gate, python, until_running
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

LOOK_AFTER_S = 1.0
"""For tests of what is said, not of when."""


# -- why nothing moves


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_notices, "LOOK_AFTER_S", LOOK_AFTER_S)


@pytest.mark.usefixtures("_impatient")
def test_a_wait_in_which_nothing_can_move_says_why_once(tc: TaskClient, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [tc.run(Task("a = 1", depend=lambda properties: properties.get("never"))) for _ in range(3)]
    eventually(lambda: "its depend function said no" in tc.explain(ids[0]), DEADLINE_S)
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        tc.barrier(ids, timeout=3 * LOOK_AFTER_S)
    assert time.monotonic() - began_s < 3 * LOOK_AFTER_S + DEADLINE_S
    err = capfd.readouterr().err
    assert err.count("nothing of what you wait for can run now") == 1
    assert f"task {ids[0]} is scheduled: no suitable engine" in err
    assert "engine 0: its depend function said no" in err
    assert "and 2 more like it" in err
    tc.abort(ids)


def test_it_is_said_within_five_seconds() -> None:
    assert wait_notices.LOOK_AFTER_S <= 4.0, "the question itself takes a moment"


@pytest.mark.usefixtures("_impatient")
def test_a_wait_for_one_result_says_why_too(tc: TaskClient, capfd: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("a = 1", targets=77))
    with pytest.raises(TimeoutError):
        tc.get_task_result(task, block=True, timeout=3 * LOOK_AFTER_S)
    assert "it is not among the task's targets [77]" in capfd.readouterr().err
    tc.abort(task)


@pytest.mark.usefixtures("_impatient")
def test_a_wait_for_what_runs_or_is_next_says_nothing(
    tc: TaskClient, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = [tc.run(Task(gate.code)) for _ in range(6)]
    until_running(tc, ids[0])
    with pytest.raises(TimeoutError):
        tc.barrier(ids, timeout=3 * LOOK_AFTER_S)
    assert "nothing of what you wait for" not in capfd.readouterr().err
    gate.open()
    tc.barrier(ids, timeout=DEADLINE_S)


@pytest.mark.usefixtures("_impatient")
def test_a_farm_without_engines_and_a_held_one(farm_dirs: Dirs, capfd: pytest.CaptureFixture[str]) -> None:
    with Farm(n=0) as farm, farm.task_client() as tc:
        with pytest.raises(TimeoutError):
            tc.barrier(tc.run(Task("1")), timeout=3 * LOOK_AFTER_S)
        assert "the farm has no engines now" in capfd.readouterr().err


# -- Ctrl-C

HEARS_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""For scripts: where the tests run in the background of a shell, their processes would ignore it."""

WAITS = {
    "barrier": "tc.barrier(ids)",
    "wait": "tc.wait(ids)",
    "as_completed": "list(tc.as_completed(ids))",
    "result": "tc.get_task_result(ids[0], block=True)",
    "future": "tc.submit(time.sleep, 60).result()",
    "run": "tc.run(Task('import time; time.sleep(60)'), block=True)",
    "map": "tc.map(__import__('time').sleep, [60, 60, 60])",
}


@pytest.mark.parametrize("name", list(WAITS))
def test_ctrl_c_ends_the_wait_at_once_and_says_how_to_go_on(farm: Farm, tc: TaskClient, name: str) -> None:
    code = (
        f"{HEARS_CTRL_C}import sys, time\nfrom ipytaskfarm import Task, TaskClient\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        "ids = [tc.run(Task('import time; time.sleep(60)', name='interrupted')) for _ in range(3)]\n"
        "tc.flush()\nprint('waiting', flush=True)\n"
        f"try:\n    {WAITS[name]}\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "waiting\n"
        select.select([], [], [], 0.3)  # into the wait itself
        began_s = time.monotonic()
        p.send_signal(signal.SIGINT)
        assert p.stdout.readline() == "interrupted\n"
        assert time.monotonic() - began_s < 30.0, "the tasks take twice as long"
        _, err = p.communicate(timeout=DEADLINE_S)
    left = tc.tasks(state="unfinished")
    tc.abort(left)
    assert re.search(r"continues?: tc\..* (waits|results\(\) waits) for (it|them) again, tc\..* ends (it|them)", err)
    assert len(left) >= 3, "they go on"


def test_ctrl_c_in_a_pending_result(farm: Farm) -> None:
    code = (
        f"{HEARS_CTRL_C}from ipytaskfarm import MultiEngineClient\n"
        f"mec = MultiEngineClient({str(farm.connection_file)!r})\n"
        "print('waiting', flush=True)\n"
        "try:\n    mec.execute('import time; time.sleep(1.5)')\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "waiting\n"
        select.select([], [], [], 0.3)
        p.send_signal(signal.SIGINT)
        assert p.stdout.readline() == "interrupted\n"
        assert "continues on engines [0, 1]" in p.communicate(timeout=DEADLINE_S)[1]


def test_ctrl_c_in_an_imap_says_that_it_is_over(farm: Farm) -> None:
    code = (
        f"{HEARS_CTRL_C}import time\nfrom ipytaskfarm import TaskClient\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        "items = [0, *[1.5] * 30]\ntry:\n"
        "    for _ in tc.imap(time.sleep, items, name='gone', chunksize=1):\n        print('waiting', flush=True)\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
        "print([str(job.opened) for job in tc.jobs()])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "waiting\n"
        select.select([], [], [], 0.3)
        p.send_signal(signal.SIGINT)
        assert p.stdout.readline() == "interrupted\n"
        out, said = p.communicate(timeout=DEADLINE_S)
    assert "this imap is over: items that have not begun never run" in said
    assert "continue:" not in said
    assert "1970" not in out


# -- awaiting


def test_results_can_be_awaited(tc: TaskClient) -> None:
    async def study() -> list[object]:
        ids = [tc.run(MapTask(pow, (n, 2))) for n in range(20)]
        return list(await asyncio.gather(*map(tc.result, ids)))

    assert asyncio.run(study()) == [n * n for n in range(20)]

    async def fails() -> None:
        result = await tc.result(tc.run(Task("1/0")))
        assert result.failure.etype == "ZeroDivisionError"
        await tc.result(tc.run(MapTask(divmod, (1, 0))))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fails())
    with pytest.raises(IndexError):
        asyncio.run(tc.result(10**9))


def test_cancelling_the_wait_leaves_the_task(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code + "a = 5", pull="a"))
    until_running(tc, task)

    async def wait_a_little() -> None:
        waiter = asyncio.ensure_future(tc.result(task))
        done, _ = await asyncio.wait([waiter], timeout=0.1)
        assert not done
        waiter.cancel()
        ticks = 0
        other = asyncio.ensure_future(tc.result(task))
        while not other.done():
            ticks += 1
            if ticks == 3:
                gate.open()
            await asyncio.sleep(0.01)
        assert ticks >= 3, "the loop goes on meanwhile"
        assert (await other)["a"] == 5

    asyncio.run(wait_a_little())


# -- progress, and after a restart


def test_a_terminal_sees_a_bar(farm: Farm) -> None:
    code = (
        "from ipytaskfarm import Task, TaskClient\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        "ids = [tc.run(Task('import time; time.sleep(0.3); assert %d' % (n % 4))) for n in range(16)]\n"
        "tc.barrier(ids)\n"
    )
    for variable, seen in (("1", True), ("0", False)):
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        environment = {**os.environ, "IPYTASKFARM_PROGRESS": variable}
        process = subprocess.Popen([sys.executable, "-c", code], stderr=there, env=environment)
        os.close(there)
        text = ""
        while True:
            try:
                chunk = os.read(here, 10_000)
            except OSError:  # the other end was closed
                break
            if not chunk:
                break
            text += chunk.decode()
        os.close(here)
        assert process.wait(DEADLINE_S) == 0
        assert ("/16 tasks" in text) is seen, text
        assert ("failed" in text) is seen, text


def test_another_process_finds_earlier_tasks(farm: Farm, tc: TaskClient, gate: Gate) -> None:
    ids = [tc.run(Task(gate.code + f"a = {n}", pull="a", name="earlier")) for n in range(4)]
    tc.flush()
    gate.open()
    code = (
        "import sys\nfrom ipytaskfarm import TaskClient\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        "tc.barrier(tc.tasks(state='unfinished'), timeout=30)\n"
        "print([tc.get_task_result(i)['a'] for i in tc.tasks(name='earlier')], tc.tasks(name='earlier').ids)\n"
    )
    assert python(code) == f"[0, 1, 2, 3] {ids}\n"
    eventually(lambda: not tc.tasks(state="unfinished"), DEADLINE_S)
