"""The concurrent runs of an engine, in its flight recorder: which coroutine tasks have begun and have not ended.

An engine runs one task, or many coroutine tasks. The recorder's header names the one; each of the many has a row here,
with its deadline and the agent's request to interrupt it. The engine writes a row when it begins the run, and frees it
after the run's result is in the ring. So a run with a row and a result has ended, and a run with a row and without a
result was running when the engine died.

A process may be killed between any two of its instructions. A row becomes valid, and free again, by one aligned store
of 8 bytes: the number of its use. Numbers are never given twice, so a request that comes too late, for a row with
another use, has no effect.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from ..core.messages.task_types import RunKey
from ..core.scheduler.settings import COROUTINES_MAX

ROWS = COROUTINES_MAX
_WORDS = 8
_ROW_BYTES = 8 * _WORDS
CONCURRENT_BYTES = (ROWS + 1) * _ROW_BYTES
"""The size of this part of the flight recorder. Rows that different processes write are 64 bytes apart."""
COMPANY: RunKey = (2**64 - 2, 0)
"""The name of all concurrent runs together, for their last words."""

_USE, _TASK, _ATTEMPT, _BEGAN, _DEADLINE, _WANT, _DELIVERED = range(7)
_TOP = 0  # in the first row: how many rows may be in use
_GENERATION = 2  # a request: use | its number (14 bits) | cause (2 bits)
_OF_USE = 16


class ConcurrentRun(NamedTuple):
    """A run that has begun. Times are in nanoseconds of the machine's monotonic clock; deadline 0 means none."""

    row: int
    use: int
    run: RunKey
    began_ns: int
    deadline_ns: int
    delivered: bool
    """Whether the last request to interrupt it was delivered."""


class Request(NamedTuple):
    """A request to interrupt a run, as the engine finds it."""

    row: int
    number: int
    cause: int
    """`flight_recorder.ABORT` or `TIME_LIMIT`."""


class ConcurrentRuns:
    """The rows of one engine: the engine writes them in its main thread, its agent reads them."""

    def __init__(self, region: memoryview) -> None:
        """Args: the part of the mapped file, `CONCURRENT_BYTES` long."""
        self._words = region.cast("Q")
        self._free: list[int] = []
        self._top = 0
        self._use = 0

    def close(self) -> None:
        """Unmap the file's part."""
        self._words.release()

    # -- the engine's side

    def begin(self, run: RunKey, deadline_ns: int = 0) -> int:
        """Record that a run has begun, and return its row.

        Raises:
            IndexError: `ROWS` runs are in progress.
        """
        words = self._words
        if self._free:
            row = self._free.pop()
        elif self._top < ROWS:
            row = self._top = self._top + 1
            words[_TOP] = row
        else:
            raise IndexError(f"an engine runs at most {ROWS:,} coroutine tasks at once")
        at = row * _WORDS
        words[at + _TASK], words[at + _ATTEMPT] = run
        words[at + _BEGAN] = time.monotonic_ns()
        words[at + _DEADLINE] = deadline_ns
        self._use += 1
        words[at + _USE] = self._use
        return row

    def end(self, row: int) -> None:
        """Free the row of a run whose result is in the ring."""
        self._words[row * _WORDS + _USE] = 0
        self._free.append(row)
        if len(self._free) == self._top:
            self._free.clear()
            self._top = self._words[_TOP] = 0

    def requests(self) -> list[Request]:
        """Return the agent's requests that were not delivered yet."""
        words = self._words
        found = []
        for row in range(1, self._top + 1):
            at = row * _WORDS
            number = words[at + _WANT]
            if number and number != words[at + _DELIVERED] and number >> _OF_USE == words[at + _USE]:
                found.append(Request(row, number, number & 3))
        return found

    def mark_delivered(self, request: Request) -> None:
        """Record that a request was delivered, so that it is not delivered twice."""
        self._words[request.row * _WORDS + _DELIVERED] = request.number

    # -- the agent's side

    def read(self) -> list[ConcurrentRun]:
        """Return the runs that have begun and whose rows were not freed."""
        words = self._words
        found = []
        for row in range(1, min(words[_TOP], ROWS) + 1):
            at = row * _WORDS
            use, task, attempt, began_ns, deadline_ns, want, delivered, _ = words[at : at + _WORDS].tolist()
            # Unchanged: no other run has taken the row meanwhile.
            if use and words[at + _USE] == use:
                told = want >> _OF_USE == use and want == delivered
                found.append(ConcurrentRun(row, use, (task, attempt), began_ns, deadline_ns, told))
        return found

    def want(self, run: ConcurrentRun, cause: int) -> None:
        """Request an interrupt of this run. The caller then signals the engine.

        A request that is repeated after its delivery is delivered again.
        """
        at = run.row * _WORDS + _WANT
        before = self._words[at]
        again = (before >> _GENERATION) + 1 if before >> _OF_USE == run.use else 0
        self._words[at] = run.use << _OF_USE | (again & 0x3FFF) << _GENERATION | cause
