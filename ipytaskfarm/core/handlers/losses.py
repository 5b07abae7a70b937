"""Engines and agents that are gone, and the consequences for their runs."""

from __future__ import annotations

import re

import msgspec

from ..messages import Crash, EngineDown
from ..messages.task_types import AttemptRow, FailureSummary, Incarnation, RunKey
from ..saves import DropAgent
from ..scheduler.agent_entry import AgentEntry
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_classes
from ..scheduler.entries import EngineEntry, EngineState, TaskEntry
from ..scheduler.frozen_engines import FrozenEngine
from ..scheduler.state import SchedulerState
from ..scheduler.task import RETRIED, RETURNED, Assigned
from ..scheduler.task_ends import final_of_join, final_without_answer
from ..scheduler.transitions import begin, finish, note_attempt, put_back, requeue, separate, unassign
from ..states import Reason
from ..text import is_of_library, last_line, signal_text
from .commands import fail_commands_of
from .held_commands import note_replaced
from .nodes import charge_loss, note_failure
from .replacements import note_ended
from .results import after_delay, end_or_recover, is_retried_on, release_runs
from .streams import forget_outputs

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
_SOON_S = 1.0
"""An engine that is lost within this time, without having done anything, counts as one that cannot start."""

SUCCESSOR_S = 45.0
"""How long the farm waits for a successor of an agent that is gone: more than the longest pause between its starts
(`deployment.restarts`)."""

PRINTED_MAX = 200
"""How much is told of what an engine printed last that ended while it was prepared."""

NAMED_MAX = 20
"""The number of tasks that are named in a line of the log."""


def on_engine_lost(farm: SchedulerState, session: str, event: EngineDown, now: Now, out: Decision) -> None:
    """Remove an engine whose process has ended.

    Only the task that it was running is charged. Runs that had not begun go back to their queues unchanged.
    """
    agent = farm.agents.by_session.get(session)
    if agent is not None:
        agent.starting.pop(event.id, None)
    frozen = farm.frozen.remove(event.engine)
    if frozen is not None:
        _note_frozen_lost(farm, frozen, event, out)
        return
    engine = farm.engines.by_name.get(event.engine)
    if engine is None:
        return
    begun = {event.running, *event.beside}
    if not event.known:
        begun = _may_have_begun(farm, engine, event.begun_upto)
    text = f"engine {engine.id} on {engine.node} {describe(event.crash)}"
    if preparation := engine.preparation(now.mono_s):
        text += f", while it was {preparation}"
        if said := last_line(event.crash.output):
            text += f"; its last output: {said[:PRINTED_MAX]}"
    if not event.expected:
        farm.diagnostics.losses.append(text)
        out.notes.append(text + _over(sorted(run[0] for run in begun if run is not None), event.known))
        if agent is not None and engine.finished == 0 and engine.age_s(now) < _SOON_S:
            back_off(farm, agent, now)
    begun_runs = {run for run in begun if run is not None}
    lose_engine(farm, engine, begun_runs, event.crash, event.known, now, out, event.items, event.running)


def _note_frozen_lost(farm: SchedulerState, frozen: FrozenEngine, event: EngineDown, out: Decision) -> None:
    """Note the end of a frozen engine, which held no runs any more."""
    if event.expected:
        farm.frozen.note_end(frozen, f"has ended: {frozen.ending or 'its agent was told to end it'}")
        return
    farm.frozen.note_end(frozen, f"{describe(event.crash)}{_remedy(event.crash)}")
    text = f"the frozen engine of task {frozen.run.task} on {frozen.node} {describe(event.crash)}"
    farm.diagnostics.losses.append(text)
    out.notes.append(text)


def _remedy(crash: Crash) -> str:
    """Return what to do about frozen engines that were ended for their memory."""
    if not crash.cause.startswith("memory"):
        return ""
    return "; hold a smaller case, raise `memory_limit` or the node's memory, or end others with tc.release()"


