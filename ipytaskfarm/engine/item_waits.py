"""Notices that an item of a chunk waits, and lets the farm go on with the chunk's other items.

Items of one chunk run one after another.  If one waits for another one, or for something that only happens when a value
of an earlier one has arrived, it would wait for ever.  So while an item waits, the values before it are sent, and the
items behind it go to other engines.  See docs/decisions/0087.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.messages.payload import ResultBody
from ..core.messages.running_task import ItemsLeft
from ..core.messages.task_types import ItemEnd, RunKey
from .map_chunks import ChunkCalls
from .run_records import RunningAttempt

WAITS_S = 0.5
"""An item that has run for this many seconds waits, if it was busy for less than this share of them."""
BUSY = 0.1
LONG_S = 5.0
"""An item that computes is left with its engine after this many seconds: perhaps it waits in a loop."""


class ItemWatch:
    """What an engine's lane has seen of the item that runs.

    send: sends a message to the agent; any thread may call it. encode: encodes the result of an item.
    """

    def __init__(self, engine: str, send: Callable[[ItemsLeft], None], encode: Callable[[ResultBody], bytes]) -> None:
        self._engine = engine
        self._send = send
        self._encode = encode
        self._seen: tuple[RunKey, int] | None = None
        """The chunk's run, and the item that ran at the last look."""
        self._since_s = self._busy_s = 0.0

    def look(self, attempt: RunningAttempt, chunk: ChunkCalls) -> None:
        """Look at the item that runs.  The lane's thread calls this 20 times a second."""
        if chunk.is_left:
            return
        now_s, busy_s = time.monotonic(), _main_busy_s()
        seen = attempt.key, len(chunk.values)
        if seen != self._seen:
            self._seen, self._since_s, self._busy_s = seen, now_s, busy_s
            return
        run_s = now_s - self._since_s
        waits = run_s >= WAITS_S and busy_s - self._busy_s < BUSY * run_s
        if waits or run_s >= LONG_S:
            values = chunk.leave_rest()
            # Values have code of their own, which may wait for anything: the lane's thread must not.
            _thread.start_new_thread(self._tell, (attempt, chunk, values))

    def _tell(self, attempt: RunningAttempt, chunk: ChunkCalls, values: list[Any]) -> None:
        told: list[ItemEnd] = []
        try:
            chunk.tell_before(values, attempt.sink.item_outputs(), self._encode, told)
        except Exception:  # of the others, the chunk's end tells
            pass
        self._send(ItemsLeft(self._engine, attempt.key, len(values), told))


def _main_busy_s() -> float:
    """Return the seconds for which the main thread has computed, or has waited for a core to do so."""
    try:
        computed_ns, queued_ns, _ = Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()
        return (int(computed_ns) + int(queued_ns)) / 1e9
    except (OSError, ValueError):  # not every kernel tells
        ident = threading.main_thread().ident
        assert ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
