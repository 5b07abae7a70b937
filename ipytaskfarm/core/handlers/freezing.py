"""Freezing: an engine on which an attempt has failed keeps the frames for a debugger.

The engine freezes itself as soon as the attempt has failed, so that nothing changes what it keeps. This module
decides whether the engine is kept. A kept engine leaves the pool at once: its slot is filled again, and its other runs
go elsewhere. It is ended when nobody has used it for a while, when it is released, and when its agent leaves.
"""

from __future__ import annotations

from .. import messages as m
from ..messages.kernel_bytes import PIECE_BYTES
from ..messages.task_types import Incarnation
from ..scheduler.decision import Decision, Now
from ..scheduler.engine_shutdown import EXIT_S, recycle
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.frozen_engines import FrozenEngine
from ..scheduler.state import SchedulerState
from ..scheduler.task import RETURNED
from ..scheduler.transitions import unassign
from .agents import balance
from .commands import fail_commands_of
from .losses import remove_engine
from .replacements import note_ended
from .results import release_runs
from .streams import forget_outputs

QUERIES_KEPT = 1000
"""The number of questions to kernels that may wait for answers."""
RESULT_S = 60.0
"""After a controller's restart: how long an engine gets no task while its frozen attempt's result is on its way."""


def on_frozen(farm: SchedulerState, session: str, event: m.Frozen, now: Now, out: Decision) -> None:
    """Note that an engine has frozen itself, or that a frozen engine is used: its time begins anew."""
    frozen = farm.frozen.by_name.get(event.engine)
    if frozen is None:
        farm.frozen.offered[event.engine] = event.run
        return
    frozen.run = event.run
    frozen.ends_s = now.mono_s + farm.settings.frozen_s


def settle_offered(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Decide about the engines that have frozen themselves.  Called at the end of a turn."""
    for name, run in farm.frozen.offered.items():
        engine = farm.engines.by_name.get(name)
        if engine is None or engine.retiring or engine.state == EngineState.STOPPING:
            continue
        if run.run in engine.assigned:  # its result follows
            engine.withheld_until_s = now.mono_s + RESULT_S
            farm.timers.set(engine.withheld_until_s, "wake", engine.name)
            continue
        why_not = _why_not(farm, engine)
        if why_not:
            recycle(farm, engine, f"it kept the frames of task {run.task}, and {why_not}", now, out)
            farm.frozen.note_missed(run.task, run.run[1], engine.node, why_not)
        else:
            _freeze(farm, engine, run, now, out)
            balance(farm, now, out)
    farm.frozen.offered.clear()


def _why_not(farm: SchedulerState, engine: EngineEntry) -> str:
    """Return why an engine that has frozen itself is not kept; "" if it is."""
    if farm.lifecycle.stopping:
        return "the farm is stopping"
    if not farm.frozen.has_room(engine.node, farm.settings):
        return farm.frozen.full(engine.node, farm.settings)
    return ""


def _freeze(farm: SchedulerState, engine: EngineEntry, run: m.FrozenRun, now: Now, out: Decision) -> None:
    """Take an engine out of the pool, and settle the runs and the commands that it holds."""
    unused_s = 0.0
    agent = farm.agents.by_session.get(engine.agent)
    if run.used_s:
        ahead_s = agent.clock_ahead_s or 0.0 if agent is not None else 0.0
        unused_s = min(max(0.0, now.wall_s + ahead_s - run.used_s), farm.settings.frozen_s)
    ends_s = now.mono_s + farm.settings.frozen_s - unused_s
    how = f"is frozen: it keeps the frames of task {run.task} for a debugger"
    out.notes.append(f"engine {engine.id} on {engine.node} {how}")
    note_ended(farm, engine, how, False, out)
    remove_engine(farm, engine, out)
    farm.frozen.add(
        FrozenEngine(engine.name, engine.id, engine.agent, engine.node, engine.pid, engine.connection_file, run, ends_s)
    )
    for _, task in release_runs(farm, engine, list(engine.assigned), out):
        unassign(farm, task, RETURNED)
    fail_commands_of(farm, engine, how, "", out)
    forget_outputs(farm, engine)
    farm.timers.set(ends_s, "thaw", engine.name)


def end_unused(farm: SchedulerState, name: Incarnation, now: Now, out: Decision) -> None:
    """End a frozen engine that nobody has used for its time; the timer of `_freeze`."""
    frozen = farm.frozen.by_name.get(name)
    if frozen is None:
        return
    if now.mono_s < frozen.ends_s:  # it was used since
        farm.timers.set(frozen.ends_s, "thaw", name)
    else:
        end_frozen(farm, frozen, f"nobody has used it for {farm.settings.frozen_s:g} s", out)


def end_frozen(farm: SchedulerState, frozen: FrozenEngine, why: str, out: Decision) -> None:
    """Tell the agent of a frozen engine to end the engine, which counts as frozen until it is gone."""
    if frozen.ending:
        return
    frozen.ending = why
    out.notes.append(f"the frozen engine of task {frozen.run.task} on {frozen.node} ends: {why}")
    out.sends.append((frozen.agent, m.StopEngine(frozen.name, EXIT_S)))


def on_release(farm: SchedulerState, session: str, n: int, question: m.ReleaseFrozen, now: Now, out: Decision) -> None:
    """End the frozen engines of these tasks, or all, and answer how many there were."""
    if question.tasks is None:
        found = [frozen for frozen in farm.frozen.by_name.values() if not frozen.ending]
    else:
        kept = {task_id: farm.frozen.of_task(task_id) for task_id in question.tasks}
        missing = [task_id for task_id, frozen in kept.items() if frozen is None]
        if missing:
            text = f"no engine is frozen for task {missing[0]}: it never was, it was released, or its time is over"
            out.answer(session, n, m.Refusal("IndexError", text))
            return
        found = [frozen for frozen in kept.values() if frozen is not None]
    for frozen in found:
        end_frozen(farm, frozen, "it was released", out)
    out.answer(session, n, m.NumberReply(len(found)))


def on_exchange(farm: SchedulerState, session: str, n: int, question: m.ExchangeBytes, now: Now, out: Decision) -> None:
    """Pass a question about the kernel of a frozen engine on to the engine's agent."""
    frozen = farm.frozen.by_name.get(question.engine)
    if frozen is None or len(question.data) > PIECE_BYTES:
        out.answer(session, n, m.KernelBytes(b"", True))
        return
    number = farm.number()
    farm.requests.kernels[number] = (session, n, frozen.agent)
    while len(farm.requests.kernels) > QUERIES_KEPT:  # queries to agents that do not answer
        del farm.requests.kernels[next(iter(farm.requests.kernels))]
    out.sends.append((frozen.agent, m.KernelQuery(number, question)))


def on_kernel_answer(farm: SchedulerState, session: str, event: m.KernelAnswer, now: Now, out: Decision) -> None:
    """Pass a kernel's bytes on to the client that asked."""
    asked = farm.requests.kernels.pop(event.n, None)
    if asked is not None:
        out.answer(asked[0], asked[1], event.reply)