def _may_have_begun(farm: SchedulerState, engine: EngineEntry, upto: tuple[int, int] | None) -> set[RunKey | None]:
    """Return the runs of an engine that may have begun, if its flight recorder does not tell.

    upto: after a reboot, the last place that the engine was allowed to begin, by its flight recorder
    (`system.flight_recorder`). The first unanswered run needs no such permission. Coroutine tasks run from their
    hand-out on.
    """
    if upto is None or engine.concurrent:
        return set(engine.assigned)
    current = [run for run in engine.assigned if _is_current(farm, engine, run)]
    return {*current[:1], *(run for run in current if engine.assigned[run].batch.place(run) <= upto)}


def _is_current(farm: SchedulerState, engine: EngineEntry, run: RunKey) -> bool:
    task = farm.tasks.unfinished.get(run[0])
    return task is not None and task.is_current(engine.name, run)


def _over(tasks: list[int], known: bool) -> str:
    """Return, for the log, which tasks an engine was running when it was lost."""
    if not tasks:
        return ""
    some = ", ".join(map(str, tasks[:NAMED_MAX])) + (" …" if len(tasks) > NAMED_MAX else "")
    return f"; it {'ran' if known else 'may have run'} {'task' if len(tasks) == 1 else 'tasks'} {some}"


def lose_engine(
    farm: SchedulerState,
    engine: EngineEntry,
    begun: set[RunKey],
    crash: Crash,
    known: bool,
    now: Now,
    out: Decision,
    items: tuple[int, int] | None = None,
    over: RunKey | None = None,
) -> None:
    """Remove an engine from the farm, and settle its runs.

    Args:
        begun: the runs that may have begun.
        known: whether the flight recorder could be read.
        items: of a chunk that was running, see `EngineDown`.
        over: of several runs that had begun, the one for which the agent ended the engine.
    """
    company = len(begun) if engine.concurrent else 1
    note_ended(farm, engine, describe(crash), known, out)
    note_replaced(farm, engine)
    remove_engine(farm, engine, out)
    for run, task in release_runs(farm, engine, list(engine.assigned), out):
        if run in begun and task.items:
            _lose_chunk(farm, task, engine, crash, items if known and items else (0, task.items), now, out)
        elif run in begun:
            of_run = crash if company < 2 else _in_company(crash, run, over, company)
            _charge(farm, task, engine, of_run, known, now, out)
        else:
            unassign(farm, task, RETURNED)
    fail_commands_of(farm, engine, describe(crash), crash.output, out)
    forget_outputs(farm, engine)
    farm.timers.set(now.mono_s, "balance")


def _in_company(crash: Crash, run: RunKey, over: RunKey | None, company: int) -> Crash:
    """Return how an engine ended, for one of several runs that it was running."""
    cause = crash.cause
    if over is not None and run != over and cause:
        cause = f"which the agent ended over task {over[0]} ({cause})"
    return _beside(crash, cause, f"it ran {company} coroutine tasks at once")


def _beside(crash: Crash, cause: str, others: str) -> Crash:
    """Return how an engine ended, with a phrase on what else it ran."""
    return msgspec.structs.replace(crash, cause=f"{cause}; {others}" if cause else others)


def _lose_chunk(
    farm: SchedulerState,
    chunk: TaskEntry,
    engine: EngineEntry,
    crash: Crash,
    items: tuple[int, int],
    now: Now,
    out: Decision,
) -> None:
    """Settle a chunk that was lost with its engine: items that had begun are charged, the others wait again.

    items: as in `EngineDown`."""
    begin(farm, chunk, now)
    ended, begun = items
    lost = _beside(crash, crash.cause, "this item had ended before, and its value was lost with the engine")
    if begun - ended > 1:
        crash = _beside(crash, crash.cause, f"one of {begun - ended} items was running")
    separate_before = set(farm.tasks.chunks.separate.get(chunk.id, ()))
    for index in range(chunk.items):
        if index not in separate_before:
            task = separate(farm, chunk, index, out, begun=index < begun)
            if index < begun:
                _charge(farm, task, engine, lost if index < ended else crash, True, now, out)
            else:
                put_back(farm, task)
    finish(farm, chunk, msgspec.structs.replace(final_of_join(chunk, now), items=chunk.items), out)


