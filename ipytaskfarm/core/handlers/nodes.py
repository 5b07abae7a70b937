"""Nodes on which everything fails are excluded: such a node would take tasks faster than the good ones finish them.

A node is excluded only if tasks of the same kinds succeeded on other nodes in the meantime (else the tasks are the
cause), and never the last one. Unfinished tasks are refunded for what its failures have cost them.
"""

from __future__ import annotations

from ..messages import DrainNode, NumberReply, Refusal
from ..saves import SaveSetting
from ..scheduler.agent_entry import AgentEntry, Charge, FailedAttempt, TaskKind
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_classes
from ..scheduler.engine_shutdown import recall
from ..scheduler.entries import EngineState, TaskEntry
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, ClassKey
from ..scheduler.transitions import refund

TASKS_LEAST = 5
"""The least number of tasks: a single task that fails repeatedly says nothing about its node."""
STREAK_MAX = 1000
"""The number of failed attempts that are remembered."""


def charge_loss(task: TaskEntry) -> Charge:
    """Charge a task for the loss of an engine, and return what was charged."""
    past = task.own_past()
    past.losses += 1
    if (task.rules or DEFAULT_RULES).lost_retries is not None:
        return "loss"
    past.errors += 1
    return "error and loss"


def note_successes(farm: SchedulerState, session: str, keys: set[ClassKey]) -> None:
    """Note that tasks of these classes succeeded under an agent, while attempts fail under some agent."""
    own = farm.agents.by_session.get(session)
    if own is not None and own.failures:
        _end_streak(farm, own)
    kinds: set[TaskKind] = {(key.depend, key.targets) for key in keys}
    for other in farm.agents.failing:
        if other != session:
            farm.agents.by_session[other].succeeded_elsewhere |= kinds


def note_failure(farm: SchedulerState, session: str, task: TaskEntry, charge: Charge, now: Now, out: Decision) -> None:
    """Note that an attempt failed under an agent, after its task was dealt with."""
    agent = farm.agents.by_session.get(session)
    if agent is None or agent.excluded or len(farm.agents.by_session) < 2:
        return
    rules = task.rules or DEFAULT_RULES
    agent.failures.append(FailedAttempt(task.id, task.past.recovery, (rules.depend, rules.targets), charge))
    del agent.failures[:-STREAK_MAX]
    farm.agents.failing.add(session)
    if _is_bad(farm, agent):
        _set_aside(farm, agent, now, out)


def _is_bad(farm: SchedulerState, agent: AgentEntry) -> bool:
    streak = agent.failures
    if len(streak) < farm.settings.node_failures or len({attempt.task for attempt in streak}) < TASKS_LEAST:
        return False
    if not {attempt.kind for attempt in streak} <= agent.succeeded_elsewhere:
        return False
    others = (other for other in farm.agents.by_session.values() if other is not agent and other.accepts_tasks)
    return any(e.state == EngineState.UP for other in others for e in other.engines.values())


def _set_aside(farm: SchedulerState, agent: AgentEntry, now: Now, out: Decision) -> None:
    streak = agent.failures
    ended = {attempt.task for attempt in streak if attempt.task not in farm.tasks.unfinished}
    agent.excluded = (
        f"{len(streak)} attempts in a row failed on {agent.node}, of tasks like those that succeed elsewhere: it gets "
        "no more. Mend it, then `ipytaskfarm resume`, or restart its agent."
    )
    if ended:
        remedy = "tc.failures() names them, tc.retry(ids) runs them again."
        agent.excluded += f" {len(ended)} tasks have failed there for good: {remedy}"
    for attempt in streak:
        task = farm.tasks.unfinished.get(attempt.task)
        if task is not None and task.past.recovery == attempt.recovery:
            refund(task, attempt.charge, out)
    _end_streak(farm, agent)
    _give_nothing(farm, agent, now, out)


def set_aside(farm: SchedulerState, node: str, why: str, now: Now, out: Decision) -> None:
    """Give a node no more tasks for this reason, unless it is the last one that has engines."""
    agents = [agent for agent in farm.agents.by_session.values() if agent.node == node and not agent.excluded]
    others = (other for other in farm.agents.by_session.values() if other.node != node and other.accepts_tasks)
    if any(engine.state == EngineState.UP for other in others for engine in other.engines.values()):
        for agent in agents:
            agent.excluded = f"{why}. Mend it, then `ipytaskfarm resume`, or restart its agent."
            _give_nothing(farm, agent, now, out)


def _give_nothing(farm: SchedulerState, agent: AgentEntry, now: Now, out: Decision) -> None:
    farm.diagnostics.losses.append(agent.excluded)
    out.notes.append(agent.excluded)
    for engine in agent.engines.values():
        engine.note = "set aside: see `ipytaskfarm status`"
        recall(farm, engine, engine.runs_ahead(), now, out)
        farm.readiness.withdraw(engine)
    refresh_classes(farm, agent.engines.values())


def readmit_nodes(farm: SchedulerState, now: Now) -> None:
    """Give tasks again to excluded nodes, because the farm's owner says that they are repaired."""
    for agent in farm.agents.by_session.values():
        if agent.excluded and not agent.leaving and agent.node not in farm.agents.drained_nodes:
            _readmit(farm, agent, now)


def _readmit(farm: SchedulerState, agent: AgentEntry, now: Now) -> None:
    agent.excluded = ""
    farm.timers.set(now.mono_s, "balance")
    refresh_classes(farm, agent.engines.values())
    for engine in agent.engines.values():
        engine.note = ""
        if engine.state == EngineState.UP:
            farm.readiness.wake(engine)


DRAINED = "it is drained: running tasks continue to their end, and no further ones start"
"""Why a drained node gets no tasks."""
DRAINED_MAX = 10_000
"""The most nodes that are drained, including nodes that the farm does not know yet."""


def on_drain(farm: SchedulerState, session: str, n: int, question: DrainNode, now: Now, out: Decision) -> None:
    """Give no more tasks to these nodes, or resume.

    Draining applies to nodes, so it outlasts controller and agents.
    """
    nodes, before = set(question.nodes), farm.agents.drained_nodes
    drained = before | nodes if question.on else before - nodes
    if len(drained) > max(DRAINED_MAX, len(before)):
        text = f"{len(before):,} nodes are drained already, and {DRAINED_MAX:,} are the most of a farm: resume some"
        out.answer(session, n, Refusal("ValueError", text))
        return
    if drained != before:
        farm.agents.drained_nodes = drained
        out.saves.append(SaveSetting("drained", "\n".join(sorted(drained))))
    count = 0
    for agent in farm.agents.by_session.values():
        if agent.node not in nodes:
            continue
        count += 1
        if not question.on and agent.excluded == DRAINED:
            _readmit(farm, agent, now)
        elif question.on and not agent.leaving:
            agent.excluded = DRAINED
            for engine in agent.engines.values():
                recall(farm, engine, engine.runs_ahead(), now, out)
                farm.readiness.withdraw(engine)
            refresh_classes(farm, agent.engines.values())
    out.answer(session, n, NumberReply(count))


def _end_streak(farm: SchedulerState, agent: AgentEntry) -> None:
    agent.failures.clear()
    agent.succeeded_elsewhere.clear()
    farm.agents.failing.discard(agent.session)
