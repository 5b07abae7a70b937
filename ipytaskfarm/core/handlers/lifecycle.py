"""The number of wanted engines, holding the farm, and its end."""

from __future__ import annotations

from .. import messages as m
from ..messages.task_types import FailureSummary
from ..saves import SaveSetting
from ..scheduler.decision import Decision, Now
from ..scheduler.engine_shutdown import end_engine, patience_s, recall, retire
from ..scheduler.entries import EngineState, TaskEntry
from ..scheduler.kept_engines import drop_kept
from ..scheduler.placement import dispatch
from ..scheduler.settings import WANTED_MAX
from ..scheduler.state import SchedulerState
from ..scheduler.task import RETURNED, Assigned
from ..scheduler.task_ends import final_without_answer
from ..scheduler.transitions import finish, requeue
from ..states import Reason
from .agents import balance
from .clients import grace_of
from .depends import drop_all_verdicts
from .held_commands import awaited, starting_replacements
from .nodes import readmit_nodes

SHUT_WITHIN_S = 15.0
"""After this time the controller ends even if agents are still connected."""


def on_set_wanted(farm: SchedulerState, session: str, n: int, question: m.SetWanted, now: Now, out: Decision) -> None:
    """Set how many engines are wanted."""
    lifecycle = farm.lifecycle
    base = lifecycle.wanted if question.engines is None else question.engines
    wanted = max(0, base + question.more)
    if wanted > WANTED_MAX:
        out.answer(session, n, m.Refusal("ValueError", f"a farm has at most {WANTED_MAX:,} engines of its own"))
        return
    if wanted < lifecycle.wanted:
        drop_kept(farm, out)
        farm.requests.replaced.clear()  # which of the lost engines are replaced is not known any more
    lifecycle.wanted = wanted
    out.saves.append(SaveSetting("wanted", lifecycle.wanted))
    balance(farm, now, out)
    out.answer(session, n, m.NumberReply(lifecycle.wanted))


def on_remove_engines(
    farm: SchedulerState, session: str, n: int, question: m.RemoveEngines, now: Now, out: Decision
) -> None:
    """End these engines, and want that many fewer."""
    lifecycle = farm.lifecycle
    by_id = {engine.id: engine for engine in farm.engines.by_name.values()}
    starting = starting_replacements(farm)
    known = {*by_id, *awaited(farm)}
    unknown = [i for i in question.ids if i not in known]
    if unknown:
        text = f"there is no engine {unknown[0]}: the farm has {sorted(known)}"
        out.answer(session, n, m.Refusal("InvalidEngineID", text))
        return
    leaving = {i for i in question.ids if i not in by_id or by_id[i].counts_as_wanted}
    for engine_id in leaving:
        agent = farm.agents.by_session.get(
            by_id[engine_id].agent if engine_id in by_id else starting.get(engine_id, "")
        )
        if agent is not None and agent.brings is not None:
            agent.brings = max(0, agent.brings - 1)
        else:
            lifecycle.wanted = max(0, lifecycle.wanted - 1)
    out.saves.append(SaveSetting("wanted", lifecycle.wanted))
    farm.requests.forget_kept(leaving, out)
    farm.requests.unwanted.update(leaving & starting.keys())
    for engine_id in leaving:
        farm.requests.replaced.pop(engine_id, None)
    for engine_id in leaving & by_id.keys():
        retire(farm, by_id[engine_id], out)
        if not question.drain:
            end_engine(farm, by_id[engine_id], out, grace_s=0.0)
    out.answer(session, n, m.NumberReply(lifecycle.wanted))


def on_hold(farm: SchedulerState, session: str, n: int, question: m.HoldFarm, now: Now, out: Decision) -> None:
    """Start no task, or resume."""
    lifecycle = farm.lifecycle
    before, lifecycle.held = lifecycle.held, question.on
    out.saves.append(SaveSetting("held", int(lifecycle.held)))
    if not lifecycle.held:
        readmit_nodes(farm, now)
    if before and not lifecycle.held:
        for engine in farm.engines.by_name.values():
            if engine.state == EngineState.UP:
                farm.readiness.wake(engine)
    out.answer(session, n, m.FlagReply(before))


