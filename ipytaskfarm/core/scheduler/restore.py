"""Restores the scheduler's state from the store when a controller starts.

Assigned tasks stay assigned. Their engines count as unreachable until their agents report
(`handlers.agents.on_agent_state`) or their leases are over. So a task that goes on while the controller is away is not
run a second time.
"""

from __future__ import annotations

import msgspec

from ..handlers.agents import TIME_LIMITED
from ..handlers.clients import RETRIED
from ..handlers.commands import STARTUP
from ..handlers.jobs import keep_referenced
from ..messages import Retried
from ..messages.task_types import Incarnation, RunKey
from ..parsing import owner
from ..saves import FinalRecord, SaveAgent, SaveHandOut, StoredState, TaskRecord
from ..states import State, Waiting
from .admission import claim
from .agent_entry import AgentEntry
from .clients import Block, ClientEntry
from .decision import Now
from .eligibility import watch_unmet
from .entries import AssignedRun, EngineEntry, EngineState, TaskEntry
from .jobs import JobEntry
from .kept_commands import KeptOnEngine
from .queue_keys import class_key_of
from .requests import HELD_S
from .running_tasks import WITHDRAWN, RecordedBatch
from .second_copies import OtherRun
from .settings import WANTED_MAX, SchedulerSettings
from .state import SchedulerState
from .task import NO_PAST, QUEUED, Assigned, Queued
from .task_messages import restore_conversations
from .transitions import restore, restore_assignment, restore_line
from .waits import count_dependencies, task_of

_decode_retried = msgspec.json.Decoder(dict[str, Retried]).decode


REJOINS_S = 6.0
"""Within this time after a restart, agents that live are heard: they try to connect every 5 s at least."""


def restored_farm(name: str, snapshot: StoredState, settings: SchedulerSettings, now: Now) -> SchedulerState:
    """Return a farm that goes on where the store left off."""
    farm = SchedulerState(name, snapshot.farm, settings, snapshot.epoch)
    farm.clients.ids.next = snapshot.next_id
    farm.readiness.random_state = settings.seed
    farm.queues.next_seq = snapshot.next_queue_seq
    farm.readiness.next_batch = snapshot.next_handout
    farm.functions.stored.update(snapshot.functions)
    startup_first = sorted(snapshot.sticky, key=lambda entry: entry.key != STARTUP)
    farm.requests.sticky = {entry.key: entry for entry in startup_first}
    _restore_kept(farm, snapshot)
    farm.lifecycle.wanted = min(int(snapshot.settings.get("wanted") or 0), WANTED_MAX)
    farm.lifecycle.held = bool(snapshot.settings.get("held"))
    farm.queues.by_time_limit = bool(snapshot.settings.get(TIME_LIMITED))
    farm.mono_s = now.mono_s
    for engine_id in farm.requests.kept:  # their agents will report them
        farm.requests.replaced[engine_id] = True
        farm.timers.set(now.mono_s + HELD_S, "held", engine_id)
    farm.clients.retried = _decode_retried(str(snapshot.settings.get(RETRIED) or "{}"))
    for first, last, accepted, session in snapshot.blocks:
        block = Block(first, last, accepted + 1, session)
        farm.clients.ids.add(block)
        if session:
            farm.clients.by_session.setdefault(session, ClientEntry(session)).blocks.append(block)
    _restore_chunks(farm, snapshot)
    for record in snapshot.finals:
        farm.tasks.finals[record.id] = record.reason
        if record.part is not None:
            farm.tasks.of_parts[record.id] = record.part[0]
        if record.kept:
            farm.tasks.kept.add(record.id)
        farm.tasks.counts[State.FAILED if record.reason else State.SUCCEEDED] += farm.tasks.chunks.size(record.id)
    in_order = [(record.accepted_seq, record.id, record.items) for record in snapshot.finals]
    in_order += [(record.accepted_seq, record.id, record.items) for record in snapshot.tasks]
    farm.tasks.order.restore(in_order)
    farm.tasks.refusals = {task_id: (etype, text) for task_id, etype, text in snapshot.refusals}
    _restore_jobs(farm, snapshot)
    _restore_tasks(farm, snapshot, now)
    restore_conversations(farm, snapshot.children, snapshot.mail)
    farm.agents.drained_nodes = set(str(snapshot.settings.get("drained") or "").split("\n")) - {""}
    for job in farm.jobs.by_id.values():
        job.ended = job.complete
        if job.ended:
            farm.jobs.ended[job.spec.id] = None
        else:
            keep_referenced(farm, job)
    if any(job.arrived < job.spec.total for job in farm.jobs.by_id.values()):
        farm.timers.set(now.mono_s + settings.lease_s, "orphans")
    agents = {saved.session: saved for saved in snapshot.agents}
    farm.agents.awaited, farm.agents.awaited_until_s = set(agents), now.mono_s + REJOINS_S
    for handout in snapshot.handouts:
        _restore_handout(farm, handout, agents, now)
    return farm


def _restore_jobs(farm: SchedulerState, snapshot: StoredState) -> None:
    for saved in snapshot.jobs:
        job = JobEntry(saved.spec, saved.session, saved.arrived)
        farm.jobs.add(job)
        job.failed, job.paused = saved.failed, saved.paused
        if saved.priority is not None:
            farm.jobs.set_priority(job, saved.priority)
        if saved.paused:
            farm.jobs.paused.add(saved.spec.id)
        if saved.spec.environment is not None:
            job.environments.add(saved.spec.environment)


