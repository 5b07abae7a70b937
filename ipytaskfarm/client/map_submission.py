"""Submit a map: its items go to the farm as tasks of a job, quick items in chunks.

All items are submitted within a moment.  The first tenth of a second is used to measure how quick the items are;
chunks grow meanwhile.  Then the rest is submitted in chunks of the right size.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import msgspec

from ..core.chunk_sizes import CHUNK_S, Pace
from ..core.messages import ListEngines, tables
from ..core.messages.task_types import Final, Function, JobSpec, Rules
from ..serialization.session_state import warn_of_one_for_all as warn_of_one_for_all
from .environments import pack_environment_of
from .map_items import EachTask, Items
from .packing import PackedOnce, ReusedPack, Shared, changes_itself, items_may_change_shared, pack_task, refuse_task
from .rules import CHECKS, DEFAULTS, pack_rules
from .session import Session

LEARN_S = 0.1
"""How long the pace of the items is measured before the rest is submitted."""
LEARN_PACKS = 2
"""It is measured for this multiple of the time longer that the function took to pack: engines unpack it first."""
LEARN_MORE_S = 1.0
"""The most seconds that it is measured longer for that."""
UNKNOWN_TASKS = 512
"""When no item has ended by then, the items become at most about this number of tasks: slow chunks end early."""
BYTES_MAX = 128 * 1024
"""The most bytes of a chunk, approximately: it is sent again for each item of it that runs alone."""
SMALL_BYTES = 64 * 1024
"""The most bytes of a function that is unpacked for each item if it changes itself."""
SHARES = 4
"""The last items are spread over this many chunks per engine at least."""

_SINGLY = ("time_limit", "warn_after", "recovery_task", "clear_before", "clear_after")
"""Rules that hold for each item's run: such items are tasks of their own from the beginning."""
_OF_TASKS = ("recovery_task", "after", "if_failed", "clear_before", "clear_after")
"""Rules that are given to each task; the others are packed once for all."""


