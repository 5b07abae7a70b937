"""Tasks that use the result cache: they are looked up, wait for equal tasks, or run and leave their results."""

from __future__ import annotations

from collections.abc import Iterable

from ..messages.result_cache import ON, READONLY, REFRESH
from ..messages.task_types import RESULT_CACHE, Final
from ..scheduler.cache_uses import CacheUses
from ..scheduler.decision import CacheResult, Decision, LookUp, Now, Wanted
from ..scheduler.entries import TaskEntry
from ..scheduler.events import Cached, LookedUp
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, Queued
from ..scheduler.transitions import finish, rejoin
from ..states import Waiting
from .requirements import why_nobody

LOOKED_UP_AT_ONCE = 256
"""The most tasks that are looked up in one turn: their results pass through memory."""
SETTLED_AT_ONCE = 2_000
"""The most tasks that are examined in one turn: a million may have waited for an equal one."""
STUCK_AFTER_S = 5.0
"""How often one looks whether tasks wait for an equal one that no engine can run."""
_HEIRS_MAX = 100
"""The most waiting tasks of one key that are examined for one that can run."""


def settle(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Keep the results of tasks that have ended, and look up those that became ready."""
    uses = farm.cache_uses
    while uses.ended:
        uses.released.extend(_after_end(uses, *uses.ended.popleft(), out))
    wanted: list[Wanted] = []
    for _ in range(SETTLED_AT_ONCE):
        if not uses.released or len(wanted) >= LOOKED_UP_AT_ONCE:
            break
        task_id = uses.released.popleft()
        if _is_held(farm, task_id):
            wanted.append(_wanted(farm, task_id))
    for _ in range(SETTLED_AT_ONCE):
        if not uses.to_look or len(wanted) >= LOOKED_UP_AT_ONCE:
            break
        task_id = uses.to_look.popleft()
        task = farm.tasks.unfinished.get(task_id)
        if task is not None and _is_held(farm, task_id) and not _waits(farm, task_id, now):
            if uses.keys[task_id].mode == REFRESH and task_id in uses.full:
                _clear(farm, task)
            else:
                wanted.append(_wanted(farm, task_id))
    if wanted:
        out.look_ups.append(LookUp(wanted))
    if uses.released or uses.to_look:
        farm.timers.set(now.mono_s, "consequences")


def _is_held(farm: SchedulerState, task_id: int) -> bool:
    """Return whether a task is still to be looked up."""
    task, uses = farm.tasks.unfinished.get(task_id), farm.cache_uses
    held = task is not None and type(task.place) is Queued and task.place.why is Waiting.CACHE
    return held and task_id not in uses.asked and task_id not in uses.cleared


def _waits(farm: SchedulerState, task_id: int, now: Now) -> bool:
    """Let a task wait for an equal one, if there is one; otherwise equal ones wait for it from now on."""
    uses = farm.cache_uses
    full, mode = uses.full.get(task_id), uses.keys[task_id].mode
    if full is None or mode == REFRESH:
        return False
    owner = uses.owners.get(full)
    if owner is not None and owner != task_id:
        others = uses.waiting.setdefault(full, [])
        if task_id not in others[-1:]:
            others.append(task_id)
        _watch(farm, now)
        return True
    if mode == ON:
        uses.owners[full] = task_id
    return False


def _watch(farm: SchedulerState, now: Now) -> None:
    if not farm.cache_uses.watched:
        farm.cache_uses.watched = True
        farm.timers.set(now.mono_s + STUCK_AFTER_S, "equal")


def run_in_place_of_stuck(farm: SchedulerState, now: Now) -> None:
    """Run equal tasks in the place of those that no engine can run; these take their results."""
    uses = farm.cache_uses
    uses.watched = False
    classes = farm.queues.classes.values()
    stuck = {id(each) for each in classes if each.restricted and each.size and not each.eligible}
    for full, others in [*uses.waiting.items()] if stuck else ():
        owner = farm.tasks.unfinished.get(uses.owners[full])
        if owner is None or id(owner.task_class) not in stuck:
            continue
        waiting = (farm.tasks.unfinished.get(each) for each in others[:_HEIRS_MAX])
        heir = next((each for each in waiting if each is not None and _can_run(farm, each)), None)
        if heir is not None:
            uses.pass_on(owner.id, heir.id)
            rejoin(farm, owner)
            rejoin(farm, heir)
    if uses.waiting:
        _watch(farm, now)


def _can_run(farm: SchedulerState, task: TaskEntry) -> bool:
    return task.job not in farm.jobs.paused and not why_nobody(farm, task.rules or DEFAULT_RULES)


def _wanted(farm: SchedulerState, task_id: int) -> Wanted:
    uses = farm.cache_uses
    uses.asked.add(task_id)
    key = uses.keys[task_id]
    needs = farm.tasks.unfinished[task_id].dependencies
    inputs = [source for _, source in needs.inputs] if needs is not None and task_id not in uses.full else []
    return Wanted(task_id, uses.full.get(task_id, key.key), inputs, key.mode != REFRESH, key.value_first)


def on_looked_up(farm: SchedulerState, session: str, event: LookedUp, now: Now, out: Decision) -> None:
    """End the tasks with kept results, and let the others run."""
    uses = farm.cache_uses
    for found in event.found:
        task = farm.tasks.unfinished.get(found.task)
        if task is None or found.task not in uses.asked:
            continue
        uses.asked.discard(found.task)
        if found.note:
            out.notes.append(f"result cache, task {found.task}: {found.note}")
        if found.key:
            uses.full[found.task] = found.key
        if found.body is not None:
            finish(farm, task, _final(task, found, now), out)
        elif not _waits(farm, found.task, now):
            _clear(farm, task)


def _final(task: TaskEntry, found: Cached, now: Now) -> Final:
    """Return the end of a task that did not run for it: no engine."""
    times = (task.submitted_s, now.wall_s, 0.0, now.wall_s)
    history = task.past.history or []
    return Final(task.id, "", -1, RESULT_CACHE, task.attempt, *times, None, found.body, history, found.blobs)


def _clear(farm: SchedulerState, task: TaskEntry) -> None:
    farm.cache_uses.cleared.add(task.id)
    rejoin(farm, task)


def _after_end(uses: CacheUses, final: Final, ran_itself: bool, out: Decision) -> Iterable[int]:
    """Keep the result of a task that succeeded.  Return the tasks that waited for it."""
    was_cleared = final.id in uses.cleared
    key, full, waiting = uses.forget(final.id)
    if was_cleared and ran_itself and full and not final.reason and key.mode != READONLY and final.body is not None:
        out.cache_results.append(CacheResult(full, key, final))
        return waiting
    if not final.reason and not was_cleared:
        return waiting  # it was taken from the cache: the others find it there too
    # The next one runs, the others wait for it.
    uses.to_look.extend(waiting)
    return ()
