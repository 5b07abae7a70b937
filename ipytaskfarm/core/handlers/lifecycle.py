"""How many engines are wanted, holding, and the end of the farm."""

from __future__ import annotations

from ..decision import Decision
from ..eligibility import wake
from ..ending import end_engine, patience_s, recall, retire
from ..farm import EngineState, Farm, Now
from ..messages import (
    Answer,
    Flag,
    Hold,
    Interrupt,
    Number,
    Refusal,
    RemoveEngines,
    SetWanted,
    Shutdown,
    Spin,
    Stop,
)
from ..parcels import Failure
from ..placement import dispatch
from ..saves import SaveSetting
from ..states import Reason
from ..task import RETURNED, Handed, Task
from ..transition import final_without_answer, finish, requeue
from .agents import balance
from .clients import grace_of
from .depends import drop_all_verdicts
from .nodes import take_back

SHUT_WITHIN_S = 15.0
"""After this the controller ends whether or not its agents have."""


def on_set_wanted(farm: Farm, session: str, n: int, question: SetWanted, now: Now, out: Decision) -> None:
    """Keep that many engines from now on."""
    base = farm.wanted if question.engines is None else question.engines
    farm.wanted = max(0, base + question.more)
    out.saves.append(SaveSetting("wanted", farm.wanted))
    balance(farm, now, out)
    out.sends.append((session, Answer(n, Number(farm.wanted))))


def on_remove_engines(farm: Farm, session: str, n: int, question: RemoveEngines, now: Now, out: Decision) -> None:
    """End these, and want that many fewer."""
    by_id = {engine.id: engine for engine in farm.engines.values()}
    unknown = [i for i in question.ids if i not in by_id]
    if unknown:
        text = f"there is no engine {unknown[0]}: the farm has {sorted(by_id)}"
        out.sends.append((session, Answer(n, Refusal("InvalidEngineID", text))))
        return
    leaving = {i for i in question.ids if not by_id[i].retiring}
    for engine_id in leaving:
        agent = farm.agents.get(by_id[engine_id].agent)
        if agent is not None and agent.brings is not None:
            agent.brings = max(0, agent.brings - 1)
        else:
            farm.wanted = max(0, farm.wanted - 1)
    out.saves.append(SaveSetting("wanted", farm.wanted))
    for engine_id in leaving:
        retire(farm, by_id[engine_id], out)
        if not question.drain:
            end_engine(farm, by_id[engine_id], out, grace_s=0.0)
    out.sends.append((session, Answer(n, Number(farm.wanted))))


def on_hold(farm: Farm, session: str, n: int, question: Hold, now: Now, out: Decision) -> None:
    """Start no task, or go on."""
    before, farm.held = farm.held, question.on
    out.saves.append(SaveSetting("held", int(farm.held)))
    if not farm.held:
        take_back(farm, now)
    if before and not farm.held:
        for engine in farm.engines.values():
            if engine.state == EngineState.UP:
                wake(farm, engine)
    out.sends.append((session, Answer(n, Flag(before))))


def on_spin(farm: Farm, session: str, n: int, question: Spin, now: Now, out: Decision) -> None:
    """Look again at everything; True if that dispatched something (verdicts asked anew may do so a little later)."""
    drop_all_verdicts(farm, out)
    for engine in farm.engines.values():
        if engine.state == EngineState.UP:
            wake(farm, engine)
    before = len(out.assignments)
    dispatch(farm, now, out)
    out.sends.append((session, Answer(n, Flag(len(out.assignments) > before))))


# -- the end


def on_stop(farm: Farm, session: str, n: int, question: Stop, now: Now, out: Decision) -> None:
    """Refuse new work, recall what was sent ahead, and wait for what runs.  A second stop waits no longer."""
    out.sends.append((session, Answer(n, Flag(True))))
    drain_s = 0.0 if farm.stopping else question.drain_s
    if not farm.stopping:
        farm.stopping = True
        out.notes.append("the farm is stopping")
        for engine in list(farm.engines.values()):
            oldest = engine.oldest()
            recall(farm, engine, [run for run in engine.handed if run != oldest], now, out)
    if drain_s is not None:
        farm.set_timer(now.mono_s + drain_s, "drained")


def drained(farm: Farm, now: Now, out: Decision) -> None:
    """Running tasks have had their time: those that may repeat go back to the queue uncharged, the rest end here."""
    if farm.shut:
        return
    for task in [task for task in farm.tasks.values() if type(task.place) is Handed]:
        part(farm, task, "farm stopped", now, out)
    _shut(farm, now, out)


def part(farm: Farm, task: Task, why: str, now: Now, out: Decision) -> None:
    """A task and its engine are parted: it may go on elsewhere if it may repeat, else it ends."""
    place = task.place
    if type(place) is not Handed:
        return
    engine = farm.engines.get(place.engine)
    begun = place.since_s is not None
    if engine is not None and begun:
        out.sends.append((engine.agent, Interrupt(engine.name, (task.id, place.attempt), grace_of(farm, task))))
    if task.may_repeat or not begun:
        requeue(farm, task, RETURNED, out)
        return
    failure = Failure("EngineLost", f"{why} while engine {engine.id if engine else '?'} ran the task")
    finish(farm, task, final_without_answer(task, engine, Reason.ENGINE_LOST, failure, now), out)


def _shut(farm: Farm, now: Now, out: Decision) -> None:
    farm.shut = True
    farm.shut_by_s = now.mono_s + SHUT_WITHIN_S
    for engine in list(farm.engines.values()):
        if engine.environment is not None and engine.state != EngineState.AWAY:
            farm.shut_by_s = max(farm.shut_by_s, now.mono_s + SHUT_WITHIN_S + patience_s(engine))
            end_engine(farm, engine, out)  # its teardown has a time of its own
    farm.set_timer(farm.shut_by_s, "shut")
    for agent in farm.agents.values():
        if agent.here:
            out.sends.append((agent.session, Shutdown(farm.settings.grace_s)))


def look_for_the_end(farm: Farm, now: Now, out: Decision) -> None:
    """While stopping: nothing runs any more -> end the agents; no agent is left -> the controller may end."""
    if not farm.shut:
        if not any(engine.handed for engine in farm.engines.values() if engine.state != EngineState.AWAY):
            _shut(farm, now, out)
        else:
            return
    over = farm.shut_by_s is not None and now.mono_s >= farm.shut_by_s
    if over or not any(agent.here for agent in farm.agents.values()):
        out.finished = True


def give_elsewhere(farm: Farm, engine_name: str, runs: list[tuple[int, int]], out: Decision) -> None:
    """A recall was not answered in time: what may repeat goes to another engine as a new attempt, uncharged."""
    engine = farm.engines.get(engine_name)
    if engine is None:
        return
    for run in runs:
        task = farm.tasks.get(run[0])
        if run not in engine.handed or task is None or not task.is_current(engine_name, run):
            continue
        place = task.place
        if type(place) is Handed and place.since_s is None and task.may_repeat:
            requeue(farm, task, RETURNED, out)
