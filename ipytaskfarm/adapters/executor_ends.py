"""The end of an `Executor`, and of its calls: an error as a process pool's, and the text."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

from ipytaskfarm.core import errors
from ipytaskfarm.display.ipython import show_users_frames

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.client.results import TaskResult
    from ipytaskfarm.deployment.farm import Farm


INHERITED = "this executor or pool belongs to the process that this one was forked from: make a new one here"


class WorkerLost(errors.EngineLost, BrokenProcessPool):
    """The engine that ran a call was lost.

    Unlike in a ``ProcessPoolExecutor``, the other calls go on, and the executor takes new ones.
    """


def original_of(error: BaseException) -> BaseException:
    """Return the error that pickle raised for a call, as a ``ProcessPoolExecutor`` does; its cause is our report, and
    its note says in the last line of a traceback which value it was.
    """
    original = error.__cause__
    if not isinstance(error, errors.UnpickleableException) or original is None:
        return error
    error.__cause__ = None
    original.__cause__ = error
    original.add_note(str(error))
    show_users_frames(original)
    return original


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method as long as its object exists."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = reference()
        if found is not None:
            found(*arguments)

    return call


def write_output(ended: TaskResult) -> None:
    """Write what a call has printed to this session's streams; where nobody can read it, it is left out."""
    for text, stream in ((ended.stdout, sys.stdout), (ended.stderr, sys.stderr)):
        if text and stream is not None:
            with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
                stream.write(text)


def abort_waiting(client: TaskClient, ids: list[int], reason: str) -> list[int]:
    """Abort those of the tasks that are known and have not begun, and return their ids.

    Some may have ended and been cleared meanwhile.  The controller decides with the abort whether a call has begun: the
    answer to a question before it would be outdated when the abort arrives, and a cancelled call would run on.
    """
    from ipytaskfarm.client.operate import abort_known
    from ipytaskfarm.core.messages import AbortTasks

    if not ids:
        return []
    outcomes = abort_known(client.session, AbortTasks(ids, reason=reason, running=False))
    return [task_id for task_id, outcome in outcomes if outcome == "aborted"]


def clear_arrived(client: TaskClient, ids: list[int]) -> None:
    """Clear results that have arrived from the farm; of calls that share a task, the chunk with all of them."""
    from ipytaskfarm.client.operate import clear_results

    if ids:
        try:
            clear_results(client.session, ids, chunks=True)
        except (KeyError, ConnectionError):
            pass  # cleared by another client, or the farm is gone


def end(client: TaskClient, farm: Farm | None, arrived: list[int]) -> None:
    """End an executor whose calls have ended: its own farm, or its results in the farm of others."""
    if farm is None:
        clear_arrived(client, arrived)
        arrived.clear()
    else:
        client.close()
        farm.stop()


def leave(client: TaskClient, farm: Farm | None, arrived: list[int]) -> None:
    """End an executor that nobody has shut down and nobody holds any more, as CPython's does."""
    # The garbage collector calls this in any thread, with any lock held.
    threading.Thread(target=end, args=(client, farm, arrived), name="ipytaskfarm executor").start()


class Ending(Protocol):
    """What the end of a process, or its fork, needs of an executor, see `Executor`."""

    def end_at_exit(self) -> None: ...
    def after_fork(self) -> None: ...


_living: weakref.WeakSet[Ending] = weakref.WeakSet()


def register(executor: Ending) -> None:
    """Let an executor end when the interpreter does."""
    _living.add(executor)
    # Exit functions run in reverse order of registration: the farm's own comes after this one.
    atexit.unregister(_end_all)
    atexit.register(_end_all)


def _end_all() -> None:
    for executor in list(_living):
        executor.end_at_exit()


def _after_fork() -> None:
    for executor in list(_living):
        executor.after_fork()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork)


def interrupted() -> bool:
    """Return whether the program ends by a Ctrl-C.  A session at a prompt goes on after one, and ends later."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
