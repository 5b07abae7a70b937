"""Which systems have just not answered, and who is told that one is slow.

Launchers run commands of other systems, which may hang. A person at a prompt is told after some seconds (`tell`), and a
system that was silent gets less time for its next commands, then none for a while (`Answering`): ten groups on a system
that is away are given up as soon as one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

DOUBT_S = 5.0
"""The time limit for a command of a system that did not answer the last one."""
FORGET_S = 30.0
"""The time after which a system that did not answer is trusted again."""

log = logging.getLogger(__name__)

_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=log.warning)
_is_hurried: ContextVar[bool] = ContextVar("is_hurried", default=False)


@contextlib.contextmanager
def telling(listener: Callable[[str], None]) -> Iterator[None]:
    """Let `listener` be told which slow commands are waited for in this thread; else the log is."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Give commands in this thread only `DOUBT_S`: another process has just found that their systems do not answer."""
    token = _is_hurried.set(True)
    try:
        yield
    finally:
        _is_hurried.reset(token)


def tell(text: str) -> None:
    """Tell the listener of this thread."""
    _listener.get()(text)


@dataclass(frozen=True)
class _Silence:
    times: int
    """How many commands in a row were not answered."""
    why: str
    at_s: float


class Answering:
    """Remembers by name which systems did not answer their last commands."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent: dict[str, _Silence] = {}

    def limit_s(self, system: str, usual_s: float) -> float:
        """Return the time limit for the next command, in seconds; 0 if it need not be tried."""
        silence = self._silent.get(system)
        if silence is None or self._clock() - silence.at_s >= FORGET_S:
            return min(usual_s, DOUBT_S) if _is_hurried.get() else usual_s
        return min(usual_s, DOUBT_S) if silence.times == 1 and not _is_hurried.get() else 0.0

    def why(self, system: str) -> str:
        """Return how it did not answer; "" if it did."""
        silence = self._silent.get(system)
        return silence.why if silence is not None else ""

    def has_answered(self, system: str) -> None:
        """Note that a command was answered."""
        self._silent.pop(system, None)

    def was_silent(self, system: str, why: str) -> None:
        """Note that a command was not answered, or that its answer was that the system is away."""
        before, now_s = self._silent.get(system), self._clock()
        goes_on = before is not None and now_s - before.at_s < FORGET_S
        self._silent[system] = _Silence(before.times + 1 if before is not None and goes_on else 1, why, now_s)

    def forget(self) -> None:
        """Trust all systems again."""
        self._silent.clear()