def remove_engine(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Remove an engine that is lost, or frozen, from all records."""
    engine.state = EngineState.STOPPING
    farm.readiness.withdraw(engine)
    farm.remove_engine(engine)
    if engine.environment is not None:
        farm.environments.forget_if_unused(engine.environment.identity)
    agent = farm.agents.by_session.get(engine.agent)
    if agent is not None:
        agent.engines.pop(engine.name, None)
        if not agent.present and not agent.engines:
            forget_agent(farm, agent, out)
    refresh_classes(farm, [engine])


def _charge(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, crash: Crash, known: bool, now: Now, out: Decision
) -> None:
    """Charge a task for the loss of its engine, and run it again or end it."""
    begin(farm, task, now)
    # "memory: 312 MiB in use …"
    reason = _REASONS.get(re.split("[:;]", crash.cause)[0], Reason.ENGINE_LOST)
    failure = FailureSummary(_ERROR_NAMES[reason], _loss_text(engine, crash, known), _crash_place(crash))
    final = final_without_answer(task, engine, reason, failure, now)
    place = task.place
    attempt = place.attempt if type(place) is Assigned else task.attempt
    row = AttemptRow(attempt, engine.id, engine.node, final.started_s, now.wall_s, reason, failure)
    if task.rules is not None and task.rules.freeze and farm.frozen.of_task(task.id) is None:
        farm.frozen.note_missed(task.id, attempt, engine.node, "it has ended, and its frames with it")
    if reason is Reason.ENGINE_LOST:
        repeat = task.losses_left > 0
        kind = charge_loss(task)
        task.own_past().suspect = True
    else:
        repeat = task.retries_left > 0 and is_retried_on(task, failure)
        kind = "error"
        task.own_past().errors += 1
    if repeat and task.past.losses >= farm.settings.max_engine_losses:
        text = f"{task.past.losses} engines were lost while they ran it; the last: {failure.value}"
        final = final_without_answer(task, engine, Reason.QUARANTINED, FailureSummary("Quarantined", text), now)
        repeat = False
    if not repeat:
        end_or_recover(farm, task, final, row, out)
    else:
        note_attempt(farm, task, row, out)
        requeue(farm, task, RETRIED if reason is Reason.ENGINE_LOST else after_delay(task, now), out)
    note_failure(farm, engine.agent, task, kind, now, out)


_REASONS = {"time limit": Reason.TIME_LIMIT, "memory": Reason.MEMORY}
_ERROR_NAMES = {
    Reason.TIME_LIMIT: "TimeLimitExceeded",
    Reason.MEMORY: "MemoryLimitExceeded",
    Reason.ENGINE_LOST: "EngineLost",
}


_CRASH_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


def _crash_place(crash: Crash) -> str:
    """Return the innermost frame of the user's own code in the stack that a dying engine has written; "" for none."""
    for frame in _CRASH_FRAME.finditer(crash.dump):
        if not is_of_library(frame["file"]):
            return f"{frame['file']}:{frame['line']} in {frame['name']}"
    return ""


def _loss_text(engine: EngineEntry, crash: Crash, known: bool) -> str:
    doubt = "" if known else "; its flight recorder does not tell how far it had come: the task may have run"
    lines = [f"engine {engine.id} on {engine.node} {describe(crash)}{doubt}"]
    if crash.output:
        lines.append(f"its last output: {crash.output}")
    if crash.dump:
        lines.append(crash.dump)
    return "\n".join(lines)


def describe(crash: Crash) -> str:
    """Return a phrase on how an engine ended."""
    if crash.signal is not None:
        how = f"was ended by {signal_text(crash.signal)}"
    elif crash.exit_code is not None:
        how = f"exited with code {crash.exit_code}"
    else:
        how = "was lost"
    cause = f", {crash.cause}" if crash.cause else ""
    peak = f", peak memory {crash.peak_bytes / 2**20:.0f} MiB" if crash.peak_bytes else ""
    return how + cause + peak


def back_off(farm: SchedulerState, agent: AgentEntry, now: Now) -> None:
    """Wait before the next start of an engine under this agent, longer each time.  Other agents are not affected."""
    agent.backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, agent.backoff_s * 2))
    agent.start_after_s = now.mono_s + agent.backoff_s
    farm.timers.set(agent.start_after_s, "balance")


# -- agents


