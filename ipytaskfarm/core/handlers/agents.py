"""Agents and the engines that they bring: registering, adopting after a restart, starting, preparing."""

from __future__ import annotations

from collections import Counter
from itertools import count

from .. import messages as m
from ..messages.task_types import Incarnation, decode_runs
from ..requirements import CORES, MEMORY
from ..saves import SaveAgent, SaveSetting
from ..scheduler.admission import adopt_claim, answer_resource_request
from ..scheduler.agent_entry import AgentEntry, skew_of
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_classes
from ..scheduler.engine_shutdown import recycle
from ..scheduler.entries import AssignedRun, EngineEntry, EngineState
from ..scheduler.kept_engines import retire_surplus, take_back
from ..scheduler.placement import begin_all
from ..scheduler.recycling import remember_settings
from ..scheduler.running_tasks import Claim, RecordedBatch
from ..scheduler.slots import nodes_to_fill
from ..scheduler.state import SchedulerState
from ..scheduler.task import RETURNED
from ..scheduler.transitions import unassign
from .depends import ask_about_engine, forget_engine
from .losses import agent_gone, agent_silent, back_off, forget_agent, settle_former
from .nodes import DRAINED
from .replacements import engine_is_ready, prepare_engine
from .results import release_runs

TIME_LIMITED = "mortal"
"""The key of the stored setting which records that agents of limited time have been here."""


def on_agent_state(farm: SchedulerState, session: str, event: m.AgentState, now: Now, out: Decision) -> None:
    """Register an agent, and adopt its engines with the runs that they hold."""
    agent = farm.agents.by_session.get(session)
    if agent is None:
        agent = farm.agents.by_session[session] = AgentEntry(session, event.node)
        out.notes.append(f"agent on {event.node} (pid {event.pid}) joined")
    agent.node, agent.pid, agent.slots = event.node, event.pid, event.slots
    agent.name, agent.brings = event.name, event.brings
    _note_time_left(farm, agent, event.time_left_s, now, out)
    agent.cores, agent.memory_bytes = event.cores, event.memory_bytes
    agent.platform, agent.python = event.platform, event.python
    agent.capacity = {CORES: event.cores, MEMORY: event.memory_bytes, **event.resources}
    agent.gpus, agent.priority = event.gpus, event.priority
    agent.former = frozenset(event.former)
    agent.utc_offset_s = event.utc_offset_s
    # This includes the time that the message was on its way.
    agent.clock_ahead_s = event.wall_s - now.wall_s if event.wall_s else None
    agent.skew_s, agent.behind_since_s = skew_of(event.wall_s, now.wall_s), None
    if event.node in farm.agents.drained_nodes:
        agent.excluded = DRAINED
    agent.present = agent.reachable = True
    farm.agents.awaited -= {session, *event.former}
    agent.gone = ""
    agent.rejoining = False
    agent.deadline_s = None
    if event.process is not None and event.process != agent.process:
        agent.process = event.process
        out.saves.append(SaveAgent(session, event.node, event.process))
        _note_reboot(farm, session, event.process, now, out)
    agent.starting.clear()
    out.sends.append((session, m.Lease(farm.settings.lease_s)))
    for former in event.former:
        _note_dead(farm, former, event.left, now, out)
    for report in event.engines:
        if (frozen := farm.frozen.by_name.get(report.engine)) is not None:
            frozen.agent = session
        elif report.ready:
            _adopt(farm, agent, report, now, out)
        else:
            agent.starting[report.id] = now.mono_s
    farm.timers.set(now.mono_s, "balance")


def _note_time_left(farm: SchedulerState, agent: AgentEntry, left_s: float | None, now: Now, out: Decision) -> None:
    """Note when the agent's time is over.

    From the first such agent on, tasks with a time limit wait in classes of their own.  Until all do, its engines get
    no tasks (`placement`)."""
    agent.ends_s = None if left_s is None else now.mono_s + max(0.0, left_s)
    if left_s is None or farm.queues.by_time_limit:
        return
    farm.queues.by_time_limit = True
    out.saves.append(SaveSetting(TIME_LIMITED, 1))
    farm.queues.forget_classes_of_rules()
    farm.sweep.limits_later = True
    for engine in agent.engines.values():
        if engine.state == EngineState.UP:
            farm.readiness.wake(engine)


def _note_reboot(farm: SchedulerState, session: str, process: m.AgentProcess, now: Now, out: Decision) -> None:
    """Note that silent agents of an earlier boot of an agent's machine are gone, if they had the same key."""
    for other in list(farm.agents.by_session.values()):
        if other.process is None or other.reachable or other.gone:
            continue
        if other.session.rpartition(":")[0] != session.rpartition(":")[0]:
            continue
        if other.process.host == process.host and other.process.boot != process.boot:
            agent_gone(farm, other, "its machine was started again", now, out)


