"""Which systems have just not answered, and who is told that one is slow.

Launchers run commands of other systems, which may hang. A person at a prompt is told after some seconds (`tell`), and a
system that was silent gets less time for its next commands, then none for a while (`Answering`): ten groups on a system
that is away are given up as soon as one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

TELL_S = 3.0
"""The time after which people are told that a command is waited for."""

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


def answer_limit_s(usual_s: float) -> float:
    """Return the time limit for a command in this thread, in seconds."""
    return min(usual_s, DOUBT_S) if _is_hurried.get() else usual_s


class EndedCommand(NamedTuple):
    """The end of a command."""

    code: int
    said: str
    complaint: str
    """Its stderr."""
    took_s: float


def run_command(
    words: Sequence[str],
    limit_s: float,
    text: str,
    whose: str,
    *,
    environment: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> EndedCommand:
    """Run a command with `text` as its input, and tell people if it is slow.

    Args:
        words: the command line.
        limit_s: the time after which it is ended.
        text: its input.
        whose: the name of the system or machine that answers, for people.
        environment: its environment variables; None for those of this process.
        own_session: whether it has no terminal, and is ended with all its children.

    Raises:
        OSError: it cannot be run.
        subprocess.TimeoutExpired: it has not ended in time.
    """
    began_s = time.monotonic()
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment, start_new_session=own_session,
    )  # fmt: skip
    try:
        said, complaint = _patiently(process, words[0], limit_s, text, whose)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if own_session else process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if isinstance(error, subprocess.TimeoutExpired):
            error.timeout = limit_s
        raise
    return EndedCommand(process.returncode, said, complaint, time.monotonic() - began_s)


def _patiently(process: subprocess.Popen[str], command: str, limit_s: float, text: str, whose: str) -> tuple[str, str]:
    """Return both outputs of a process when it has ended."""
    try:
        return process.communicate(text, timeout=min(TELL_S, limit_s))
    except subprocess.TimeoutExpired:
        if limit_s <= TELL_S:
            raise
    tell(f"waiting for {command}: {whose} has not answered for {TELL_S:g} s; it has {limit_s - TELL_S:g} s more")
    return process.communicate(timeout=limit_s - TELL_S)


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
            return answer_limit_s(usual_s)
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
