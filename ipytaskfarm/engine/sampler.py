"""The sampling profiler: it records the stack of the main thread fifty times a second.

A thread looks at the main thread's stack while a task or a command runs. It counts wall-clock time, including waiting,
and costs less than 2 %, so it may stay on. It sleeps while nothing runs.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import Final, TypeAlias

import ipykernel
import IPython.core

from ..core.messages.engine_commands import Place, SampleProfile

Spot: TypeAlias = tuple[str, str, int]
"""(function, file, line) as the interpreter has them. If function is "", the spot is a line."""

OTHER: Spot = ("(others)", "(others)", 0)
"""Stands for all spots beyond the limit."""
TEXT_MAX = 300
"""The number of characters that are kept of a function's or a file's name, as users can choose the names."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
MACHINERY = (
    *(f"{os.path.join(_PACKAGE, part)}/" for part in ("engine", "serialization", "adapters")),
    *(f"{os.path.dirname(file)}/" for file in (IPython.core.__file__, ipykernel.__file__)),
)
"""Folders of code that runs tasks and cells and is not the user's."""


def known_file(file: str) -> str:
    """Return the file's name for profiles: one name for the code of all tasks, and one for all cells.

    Their own names contain a hash or a number: 100,000 tasks ``f(17)`` would be 100,000 places.
    """
    if file.startswith("<"):
        if file.startswith("<task "):
            return "<task>"
        if file.startswith(("<cell ", "<ipython-input-")):
            return "<cell>"
    elif "/ipykernel_" in file:
        return "<cell>"
    return file[:TEXT_MAX]


