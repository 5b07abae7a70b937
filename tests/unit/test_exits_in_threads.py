"""`sys.exit()` in code that a thread of the client calls for the user ends neither the thread nor a value unsaid."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ipytaskfarm.adapters.pool import Pool, PoolIterator
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.futures import Settler
from ipytaskfarm.client.job_tasks import _EventListener
from tests.support.polling import DEADLINE_S


class ForSettler:
    """What a `Settler` needs of a session."""

    def __init__(self) -> None:
        self.at_fork: list[Any] = []
        self.at_close: list[Any] = []


def test_a_callback_that_exits_does_not_end_the_thread_of_the_futures(capsys: pytest.CaptureFixture[str]) -> None:
    settler = Settler(ForSettler())  # type: ignore[arg-type]
    called = threading.Event()
    settler.call(sys.exit, "in a callback")
    settler.call(lambda _: called.set(), None)
    assert called.wait(DEADLINE_S)
    assert "SystemExit: in a callback" in capsys.readouterr().err
    settler._close()


def test_a_callback_that_exits_does_not_keep_others_from_being_called(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[object] = []
    pending = PendingResult.__new__(PendingResult)
    PendingResult._call(pending, [lambda _: sys.exit(), called.append])
    assert called == [pending]
    assert "SystemExit" in capsys.readouterr().err


def test_a_function_of_an_event_that_exits_does_not_end_the_events_of_its_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _EventListener("task_done", sys.exit).call("of an event")
    assert "SystemExit: of an event" in capsys.readouterr().err


def _fed(monkeypatch: pytest.MonkeyPatch, error: BaseException, ahead: threading.Semaphore | None) -> PoolIterator[int]:
    """Return the iterator of an `imap` over an iterable with one item, which then raises an error."""

    def futures(*_: object) -> Iterator[concurrent.futures.Future[int]]:
        first: concurrent.futures.Future[int] = concurrent.futures.Future()
        first.set_result(1)
        yield first
        raise error

    monkeypatch.setattr(Pool, "_futures_of", futures)
    values: PoolIterator[int] = PoolIterator(ordered=True)
    Pool._feed(Pool.__new__(Pool), values, abs, iter(()), 1, ahead)
    return values


def test_the_exit_of_an_iterable_is_no_end_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    values = _fed(monkeypatch, SystemExit("of the iterable"), threading.Semaphore(2))
    assert next(values) == 1
    with pytest.raises(SystemExit, match="of the iterable"):
        next(values)


def test_ctrl_c_while_the_items_of_a_list_are_submitted_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fed(monkeypatch, KeyboardInterrupt(), None)
