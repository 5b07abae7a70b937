"""When an engine rings for the results in its recorder.

Each ring wakes the agent, then the controller, which commits, and then the client: beside engines that use all cores
this costs more than a millisecond of processor time. So results gather, but only as long as the engine has other work.
"""

from __future__ import annotations

import time

from ..system.bell import Bell
from ..system.flight_recorder import Recorder

PAUSE_S, BUSY_PAUSE_S, SPARE_PAUSE_S = 0.001, 0.004, 0.100
"""The shortest time between two rings: with few runs in the lane, with more, and with work for at least twice the last
of these times."""
FEW_RUNS = 8
"""With fewer runs in the lane the agent is to know soon that it has room."""
GATHERED_MAX = 16
"""So many results make a ring cheap for each of them: they do not wait for `SPARE_PAUSE_S`."""


class ResultBell:
    """Rings the agent's bell for results, at once or for several together.

    It belongs to the engine's main thread. The lane's thread only calls `ring_if_due`, 20 times a second: the next run
    may be long.
    """

    def __init__(self, bell: Bell, recorder: Recorder, engine: int) -> None:
        """Create it for the engine with this counter."""
        self._bell = bell
        self._recorder = recorder
        self._engine = engine
        self._rang_s = self._result_s = self._due_s = 0.0
        self._released = 0
        self.gathered = 0
        """The number of results for which the bell has not rung."""

    def begin(self) -> None:
        """Note the begin of work.

        The first of many results is not reported alone: those that follow at once, or the last one, ring the bell.
        """
        if not self.gathered:
            self._rang_s = time.perf_counter()

    def result(self, run_s: float, waiting: int, in_company: bool) -> None:
        """Ring for a result, or let it gather with the next ones.

        Args:
            run_s: the time that its run took.
            waiting: the number of runs in the lane.
            in_company: whether coroutine tasks are in progress beside it. The lane's runs are then begun at once, and
                are no work that the engine has to spare.
        """
        now_s = time.perf_counter()
        if run_s > BUSY_PAUSE_S:
            self._note_released()
        self._result_s = now_s
        self.gathered += 1
        self._due_s = self._rang_s + self._pause_s(0.0 if in_company else run_s, waiting)
        if now_s > self._due_s or (waiting == 0 and not in_company):  # the last one
            self.ring_late()

    def _note_released(self) -> None:
        # The agent reads the results of all its engines when one rings. It has acknowledged something since the last
        # result: everything before that one was read. So engines come to report at the same time.
        if self._released != self._recorder.released:
            self._released = self._recorder.released
            self._rang_s, self.gathered = self._result_s, 0

    def _pause_s(self, run_s: float, waiting: int) -> float:
        pause_s = PAUSE_S if waiting < FEW_RUNS else BUSY_PAUSE_S
        if self.gathered >= GATHERED_MAX:
            return pause_s
        # The work behind the next run: before it is done, the agent is to have sent more.
        spare_s = run_s * (waiting - 1)
        return max(pause_s, min(SPARE_PAUSE_S, spare_s / 2))

    def ring_if_due(self) -> None:
        """Ring if results have waited for as long as they may, and the agent has not read them meanwhile."""
        if self.gathered and time.perf_counter() >= self._due_s and self._recorder.has_unacknowledged:
            self.ring_late()

    def ring_late(self) -> None:
        """Ring if results have gathered."""
        if self.gathered:
            self.gathered = 0
            self._rang_s = time.perf_counter()
            self._bell.ring(self._engine)
