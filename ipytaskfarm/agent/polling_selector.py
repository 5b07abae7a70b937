"""The selector of the agent's event loop: it polls for a moment before it sleeps (`transport.short_poll`)."""

from __future__ import annotations

import asyncio
import math
import selectors

from ..transport.short_poll import ShortPoll

Found = list[tuple[selectors.SelectorKey, int]]


class PollingSelector(selectors.EpollSelector):
    """An epoll selector that polls as long as recent waits were short, so that no idle core must be woken."""

    def __init__(self) -> None:
        super().__init__()
        self._short_poll = ShortPoll(self._look)

    def select(self, timeout: float | None = None) -> Found:
        return self._short_poll.wait(math.inf if timeout is None else timeout, 0)

    def _look(self, timeout_s: float) -> Found:
        return super().select(None if timeout_s == math.inf else timeout_s)


def polling_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop with this selector."""
    return asyncio.SelectorEventLoop(PollingSelector())
