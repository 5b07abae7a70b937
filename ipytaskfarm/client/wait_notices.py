"""Print notices for users who wait for tasks: why no task can run, and how to continue after Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.messages import Stuck, TextReply
from ..display.ipython import show_users_frames

if TYPE_CHECKING:
    from .arrivals import Waiter
    from .questions import AsksController

LOOK_AFTER_S = 3.0
"""Seconds without an ended task after which the controller is asked whether any task can run."""

IDS_ASKED = 10_000


class WaitNotices:
    """Tells the user once per wait why none of its tasks can run."""

    def __init__(self, session: AsksController, waiter: Waiter, tell: Callable[[str], None]) -> None:
        """Start for one wait; `tell` is called with the text."""
        self._session = session
        self._tell = tell
        self._waiter = waiter
        self._left = len(waiter.remaining)
        self._since_s = time.monotonic()
        self._told = False

    def tick(self) -> None:
        """Ask the controller when it is time; the wait calls this a few times a second."""
        now_s = time.monotonic()
        left = len(self._waiter.remaining)
        if left != self._left:
            self._left, self._since_s = left, now_s
        if self._told or now_s - self._since_s < LOOK_AFTER_S:
            return
        self._since_s = now_s
        ids = sorted(list(self._waiter.remaining)[:IDS_ASKED])
        try:
            reply = self._session.ask(Stuck(ids), timeout_s=1.0)
        except (TimeoutError, ConnectionError) as error:  # the session itself reports that the farm does not answer
            raise_users(error)
            return
        if isinstance(reply, TextReply) and reply.text:
            self._told = True
            self._tell(f"nothing of what you wait for can run now:\n{reply.text}")


def note_cancelled(cancelled: asyncio.CancelledError, text: str) -> None:
    """Let an asyncio cancellation say what becomes of the task that was awaited.

    Nothing is noted if the task itself was aborted, and not the wait.
    """
    waits = asyncio.current_task()
    if waits is not None and waits.cancelling():
        cancelled.add_note(text)


def raise_users(error: BaseException) -> None:
    """Raise a TimeoutError again that came of the user's own code while the client waited; the client's are plain ones.

    A handler of SIGALRM raises one for a deadline of the program, often of a class of its own.
    """
    if isinstance(error, TimeoutError) and type(error) is not TimeoutError:
        raise error


def say(text: str) -> None:
    """Print a notice to stderr."""
    if sys.stderr is not None:
        print(f"ipytaskfarm: {text}", file=sys.stderr, flush=True)


def say_interrupted(ids: set[int], interrupt: KeyboardInterrupt, text: str = "") -> None:
    """Tell the user after Ctrl-C that the tasks go on, and how to wait for them or abort them.

    text: the notice; "": one that names the ids.
    """
    show_users_frames(interrupt)
    if not ids:
        return
    say(text or going_on(ids))


def going_on(ids: set[int]) -> str:
    """Return a sentence for a user whose wait for these tasks has ended before them."""
    some = sorted(ids)
    if len(some) == 1:
        return f"task {some[0]} continues: tc.barrier({some[0]}) waits for it again, tc.abort({some[0]}) ends it"
    span = f"{some[0]} to {some[-1]}"
    return f"{len(some)} tasks ({span}) continue: tc.barrier(ids) waits for them again, tc.abort(ids) ends them"
