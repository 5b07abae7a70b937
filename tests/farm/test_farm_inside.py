"""Test what running tasks can do: progress, messages, children, deferral, locks; with one slot and with several."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import tables
from ipytaskfarm.engine import current_task
from tests.support.farms import DEADLINE_S, Gate, ask, module_farm
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(n=1)


def value(tc: TaskClient, task: Any) -> Any:
    return tc.get_task_result(int(task), block=True, timeout=DEADLINE_S, raw=False).result


# -- SEEDS 20


@pytest.mark.alone
def test_the_latest_progress_is_seen_soon_and_the_last_one_always(tc: TaskClient) -> None:
    def work() -> int:
        me = current_task()
        n = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            n += 1
            me.progress(time.time(), None, f"update {n}")
            time.sleep(0.001)
        me.progress(n, n, "done")
        return n

    task = tc.run(Task(work))
    late = []
    while not tc.get_task_result(task, block=False):
        seen = tc.progress_of(task).get(task)
        if seen is not None and seen.total is None:
            late.append(time.time() - seen.value)
    count = value(tc, task)
    assert count > 500
    assert late, "no progress was seen while it ran"
    assert sorted(late)[len(late) // 2] < 0.3, "the latest progress comes late"
    assert tc.progress_of(task)[task] == (count, count, "done")
    assert tc.progress_of(task)[task].fraction == 1.0


def test_a_run_that_fails_has_sent_its_messages(tc: TaskClient) -> None:
    def fail() -> None:
        for number in range(10):
            current_task().send(number)
        raise ValueError("after its messages")

    task = tc.run(Task(fail))
    failed = tc.get_task_result(task, block=True, timeout=DEADLINE_S, raw=False)
    assert failed.reason == "error"
    assert [message.value for message in tc.messages(task)] == list(range(10))


def test_ten_thousand_messages_each_way(tc: TaskClient) -> None:
    def echo() -> int:
        me = current_task()
        count = 0
        while True:
            message = me.receive(timeout=60)
            if message.value is None:
                return count
            count += 1
            me.send((message.value, message.sender))

    task = tc.run(Task(echo))

    def send_all() -> None:
        for n in range(0, 10_000, 500):
            tc.send(task, *range(n, n + 500))

    sender = threading.Thread(target=send_all)
    sender.start()
    found = []
    for message in tc.messages(task, timeout=DEADLINE_S):
        found.append(message.value)
        if len(found) == 10_000:
            tc.send(task, None)
    sender.join()
    assert [number for number, _ in found] == list(range(10_000))
    senders = {who for _, who in found}
    assert len(senders) == 1
    assert all(senders)
    assert message.sender == f"task {task}"
    assert value(tc, task) == 10_000
    assert sum(1 for _ in tc.messages(task)) == 10_000, "messages are kept with the result"


def test_messages_have_time_outs_and_ended_tasks_get_none(tc: TaskClient, gate: Gate) -> None:
    def wait_in_vain() -> str:
        try:
            current_task().receive(timeout=0.05)
        except TimeoutError as error:
            return str(error)
        return ""

    task = tc.run(Task(wait_in_vain))
    assert "no message within 0.05 s" in value(tc, task)
    with pytest.raises(errors.TaskError, match=rf"task {task} has ended.*quiet=True"):
        tc.send(task, 1)
    tc.send(task, 1, quiet=True)
    with pytest.raises(IndexError):
        tc.send(10**9, 1)
    blocked = tc.run(Task(gate.code))
    with pytest.raises(TimeoutError, match="sent no message"):
        next(iter(tc.messages(blocked, timeout=0.1)))
    later = tc.run(Task(lambda: current_task().receive(timeout=60).value))
    tc.send(later, {"first": 1})  # it has not begun
    gate.open()
    assert value(tc, later) == {"first": 1}
    assert list(tc.messages(blocked)) == []


def test_messages_outlive_the_controller(tc: TaskClient, farm: Farm) -> None:
    def slow_echo() -> list[Any]:
        me = current_task()
        got = []
        for _ in range(6):
            got.append(me.receive(timeout=60).value)
            me.send(got[-1])
        return got

    task = tc.run(Task(slow_echo, retries=1))
    tc.send(task, 1, 2, 3)
    answers = tc.messages(task)
    assert [next(answers).value for _ in range(3)] == [1, 2, 3]
    state = ask(farm, m.FarmStatus())
    assert isinstance(state, tables.FarmState)
    os.kill(state.pid, 9)
    tc.send(task, 4, 5, 6)
    assert [message.value for message in answers] == [4, 5, 6]
    assert value(tc, task) == [1, 2, 3, 4, 5, 6]


# -- SEEDS 21


def test_a_parent_waits_for_its_children_on_one_slot(tc: TaskClient, farm: Farm) -> None:
    def square(n: int) -> tuple[int, int]:
        return n * n, os.getpid()

    def parent() -> tuple[Any, ...]:
        me = current_task()
        ids = [me.submit(square, n) for n in range(10)]
        before = me.children("unfinished")
        failed = me.wait()
        return ids, before, failed, me.results(), me.children("succeeded"), me.parent, os.getpid()

    task = tc.run(Task(parent, resources={"cores": 1}))
    ids, before, failed, results, succeeded, grandparent, pid = value(tc, task)
    assert len(set(ids)) == 10
    assert before == ids == succeeded
    assert failed == 0
    assert grandparent is None
    assert [square for square, _ in results] == [n * n for n in range(10)]
    assert pid not in {other for _, other in results}, "children ran in another engine than their waiting parent"
    eventually(lambda: tc.await_engines(stable_timeout=0.1) == [0] or len(tc.await_engines(stable_timeout=0.1)) == 1)
    assert tc.status(ids[0]).state == "succeeded"


def test_children_are_objects_and_counted_by_every_word_of_their_state(tc: TaskClient) -> None:
    """As tasks of STK and core4.  A word that was not known counted none of them: the parent ended too early."""

    class Part:
        def __init__(self, n: int) -> None:
            self.n = n

        def execute(self, factor: int = 1) -> int:
            return self.n * factor

    def parent() -> list[Any]:
        me = current_task()
        job = me.create_job("parts")
        job.add_task(Part(1))
        job.submit()
        ids = [*job.ids, me.submit(Part(2)), me.submit(Part(3), factor=10), me.submit(Part, 4)]
        found: list[Any] = [me.results(ids[:3]), me.wait(ids)]
        for word in (None, "finished", "succeeded", "unfinished", "pending", "failed"):
            found.append(len(me.children(word)))
        for call in (lambda: me.submit(Part), lambda: me.submit(5), lambda: me.children("waiting")):
            with pytest.raises((TypeError, ValueError)) as raised:
                call()
            found.append(str(raised.value))
        return found

    *numbers, alone, nothing, word = value(tc, tc.run(Task(parent)))
    assert numbers == [[1, 2, 30], 0, 4, 4, 4, 0, 0, 0]
    assert "an instance is needed, Part()" in alone
    assert "a function or an object with execute(), not int" in nothing
    assert "state must be one of 'scheduled', 'running'" in word


def test_children_know_their_parent_and_their_failures_are_raised(tc: TaskClient) -> None:
    def child(n: int) -> int | None:
        if n == 2:
            raise ValueError("child 2")
        return current_task().parent

    def parent() -> tuple[Any, ...]:
        me = current_task()
        ids = me.map(child, range(4))
        found = me.results(ids, return_exceptions=True)
        try:
            me.results(ids)
        except ValueError as error:
            return me.id, found, str(error)
        return ()

    me, found, text = value(tc, tc.run(Task(parent)))
    assert [x if isinstance(x, int) else type(x) for x in found] == [me, me, ValueError, me]
    assert text == "child 2"


def test_a_child_job(tc: TaskClient) -> None:
    def square(n: int) -> int:
        return n * n

    def parent() -> tuple[list[int], list[int], int]:
        job = current_task().create_job("squares of a task")
        for n in range(4):
            job.add_task(square, n)
        ids = job.submit()
        return ids, job.results(), job.wait()

    ids, squares, failed = value(tc, tc.run(Task(parent)))
    assert (squares, failed) == ([0, 1, 4, 9], 0)
    found = tc.job("squares of a task")
    assert found.ids == ids
    assert found.counts()["succeeded"] == 4
    assert tc.jobs()[-1].state == "ended"


def test_a_repeated_run_gets_the_same_children(tc: TaskClient, tmp_path: Path) -> None:
    def child(n: int) -> int:
        return n

    def parent(folder: str) -> list[int]:
        from pathlib import Path

        me = current_task()
        ids = me.map(child, range(3))
        with Path(folder, "ids").open("a") as log:
            log.write(f"{ids}\n")
        if me.attempt == 1:
            raise OSError("once more")
        return me.results(ids)

    assert value(tc, tc.run(Task(parent, args=(str(tmp_path),), retries=1))) == [0, 1, 2]
    first, second = (tmp_path / "ids").read_text().splitlines()
    assert first == second

    def fickle() -> None:
        me = current_task()
        me.submit(child, me.attempt)
        raise OSError("once more")

    failing = tc.run(Task(fickle, retries=1))
    tc.barrier(failing, timeout=DEADLINE_S)
    with pytest.raises(RuntimeError, match="must submit the same in the same order"):
        tc.get_task_result(failing).raise_exception()


def test_a_recovery_task_has_children_of_its_own(tc: TaskClient) -> None:
    def child(n: int) -> int:
        return n // (n - 1)

    def submit(what: str, n: int) -> list[int]:
        me = current_task()
        alone = me.submit(child, n)
        job = me.create_job(what, abort_on_failure=True)
        job.add_task(child, n)
        job.submit()
        return [*me.results([alone]), *job.results()]

    def first() -> None:
        submit("of the task", 1)

    def second() -> list[int]:
        return submit("of its recovery task", 3)

    task = tc.run(Task(first, recovery_task=Task(second)))
    assert value(tc, task) == [1, 1]
    assert {tc.job("of the task").id, tc.job("of its recovery task").id} == {f"{task}.1.2", f"{task}.1-1.2"}


def test_a_task_that_runs_again_after_its_end_keeps_its_messages_and_children(tc: TaskClient) -> None:
    """Messages of the second run were dropped, as were those to it: they had the numbers of the first ones."""

    def work() -> tuple[int, list[str]]:
        me = current_task()
        me.send(me.attempt)
        child = me.submit(abs, -1)
        return child, [me.receive(30).value for _ in range(me.attempt)]

    task = tc.run(Task(work))
    tc.send(task, "first")
    child, heard = value(tc, task)
    assert heard == ["first"]
    tc.pause()
    assert tc.mark_failed(task, "again") == "reopened"
    tc.send(task, "second")
    tc.resume()
    tc.barrier(task, timeout=DEADLINE_S)
    assert value(tc, task) == (child, ["first", "second"])
    assert [message.value for message in tc.messages(task)] == [1, 2]


def test_a_deferred_run_comes_back_uncharged_with_its_state(tc: TaskClient) -> None:
    def later() -> tuple[Any, ...]:
        me = current_task()
        me.state["seen"] = [*me.state.get("seen", []), me.attempt]
        if me.trial < 4:
            me.defer("not yet", after=0.2)
        return me.trial, me.attempt, me.state["seen"]

    task = tc.run(Task(later, defer_time=100))
    assert value(tc, task) == (4, 4, [1, 2, 3, 4])
    attempts = tc.get_task_result(task).attempts
    assert [attempt.outcome for attempt in attempts] == ["deferred"] * 3 + [""]
    gaps = [(b.started - a.ended).total_seconds() for a, b in pairwise(attempts)]
    assert all(gap >= 0.19 for gap in gaps)


def test_messages_of_a_deferred_run_are_there_and_the_next_trial_reads_on(tc: TaskClient) -> None:
    def chat() -> list[int]:
        me = current_task()
        me.state.setdefault("got", []).append(me.receive(timeout=60).value)
        me.send(me.trial)
        if me.trial < 3:
            me.defer(after=0.05)
        return list(me.state["got"])

    task = tc.run(Task(chat))
    tc.send(task, 10, 20, 30)
    assert value(tc, task) == [10, 20, 30]
    assert [message.value for message in tc.messages(task)] == [1, 2, 3]


def test_several_children_at_once_and_a_task_that_is_told_to_stop(tc: TaskClient, tmp_path: Path) -> None:
    def parent() -> list[object]:
        me = current_task()
        return me.results(me.submit_all([Task(max, args=(1, 2)), Task("a = 3", pull="a"), list]))

    assert value(tc, tc.run(Task(parent))) == [2, {"a": 3}, []]

    def stubborn(path: str) -> None:
        from pathlib import Path

        me = current_task()
        before = me.is_aborting
        try:
            Path(path, "began").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            Path(path, "told").write_text(f"{before} {me.is_aborting}")
            raise

    task = tc.run(Task(stubborn, args=(str(tmp_path),)))
    eventually((tmp_path / "began").exists, DEADLINE_S)
    tc.abort(task)
    eventually(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text() == "False True", DEADLINE_S)


def test_deferring_has_an_end(tc: TaskClient) -> None:
    def never() -> None:
        try:
            current_task().defer("still not")
        except Exception:  # a deferral is no Exception: this does not swallow it
            raise AssertionError from None

    task = tc.run(Task(never, defer_time=0.15, defer_max=0.5))
    tc.barrier(task, timeout=DEADLINE_S)
    assert tc.status(task).reason == "deferred too long"
    with pytest.raises(errors.DeferredTooLong, match="still not"):
        tc.get_task_result(task).raise_exception()
    waiting = tc.run(Task(lambda: current_task().defer(after=300)))
    eventually(lambda: tc.status(waiting).reason == "deferred", DEADLINE_S)
    tc.abort(waiting)


def test_a_lock_of_the_node(tmp_path: Path) -> None:
    def count(path: str) -> None:
        with current_task().node_lock("count"):
            with open(path) as file:
                n = int(file.read())
            time.sleep(0.005)
            with open(path, "w") as file:
                file.write(str(n + 1))

    (tmp_path / "n").write_text("0")
    with module_farm(2) as farm, farm.task_client() as tc:
        tc.progress = False
        tc.barrier([tc.run(Task(count, args=(str(tmp_path / "n"),))) for _ in range(30)], timeout=DEADLINE_S)
        assert (tmp_path / "n").read_text() == "30"


def test_what_is_late_is_told(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code, warn_after=0.05, name="slow"))
    eventually(lambda: tc.status(task).reason == "running, longer than warn_after", DEADLINE_S)
    gate.open()
    with pytest.warns(UserWarning, match=r"task \d+ \(slow\) has run for more than 0.05 s") as caught:
        tc.barrier(task, timeout=DEADLINE_S)
    assert {warning.filename for warning in caught} == {__file__}, "the line of the user's call"
    assert tc.status(task).state == "succeeded"