def on_spin(farm: SchedulerState, session: str, n: int, question: m.SpinFarm, now: Now, out: Decision) -> None:
    """Examine everything again, and answer whether any task was assigned by that.

    Verdicts that are asked for again may lead to more a little later.
    """
    drop_all_verdicts(farm, out)
    for engine in farm.engines.by_name.values():
        if engine.state == EngineState.UP:
            farm.readiness.wake(engine)
    before = len(out.assignments)
    dispatch(farm, now, out)
    out.answer(session, n, m.FlagReply(len(out.assignments) > before))


# -- the end


def on_stop(farm: SchedulerState, session: str, n: int, question: m.StopFarm, now: Now, out: Decision) -> None:
    """Refuse new work, recall runs that were sent ahead, and wait for running tasks. A second stop does not wait."""
    out.answer(session, n, m.FlagReply(True))
    drain_s = 0.0 if farm.lifecycle.stopping else question.drain_s
    if not farm.lifecycle.stopping:
        farm.lifecycle.stopping = True
        out.notes.append("the farm is stopping")
        for engine in list(farm.engines.by_name.values()):
            recall(farm, engine, engine.runs_ahead(), now, out)
    if drain_s is not None:
        farm.timers.set(now.mono_s + drain_s, "drained")


def end_drain(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Detach the tasks that still run when a stopping farm waits no longer."""
    if farm.lifecycle.shut:
        return
    for task in [task for task in farm.tasks.unfinished.values() if type(task.place) is Assigned]:
        detach_run(farm, task, "farm stopped", now, out)
    _shut(farm, now, out)


def detach_run(farm: SchedulerState, task: TaskEntry, why: str, now: Now, out: Decision) -> None:
    """Take a task from its engine: it goes on elsewhere if it may repeat; otherwise it ends, if it has begun.

    A run that has not begun by the last report, of a task that may not repeat, stays where it is: its engine may begin
    it at this moment.  It was recalled, and what becomes of it is said in the answer, or at the engine's end."""
    place = task.place
    if type(place) is not Assigned:
        return
    engine = farm.engines.by_name.get(place.engine)
    begun = place.since_s is not None
    if engine is not None and begun:
        out.sends.append((engine.agent, m.Interrupt(engine.name, (task.id, place.attempt), grace_of(farm, task))))
    if task.may_repeat:
        requeue(farm, task, RETURNED, out)
    if task.may_repeat or not begun:
        return
    failure = FailureSummary("EngineLost", f"{why} while engine {engine.id if engine else '?'} ran the task")
    finish(farm, task, final_without_answer(task, engine, Reason.ENGINE_LOST, failure, now), out)


def _shut(farm: SchedulerState, now: Now, out: Decision) -> None:
    lifecycle = farm.lifecycle
    lifecycle.shut = True
    lifecycle.shut_by_s = now.mono_s + SHUT_WITHIN_S
    for engine in list(farm.engines.by_name.values()):
        if engine.environment is not None and engine.state != EngineState.AWAY:
            lifecycle.shut_by_s = max(lifecycle.shut_by_s, now.mono_s + SHUT_WITHIN_S + patience_s(engine))
            end_engine(farm, engine, out)  # its teardown may take longer than the agents' end
    farm.timers.set(lifecycle.shut_by_s, "shut")
    for agent in farm.agents.by_session.values():
        if agent.present:
            out.sends.append((agent.session, m.Shutdown(farm.settings.grace_s)))


def look_for_the_end(farm: SchedulerState, now: Now, out: Decision) -> None:
    """End the agents of a stopping farm when nothing runs, and the controller when no agent is left."""
    if not farm.lifecycle.shut:
        if not any(engine.assigned for engine in farm.engines.by_name.values() if engine.state != EngineState.AWAY):
            _shut(farm, now, out)
        else:
            return
    over = farm.lifecycle.shut_by_s is not None and now.mono_s >= farm.lifecycle.shut_by_s
    if over or not any(agent.present for agent in farm.agents.by_session.values()):
        out.finished = True


def reassign_unanswered(farm: SchedulerState, engine_name: str, runs: list[tuple[int, int]], out: Decision) -> None:
    """Assign runs whose recall was not answered in time to other engines, uncharged, if they may repeat."""
    engine = farm.engines.by_name.get(engine_name)
    if engine is None:
        return
    for run in runs:
        task = farm.tasks.unfinished.get(run[0])
        if run not in engine.assigned or task is None or not task.is_current(engine_name, run):
            continue
        place = task.place
        if type(place) is Assigned and place.since_s is None and task.may_repeat:
            requeue(farm, task, RETURNED, out)
