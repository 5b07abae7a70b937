"""Tasks that ask something of their engines: what their acceptance brings, and whether any engine could serve them."""

from __future__ import annotations

from ..decision import Decision
from ..demands import CHANGING, Asks, Environment, unmet
from ..eligibility import known_of, locality_key, unmet_asks, verdict_of
from ..farm import Engine, EngineState, Farm, Now, PendingCheck
from ..gates import changing, too_late
from ..messages import Answer, Check, Checked, NodeState, Notice
from ..parcels import Failure, Rules
from ..states import Reason, State
from ..task import DEFAULT_RULES, Task
from ..transition import final_without_answer, finish
from .code import save_functions
from .depends import need_verdicts

UNDECIDED_S = 0.25
"""Engines start, or functions have not answered: so much later it is looked again whether anybody can serve a task."""


def weigh_asks(farm: Farm, task: Task, asks: Asks, now: Now, out: Decision) -> None:
    """A task of these was accepted."""
    if asks.locality is not None:
        need_verdicts(farm, asks.locality, out, scored=True)
    if asks.environment is not None:
        _note_environment(farm, task, asks.environment, out)
    if asks.fail_if_unmet:
        farm.set_timer(now.mono_s, "unmet_now", task.id)


def _note_environment(farm: Farm, task: Task, environment: Environment, out: Decision) -> None:
    """Whether it is what came under its name before."""
    known = farm.environments[environment.identity].environment
    if known.variant != environment.variant:
        text = (
            f"environment {environment.name!r} (unique_id) is known with other attributes: the first ones are used. "
            "Give it another unique_id or additional_id, or none: then its attributes make its identity."
        )
        _tell_once(farm, task, text, out)
    if environment.unique is None:
        return
    before = farm.named.get(environment.unique)
    farm.named[environment.unique] = environment.identity
    if before is not None and before != environment.identity:
        text = f"the code of environment {environment.name!r} has changed: its engines are set up anew"
        _tell_once(farm, task, text, out)


def _tell_once(farm: Farm, task: Task, text: str, out: Decision) -> None:
    notice = (task.session, Notice(text))
    if notice not in out.sends:
        out.sends.append(notice)


def on_node_state(farm: Farm, session: str, event: NodeState, now: Now, out: Decision) -> None:
    """A node is busier, or less so, than it was: what waits for that is looked at again."""
    agent = farm.agents.get(session)
    if agent is None:
        return
    agent.state = event
    agent.utc_offset_s = event.utc_offset_s
    if agent.parked or farm.guarded:
        farm.freed[session] = None


# -- could any engine serve?


def why_nobody(farm: Farm, rules: Rules) -> str:
    """Why no engine of the farm can serve a task of these rules; "" if one can, or if that is not known yet."""
    if any(agent.starting for agent in farm.agents.values()) or not farm.engines:
        return ""
    reasons: dict[str, None] = {}
    for engine in sorted(farm.engines.values(), key=lambda e: e.id):
        if engine.state == EngineState.PREPARING:
            return ""
        why = why_not(farm, rules, engine)
        if not why or "not answered yet" in why:
            return ""
        reasons[f"engine {engine.id}: {why}"] = None
    return "\n".join(reasons)


def why_not(farm: Farm, rules: Rules, engine: Engine) -> str:
    """Why this engine cannot serve a task of these rules, whatever becomes free; "": it can."""
    if engine.state != EngineState.UP:
        return f"it is {engine.state}"
    agent = farm.agents.get(engine.agent)
    if agent is not None and agent.aside:
        return f"its node is set aside: {agent.aside}"
    if rules.targets is not None and engine.id not in rules.targets:
        return f"it is not among the task's targets {list(rules.targets)}"
    if rules.depend is not None:
        verdict = verdict_of(farm, engine, rules.depend)
        if verdict is None:
            return "its depend function has not answered yet"
        if not verdict[1]:
            return f"its depend function failed: {verdict[2]}" if verdict[2] else "its depend function said no"
    if agent is not None and (why := too_late(farm, agent, rules.time_limit_s)):
        return why
    if rules.asks is None:
        return ""
    why = unmet_asks(farm, engine, rules.asks)
    if why or agent is None:
        return why
    now_known = {**known_of(engine), **changing(farm, agent)}
    return next((w for c in rules.asks.requires if c.name in CHANGING and (w := unmet(c, now_known))), "")


def fail_if_unmet(farm: Farm, task_id: int, now: Now, out: Decision) -> None:
    """A task that is not to wait for an engine that may never come."""
    task = farm.tasks.get(task_id)
    if task is None or task.state is not State.SCHEDULED or task.task_class is None:
        return
    rules = task.rules or DEFAULT_RULES
    why = why_nobody(farm, rules)
    if why:
        failure = Failure("TaskTimeout", f"no engine can serve task {task_id}:\n{why}")
        finish(farm, task, final_without_answer(task, None, Reason.UNMET, failure, now), out)
    elif task.task_class.size and not task.task_class.eligible:
        farm.set_timer(now.mono_s + UNDECIDED_S, "unmet_now", task_id)


def on_check(farm: Farm, session: str, n: int, question: Check, now: Now, out: Decision) -> None:
    """Would any engine qualify?  Functions that have not spoken of every engine are asked first."""
    save_functions(farm, question.functions, out)
    rules = question.rules or DEFAULT_RULES
    if rules.depend is not None:
        need_verdicts(farm, rules.depend, out)
    if rules.asks is not None and rules.asks.locality is not None:
        need_verdicts(farm, rules.asks.locality, out, scored=True)
    farm.checks.append(PendingCheck(session, n, question.rules))
    answer_checks(farm, out)


def answer_checks(farm: Farm, out: Decision) -> None:
    """Those for which every function has spoken."""
    waiting = []
    for check in farm.checks:
        rules = check.rules or DEFAULT_RULES
        if any(_undecided(farm, rules, engine) for engine in farm.engines.values()):
            waiting.append(check)
            continue
        rows = [
            (engine.id, engine.node, why_not(farm, rules, engine))
            for engine in sorted(farm.engines.values(), key=lambda e: e.id)
        ]
        out.sends.append((check.session, Answer(check.n, Checked(rows, why_nobody(farm, rules)))))
    farm.checks = waiting


def _undecided(farm: Farm, rules: Rules, engine: Engine) -> bool:
    if engine.state != EngineState.UP:
        return False
    keys = [rules.depend] if rules.depend is not None else []
    if rules.asks is not None and rules.asks.locality is not None:
        keys.append(locality_key(rules.asks.locality))
    return any(verdict_of(farm, engine, key) is None for key in keys)
