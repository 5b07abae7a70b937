"""The sampling profiler: where the main thread is, fifty times a second.

A thread looks at the main thread's stack while a task or a command runs.  It counts time on the clock, waiting
included, and costs less than 2 %, so it may stay on.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Final

from ..core.verbs import SampleProfile
from .places import MACHINERY, OTHER, TEXT_MAX, Places, Spot, known_file

INTERVAL_S: Final = 0.02
DEPTH_MAX = 500
"""Frames of one stack; of a deeper one the innermost are kept."""
STACKS_MAX = 20_000
SPOTS_MAX = 20_000
"""Distinct stacks, and distinct functions in them; what comes later counts as others."""


class Sampler:
    """Samples one thread."""

    def __init__(self, thread_id: int) -> None:
        """thread_id: the thread's ident."""
        self._thread_id = thread_id
        self._marks: set[int] = set()
        self._lock = threading.Lock()
        self._spots: dict[Spot, int] | None = None
        """None: never started."""
        self._stacks: dict[tuple[int, ...], int] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def mark(self, *codes: CodeType) -> None:
        """What these call is the user's; a stack without one of them is not counted.  They must live for ever."""
        self._marks.update(map(id, codes))  # hashing a code object itself takes microseconds

    def start(self) -> None:
        """Begin anew; if it is on already, go on."""
        if self._thread is not None:
            return
        with self._lock:
            self._spots, self._stacks = {OTHER: 0}, {}
        self._ended.clear()
        self._thread = threading.Thread(target=self._serve, name="Sampling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; what was counted stays until the next start."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def read(self, engine_id: int) -> SampleProfile | None:
        """What was counted so far; None: never started."""
        with self._lock:
            if self._spots is None:
                return None
            spots, stacks = list(self._spots), list(self._stacks.items())
        places = Places()
        for spot in spots:
            places.number(spot)
        return SampleProfile(engine_id, INTERVAL_S, places.all(), [(list(stack), n) for stack, n in stacks])

    def _serve(self) -> None:
        due = time.monotonic() + INTERVAL_S
        # Not at even distances, which work that repeats itself could keep step with.
        while not self._ended.wait(max(0.0, due - time.monotonic()) + random.uniform(0.0, INTERVAL_S / 2)):
            late = max(0.0, time.monotonic() - due)
            # C code that held the interpreter for two seconds has kept a hundred samples from being taken: they are
            # its own, for what comes next after it is the line that called it.
            samples = 1 + int(late / INTERVAL_S)
            due += samples * INTERVAL_S
            self._take(samples)

    def _take(self, samples: int) -> None:
        stack = self._stack(sys._current_frames().get(self._thread_id))
        if stack:
            with self._lock:
                self._count(stack, samples)

    def _stack(self, frame: FrameType | None) -> list[Spot]:
        """The user's part of a stack, the outermost function first; empty: there is none."""
        marks = self._marks
        codes: list[CodeType] = []
        while frame is not None and id(frame.f_code) not in marks:
            codes.append(frame.f_code)
            frame = frame.f_back
        if frame is None:
            return []
        while codes and codes[-1].co_filename.startswith(MACHINERY):
            codes.pop()
        del codes[DEPTH_MAX:]
        return [(code.co_qualname[:TEXT_MAX], code.co_filename, code.co_firstlineno) for code in reversed(codes)]

    def _count(self, stack: list[Spot], samples: int) -> None:
        spots = self._spots
        assert spots is not None
        numbers = []
        for function, file, line in stack:
            spot = function, known_file(file), line
            if spot not in spots and len(spots) < SPOTS_MAX:
                spots[spot] = len(spots)
            numbers.append(spots.get(spot, 0))
        key = tuple(numbers)
        if key not in self._stacks and len(self._stacks) >= STACKS_MAX:
            key = (0,)
        self._stacks[key] = self._stacks.get(key, 0) + samples