def _note_dead(farm: SchedulerState, session: str, left: list[Incarnation] | None, now: Now, out: Decision) -> None:
    """Note that an agent is dead because another one has its folder; what became of its engines is reported next."""
    agent = farm.agents.by_session.get(session)
    if agent is None:
        return
    agent.present = False
    agent.starting.clear()
    if agent.engines:
        agent_silent(farm, agent, now)
        if left is not None:
            settle_former(farm, agent, left, now, out)
    else:
        forget_agent(farm, agent, out)


def on_engine_up(farm: SchedulerState, session: str, event: m.EngineUp, now: Now, out: Decision) -> None:
    """Adopt a new engine.

    Before its first task it runs the start-up code, the sticky commands, and the commands that were done by hand on its
    predecessor.
    """
    agent = farm.agents.by_session.get(session)
    if agent is None:
        return
    agent.starting.pop(event.report.id, None)
    agent.backoff_s = 0.0
    _adopt(farm, agent, event.report, now, out)
    out.notes.append(f"engine {event.report.id} on {agent.node} is up (pid {event.report.pid})")


def _adopt(farm: SchedulerState, agent: AgentEntry, report: m.EngineReport, now: Now, out: Decision) -> None:
    engine = farm.engines.by_name.get(report.engine)
    if engine is None:
        engine = EngineEntry(report.engine, report.id, agent.session, agent.node)
        farm.add_engine(engine)
    farm.renumber_engine(engine, report.id)
    engine.agent, engine.node = agent.session, agent.node
    engine.pid, engine.started_s = report.pid, report.started_s
    if engine.born_s is None:
        engine.born_s = now.mono_s - max(0.0, now.wall_s - report.started_s)
    engine.facts, engine.connection_file = report.facts, report.connection_file
    engine.properties = report.properties
    agent.engines[engine.name] = engine
    if report.frozen is not None:
        farm.frozen.offered[engine.name] = report.frozen
    if agent.leaving or report.id in farm.requests.unwanted:  # it was about to start when it was told to end
        farm.requests.unwanted.discard(report.id)
        engine.retiring = True
    _adopt_environment(farm, engine, report, now)
    _reconcile(farm, engine, report, now, out)
    _adopt_resources(farm, agent, engine, report)
    if report.prepared or not (farm.requests.sticky or engine.id in farm.requests.kept):
        engine_is_ready(farm, engine, now, out)
    else:
        prepare_engine(farm, engine, out)


def _adopt_environment(farm: SchedulerState, engine: EngineEntry, report: m.EngineReport, now: Now) -> None:
    if report.environment is not None and engine.environment is None:
        farm.environments.assign(engine, report.environment)
        engine.runs[report.environment.identity] = report.finished
        farm.environments.perhaps_unused[report.environment.identity] = None
    engine.set_up = report.set_up
    for scope, settings in report.recycling:
        remember_settings(farm, engine, scope, settings, now)


def _adopt_resources(farm: SchedulerState, agent: AgentEntry, engine: EngineEntry, report: m.EngineReport) -> None:
    """Replace the claim of an engine's running task by what the agent reports: it may have changed since."""
    if report.holding is None:
        return
    run, allotment = report.holding
    assigned = engine.assigned.get(run)
    if assigned is not None:
        assigned.claim = assigned.claim or Claim()
        adopt_claim(farm, agent, assigned.claim, allotment.amounts, allotment.gpus)


def _reconcile(farm: SchedulerState, engine: EngineEntry, report: m.EngineReport, now: Now, out: Decision) -> None:
    """Compare the runs that the store has assigned with those that the agent reports.

    Runs that never arrived go back to their queues, uncharged."""
    arrived = dict.fromkeys(decode_runs(report.held))
    for _, task in release_runs(farm, engine, [run for run in engine.assigned if run not in arrived], out):
        unassign(farm, task, RETURNED)
    unrecorded = RecordedBatch(-1, now.wall_s)
    for run in arrived:
        if run not in engine.assigned:
            # The task has ended and the batch's row is gone, but the engine is still busy with the run.
            engine.add_run(run, AssignedRun(unrecorded, 0.0, False, None))
    engine.assigned = {run: engine.assigned[run] for run in arrived}
    for assigned in engine.assigned.values():
        assigned.concurrent = report.concurrent
    engine.concurrent = len(engine.assigned) if report.concurrent else 0
    if report.concurrent:
        begin_all(farm, engine, now)
    elif len(engine.assigned) > 1:
        farm.readiness.with_runs_ahead[engine] = None


