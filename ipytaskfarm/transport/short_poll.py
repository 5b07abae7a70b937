"""Waiting without sleep for an answer that usually comes within a moment.

A process that sleeps gives its core back, and waking an idle core takes 40 µs on a virtual machine. One task at a time
crosses five processes, so most of its time would be such wake-ups. A short poll keeps the core, and yields it to
anybody who wants it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sized
from typing import Generic, TypeVar

Found = TypeVar("Found", bound=Sized)

POLL_S = 0.0007
"""How long a wait goes on without sleep. One task at a time needs half of it between two turns of the controller."""
WANTED_S = 0.001
"""A yield that takes longer than this has let other work run: the farm's own steps between two turns are shorter."""
PAUSE_S = 0.5
"""After that, every wait sleeps for this time."""
CREDIT_MAX = 4
FEW_BYTES = 4096
"""What a turn has received for one task at a time, with the code of a function, which comes with each message. More
than this is a farm at full speed, where everybody needs the cores."""


class ShortPoll(Generic[Found]):
    """Waits with an epoll's `poll`. It polls as long as recent waits were short, and sleeps otherwise.

    So it costs nothing in an idle farm, nothing beside tasks that take longer than `POLL_S`, and nothing on a machine
    with other work.
    """

    def __init__(self, look: Callable[[float], Found]) -> None:
        """Create it. `look` waits for up to the given number of seconds, and returns what it has found."""
        self._look = look
        self._credit = 0
        """The number of short waits among the last ones: how often it may poll in vain."""
        self._sleeps_until_s = 0.0

    def wait(self, timeout_s: float, heard_bytes: int) -> Found:
        """Return what `look(timeout_s)` returns. `heard_bytes` were received since the last call."""
        found = self._look(0)
        if found or timeout_s <= 0:
            return found
        began_s = time.perf_counter()
        if self._credit and heard_bytes <= FEW_BYTES and began_s >= self._sleeps_until_s:
            soon = self._poll(began_s, began_s + min(timeout_s, POLL_S))
            if soon is not None:
                return soon
        left_s = timeout_s - (time.perf_counter() - began_s)
        found = self._look(max(0.0, left_s))
        if found and time.perf_counter() - began_s < POLL_S:
            self._credit = min(CREDIT_MAX, self._credit + 1)
        return found

    def _poll(self, began_s: float, until_s: float) -> Found | None:
        now_s = began_s
        while now_s < until_s:
            os.sched_yield()
            found = self._look(0)
            then_s, now_s = now_s, time.perf_counter()
            if found:
                self._credit = CREDIT_MAX
                return found
            if now_s - then_s > WANTED_S:
                self._sleeps_until_s = now_s + PAUSE_S
                return None
        self._credit -= 1
        return None


def watch(epoll: select.epoll, watched: set[int], wanted: set[int]) -> set[int]:
    """Let an epoll report when these descriptors are readable, instead of those that it watched; return them."""
    for fd in watched - wanted:
        with contextlib.suppress(OSError):  # its owner has closed it
            epoll.unregister(fd)
    for fd in wanted - watched:
        epoll.register(fd, select.EPOLLIN)
    return wanted
