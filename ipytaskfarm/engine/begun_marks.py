"""Marks, on the disk, how far an engine may have come in its hand-outs: what a loss of power leaves of its progress.

A run is *marked* before it begins, so that no run behind the mark has begun. A mark costs an fsync, so it reaches ahead
by some fsyncs' time of work, and a thread makes the next one when the engine is halfway there. Only if runs become much
longer than those before does the engine wait for the disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TypeAlias

from ..system.flight_recorder import Recorder

AHEAD_MIN_S, AHEAD_MAX_S = 0.05, 1.0
"""How far ahead of the engine runs are marked, in seconds of work."""
SYNCS_AHEAD = 4
"""The limits of that: as long as this number of fsyncs takes, so that the engine does not wait for a slow disk."""
RUNS_MIN, RUNS_MAX = 2, 2048

Place: TypeAlias = tuple[int, int]
"""(number of a hand-out, place in it)"""
NEVER: Place = (1 << 64, 0)
"""Behind all places."""


class BegunMarks:
    """The marks of one engine. `begin` belongs to the main thread, `expect` to the lane's."""

    def __init__(self, recorder: Recorder) -> None:
        self.next: Place = (0, 0) if recorder.is_marked else NEVER
        """Runs behind this place are told to `begin` before they begin."""
        self._recorder = recorder
        self._durable: Place = (0, 0)
        self._batches: deque[tuple[int, int, int]] = deque()
        """(number, first place, last place) of the hand-outs that have arrived, the oldest first."""
        self._runs = RUNS_MIN
        self._ahead_s = AHEAD_MIN_S
        self._asked_s = 0.0
        self._asked: Place = (0, 0)
        """The place up to which the thread is to mark."""
        self._half: Place = (0, 0)
        """The place behind which more is asked for."""
        self._over = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="Marks", daemon=True)

    def start(self) -> None:
        """Start the thread that marks ahead."""
        self._thread.start()

    def finish(self) -> None:
        """End the thread."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def expect(self, number: int, first: int, count: int) -> None:
        """Note a hand-out that has arrived."""
        self._batches.append((number, first, first + count - 1))

    def begin(self, place: Place, alone: bool = True) -> None:
        """Let the run at this place begin: wait until it is marked, and have those behind it marked soon.

        A run that is `alone` on the engine needs no mark while all results before it are acknowledged: it is the first
        that the controller lacks.
        """
        if alone and not self._recorder.has_unacknowledged:
            return
        if place > self._durable:
            self._mark(max(place, self._asked))
        if place > self._half:
            self._ask(place)
        self.next = min(self._half, self._durable)

    def _ask(self, place: Place) -> None:
        """Have the runs behind this place marked by the thread."""
        now_s = time.monotonic()
        # Half of the runs were begun since the last call.
        rate = self._runs / 2 / max(now_s - self._asked_s, 1e-6)
        self._runs = min(max(int(rate * self._ahead_s), RUNS_MIN), self._runs * 2, RUNS_MAX)
        self._asked_s = now_s
        self._half = self._ahead(place, self._runs // 2 - 1)
        self._asked = self._ahead(place, self._runs - 1)
        if self._asked > self._durable:
            self._wake.set()

    def _ahead(self, place: Place, runs: int) -> Place:
        """Return the place that is `runs` runs behind a place, as far as hand-outs have arrived."""
        number, at = place
        while self._batches and self._batches[0][0] < number:
            self._batches.popleft()
        for batch, first, last in list(self._batches):
            if not runs:
                break
            if batch > number:
                number, at, runs = batch, first, runs - 1
            step = min(runs, last - at)
            at, runs = at + step, runs - step
        return number, at

    def _serve(self) -> None:
        while not self._over:
            self._wake.wait()
            self._wake.clear()
            self._mark(self._asked)

    def _mark(self, upto: Place) -> None:
        with self._lock:
            if upto > self._durable:
                began_s = time.monotonic()
                self._recorder.mark_begun(*upto)
                self._durable = upto
                wanted_s = SYNCS_AHEAD * (time.monotonic() - began_s)
                # It falls slowly: one quick fsync does not make a disk quick.
                self._ahead_s = min(max(wanted_s, 0.9 * self._ahead_s, AHEAD_MIN_S), AHEAD_MAX_S)
