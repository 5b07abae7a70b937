"""Requirements of tasks: the consequences of a task's acceptance, and whether any engine could meet them."""

from __future__ import annotations

from collections.abc import Iterable

from ..message_bounds import DIGEST_MAX
from ..messages import Checked, CheckTask, NodeState, Notice
from ..messages.task_types import FailureSummary, Rules
from ..requirements import CHANGING, Asks, Environment, unmet
from ..scheduler.admission import changing_facts, lacks_time
from ..scheduler.agent_entry import note_clock
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import facts_of, unmet_requirement
from ..scheduler.entries import EngineEntry, EngineState, TaskEntry
from ..scheduler.functions import PendingCheck, locality_key
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES
from ..scheduler.task_ends import final_without_answer
from ..scheduler.transitions import finish
from ..states import Reason, State
from .depends import ask_for_verdicts

REASONS_SHOWN = 100
"""How many reasons are given why engines do not take a task."""
SENTENCES_MAX = 1000
"""How much is said of the engines that cannot serve a task: it is kept for each task."""
UNDECIDED_S = 0.25
"""If engines are starting or functions have not answered, the check whether any engine can serve a task is repeated
after this time."""


def apply_requirements(farm: SchedulerState, task: TaskEntry, requirements: Asks, now: Now, out: Decision) -> None:
    """Do what follows from the acceptance of a task with these requirements."""
    if requirements.locality is not None:
        ask_for_verdicts(farm, requirements.locality, task.session, out, scored=True)
    if requirements.environment is not None:
        _note_environment(farm, task, requirements.environment, out)
    if requirements.fail_if_unmet:
        farm.timers.set(now.mono_s, "unmet_now", task.id)


def _note_environment(farm: SchedulerState, task: TaskEntry, environment: Environment, out: Decision) -> None:
    """Record a task's environment, and tell its client if it differs from the latest one under its name."""
    known = farm.environments.uses[environment.identity].environment
    if known.variant != environment.variant:
        text = (
            f"environment {environment.name!r} (unique_id) is known with other attributes: the first ones are used. "
            "Give it another unique_id or additional_id, or none: then its attributes make its identity."
        )
        _tell_once(farm, task, text, out)
    if environment.unique is None:
        return
    before = farm.environments.by_unique_id.get(environment.unique)
    farm.environments.by_unique_id[environment.unique] = environment.identity
    if before is not None and before != environment.identity:
        text = f"the code of environment {environment.name!r} has changed: its engines are set up again"
        _tell_once(farm, task, text, out)


def _tell_once(farm: SchedulerState, task: TaskEntry, text: str, out: Decision) -> None:
    notice = (task.session, Notice(text))
    if notice not in out.sends:
        out.sends.append(notice)


def on_node_state(farm: SchedulerState, session: str, event: NodeState, now: Now, out: Decision) -> None:
    """Take over the load and the free memory of a node, and look again at what waits for them."""
    agent = farm.agents.by_session.get(session)
    if agent is None:
        return
    agent.state = event
    agent.utc_offset_s = event.utc_offset_s
    note_clock(agent, event.wall_s, now)
    if agent.parked or farm.limits.load_guard:
        farm.agents.changed[session] = None


# -- could any engine serve?


def why_nobody(farm: SchedulerState, rules: Rules) -> str:
    """Return why no engine can serve a task of these rules.  "": one can, or it is not known yet."""
    if any(agent.starting for agent in farm.agents.by_session.values()) or not farm.engines.by_name:
        return ""
    reasons: list[tuple[int, str]] = []
    for engine in farm.engines.in_order():
        if engine.state == EngineState.PREPARING:
            return ""
        why = why_not(farm, rules, engine)
        if not why or "not answered yet" in why:
            return ""
        reasons.append((engine.id, why))
    return "\n".join(lines_by_reason(reasons))


def lines_by_reason(reasons: Iterable[tuple[int, str]]) -> list[str]:
    """Return a line for each reason, with the engines (id, reason) for which it holds."""
    engines: dict[str, list[int]] = {}
    for engine_id, why in reasons:
        engines.setdefault(why, []).append(engine_id)
    shown = list(engines.items())[:REASONS_SHOWN]
    lines = [f"engine {first}: {why}{_and_others(others)}" for why, (first, *others) in shown]
    more = sum(map(len, engines.values())) - sum(len(ids) for _, ids in shown)
    return [*lines, f"… and {more:,} other engines"] if more else lines