def _restore_chunks(farm: SchedulerState, snapshot: StoredState) -> None:
    chunks = farm.tasks.chunks
    records: list[FinalRecord | TaskRecord] = [*snapshot.finals, *snapshot.tasks]
    for record in records:
        if record.items:
            chunks.add(record.id, record.items)
        elif record.part is not None:
            chunks.add_part(record.part[0])
    for chunk, index in snapshot.separate:
        chunks.separate.setdefault(chunk, set()).add(index)


def _restore_kept(farm: SchedulerState, snapshot: StoredState) -> None:
    commands = {command.number: command for command in snapshot.kept}
    for place in snapshot.kept_on:
        kept = farm.requests.kept.setdefault(place.engine_id, KeptOnEngine())
        if place.why:
            kept.omit(place.number, place.text, place.why)
        else:
            kept.add(commands[place.number])


def _restore_tasks(farm: SchedulerState, snapshot: StoredState, now: Now) -> None:
    # All are known before the first is looked at: tasks may wait for one another.
    tasks = [task_of(record) for record in snapshot.tasks]
    farm.tasks.unfinished.update((task.id, task) for task in tasks)
    farm.tasks.large.payloads.update((each.id, each.payload_bytes) for each in snapshot.tasks if each.payload_bytes)
    may_line_up = (
        farm.settings.unmet_timeout_s is None
        and not farm.jobs.paused
        and not any(record.cache is not None for record in snapshot.tasks)
    )
    line: list[TaskEntry] = []
    for record, task in zip(snapshot.tasks, tasks, strict=True):
        if may_line_up and record.needs is None and record.until_s is None and _only_queues(task):
            if line and line[0].rules is not task.rules:
                restore_line(farm, line)
                line = []
            line.append(task)
        else:
            _restore_task(farm, record, task, now)
    if line:
        restore_line(farm, line)


def _only_queues(task: TaskEntry) -> bool:
    """Return whether a task has never begun, and nothing counts it but its queue."""
    rules = task.rules
    if task.past is not NO_PAST or task.attempt or task.items or task.job is not None:
        return False
    return rules is None or (
        rules.asks is None and rules.depend is None and rules.unique is None and not rules.idempotent
    )


def _restore_task(farm: SchedulerState, record: TaskRecord, task: TaskEntry, now: Now) -> None:
    if record.needs is not None:
        count_dependencies(farm, task, record.needs)
    if record.cache is not None:
        farm.cache_uses.add(task.id, record.cache, record.needs is not None and bool(record.needs.inputs))
    why = QUEUED
    if record.until_s is not None and record.until_s > now.wall_s:
        waits = Waiting.DEFERRED if record.trial > 1 else Waiting.RETRY
        # Never longer than the delay at the end of its last attempt, even if the wall clock was set back since.
        since_s = max([now.wall_s, *(row.ended_s for row in record.history[-1:])])
        delay_s = record.until_s - since_s
        why = Queued(waits, now.mono_s + max(0.0, delay_s), record.until_s)
    restore(farm, task, why)
    watch_unmet(farm, task, now, HELD_S)  # by then the agents have come back
    if task.rules is not None and task.rules.asks is not None and task.rules.asks.fail_if_unmet:
        farm.timers.set(now.mono_s + HELD_S, "unmet_now", task.id)


def _restore_handout(farm: SchedulerState, handout: SaveHandOut, agents: dict[str, SaveAgent], now: Now) -> None:
    engine = _engine_of(farm, handout.engine, handout.engine_id, agents, now)
    batch = RecordedBatch(handout.number, handout.at_s, handout.runs)
    for task_id, attempt in handout.runs:
        if (task_id, attempt) == WITHDRAWN:
            continue
        run: RunKey = (task_id, attempt)
        task = farm.tasks.unfinished.get(task_id)
        concurrent = task is not None and class_key_of(task, False).concurrent
        assigned = AssignedRun(batch, 0.0, False, None, concurrent=concurrent)
        engine.add_run(run, assigned)
        if task is not None and type(task.place) is Assigned and task.id in farm.second_copies.group_of:
            task.attempt = max(task.attempt, attempt)
            farm.second_copies.others[task.id] = OtherRun(Assigned(engine.name, attempt), True)
        elif task is not None and attempt > task.attempt:
            restore_assignment(farm, task, engine, attempt)
            # Nobody knows yet which of the tasks began: all have claims until the agent reports.
            assigned.claim = claim(farm, farm.agents.by_session[engine.agent], task, run)


def _engine_of(
    farm: SchedulerState, name: Incarnation, engine_id: int, agents: dict[str, SaveAgent], now: Now
) -> EngineEntry:
    engine = farm.engines.by_name.get(name)
    if engine is not None:
        return engine
    session = owner(name)
    agent = farm.agents.by_session.get(session)
    if agent is None:
        saved = agents.get(session)
        agent = farm.agents.by_session[session] = AgentEntry(session, "?", present=False, reachable=False)
        if saved is not None:
            agent.node, agent.pid, agent.process = saved.node, saved.process.pid, saved.process
        agent.deadline_s = now.mono_s + farm.settings.lease_s + farm.settings.lease_margin_s
        farm.timers.set(agent.deadline_s, "lease", session)
    engine = EngineEntry(name, engine_id, session, agent.node, state=EngineState.AWAY)
    farm.add_engine(engine)
    agent.engines[name] = engine
    return engine
