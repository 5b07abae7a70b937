"""Which unfinished tasks use the result cache, and how far each has come: looked up, waiting for an equal one, cleared.

The cache itself belongs to the controller's loop.  The scheduler asks it (`decision.LookUp`) and gives it results to
keep (`decision.CacheResult`).  A task that uses the cache joins its queue when it is *cleared* to run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from ..messages.result_cache import READONLY, CacheKey
from ..messages.task_types import Final


@dataclass(slots=True)
class CacheUses:
    """The unfinished tasks that use the result cache."""

    keys: dict[int, CacheKey] = field(default_factory=dict)
    full: dict[int, str] = field(default_factory=dict)
    """Task -> its key with the results of other tasks in it, once these are known."""
    cleared: set[int] = field(default_factory=set)
    """Tasks that run, because nothing is kept for them."""
    asked: set[int] = field(default_factory=set)
    """Tasks that are being looked up."""
    to_look: deque[int] = field(default_factory=deque)
    """Tasks that wait for nothing else and have to be looked up."""
    released: deque[int] = field(default_factory=deque)
    """Tasks that have waited for an equal one, of which the result is kept now: they are looked up too."""
    owners: dict[str, int] = field(default_factory=dict)
    """Full key -> the task that computes its result, or is being looked up for it."""
    waiting: dict[str, list[int]] = field(default_factory=dict)
    """Full key -> tasks that wait for the owner."""
    watched: bool = False
    """Whether a timer is set that looks for owners that no engine can run."""
    ended: deque[tuple[Final, bool]] = field(default_factory=deque)
    """(end of a task that used the cache, whether it ran as its own first link)."""

    def add(self, task_id: int, key: CacheKey, takes_results: bool) -> None:
        """Note a task.  takes_results: results of other tasks are among its arguments."""
        self.keys[task_id] = key
        if not takes_results:
            self.full[task_id] = key.key

    def holds(self, task_id: int) -> bool:
        """Return whether the task must not join its queue yet; it is looked up at the end of the turn."""
        if task_id not in self.keys or task_id in self.cleared:
            return False
        self.to_look.append(task_id)
        return True

    def note_running(self, task_id: int) -> None:
        """Note that an engine had the task already when the controller started."""
        if task_id in self.keys:
            self.cleared.add(task_id)
            if task_id in self.full:
                self.owners.setdefault(self.full[task_id], task_id)

    def give_way(self, task_id: int) -> None:
        """Let the next of equal tasks run before this one, which is paused; it is looked up again when it goes on."""
        self.cleared.discard(task_id)
        full = self.full.get(task_id, "")
        if self.owners.get(full) == task_id:
            del self.owners[full]
            self.to_look.extend(self.waiting.pop(full, ()))

    def pass_on(self, owner: int, heir: int) -> None:
        """Let an equal task that waited for the owner run now, and the owner be looked up again.

        It owns the key from now on, unless it keeps no result."""
        full = self.full[owner]
        self.waiting[full].remove(heir)
        self.cleared.discard(owner)
        self.cleared.add(heir)
        if self.keys[heir].mode != READONLY:
            self.owners[full] = heir

    def keep_nothing(self, task_id: int) -> bool:
        """Do not keep the result of a task.  Return whether it would have been kept."""
        key = self.keys.get(task_id)
        if key is None or key.mode == READONLY:
            return False
        self.keys[task_id] = msgspec.structs.replace(key, mode=READONLY)
        return True

    def owner_of(self, task_id: int) -> int | None:
        """Return the task for whose result this task waits; None: it waits for none."""
        full = self.full.get(task_id)
        owner = self.owners.get(full) if full is not None else None
        return owner if owner != task_id and full is not None and task_id in self.waiting.get(full, ()) else None

    def forget(self, task_id: int) -> tuple[CacheKey, str, list[int]]:
        """Forget an ended task.  Return its key, its full key ("" if unknown), and the tasks that waited for it."""
        key, full = self.keys.pop(task_id), self.full.pop(task_id, "")
        self.cleared.discard(task_id)
        self.asked.discard(task_id)
        if self.owners.get(full) != task_id:
            return key, full, []
        del self.owners[full]
        return key, full, self.waiting.pop(full, [])
