"""Second copies of idempotent tasks: begun when a run is slow, settled when the first of the two ends."""

from __future__ import annotations

from ..messages import Interrupt
from ..messages.task_types import AttemptRow, Ended, FailureSummary, RunKey
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import may_serve
from ..scheduler.entries import AssignedRun, EngineEntry, EngineState, TaskEntry, serves_environment
from ..scheduler.placement import begin_copy
from ..scheduler.second_copies import RACES_LOST, OtherRun
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned
from ..scheduler.task_ends import row_of
from ..scheduler.transitions import change_place, note_attempt
from ..states import OVERTAKEN
from .nodes import set_aside

# -- beginning


def arm_look(farm: SchedulerState, now: Now) -> None:
    """Set the timer for the next look at slow runs, if there is any group to compare with."""
    copies = farm.second_copies
    wait_s = copies.next_look_s(farm.settings) if not copies.look_armed else None
    if wait_s is not None:
        copies.look_armed = True
        farm.timers.set(now.mono_s + wait_s, "copies")


def look_for_slow_runs(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Begin second copies of the slowest runs on idle engines, as far as the budget goes."""
    copies = farm.second_copies
    copies.look_armed = False
    arm_look(farm, now)
    if farm.lifecycle.held or farm.lifecycle.stopping or not farm.readiness.idle:
        return
    up = sum(engine.state == EngineState.UP for engine in farm.engines.by_name.values())
    room = copies.budget(up, farm.settings)
    for _, task, engine, assigned in _slow_runs(farm, now) if room > 0 else ():
        if room <= 0:
            return
        other = _idle_engine(farm, task, engine, assigned)
        if other is not None:
            begin_copy(farm, task, other, assigned, now, out)
            room -= 1


def _slow_runs(farm: SchedulerState, now: Now) -> list[tuple[float, TaskEntry, EngineEntry, AssignedRun]]:
    """Return the runs that are slow, the longest first."""
    found = []
    for engine in farm.engines.by_name.values():
        run = engine.oldest()
        task = farm.tasks.unfinished.get(run[0]) if run is not None and not engine.concurrent else None
        if task is None or run is None or not task.is_current(engine.name, run) or _talks(farm, task):
            continue
        place = task.place
        if type(place) is not Assigned or place.since_s is None or engine.assigned[run].task_class is None:
            continue
        ran_s = now.mono_s - place.since_s
        if farm.second_copies.is_slow(task.id, ran_s, farm.settings):
            found.append((ran_s, task, engine, engine.assigned[run]))
    return sorted(found, key=lambda each: (-each[0], each[1].id))


def _talks(farm: SchedulerState, task: TaskEntry) -> bool:
    """Return whether a task has children or messages, which belong to one run."""
    talks = farm.conversations
    return task.id in talks.families or task.id in talks.mailboxes or task.past.trial_state is not None


def _idle_engine(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, assigned: AssignedRun
) -> EngineEntry | None:
    """Return an idle engine on another node that may run the task, or on the same one if that is set."""
    task_class = assigned.task_class
    if task_class is None or task_class.gated:
        return None  # what is reserved for a task, or limited, is not given twice
    same_node = None
    for idle in farm.readiness.idle:
        # An engine without environment would have to be given one: that is left to tasks that wait.
        fits = idle.environment is None if task_class.environment is None else idle.environment is not None
        if idle is engine or not fits or not serves_environment(idle, task_class.environment):
            continue
        agent = farm.agents.by_session.get(idle.agent)
        if agent is None or not agent.accepts_tasks or not may_serve(farm, idle, task_class.key):
            continue
        if idle.node != engine.node:
            return idle
        same_node = same_node or idle
    nodes = {each.node for each in farm.agents.by_session.values()}
    return same_node if farm.settings.second_copies_on == "any engine" and len(nodes) == 1 else None


# -- ending


def on_end(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now, out: Decision) -> bool:
    """Settle the two runs of a task when one of them has ended.  Return whether this end is the task's.

    The first run that succeeds is the task's end.  A run that fails while the other one runs is an attempt without
    consequences."""
    run = (ended.task, ended.attempt)
    other = farm.second_copies.others.get(task.id)
    if other is None:
        return True
    is_other = _is_at(other.place, engine, run)
    if not is_other and not task.is_current(engine.name, run):
        return True  # the run is neither of the two
    if ended.outcome:
        leave(farm, task, engine, run)
        note_attempt(farm, task, row_of(engine, ended), out)
        return False
    copy_won = is_other == other.is_copy
    if is_other:
        _swap(farm, task, other)
    loser = farm.second_copies.others[task.id].place
    _note_race(farm, task, engine, loser, ended, copy_won, now, out)
    return True


def _is_at(place: Assigned, engine: EngineEntry, run: RunKey) -> bool:
    return place.engine == engine.name and place.attempt == run[1]


def _swap(farm: SchedulerState, task: TaskEntry, other: OtherRun) -> None:
    """Let the other run of a task decide, and note the present one beside it."""
    place = task.place
    change_place(farm, task, other.place)
    if type(place) is Assigned:
        farm.second_copies.others[task.id] = OtherRun(place, not other.is_copy)
    else:
        del farm.second_copies.others[task.id]


def leave(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, run: RunKey) -> bool:
    """Note that an engine gives up one of two runs of a task.  Return whether the other one goes on."""
    other = farm.second_copies.others.get(task.id)
    if other is None:
        return False
    if _is_at(other.place, engine, run):
        del farm.second_copies.others[task.id]
        return True
    if not task.is_current(engine.name, run):
        return False
    _swap(farm, task, other)
    farm.second_copies.others.pop(task.id, None)
    return True


def _note_race(
    farm: SchedulerState,
    task: TaskEntry,
    winner: EngineEntry,
    loser: Assigned,
    ended: Ended,
    copy_won: bool,
    now: Now,
    out: Decision,
) -> None:
    """Note in the history what a second copy has saved, and count the race for the loser's node."""
    engine = farm.engines.by_name.get(loser.engine)
    began_s = loser.wall_s if loser.wall_s is not None else now.wall_s
    ran_s = now.mono_s - loser.since_s if loser.since_s is not None else 0.0
    node = engine.node if engine is not None else "?"
    if copy_won:
        text = (
            f"a second copy on engine {winner.id} ({winner.node}) took {ended.run_s:.3g} s and ended first: "
            f"this run was not done after {ran_s:.3g} s"
        )
    else:
        text = f"this second copy was not needed: the first run ended, after {ended.run_s:.3g} s"
    failure = FailureSummary("Overtaken", text)
    engine_id = engine.id if engine is not None else -1
    note_attempt(farm, task, AttemptRow(loser.attempt, engine_id, node, began_s, now.wall_s, OVERTAKEN, failure), out)
    out.notes.append(f"task {task.id}: {text}")
    races = farm.second_copies.lost_races
    if not copy_won:
        races.pop(winner.node, None)
        return
    races.pop(winner.node, None)
    races[node] = races.get(node, 0) + 1
    if node != winner.node and races[node] >= RACES_LOST:
        del races[node]
        why = f"{RACES_LOST} runs in a row on {node} were overtaken by second copies elsewhere: it gets no more tasks"
        set_aside(farm, node, why, now, out)


def stop_others(farm: SchedulerState, out: Decision) -> None:
    """Interrupt the runs that nobody needs any more.  Called at the end of a turn."""
    for name, run in farm.second_copies.to_stop:
        engine = farm.engines.by_name.get(name)
        if engine is not None and run in engine.assigned:
            out.sends.append((engine.agent, Interrupt(name, run, farm.settings.grace_s)))
    farm.second_copies.to_stop.clear()
