"""Signal handlers, ``__del__`` and hooks call the client while it is at work: it works, or says why it does not."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.client.outbox import Outbox
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


@contextmanager
def at_signal(call: Callable[[], object]) -> Iterator[list[object]]:
    """Call a function at each SIGUSR1; the list has what it returned or raised."""
    found: list[object] = []

    def handle(number: int, frame: object) -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield found
    finally:
        signal.signal(signal.SIGUSR1, before)


CALLS: dict[str, Callable[[TaskClient], object]] = {
    "run": lambda tc: tc.run(Task(abs, args=(-3,))),
    "wait": lambda tc: tc.run(Task(abs, args=(-3,)), block=True),
    "ask": lambda tc: tc.queue_status(),
    "map": lambda tc: tc.map(abs, [-3, 4]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_handler_in_the_midst_of_a_submission_is_refused(
    tc: TaskClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Outbox.add

    def interrupted(outbox: Outbox, *args: Any) -> int:
        monkeypatch.setattr(Outbox, "add", usual)
        signal.raise_signal(signal.SIGUSR1)
        return usual(outbox, *args)

    tc.run(Task(abs, args=(-1,)), block=True)
    with at_signal(lambda: CALLS[name](tc)) as found:
        monkeypatch.setattr(Outbox, "add", interrupted)
        task = tc.run(Task(abs, args=(-5,)))
    assert tc.get_task_result(task, block=True).result == 5
    (error,) = found
    assert isinstance(error, RuntimeError)
    assert "a signal handler, __del__ or a callback has called a client of the farm while its thread was" in str(error)
    assert CALLS[name](tc) is not None, "later calls work"


@pytest.mark.parametrize("name", CALLS)
def test_a_handler_works_while_its_thread_waits(tc: TaskClient, name: str) -> None:
    task = tc.run(Task("from ipytaskfarm.engine import current_task\ncurrent_task().receive(timeout=60)"))
    with at_signal(lambda: CALLS[name](tc)) as found:
        main = threading.main_thread().ident
        assert main is not None

        def disturb() -> None:
            for count in range(1, 6):
                signal.pthread_kill(main, signal.SIGUSR1)
                eventually(lambda count=count: len(found) == count, 30.0, what="the handler has returned")  # type: ignore[misc]
            tc.send(task, "end")

        thread = threading.Thread(target=disturb)
        thread.start()
        assert tc.get_task_result(task, block=True).failure is None
        thread.join()
    assert not [each for each in found if isinstance(each, RuntimeError) and "callback" not in str(each)]
    assert [each for each in found if not isinstance(each, Exception)], "most come while it waits"


def test_the_thread_of_the_connection_refuses_to_wait_for_itself(tc: TaskClient) -> None:
    found: list[BaseException | None] = []

    def wait(final: object) -> None:
        try:
            tc.queue_status()
        except RuntimeError as error:
            found.append(error)

    task = tc.run(Task("a = 1"))
    tc.session.on_end(task, wait, None)
    eventually(lambda: found, 30.0, what="it was refused")
    assert "__del__" in str(found[0])


def test_hooks_and_callbacks_of_the_interpreter(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []

    def call(*_: object) -> None:
        found.append(tc.run(Task(abs, args=(-3,)), block=True).result)

    class Object:
        __del__ = call

    Object()
    held = threading.Event()  # any object that takes weak references
    kept = weakref.ref(held, call)
    del held
    monkeypatch.setattr(threading, "excepthook", call)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    tc.submit(abs, -1).add_done_callback(call)
    eventually(lambda: len(found) == 4, 30.0, what="all have called")
    assert found == [3, 3, 3, 3]
    assert kept() is None


@pytest.mark.parametrize("name", CALLS)
def test_handlers_at_any_moment_never_wait_for_themselves(tc: TaskClient, name: str) -> None:
    """Also in the midst of the start of a wait, where `threading.Event` holds a lock."""
    is_inside = False

    def call() -> object:
        nonlocal is_inside
        if is_inside:  # a timer that is quicker than its handler would nest without end
            return None
        is_inside = True
        try:
            return CALLS[name](tc)
        finally:
            is_inside = False

    with at_signal(call) as found:
        main, is_over = threading.main_thread().ident, threading.Event()
        assert main is not None

        def disturb() -> None:
            while not is_over.wait(0.0007):
                signal.pthread_kill(main, signal.SIGUSR1)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for count in range(100):
                assert tc.run(Task(abs, args=(-count,)), block=True).result == count
        finally:
            is_over.set()
            thread.join()
    assert all("callback" in str(each) for each in found if isinstance(each, Exception))
    assert [each for each in found if each is not None and not isinstance(each, Exception)]
