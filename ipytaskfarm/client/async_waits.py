"""Wait for tasks in an asyncio loop, which the IO thread wakes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .session import TICK_S, Session


async def as_completed(session: Session, ids: list[int]) -> AsyncIterator[int]:
    """Yield each of these watched tasks as soon as it has ended."""
    loop = asyncio.get_running_loop()
    bell = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed while it waited
            loop.call_soon_threadsafe(bell.set)

    waiter = session.begin_wait(ids, wake)
    ended = [i for i in ids if i not in waiter.remaining and i not in waiter.ended]
    left = len(ids)
    try:
        while True:
            for task_id in ended:
                yield task_id
            left -= len(ended)
            if not left:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), TICK_S)
            bell.clear()
            ended = session.ended_since(waiter)
    finally:
        session.end_wait(waiter)


async def ended(session: Session, task_id: int) -> None:
    """Wait until a watched task has ended."""
    async for _ in as_completed(session, [task_id]):
        pass