class MapSubmission:
    """One map on its way to the farm."""

    def __init__(
        self,
        session: Session,
        job: JobSpec,
        function: Callable[..., Any],
        items: Items,
        rules: Mapping[str, Any],
        chunksize: int | None,
        grows: bool = False,
    ) -> None:
        """Begin a map; nothing is submitted yet.

        chunksize: how many items share a task; None: as many as take some milliseconds.
        grows: the job has as many tasks as items were submitted until now.
        """
        self.session = session
        self._grows = grows
        self.items = items
        self.members: list[tuple[int, int]] = []
        """(id, number of items of a chunk, or 0) in the order of the items."""
        self._function = function
        warn_of_one_for_all(function)
        self._own = {name: rules[name] for name in _OF_TASKS if rules.get(name)}
        given = {name: value for name, value in rules.items() if name not in _OF_TASKS and name != "unique"}
        checked = {name: CHECKS[name](value) for name, value in given.items() if value != DEFAULTS[name]}
        functions: dict[str, Function] = {}
        packed = pack_rules(checked, {}, job.id, None, functions)
        self._shared = Shared(checked, job.id, packed, tuple(functions.values()), refuse_task)
        environment, recycle = pack_environment_of(checked.get("environment"), {})
        identity = environment.identity if environment is not None else None
        self.job = msgspec.structs.replace(job, environment=identity, recycle=recycle)
        # Each cached item has a key of its own.
        singly = inspect.iscoroutinefunction(function) or any(rules.get(name) for name in (*_SINGLY, "cache"))
        self._chunksize = 1 if singly else chunksize
        self._changes_itself = changes_itself(function)
        self._item_bytes = 0.0
        engines = len(session.ask_for(ListEngines(), tables.EngineTable).rows)
        self.pace = Pace(engines)
        self._engines = max(1, engines)
        self._under_way: set[int] = set()
        """The tasks whose ends say more of the pace."""
        self._pack = ReusedPack(function, session.blobs)

    @property
    def rules(self) -> Rules | None:
        """Return the rules that the items share, as they travel."""
        return self._shared.rules

    def submit(self, count: int) -> int | None:
        """Submit up to `count` of the next items as one task.  Returns its id; None: there are no more items.

        Raises UnpickleableException, with a note that names the item, for one that cannot travel.
        """
        room = self.session.items_room() if count > 1 else 0
        count = min(count, room, self._chunksize or count) if room > 1 else 1
        if self._item_bytes:
            count = min(count, max(1, int(BYTES_MAX / self._item_bytes)))
        taken = self.items.take(count)
        if not taken:
            return None
        known = self._packed_function()
        if self._must_stay_apart(taken, known):
            self.items.put_back(taken)
            self._chunksize = 1  # from here on, also while the pace is measured
            return self.submit(1)
        start = self.items.taken - len(taken)
        packed = pack_task(
            EachTask(self._function, taken, self.items.star, start, self.items.total, known, **self._own),
            self.session.blobs,
            self._shared,
        )
        if len(packed.payload) > 2 * BYTES_MAX and len(taken) > 1:
            self._item_bytes = len(packed.payload) / len(taken)
            self.items.put_back(taken)
            return self.submit(max(1, len(taken) // 2))
        self._item_bytes = len(packed.payload) / len(taken) if len(taken) > 16 else self._item_bytes
        if self._grows:
            self.job = msgspec.structs.replace(self.job, total=self.items.taken)
        task_id = self.session.submit(packed, self.job)
        if task_id < 0:  # another thread has taken ids meanwhile
            self.items.put_back(taken)
            return self.submit(count)
        self.members.append((task_id, packed.items))
        return task_id

    def _must_stay_apart(self, items: Sequence[Any], known: PackedOnce) -> bool:
        """Return whether these items must not share a run, as they may change an object that several of them have.

        Each item begins with the values that were sent.  Those of a `chunksize` of the user share it, as in a pool.  So
        do those of a large function that changes itself, which takes far longer to unpack than an item.
        """
        if self._chunksize is not None or len(items) < 2:
            return False
        if self._changes_itself and not known.blobs and len(known.code.code) <= SMALL_BYTES:
            return True
        if isinstance(items, range):
            return False
        return items_may_change_shared(self._function, items, self.items.star)

    def _packed_function(self) -> PackedOnce:
        """Return the packed function."""
        if self._grows:  # code of the user may change it between the items
            self._pack = ReusedPack(self._function, self.session.blobs)
        packed = self._pack.get()
        if self._grows:  # the client packs it for one engine after the other
            self.pace.costs(self._pack.pack_s * self._engines)
        elif self._changes_itself:  # each engine unpacks it for each of its tasks
            self.pace.costs(self._pack.pack_s)
        return packed

    def submit_all(self) -> None:
        """Submit all items.  Ctrl-C takes effect afterwards; a second one at once."""
        with later_interrupt():
            if self._chunksize is None:
                self._learn()
            while self.submit(self._size()) is not None:
                pass

    def next_size(self) -> int:
        """Return how many items share the next task, while the pace is still measured."""
        return self.pace.size(self.items.left) if self._chunksize is None else self._chunksize

    def _size(self) -> int:
        if self._chunksize is not None:
            return self._chunksize
        left = self.items.left or 1
        self._note_ends()
        tasks = max(1, int(UNKNOWN_TASKS * CHUNK_S / self.pace.chunk_s))  # fewer costly ones
        unknown = max(1, -(-(self.items.total or 1) // tasks))
        if not self.pace.known:
            return unknown
        size = self.pace.size(left)
        if size > 1 and not self.pace.is_steady:
            size = max(size, unknown)  # single items were measured, of which the most is what a task costs
        return min(size, max(1, -(-left // (SHARES * self._engines))))

    def _learn(self) -> None:
        """Submit chunks that grow while items end, until their pace is known or some time has passed."""
        began_s = time.monotonic()
        session = self.session
        while self.items.left and not self.pace.is_steady:
            while len(self._under_way) < self.pace.window:
                task_id = self.submit(self.pace.size(self.items.left))
                if task_id is None:
                    return
                self._under_way.add(task_id)
            left_s = began_s + LEARN_S + min(LEARN_PACKS * self._pack.pack_s, LEARN_MORE_S) - time.monotonic()
            if left_s <= 0 or not session.wait(self._under_way, left_s, first=True):
                return
            self._note_ends()

    def _note_ends(self) -> None:
        """Note the durations of the tasks that have ended since the last time."""
        arrivals = self.session.arrivals
        for task_id in [i for i in self._under_way if not arrivals.is_live(i)]:
            self._under_way.discard(task_id)
            self.ended(arrivals.finals.get(task_id))

    def ended(self, final: Final | None) -> None:
        """Note how long a task took."""
        if final is not None and not final.reason:
            silent = final.items - len(final.separate) if final.items else 1
            if silent:
                self.pace.ended(silent, final.run_s, bool(final.blobs))


@contextlib.contextmanager
def later_interrupt() -> Iterator[None]:
    """Hold back the first Ctrl-C until the block has ended, so that no half of a map is submitted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[bool] = []
    usual = signal.getsignal(signal.SIGINT)

    def hold(signum: int, frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append(True)

    if not callable(usual):
        yield
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held:
            raise KeyboardInterrupt
