"""A node on which everything fails is set aside: it would eat the queue faster than the good ones work it off.

Only if tasks of the same kinds succeeded on other nodes meanwhile, for else it is the tasks; and never the last node.
What its failures cost tasks that have not ended is given back to them: it was not their fault.
"""

from __future__ import annotations

from ..decision import Decision
from ..eligibility import asleep, refresh_classes, wake
from ..ending import recall
from ..farm import Agent, Charge, EngineState, FailedAttempt, Farm, Kind, Now
from ..messages import Answer, Drain, Number
from ..queue import ClassKey
from ..saves import SaveSetting
from ..task import DEFAULT_RULES, Task
from ..transition import refund

TASKS_LEAST = 5
"""One task that fails again and again says nothing of its node."""
STREAK_MAX = 1000
"""Failed attempts that are remembered."""


def charge_loss(task: Task) -> Charge:
    """An engine was lost over this task; what that costs it."""
    task.losses += 1
    if (task.rules or DEFAULT_RULES).lost_retries is not None:
        return "loss"
    task.errors += 1
    return "error and loss"


def succeeded_on(farm: Farm, session: str, keys: set[ClassKey]) -> None:
    """Tasks of these classes succeeded under an agent, while some agent has a streak."""
    own = farm.agents.get(session)
    if own is not None and own.streak:
        _end_streak(farm, own)
    kinds: set[Kind] = {(key.depend, key.targets) for key in keys}
    for other in farm.failing:
        if other != session:
            farm.agents[other].elsewhere |= kinds


def failed_on(farm: Farm, session: str, task: Task, charge: Charge, now: Now, out: Decision) -> None:
    """An attempt failed under an agent, after its task was dealt with."""
    agent = farm.agents.get(session)
    if agent is None or agent.aside or len(farm.agents) < 2:
        return
    rules = task.rules or DEFAULT_RULES
    agent.streak.append(FailedAttempt(task.id, task.recovery, (rules.depend, rules.targets), charge))
    del agent.streak[:-STREAK_MAX]
    farm.failing.add(session)
    if _is_bad(farm, agent):
        _set_aside(farm, agent, now, out)


def _is_bad(farm: Farm, agent: Agent) -> bool:
    streak = agent.streak
    if len(streak) < farm.settings.node_failures or len({attempt.task for attempt in streak}) < TASKS_LEAST:
        return False
    if not {attempt.kind for attempt in streak} <= agent.elsewhere:
        return False
    others = (other for other in farm.agents.values() if other is not agent and other.able)
    return any(e.state == EngineState.UP for other in others for e in other.engines.values())


def _set_aside(farm: Farm, agent: Agent, now: Now, out: Decision) -> None:
    streak = agent.streak
    ended = {attempt.task for attempt in streak if attempt.task not in farm.tasks}
    agent.aside = (
        f"{len(streak)} attempts in a row failed on {agent.node}, of tasks like those that succeed elsewhere: it gets "
        "no more. Mend it, then `ipytaskfarm resume`, or restart its agent."
    )
    if ended:
        remedy = "tc.failures() names them, tc.retry(ids) runs them again."
        agent.aside += f" {len(ended)} tasks have failed there for good: {remedy}"
    farm.losses.append(agent.aside)
    out.notes.append(agent.aside)
    for attempt in streak:
        task = farm.tasks.get(attempt.task)
        if task is not None and task.recovery == attempt.recovery:
            refund(task, attempt.charge, out)
    _end_streak(farm, agent)
    for engine in agent.engines.values():
        engine.note = "set aside: see `ipytaskfarm status`"
        behind = [run for run in engine.handed if run != engine.oldest()]
        recall(farm, engine, behind, now, out)
        asleep(farm, engine)
    refresh_classes(farm, agent.engines.values())


def take_back(farm: Farm, now: Now) -> None:
    """Nodes that were set aside get tasks again: somebody says that they are mended."""
    for agent in farm.agents.values():
        if agent.aside and not agent.leaving and agent.node not in farm.drained:
            _take_back(farm, agent, now)


def _take_back(farm: Farm, agent: Agent, now: Now) -> None:
    agent.aside = ""
    farm.set_timer(now.mono_s, "balance")
    refresh_classes(farm, agent.engines.values())
    for engine in agent.engines.values():
        engine.note = ""
        if engine.state == EngineState.UP:
            wake(farm, engine)


DRAINED = "it is drained: what runs there comes to its end, and nothing more is started"


def on_drain(farm: Farm, session: str, n: int, question: Drain, now: Now, out: Decision) -> None:
    """These nodes' engines get nothing more, or go on.  It outlives controller and agents: nodes are meant."""
    before = set(farm.drained)
    (farm.drained.update if question.on else farm.drained.difference_update)(question.nodes)
    if farm.drained != before:
        out.saves.append(SaveSetting("drained", "\n".join(sorted(farm.drained))))
    count = 0
    for agent in farm.agents.values():
        if agent.node not in question.nodes:
            continue
        count += 1
        if not question.on and agent.aside == DRAINED:
            _take_back(farm, agent, now)
        elif question.on:
            agent.aside = DRAINED
            for engine in agent.engines.values():
                recall(farm, engine, [run for run in engine.handed if run != engine.oldest()], now, out)
                asleep(farm, engine)
            refresh_classes(farm, agent.engines.values())
    out.sends.append((session, Answer(n, Number(count))))


def _end_streak(farm: Farm, agent: Agent) -> None:
    agent.streak.clear()
    agent.elsewhere.clear()
    farm.failing.discard(agent.session)
