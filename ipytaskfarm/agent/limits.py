"""Decisions on when and how a run is interrupted. No signal is sent here.

"Check what runs, then interrupt" from another process hits the wrong task, because the engine goes on in between. So
the agent writes *which run* it means into the flight recorder, and sends a signal that means "look there". Only the
engine's handler, in its main thread, knows whether that run is still the present one. The signal is repeated until the
interrupt was delivered or the run is over.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..system.process import StoppedWatch

if TYPE_CHECKING:  # the agent starts its zygote before it imports the messages
    from ..core.messages.task_types import RunKey

ENDED_S = 10.0
"""How long (seconds) an engine may be busy with a run that has ended. It takes microseconds."""
RESEND_S = 0.02
"""The time in seconds between two signals, and between two checks of a run that is to be interrupted."""


class Step(Enum):
    """The action that a `Ladder` asks for."""

    WAIT = "nothing now"
    SIGNAL = "write what is wanted, send the interrupt signal"
    TERMINATE = "SIGTERM"
    KILL = "SIGKILL"
    OVER = "the run has ended; the engine lives"


class Ladder:
    """The escalation of one interrupt: after `grace_s` terminate, after half of it again kill.

    Times are monotonic seconds.
    """

    def __init__(self, run: RunKey, cause: str, grace_s: float, now_s: float) -> None:
        self.run = run
        self.cause = cause
        """The reason, as in `Crash.cause`."""
        self.terminate_at_s = now_s + grace_s
        self.kill_at_s = self.terminate_at_s + grace_s / 2
        self.told = self.terminated = self.killed = False

    def step(self, running: RunKey | None, delivered: bool, now_s: float, in_company: bool = False) -> Step:
        """Return what to do now.

        Args:
            running: the run that the engine executes.
            delivered: whether the last interrupt was raised in the engine.
            now_s: the monotonic time.
            in_company: whether the engine executes other runs too, which would be lost with it.
        """
        if self.terminated:  # it was told to die, and a half-dead process is no engine any more
            if now_s < self.kill_at_s or self.killed:
                return Step.WAIT
            self.killed = True
            return Step.KILL
        if running != self.run:
            return Step.OVER
        if now_s >= self.terminate_at_s and not (in_company and delivered and self.told):
            self.terminated = True
            return Step.TERMINATE
        if delivered and self.told:
            return Step.WAIT
        self.told = True
        return Step.SIGNAL

    def next_look_s(self, now_s: float) -> float:
        """Return when (monotonic) to call `step` again."""
        return min(now_s + RESEND_S, self.kill_at_s) if not self.killed else now_s + 1.0


class EndedRunWatch:
    """Measures how long an engine has been busy with one run that has ended, from checks that may come late."""

    def __init__(self) -> None:
        self._run: RunKey | None = None
        self._time = StoppedWatch()

    def too_long(self, run: RunKey | None, now_s: float) -> bool:
        """Note such a run (None: there is none), and return whether it has been the same for `ENDED_S` seconds."""
        if run != self._run:
            self._run, self._time = run, StoppedWatch()
        return self._time.too_long(run is not None, now_s, ENDED_S)


class Backoff:
    """Delays between starts that fail: 0.1 s doubling to 5 s, none after a success.

    `jitter` is drawn by the caller (0 to 1): many agents of one cluster must not start engines in step."""

    FIRST_S, LAST_S = 0.1, 5.0

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        """Note a start that failed."""
        self.failures += 1

    def succeeded(self) -> None:
        """Note a start that succeeded."""
        self.failures = 0

    def delay_s(self, jitter: float) -> float:
        """Return how long (seconds) to wait before the next start."""
        if not self.failures:
            return 0.0
        return min(self.LAST_S, self.FIRST_S * 2.0 ** min(self.failures - 1, 10)) * (0.5 + jitter / 2)