def on_engine_note(farm: SchedulerState, session: str, event: m.EngineNote, now: Now, out: Decision) -> None:
    """Note something about an engine that people should know; "": it does not hold any more.

    A failed start is repeated, later each time."""
    if event.text:
        out.notes.append(f"engine {event.id}: {event.text}")
    engine = farm.engines.by_name.get(event.engine) if event.engine else None
    if engine is not None:
        engine.note = event.text
    agent = farm.agents.by_session.get(session)
    if event.failed_start and agent is not None:
        agent.starting.pop(event.id, None)
        farm.diagnostics.losses.append(f"engine {event.id} did not start: {event.text}")
        back_off(farm, agent, now)


def on_properties(farm: SchedulerState, session: str, event: m.PropertiesChanged, now: Now, out: Decision) -> None:
    """Take over the user's properties of an engine, and ask again for the verdicts that depend on them."""
    engine = farm.engines.by_name.get(event.engine)
    if engine is None or (engine.properties is not None and engine.properties.version >= event.version):
        return
    before = engine.properties.plain if engine.properties is not None else {}
    engine.properties = event
    forget_engine(farm, engine)
    refresh_classes(farm, [engine], {name for name, _ in before.items() ^ event.plain.items()})
    ask_about_engine(farm, engine, out)
    if engine.state == EngineState.UP:
        farm.readiness.wake(engine)


def on_set_up(farm: SchedulerState, session: str, event: m.SetUp, now: Now, out: Decision) -> None:
    """Note that an engine's environment is ready, or recycle the engine if its setup has failed."""
    engine = farm.engines.by_name.get(event.engine)
    if engine is None:
        return
    if event.error:
        what = "its environment could not be set up: " if event.identity else ""
        recycle(farm, engine, f"{what}{event.error}", now, out)
    else:
        engine.set_up = True


def on_resource_request(farm: SchedulerState, session: str, event: m.ResourceRequest, now: Now, out: Decision) -> None:
    """Give a running task other resources, or make its request wait.

    The task repeats its request until it is answered, so requests need not be stored.
    """
    agent, engine = farm.agents.by_session.get(session), farm.engines.by_name.get(event.engine)
    if agent is None or engine is None or event.run not in engine.assigned:
        return
    agent.resource_requests = [request for request in agent.resource_requests if request.run != event.run]
    _answer_or_queue(farm, agent, engine, event, out)
    answer_resource_requests(farm, out)


def _answer_or_queue(
    farm: SchedulerState, agent: AgentEntry, engine: EngineEntry, request: m.ResourceRequest, out: Decision
) -> None:
    granted = answer_resource_request(farm, agent, engine, request)
    if granted is None:
        agent.resource_requests.append(request)
    else:
        out.sends.append((agent.session, granted))


def answer_resource_requests(farm: SchedulerState, out: Decision) -> None:
    """Answer requests that wait for resources of nodes where resources were freed.

    These requests come before tasks that have not begun.
    """
    for session in farm.agents.changed:
        agent = farm.agents.by_session.get(session)
        if agent is None or not agent.resource_requests:
            continue
        requests, agent.resource_requests = agent.resource_requests, []
        for request in requests:
            engine = farm.engines.by_name.get(request.engine)
            if engine is not None and request.run in engine.assigned:
                _answer_or_queue(farm, agent, engine, request, out)


# -- how many engines there are


def balance(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Start engines until there are as many as wanted.  A replacement takes the lowest free id."""
    farm.lifecycle.balance_due = False
    if farm.lifecycle.stopping:
        return
    take_back(farm)
    if farm.agents.awaited and now.mono_s < farm.agents.awaited_until_s:
        # Started now, on the nodes that were heard first, engines would take the places of those that live elsewhere.
        farm.timers.set(farm.agents.awaited_until_s, "balance")
        return
    taken = {e.id for e in farm.engines.by_name.values()}
    for agent in farm.agents.by_session.values():
        taken.update(agent.starting)
    free = (i for i in count() if i not in taken)
    chosen = list(nodes_to_fill(farm))
    counts = Counter(agent.session for agent in chosen)
    for agent in farm.agents.by_session.values():
        counts[agent.session] += len(agent.engines) + len(agent.starting)
    for agent, engine_id in zip(chosen, free, strict=False):
        agent.starting[engine_id] = now.mono_s
        out.sends.append((agent.session, m.StartEngine(engine_id, counts[agent.session])))
    retire_surplus(farm, out)