def lease_margin_s(lease_s: float) -> float:
    """Return how much longer than the lease the controller waits until a silent agent's engines are certainly gone.

    Agent and controller both count from when they last heard the other, and one may hear the other for longer. Clocks
    may differ by some per cent.
    """
    return min(30.0, max(5.0, lease_s / 30))


def agent_silent(farm: SchedulerState, agent: AgentEntry, now: Now) -> None:
    """Give no more work to an agent's engines until it is heard again or its lease is over."""
    agent.reachable = False
    if agent.deadline_s is None:
        agent.deadline_s = now.mono_s + farm.settings.lease_s + farm.settings.lease_margin_s
        farm.timers.set(agent.deadline_s, "lease", agent.session)
    for engine in agent.engines.values():
        if engine.state == EngineState.UP:
            engine.state = EngineState.AWAY
            note_replaced(farm, engine)
            farm.readiness.withdraw(engine)
    refresh_classes(farm, agent.engines.values())


def agent_gone(farm: SchedulerState, agent: AgentEntry, why: str, now: Now, out: Decision) -> None:
    """Stop waiting for the lease of an agent that will never be heard again.

    An agent that is started in its folder finds the flight recorders, and reports on its engines; it has `SUCCESSOR_S`.
    """
    if not agent.gone:
        out.notes.append(f"agent on {agent.node} is gone: {why}")
    agent.gone = why
    agent.present = False
    agent.starting.clear()
    if not agent.engines:
        forget_agent(farm, agent, out)
        return
    agent_silent(farm, agent, now)
    deadline_s = now.mono_s + SUCCESSOR_S
    if agent.deadline_s is None or deadline_s < agent.deadline_s:
        agent.deadline_s = deadline_s
        farm.timers.set(deadline_s, "lease", agent.session)


def settle_former(farm: SchedulerState, agent: AgentEntry, left: list[Incarnation], now: Now, out: Decision) -> None:
    """Lose at once those engines of a dead agent on which its successor can report nothing."""
    for name, engine in list(agent.engines.items()):
        if name not in left:
            why = f"{agent.gone or 'its agent has ended'}, and its flight recorder is lost"
            lose_engine(farm, engine, set(engine.assigned), Crash(cause=why), False, now, out)


def _forget_frozen(farm: SchedulerState, session: str, out: Decision) -> None:
    """Forget the frozen engines of an agent that is gone; those of an agent that comes back are reported again."""
    for frozen in farm.frozen.of_agent(session):
        farm.frozen.remove(frozen.name)
        farm.frozen.note_end(frozen, "is gone with its agent")
        out.notes.append(f"the frozen engine of task {frozen.run.task} on {frozen.node} is gone with its agent")


def give_up_agent(farm: SchedulerState, session: str, why: str, now: Now, out: Decision) -> None:
    """Give up an agent whose lease is over, unless the lease was renewed in the meantime."""
    agent = farm.agents.by_session.get(session)
    if agent is not None and agent.deadline_s is not None and now.mono_s >= agent.deadline_s:
        give_up(farm, agent, agent.gone or why, now, out)


def give_up(farm: SchedulerState, agent: AgentEntry, why: str, now: Now, out: Decision) -> None:
    """Give up an agent for good: all runs that its engines held count as begun."""
    text = f"agent on {agent.node} is given up: {why}"
    out.notes.append(text)
    farm.diagnostics.losses.append(text)
    agent.present = False
    agent.starting.clear()
    for engine in list(agent.engines.values()):
        lose_engine(farm, engine, set(engine.assigned), Crash(cause=why), False, now, out)
    farm.timers.set(now.mono_s, "balance")
    forget_agent(farm, agent, out)


def forget_agent(farm: SchedulerState, agent: AgentEntry, out: Decision) -> None:
    """Forget an agent that has no engines any more.

    If it lives and is heard again, it begins a new session and reports what it holds.
    """
    _forget_frozen(farm, agent.session, out)
    if farm.agents.by_session.pop(agent.session, None) is not None:
        if agent.process is not None:
            out.saves.append(DropAgent(agent.session))
        farm.agents.failing.discard(agent.session)
        out.given_up.append(agent.session)