def _and_others(ids: list[int]) -> str:
    """Return which further engines a sentence is about: " (engines 1 to 4, 7 too)"."""
    runs: list[list[int]] = []
    for engine_id in dict.fromkeys(ids):
        if runs and runs[-1][1] + 1 == engine_id:
            runs[-1][1] = engine_id
        else:
            runs.append([engine_id, engine_id])
    texts = [str(low) if low == high else f"{low} to {high}" for low, high in runs]
    return f" ({'engine' if texts == [str(ids[0])] else 'engines'} {', '.join(texts)} too)" if texts else ""


def why_not(farm: SchedulerState, rules: Rules, engine: EngineEntry) -> str:
    """Return why this engine cannot serve a task of these rules, whatever becomes free.  "": it can."""
    if engine.state != EngineState.UP:
        return f"it is {engine.preparation(farm.mono_s) or engine.state}"
    agent = farm.agents.by_session.get(engine.agent)
    if agent is not None and agent.excluded:
        return f"its node is set aside: {agent.excluded}"
    if rules.targets is not None and engine.id not in rules.targets:
        return f"it is not among the task's targets {list(rules.targets)}"
    if rules.depend is not None:
        verdict = farm.functions.verdict_of(engine, rules.depend)
        if verdict is None:
            return "its depend function has not answered yet"
        if not verdict[1]:
            return f"its depend function failed: {verdict[2]}" if verdict[2] else "its depend function said no"
    if agent is not None and (why := lacks_time(farm, agent, rules.time_limit_s)):
        return why
    if rules.asks is None:
        return ""
    why = unmet_requirement(farm, engine, rules.asks)
    if why or agent is None:
        return why
    now_known = {**facts_of(engine), **changing_facts(farm, agent)}
    return next((w for c in rules.asks.requires if c.name in CHANGING and (w := unmet(c, now_known))), "")


def fail_if_unmet(farm: SchedulerState, task_id: int, now: Now, out: Decision) -> None:
    """Fail a task that must not wait for an engine that may never come."""
    task = farm.tasks.unfinished.get(task_id)
    if task is None or task.state is not State.SCHEDULED or task.task_class is None:
        return
    rules = task.rules or DEFAULT_RULES
    why = why_nobody(farm, rules)
    if why:
        failure = FailureSummary("TaskTimeout", f"no engine can serve task {task_id}:\n{why}"[:SENTENCES_MAX])
        finish(farm, task, final_without_answer(task, None, Reason.UNMET, failure, now), out)
    elif task.task_class.size and not task.task_class.eligible:
        farm.timers.set(now.mono_s + UNDECIDED_S, "unmet_now", task_id)


def on_check(farm: SchedulerState, session: str, n: int, question: CheckTask, now: Now, out: Decision) -> None:
    """Answer which engines would qualify, after the functions have judged every engine."""
    refusal = farm.functions.open_checks.why_not(session)
    if refusal is not None:
        out.answer(session, n, refusal)
        return
    rules = question.rules or DEFAULT_RULES
    farm.functions.save([each for each in question.functions if len(each.digest) <= DIGEST_MAX], out, session)
    if rules.depend is not None:
        ask_for_verdicts(farm, rules.depend, session, out)
    if rules.asks is not None and rules.asks.locality is not None:
        ask_for_verdicts(farm, rules.asks.locality, session, out, scored=True)
    farm.functions.checks.append(PendingCheck(session, n, question.rules))
    farm.functions.open_checks.begin(session)
    answer_checks(farm, out)


def answer_checks(farm: SchedulerState, out: Decision) -> None:
    """Answer the checks for which every function has judged every engine."""
    waiting = []
    for check in farm.functions.checks:
        rules = check.rules or DEFAULT_RULES
        if any(_undecided(farm, rules, engine) for engine in farm.engines.by_name.values()):
            waiting.append(check)
            continue
        farm.functions.open_checks.end(check.session)
        rows = [(engine.id, engine.node, why_not(farm, rules, engine)) for engine in farm.engines.in_order()]
        out.answer(check.session, check.n, Checked(rows, why_nobody(farm, rules)))
    farm.functions.checks = waiting


def _undecided(farm: SchedulerState, rules: Rules, engine: EngineEntry) -> bool:
    if engine.state != EngineState.UP:
        return False
    keys = [rules.depend] if rules.depend is not None else []
    if rules.asks is not None and rules.asks.locality is not None:
        keys.append(locality_key(rules.asks.locality))
    return any(farm.functions.verdict_of(engine, key) is None for key in keys)
