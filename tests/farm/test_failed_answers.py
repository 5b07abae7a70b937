"""Bugs in the controller: in an answer they are that question's error, in another message its sender waits.

The controller goes on with the saved state."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import FarmState
from tests.support.farms import DEADLINE_S, Gate, ask, module_farm, until_running
from tests.support.polling import eventually

pytestmark = [pytest.mark.farm, pytest.mark.timeout(120)]

BROKEN = '''
import sys
from pathlib import Path

from ipytaskfarm.core import messages
from ipytaskfarm.core import saves
from ipytaskfarm.core.scheduler import failed_answers, scheduler
from ipytaskfarm.storage.store import Store
from ipytaskfarm.policies import QueuePolicy


def fails_half_way(farm, session, n, question, now, out):
    """Forget every second task, and the engines, without a save; then fail."""
    for task in list(farm.tasks.unfinished)[::2]:
        del farm.tasks.unfinished[task]
    farm.tasks.finals.clear()
    farm.engines.by_name.clear()
    raise ZeroDivisionError("half way")


def fails_if(place, tasks):
    """Fail for tasks of this name, as long as there is a file of this name."""
    poison = Path(__file__).with_name(place)
    if poison.exists() and any(task.rules is not None and task.rules.name == place for task in tasks):
        raise OverflowError(place)


def on_submit(farm, session, event, now, out):
    scheduler.submit.on_submit(farm, session, event, now, out)
    fails_if("handled", event.tasks)


def commit(store, saves_of_turn):
    fails_if("committed", [save for save in saves_of_turn if isinstance(save, saves.SaveTask)])
    return real_commit(store, saves_of_turn)


real_commit = Store.commit


class InOrder(QueuePolicy):
    def key(self, task):
        return task.queue_seq


# Tests import this too, to see whether it can be loaded.
if sys.modules["__main__"].__spec__.name == "ipytaskfarm.controller.__main__":
    scheduler.QUESTIONS[messages.MarkTasksFailed] = fails_half_way
    scheduler.HANDLERS[messages.Submit] = on_submit
    Store.commit = commit
    failed_answers.FIRST_PAUSE_S = 2.0
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy")


@pytest.fixture(scope="module")
def farm(folder: Path) -> Iterator[Farm]:
    (folder / "broken_answers.py").write_text(BROKEN)
    with module_farm(1, queue_policy="broken_answers:InOrder", policy_path=[folder]) as farm:
        yield farm


def state(farm: Farm) -> FarmState:
    found = ask(farm, messages.FarmStatus())
    assert isinstance(found, FarmState)
    return found


def test_an_answer_that_fails_half_way_changes_nothing(farm: Farm, gate: Gate) -> None:
    with farm.task_client() as tc, farm.task_client() as other:
        done = [tc.run(Task(f"a = {i}", pull="a")) for i in range(20)]
        tc.barrier(done, timeout=DEADLINE_S)
        running = other.run(Task(gate.code + "a = 'through'", pull="a"))
        until_running(other, running)
        waiting = [other.run(Task(f"a = {i}", pull="a")) for i in range(20)]
        other.flush()
        before = state(farm)

        began_s = time.monotonic()
        with pytest.raises(errors.KernelError, match="half way"):
            tc.mark_failed(waiting[0])
        assert sum(other.queue_status().values()) == 41
        print(f"answered, and another client served, after {time.monotonic() - began_s:.2f} s")
        after = state(farm)
        assert after.pid == before.pid
        assert after.epoch == before.epoch + 1

        # It is not tried again for a while: each time costs all clients a new epoch.
        with pytest.raises(errors.KernelError, match="tried again in"):
            tc.mark_failed(waiting[1])
        assert state(farm).epoch == after.epoch

        assert [tc.get_task_result(i).ns.a for i in done] == list(range(20))
        gate.open()
        other.barrier([running, *waiting], timeout=DEADLINE_S)
        assert other.get_task_result(running).ns.a == "through"
        assert [other.get_task_result(i).ns.a for i in waiting] == list(range(20))
        assert other.tasks(ids=[running]).rows[0].attempts == 1, "its run went on"
        assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 41, "failed": 0}


POISONER = """
from ipytaskfarm import Task, TaskClient

with TaskClient({file!r}) as tc:
    print(tc.run(Task("a = 3", pull="a", name={place!r}), block=True)["a"], flush=True)
"""


@contextmanager
def poisoned(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run the client whose task meets the bug."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        try:
            yield client
        finally:
            client.kill()


@pytest.mark.parametrize(("place", "epochs"), [("handled", 1), ("committed", 2)])
def test_a_message_that_meets_a_bug_waits_and_all_others_go_on(
    farm: Farm, folder: Path, gate: Gate, place: str, epochs: int
) -> None:
    """Its client is kept away for a while, and what it sent is accepted when the bug is gone.

    A commit has saves of many messages: which of them it is shows when they come again, and are handled one by one.
    """
    with farm.task_client() as tc:
        running = tc.run(Task(gate.code + "a = 'through'", pull="a"))
        until_running(tc, running)
        before = state(farm)
        (folder / place).touch()
        code = POISONER.format(file=str(farm.connection_file), place=place)
        with poisoned(code) as poisoner:
            eventually(lambda: state(farm).epoch == before.epoch + epochs, what="the message is known")
            assert state(farm).pid == before.pid
            gate.open()
            tc.barrier(running, timeout=DEADLINE_S)
            for _ in range(20):
                assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2
            assert state(farm).epoch <= before.epoch + epochs + 1, "the others pay for it once in a while"
            (folder / place).unlink()
            assert poisoner.communicate(timeout=DEADLINE_S)[0] == "3\n"
        assert state(farm).pid == before.pid


def test_the_farm_stops_as_usual_after_it(farm: Farm) -> None:
    with TaskClient(str(farm.connection_file)) as tc:
        assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2
