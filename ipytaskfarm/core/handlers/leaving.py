"""Agents that leave: their time is over, they are removed, or their launcher knows that they are dead.

A leaving agent gets no more tasks. Runs that were sent ahead are recalled, and running tasks have some time; tasks that
run longer are treated as at a stop of the farm (`lifecycle.detach_run`). Its engines end one by one when they are
empty, and the agent ends with the last one.
"""

from __future__ import annotations

from ..messages import AgentsEnded, Leave, Leaving, NumberReply, RemoveAgents
from ..parsing import goes_by
from ..scheduler.agent_entry import AgentEntry
from ..scheduler.decision import Decision, Now
from ..scheduler.engine_shutdown import end_engine, recall, retire
from ..scheduler.state import SchedulerState
from .freezing import end_frozen
from .lifecycle import detach_run
from .losses import agent_silent, give_up_agent

_NEAR_S = 5.0
"""An agent that leaves so many seconds before its end, or later, leaves because of it."""


def on_leaving(farm: SchedulerState, session: str, event: Leaving, now: Now, out: Decision) -> None:
    """Record that an agent leaves, because its launcher told it to end."""
    agent = farm.agents.by_session.get(session)
    if agent is None:
        return
    is_over = agent.ends_s is not None and now.mono_s >= agent.ends_s - _NEAR_S
    why = "its time is over" if is_over else "it was told to end"
    if not agent.leaving and not farm.lifecycle.stopping:
        # Tasks may wait for its engines from now on.
        text = f"agent {agent.name or agent.session} on {agent.node} left: {why}"
        farm.diagnostics.losses.append(f"{text}; `ipytaskfarm agents add` brings others")
    _leave(farm, agent, why, event.within_s, now, out)


def on_remove_agents(
    farm: SchedulerState, session: str, n: int, question: RemoveAgents, now: Now, out: Decision
) -> None:
    """Remove these agents, and answer how many there were."""
    leaving = [agent for agent in farm.agents.by_session.values() if goes_by(agent.name, question.names)]
    for agent in leaving:
        out.sends.append((agent.session, Leave(question.within_s)))
        _leave(farm, agent, "it is being removed", question.within_s, now, out)
    out.answer(session, n, NumberReply(len(leaving)))


def on_agents_ended(farm: SchedulerState, session: str, n: int, question: AgentsEnded, now: Now, out: Decision) -> None:
    """Give up these agents without waiting for their leases, because their launcher knows that they have ended.

    An agent that is still heard is not given up. Of one that has never been heard the reason is kept for tables."""
    for name in question.names:
        if not any(goes_by(agent.name, [name]) for agent in farm.agents.by_session.values()):
            text = f"agent {name} ended before it was heard: {question.why}"
            farm.diagnostics.losses.append(text)
            out.notes.append(text)
    gone = [a for a in farm.agents.by_session.values() if goes_by(a.name, question.names) and not a.reachable]
    for agent in gone:
        agent_silent(farm, agent, now)
        agent.deadline_s = now.mono_s
        give_up_agent(farm, agent.session, question.why, now, out)
    out.answer(session, n, NumberReply(len(gone)))


def _leave(farm: SchedulerState, agent: AgentEntry, why: str, within_s: float | None, now: Now, out: Decision) -> None:
    if not agent.leaving:
        agent.leaving = True
        agent.excluded = f"{why}: running tasks continue to their end, and no further ones start"
        out.notes.append(f"agent {agent.name or agent.session} on {agent.node} leaves: {why}")
    for engine in list(agent.engines.values()):
        recall(farm, engine, engine.runs_ahead(), now, out)
        retire(farm, engine, out)
    for frozen in farm.frozen.of_agent(agent.session):
        end_frozen(farm, frozen, f"its agent leaves: {why}", out)
    if within_s is not None:
        farm.timers.set(now.mono_s + within_s, "left", agent.session)


def end_leave(farm: SchedulerState, session: str, now: Now, out: Decision) -> None:
    """Detach the tasks that still run under a leaving agent when their time is over."""
    agent = farm.agents.by_session.get(session)
    if agent is None or not agent.leaving or farm.lifecycle.shut:
        return
    for engine in list(agent.engines.values()):
        for task_id, attempt in list(engine.assigned):
            task = farm.tasks.unfinished.get(task_id)
            if task is not None and task.is_current(engine.name, (task_id, attempt)):
                detach_run(farm, task, f"the agent on {agent.node} left", now, out)
        end_engine(farm, engine, out)
