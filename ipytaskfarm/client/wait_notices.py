"""What people are told while they wait for tasks: that nothing can move and why, or how to go on after Ctrl-C."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..core.messages import Stuck, TextReply

if TYPE_CHECKING:
    from .arrivals import Waiter
    from .session import Session

LOOK_AFTER_S = 3.0
"""When nothing has ended for so long, the controller is asked whether anything can."""

IDS_ASKED = 10_000


class WaitNotices:
    """One wait.  Tells once, if nothing of what is waited for can run, why."""

    def __init__(self, session: Session, waiter: Waiter) -> None:
        self._session = session
        self._waiter = waiter
        self._left = len(waiter.remaining)
        self._since_s = time.monotonic()
        self._told = False

    def tick(self) -> None:
        """Called a few times a second while the wait goes on."""
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
        except (TimeoutError, ConnectionError):  # the session itself says that the farm does not answer
            return
        if isinstance(reply, TextReply) and reply.text:
            self._told = True
            say(f"nothing of what you wait for can run now:\n{reply.text}")


def say(text: str) -> None:
    """A word to whoever waits."""
    if sys.stderr is not None:
        print(f"ipytaskfarm: {text}", file=sys.stderr, flush=True)


def say_interrupted(ids: set[int]) -> None:
    """After Ctrl-C: the tasks do not know of it."""
    if not ids:
        return
    some = sorted(ids)
    if len(some) == 1:
        say(f"task {some[0]} goes on: tc.barrier({some[0]}) waits for it again, tc.abort({some[0]}) ends it")
    else:
        span = f"{some[0]} to {some[-1]}"
        say(f"{len(some)} tasks ({span}) go on: tc.barrier(ids) waits for them again, tc.abort(ids) ends them")
