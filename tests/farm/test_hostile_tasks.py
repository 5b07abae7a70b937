"""Tasks that do to their own engine what they can: they fail, and other clients' tasks go on, on the same node.

Each attack runs beside a task of another client that has one attempt: so the agent and the other engine must live.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.farms import module_farm, until_engines
from tests.support.hostile import controller_pid, folder_of, processes
from tests.support.polling import eventually
from tests.support.thorough import THOROUGH, some_of

pytestmark = pytest.mark.farm

OTHERS_S = 2.0 if THOROUGH else 8.0
"""For the slowest task of the other client.  `make worst` runs alone, `make test` beside other tests."""
MEMORY_BYTES = 1 << 30
"""For each process of the farm: of an engine that is not read, the messages wait in its own memory."""
UNDER_ATTACK_S = 6.0 if THOROUGH else 3.0

RECORDER = """
import gc, msgspec, time
from ipytaskfarm.core.messages.task_types import Ended
from ipytaskfarm.engine import current_task
from ipytaskfarm.system.flight_recorder import Recorder
me = current_task()
(recorder,) = [each for each in gc.get_objects() if type(each) is Recorder]
def end(record):
    recorder.end_with(record, me.id, me.attempt)
    time.sleep(60)
"""
UNREADABLE = {
    "no msgpack": "end(b'\\xc1')",
    "another type": "end(msgspec.msgpack.encode({'a': 1}))",
    "deep": "end(b'\\x9d' + msgspec.msgpack.encode(Ended(me.id, 1, '', 1.0, 1.0))[1:] + b'\\x91' * 900_000 + b'\\x90')",
    "of another task": "end(msgspec.msgpack.encode(Ended(me.id + 1, 1, '', 1.0, 1.0)))",
    "text for numbers": (
        "end(msgspec.msgpack.encode([me.id, 1, 'inputs lost', 1.0, 1.0, None, b'', [], 0, "
        "{'type': 'LostInputs', 'ids': ['a']}]))"
    ),
}
LOST = "from ipytaskfarm.errors import InputsLost\n"
LOSES = {
    "engines by name": (f"{LOST}raise InputsLost({{'node-a': [0]}}, engine_lost=True)", "ValueError: .*whole numbers"),
    "beyond 64 bits": (f"{LOST}raise InputsLost([2**70])", "ValueError: .*from 0 to 9223372036854775807"),
    "ids set later": (f"{LOST}e = InputsLost([1]); e.ids = ['a']\nraise e", "InputsLost: .*not 'a'"),
    "a million ids": (f"{LOST}e = InputsLost([1]); e.ids = range(1_100_000)\nraise e", "at most 100,000"),
}


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(3) as farm:
        yield farm


class Others:
    """Another client of the farm: it has a task that runs once only, through the whole test, and starts others."""

    def __init__(self, farm: Farm, tc: TaskClient, flag: Path) -> None:
        self._farm = farm
        self._tc = tc
        self._flag = flag
        flag.touch()
        self._refused = self._refusals()
        self._task = tc.run(Task(f"import os, time\nwhile os.path.exists({str(flag)!r}): time.sleep(0.05)\na = 1"))
        eventually(lambda: tc.tasks(ids=[self._task])[0].state == "running", 60.0)

    def slowest_s(self, seconds: float) -> float:
        """Run tasks one after the other for a while, and return how long the slowest took."""
        slowest_s, until_s = 0.0, time.monotonic() + seconds
        while time.monotonic() < until_s:
            began_s = time.monotonic()
            self._tc.run(Task("a = 1", priority=1), block=True)
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        return slowest_s

    def _refusals(self) -> int:
        logs = folder_of(self._farm).rglob("agent*.log")
        return sum(path.read_text().count("refuses this agent") for path in logs)

    def check(self) -> None:
        """Check that nothing of the others was lost, and that the controller has refused no agent."""
        assert self.slowest_s(0.05) < OTHERS_S
        self._flag.unlink()
        self._tc.barrier(self._task, timeout=60)
        row = self._tc.tasks(ids=[self._task])[0]
        assert (row.state, row.attempts) == ("succeeded", 1)
        assert self._refusals() == self._refused


@pytest.fixture
def others(farm: Farm, tmp_path: Path) -> Iterator[Others]:
    with farm.task_client() as tc:
        yield Others(farm, tc, tmp_path / "flag")


@pytest.fixture
def hostile(farm: Farm) -> Iterator[TaskClient]:
    with farm.task_client() as tc:
        yield tc


def failure_of(tc: TaskClient, code: str) -> str:
    task = tc.run(Task(code))
    tc.barrier(task, timeout=60)
    error = tc.get_task_result(task).failure
    assert error is not None
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("what", some_of(list(UNREADABLE), 3))
def test_a_record_that_cannot_be_read_fails_its_run_and_ends_its_engine(
    farm: Farm, others: Others, hostile: TaskClient, what: str
) -> None:
    assert "cannot be read" in failure_of(hostile, RECORDER + UNREADABLE[what])
    others.check()
    until_engines(farm, 3)


def write_own_end(seconds: float) -> None:
    """Write a valid end of the task that runs, and go on."""
    import gc

    import msgspec

    from ipytaskfarm.core.messages.task_types import Ended
    from ipytaskfarm.engine import current_task
    from ipytaskfarm.system.flight_recorder import Recorder

    me = current_task()
    (recorder,) = [each for each in gc.get_objects() if type(each) is Recorder]
    recorder.end_with(msgspec.msgpack.encode(Ended(me.id, me.attempt, "", 1.0, 1.0)), me.id, me.attempt)
    time.sleep(seconds)


async def write_own_end_in_a_coroutine(seconds: float) -> None:
    write_own_end(0.0)
    await asyncio.sleep(seconds)


@pytest.mark.parametrize("forge", some_of([write_own_end, write_own_end_in_a_coroutine], 1))
def test_an_engine_whose_task_writes_its_own_end_and_goes_on_is_replaced(
    farm: Farm, others: Others, hostile: TaskClient, forge: Callable[[float], object]
) -> None:
    task = hostile.submit(forge, 600.0)
    hostile.barrier(task.id, timeout=60)
    engine = hostile.get_task_result(task.id).engineid
    assert hostile.run(Task("a = 1", pull="a", targets=[engine]), block=True).ns.a == 1
    others.check()
    until_engines(farm, 3)


@pytest.mark.parametrize("what", some_of(list(LOSES), 3))
def test_lost_inputs_that_are_no_ids_fail_their_task(others: Others, hostile: TaskClient, what: str) -> None:
    code, expected = LOSES[what]
    assert re.search(expected, failure_of(hostile, code))
    others.check()


def test_calls_with_more_values_than_one_message_may_have(others: Others, hostile: TaskClient) -> None:
    """Waiting for many tasks and submitting many works in parts; one child that is too large is refused to the task."""
    waits = "from ipytaskfarm.engine import current_task\nn = current_task().wait(range(10**9, 10**9 + 1_100_000))"
    assert hostile.run(Task(waits, pull="n"), block=True).ns.n == 0
    large = (
        "from ipytaskfarm import Task\nfrom ipytaskfarm.engine import current_task\n"
        "current_task().submit(Task('a = 1', targets=range(1_100_000)))"
    )
    assert re.search("ResultTooLarge: .*more than 9.* values", failure_of(hostile, large))
    others.check()


def test_more_children_than_fit_into_one_message(others: Others, hostile: TaskClient) -> None:
    code = (
        "from ipytaskfarm.engine import current_task\n"
        "children = current_task().map(abs, range(12_000))\nfailed = current_task().wait()"
    )
    task = hostile.run(Task(code, pull=["children", "failed"]))
    result = hostile.get_task_result(task, block=True, timeout=120)
    assert (len(set(result.ns.children)), result.ns.failed) == (12_000, 0)
    assert result.ns.children == sorted(result.ns.children)
    others.check()


PROPERTIES = "from ipytaskfarm.engine import get_engine\nimport time\np = get_engine(id).properties\np.clear()\n"


def test_properties_beyond_the_limit_are_refused_to_the_task(others: Others, hostile: TaskClient) -> None:
    found = failure_of(hostile, f"{PROPERTIES}p['d'] = 'y' * 20_000_000")
    assert re.search("InvalidProperty: .*40,.* bytes, and 16,777,216 are the most", found)
    found = failure_of(hostile, f"{PROPERTIES}p.update({{str(i): 1 for i in range(600_000)}})")
    assert "InvalidProperty" in found
    others.check()


def test_calls_without_sense_are_answered(farm: Farm, others: Others, hostile: TaskClient) -> None:
    pid = controller_pid(farm)
    code = (
        "from ipytaskfarm.engine import current_task\nfrom ipytaskfarm.core.messages.running_task import *\n"
        "c = current_task().calls\nn = 10**6\nfor v in (2**64 - 1, 2**63, -2**63, -1):\n"
        "    for q in (Await([v]), Take([v]), Take([]), Spawn(v, []), Post(v, [b'x']), Post(v, []), Receive(v)):\n"
        "        n += 1\n        c._send(TaskCall(c._engine, c._run, n, q))\n"
        "    c._send(TaskCall(c._engine, (v, v), v, Children()))\n"
        "    c._send(ProgressReport(c._engine, c._run, float('nan'), float('inf')))\n"
        "c.ask(Children())\n"
    )
    hostile.run(Task(code), block=True)
    others.check()
    assert controller_pid(farm) == pid
    log = (folder_of(farm) / "logs" / "controller.log").read_text()
    assert "has a bug" not in log


FOR_EVER = {
    "large properties": f"{PROPERTIES}p['d'] = 'y' * 8_000_000\nwhile True: p['z'] = time.time()",
    "raw properties": (
        "import gc\nfrom ipytaskfarm.core.messages import PropertiesChanged\n"
        "from ipytaskfarm.engine import current_task\nc = current_task().calls\nn = 10**6\n"
        "while True:\n    n += 1\n    c._send(PropertiesChanged(c._engine, n, bytes(8_000_000)))"
    ),
    "raw calls": (
        "from ipytaskfarm.engine import current_task\nfrom ipytaskfarm.core.messages.running_task import *\n"
        "c = current_task().calls\nn = 10**6\nids = list(range(100_000))\nwhile True:\n"
        "    for question in (Children(), Await(ids), Await([]), Take(ids)):\n"
        "        n += 1\n        c._send(TaskCall(c._engine, c._run, n, question))"
    ),
}


@pytest.mark.parametrize("what", some_of(list(FOR_EVER), 2))
def test_messages_without_end_do_not_hold_up_other_engines(
    farm: Farm, others: Others, hostile: TaskClient, what: str
) -> None:
    task = hostile.run(Task(FOR_EVER[what], time_limit=UNDER_ATTACK_S + 30))
    eventually(lambda: hostile.tasks(ids=[task])[0].state == "running", 60.0)
    assert others.slowest_s(UNDER_ATTACK_S) < OTHERS_S
    assert max(process.memory_info().rss for process in processes(farm)) < MEMORY_BYTES
    hostile.abort(task)
    hostile.barrier(task, timeout=60)
    others.check()