def module_of(file: str, path: Sequence[str]) -> str:
    """Return the dotted name under which a file is imported from one of these folders; else the file's base name."""
    if file.startswith("<frozen "):
        return file[len("<frozen ") : -1]
    if not file.endswith(".py"):
        return file
    roots = [len(root) for root in path if isinstance(root, str) and root and file.startswith(root)]
    name = file[max(roots) :] if roots else os.path.basename(file)
    return name.strip("/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class CodeLocations:
    """Numbers for spots, from which the list of places is made in the end."""

    def __init__(self) -> None:
        self._numbers: dict[Spot, int] = {}
        self._modules: dict[str, str] = {}

    def number(self, spot: Spot) -> int:
        """Return the number of a spot: 0, 1, 2 … in the order of the first calls."""
        return self._numbers.setdefault(spot, len(self._numbers))

    def all(self) -> list[Place]:
        """Return the places in the order of their numbers."""
        return [Place(function, self._module(file), file, line) for function, file, line in self._numbers]

    def _module(self, file: str) -> str:
        module = self._modules.get(file)
        if module is None:
            module = self._modules[file] = module_of(file, sys.path)
        return module


_chance = random.SystemRandom()
"""The sampler's own generator, because users may seed the shared one."""

INTERVAL_S: Final = 0.02
IDLE_LOOKS = 50
"""After this number of samples that found nothing, the sampler sleeps until there is work."""
DEPTH_MAX = 500
"""The number of frames of one stack. Of a deeper stack the innermost frames are kept."""
STACKS_MAX = 20_000
SPOTS_MAX = 20_000
"""The number of distinct stacks, and of distinct functions in them. Further ones count as others."""
CODES_MAX = 2000
"""The number of code objects with a known spot: looking up 400 frames by name takes longer than waking up."""


class Sampler:
    """Samples one thread."""

    def __init__(self, thread_id: int) -> None:
        """Create it; `thread_id` is the thread's ident."""
        self._thread_id = thread_id
        self._marks: set[int] = set()
        self._lock = threading.Lock()
        self._spots: dict[Spot, int] | None = None
        """None: never started."""
        self._stacks: dict[tuple[int, ...], int] = {}
        self._known: dict[int, tuple[CodeType, int]] = {}
        """By the code's id, which stays its own as long as it is in here."""
        self._running = threading.Lock()
        """Held while the thread is to run.  An Event, which makes a lock for each wait, costs a quarter more."""
        self._ending = False
        self._thread: threading.Thread | None = None
        self._awake = threading.Event()
        self._parked = False
        self._busy = False

    def busy(self) -> None:
        """Record that there may be work from now on. Called by the sampled thread."""
        # `_park` reads and writes these two in the other order, so at least one side sees what the other has written.
        self._busy = True
        if self._parked:
            self._awake.set()

    def idle(self) -> None:
        """Record that there is no work."""
        self._busy = False

    def mark(self, *codes: CodeType) -> None:
        """Set the functions that call the user's code.

        Stacks without one of them are not counted. They must live for ever.
        """
        self._marks.update(map(id, codes))  # hashing a code object itself takes microseconds

    def start(self) -> None:
        """Start with an empty record. If it is on already, go on."""
        if self._thread is not None:
            return
        with self._lock:
            self._spots, self._stacks, self._known = {OTHER: 0}, {}, {}
        self._ending = False
        self._running.acquire()
        self._thread = threading.Thread(target=self._serve, name="Sampling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling. The counts stay readable until the next start."""
        if self._thread is not None:
            self._ending = True
            self._running.release()
            self._awake.set()
            self._thread.join()
            self._thread = None
            self._known = {}

    def read(self, engine_id: int) -> SampleProfile | None:
        """Return the counts so far; None if it was never started."""
        with self._lock:
            if self._spots is None:
                return None
            spots, stacks = list(self._spots), list(self._stacks.items())
        places = CodeLocations()
        for spot in spots:
            places.number(spot)
        return SampleProfile(
            engine_id, INTERVAL_S, places.all(), [(list(stack), n) for stack, n in stacks], self._thread is not None
        )

    def _serve(self) -> None:
        due = time.monotonic() + INTERVAL_S
        found_nothing = 0
        # The distances vary, because regular work could keep step with even ones.
        while not self._running.acquire(timeout=max(0.0, due - time.monotonic()) + _chance.uniform(0, INTERVAL_S / 2)):
            late = max(0.0, time.monotonic() - due)
            # If C code held the interpreter for two seconds, a hundred samples were missed. They are charged to that
            # code: the next line to run is the one that called it.
            samples = 1 + int(late / INTERVAL_S)
            due += samples * INTERVAL_S
            found_nothing = 0 if self._take(samples) else found_nothing + 1
            if found_nothing >= IDLE_LOOKS and not self._busy:
                self._park()
                found_nothing, due = 0, time.monotonic() + INTERVAL_S
        self._running.release()

    def _park(self) -> None:
        self._awake.clear()
        self._parked = True
        if not self._busy and not self._ending:
            self._awake.wait()
        self._parked = False

    def _take(self, samples: int) -> bool:
        """Take a sample, and return whether there was a stack of the user."""
        codes = self._codes(sys._current_frames().get(self._thread_id))
        if codes:
            with self._lock:
                self._count(codes, samples)
        return bool(codes)

    def _codes(self, frame: FrameType | None) -> list[CodeType]:
        """Return the user's part of a stack, the outermost function first; empty if there is none."""
        marks = self._marks
        codes: list[CodeType] = []
        while frame is not None:
            code = frame.f_code
            if id(code) in marks:
                break
            codes.append(code)
            frame = frame.f_back
        else:
            return []
        while codes and codes[-1].co_filename.startswith(MACHINERY):
            codes.pop()
        del codes[DEPTH_MAX:]
        codes.reverse()
        return codes

    def _count(self, codes: list[CodeType], samples: int) -> None:
        known = self._known
        if len(known) > CODES_MAX:
            known.clear()
        numbers = []
        for code in codes:
            found = known.get(id(code))
            if found is None:
                found = known[id(code)] = code, self._number(code)
            numbers.append(found[1])
        key = tuple(numbers)
        if key not in self._stacks and len(self._stacks) >= STACKS_MAX:
            key = (0,)
        self._stacks[key] = self._stacks.get(key, 0) + samples

    def _number(self, code: CodeType) -> int:
        spots = self._spots
        assert spots is not None
        spot = code.co_qualname[:TEXT_MAX], known_file(code.co_filename), code.co_firstlineno
        if spot not in spots and len(spots) < SPOTS_MAX:
            spots[spot] = len(spots)
        return spots.get(spot, 0)
