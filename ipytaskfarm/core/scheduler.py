"""The scheduler: events in, decisions out.  It could run on paper.

    scheduler = Scheduler(farm)
    out = scheduler.turn([(session, event), ...], now)

The caller *must* commit ``out.saves`` in one transaction before it acts on anything else in ``out``, and must call
again at `next_deadline` at the latest, with or without events.  Nothing here reads a clock, draws a random number,
touches a socket or logs.

Two rules: handlers decide (`core.handlers`, one function per event), and `core.transition` alone moves tasks.  A
message that makes no sense gets an answer or is ignored.  An exception from here is our bug: the caller stops and
starts again from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import graph, lending, mail
from . import messages as m
from .calls import Progress, TaskCall
from .clients import ClientEntry
from .clock import Now
from .decision import Decision
from .eligibility import refresh_classes
from .engine_entry import EngineState
from .events import Back, EndedLoaded, Event, Gone, Joined, Originals, Revoked, Silent, StoreRoom, Tick
from .farm import SchedulerState
from .handlers import (
    agents,
    asking,
    clients,
    commands,
    depends,
    explain,
    inside,
    jobs,
    leaving,
    lifecycle,
    losses,
    nodes,
    operate,
    results,
    streams,
    submit,
    tables,
    timers,
)
from .placement import dispatch
from .plausible import validated
from .recycling import settle_jobs
from .states import State
from .task import Assigned
from .verdicts import Evaluated

Handler = Callable[[SchedulerState, str, Any, Now, Decision], None]
Answerer = Callable[[SchedulerState, str, int, Any, Now, Decision], None]

QUESTIONS: dict[type, Answerer] = {
    m.Watch: clients.on_watch,
    m.Fetch: clients.on_fetch,
    m.Abort: clients.on_abort,
    m.Clear: clients.on_clear,
    m.Retry: clients.on_retry,
    m.QueueStatus: tables.on_queue_status,
    m.Tasks: tables.on_tasks,
    m.Explain: explain.on_explain,
    m.Check: asking.on_check,
    m.Stuck: explain.on_stuck,
    m.Outputs: streams.on_outputs,
    m.MarkDone: operate.on_mark_done,
    m.MarkFailed: operate.on_mark_failed,
    m.PauseJobs: operate.on_pause_jobs,
    m.Drain: nodes.on_drain,
    m.FindJobs: operate.on_find_jobs,
    m.Send: mail.on_send,
    m.Read: mail.on_read,
    m.ProgressOf: inside.on_progress_of,
    m.Stack: commands.on_stack,
    m.Spin: lifecycle.on_spin,
    m.Engines: tables.on_engines,
    m.CommandQueues: commands.on_command_queues,
    m.FarmStatus: tables.on_farm_status,
    m.SetWanted: lifecycle.on_set_wanted,
    m.RemoveEngines: lifecycle.on_remove_engines,
    m.RemoveAgents: leaving.on_remove_agents,
    m.AgentsEnded: leaving.on_agents_ended,
    m.Hold: lifecycle.on_hold,
    m.Stop: lifecycle.on_stop,
    m.SetSticky: commands.on_set_sticky,
    m.ListSticky: commands.on_list_sticky,
    m.ClearSticky: commands.on_clear_sticky,
}


def on_ask(farm: SchedulerState, session: str, event: m.Ask, now: Now, out: Decision) -> None:
    """Answer a client's question; its type says which function answers it."""
    QUESTIONS[type(event.question)](farm, session, event.n, event.question, now, out)


def on_joined(farm: SchedulerState, session: str, event: Joined, now: Now, out: Decision) -> None:
    """Note a new session of a peer.  An agent is registered by its `AgentState`."""
    if event.role != "agent":
        clients.on_client_joined(farm, session, event, now, out)


def on_silent(farm: SchedulerState, session: str, event: Silent, now: Now, out: Decision) -> None:
    """Give no more work to a silent agent.  Of a silent client, abort the jobs that are to end with it."""
    agent = farm.agents.by_session.get(session)
    if agent is not None:
        losses.agent_silent(farm, agent, now)
    else:
        jobs.abort_disconnected(farm, session)


def on_back(farm: SchedulerState, session: str, event: Back, now: Now, out: Decision) -> None:
    """Give work again to the engines of an agent that was silent."""
    agent = farm.agents.by_session.get(session)
    if agent is None or not agent.present:
        return
    agent.reachable = True
    agent.deadline_s = None
    for engine in agent.engines.values():
        if engine.state in (EngineState.AWAY, EngineState.UP):
            engine.state = EngineState.UP
            farm.readiness.wake(engine)
    refresh_classes(farm, agent.engines.values())
    # Engines may be missing that could not be started while the agent was silent.
    farm.timers.set(now.mono_s, "balance")


def on_gone(farm: SchedulerState, session: str, event: Gone, now: Now, out: Decision) -> None:
    """Forget a client.  An agent with engines keeps its lease."""
    agent = farm.agents.by_session.get(session)
    if agent is None:
        clients.on_client_gone(farm, session, event, now, out)
    elif agent.engines:
        losses.agent_silent(farm, agent, now)
    else:
        losses.forget_agent(farm, agent, out)


def on_revoked(farm: SchedulerState, session: str, event: Revoked, now: Now, out: Decision) -> None:
    """Give up an agent that may not come back, without waiting for its lease."""
    agent = farm.agents.by_session.get(session)
    if agent is not None:
        losses.give_up(farm, agent, "its key was revoked", now, out)


def on_ended_loaded(farm: SchedulerState, session: str, event: EndedLoaded, now: Now, out: Decision) -> None:
    """Reopen ended tasks that were read from the store."""
    for task in graph.on_ended_loaded(farm, event.tasks, event.asked, event.outcome, out):
        submit.apply_rules(farm, task, now, out)
    if event.asker is not None:
        out.sends.append((event.asker[0], m.Answer(event.asker[1], m.Text("reopened"))))


def on_store_room(farm: SchedulerState, session: str, event: StoreRoom, now: Now, out: Decision) -> None:
    """Note whether tasks can be accepted."""
    if (event.why is None) != (farm.lifecycle.full is None):
        out.notes.append(f"store: {event.why}" if event.why else "store: there is room again")
    farm.lifecycle.full = event.why


HANDLERS: dict[type, Handler] = {
    m.Submit: submit.on_submit,
    m.NeedIds: submit.on_need_ids,
    m.Ask: on_ask,
    m.Command: commands.on_command,
    m.AgentState: agents.on_agent_state,
    m.Leaving: leaving.on_leaving,
    m.EngineUp: agents.on_engine_up,
    m.EngineLost: losses.on_engine_lost,
    m.Results: results.on_results,
    m.Returned: results.on_returned,
    m.CommandDone: commands.on_command_done,
    m.Properties: agents.on_properties,
    m.StackText: commands.on_stack_text,
    m.OutputText: streams.on_output_text,
    m.EngineNote: agents.on_engine_note,
    m.NodeState: asking.on_node_state,
    m.SetUp: agents.on_set_up,
    m.Demand: agents.on_resource_request,
    TaskCall: inside.on_task_call,
    Progress: inside.on_progress,
    Evaluated: depends.on_evaluated,
    Joined: on_joined,
    Back: on_back,
    Silent: on_silent,
    Gone: on_gone,
    Revoked: on_revoked,
    StoreRoom: on_store_room,
    Originals: clients.on_originals,
    EndedLoaded: on_ended_loaded,
    Tick: timers.on_tick,
}
"""The handler of each event.  A new event needs its struct, its handler, and a line here."""


class Scheduler:
    """Dispatches events to handlers, then assigns tasks to engines."""

    def __init__(self, farm: SchedulerState) -> None:
        self.farm = farm

    def turn(self, events: Sequence[tuple[str, Event]], now: Now) -> Decision:
        """Handle the events, run the timers that are due, and assign tasks."""
        out = Decision()
        farm = self.farm
        farm.mono_s = now.mono_s
        for session, message in events:
            event = validated(farm, session, message, now)
            if event is not None:
                HANDLERS[type(event)](farm, session, event, now, out)
            elif (
                farm.diagnostics.dropped.bit_count() == 1
            ):  # one line for each power of two, so that a flood of messages is no flood of lines
                out.notes.append(
                    f"{type(message).__name__} of {session} dropped, not its to say ({farm.diagnostics.dropped} so far)"
                )
        timers.on_tick(farm, "", Tick(), now, out)
        if farm.lifecycle.stopping:
            lifecycle.look_for_the_end(farm, now, out)
        while farm.graph.ended or farm.graph.ready_joins or farm.jobs.to_abort:
            graph.settle(farm, now, out)
            clients.abort_with_jobs(farm, now, out)
        if farm.jobs.perhaps_ended or farm.environments.perhaps_unused:
            settle_jobs(farm, now, out)
        if farm.nested_waits.over:
            lending.resume_runs(farm, now, out)
        if farm.agents.changed:
            agents.answer_resource_requests(farm, out)
        for digest, scored in farm.functions.undecided:
            depends.ask_for_verdicts(farm, digest, out, scored)
        farm.functions.undecided.clear()
        if farm.functions.checks:
            asking.answer_checks(farm, out)
        dispatch(farm, now, out)
        _tell_clients(farm, out)
        return out

    def handle(self, event: Event, now: Now, session: str = "") -> Decision:
        """Make a turn with one event."""
        return self.turn([(session, event)], now)

    def next_deadline(self) -> float | None:
        """Return when (monotonic) the next timer is due."""
        return self.farm.timers.heap[0][0] if self.farm.timers.heap else None

    def check(self) -> None:
        """Assert every invariant.  Tests call this after each event.  Raises AssertionError."""
        check(self.farm)


def _tell_clients(farm: SchedulerState, out: Decision) -> None:
    for client in farm.clients.to_tell.values():
        _tell(client, out)
    farm.clients.to_tell.clear()


def _tell(client: ClientEntry, out: Decision) -> None:
    # Refusals are among the ends: a client that waits for the acceptance must know of them by then.
    if client.finals:
        out.sends.append((client.session, m.Finals(client.finals)))
        client.finals = []
    if client.accepted:
        out.sends.append((client.session, m.Accepted(list(client.accepted.items()))))
        client.accepted = {}


def check(farm: SchedulerState) -> None:
    """Assert what must hold between any two turns."""
    counted = dict.fromkeys(State, 0)
    for task in farm.tasks.unfinished.values():
        counted[task.state] += 1
    for reason in farm.tasks.finals.values():
        counted[State.FAILED if reason else State.SUCCEEDED] += 1
    assert counted == farm.tasks.counts, f"states are miscounted: {farm.tasks.counts} should be {counted}"
    assert not farm.tasks.unfinished.keys() & farm.tasks.finals.keys(), "a task is both alive and final"
    running: dict[str, int] = {}
    needed: dict[str | None, int] = {}
    of_jobs: dict[str | None, int] = {}
    for task_id, task in farm.tasks.unfinished.items():
        assert task.id == task_id
        needed[task.environment] = needed.get(task.environment, 0) + 1
        of_jobs[task.job] = of_jobs.get(task.job, 0) + 1
        place = task.place
        if type(place) is Assigned:
            assert task.task_class is None, f"task {task_id} is handed out and queued"
            engine = farm.engines.by_name.get(place.engine)
            assert engine is not None, f"task {task_id} is on an engine that is gone"
            assert (task_id, place.attempt) in engine.assigned, f"task {task_id} is not held by its engine"
            if place.since_s is not None:
                running[place.engine] = running.get(place.engine, 0) + 1
        elif task.task_class is None and not task.waits_for and task.job not in farm.jobs.paused:
            assert any(t[2] == "rejoin" and t[3] == task_id for t in farm.timers.heap), (
                f"task {task_id} waits for nothing"
            )
    assert all(count == 1 for count in running.values()), f"an engine runs several tasks: {running}"
    _check_queues(farm)
    _check_engines(farm)
    _check_claims(farm)
    _check_environments(farm, needed, of_jobs)
    graph.check_graph(farm)
    lending.check_nested_waits(farm)


def _check_queues(farm: SchedulerState) -> None:
    sizes: dict[int, int] = {}
    for task in farm.tasks.unfinished.values():
        if task.task_class is not None:
            sizes[id(task.task_class)] = sizes.get(id(task.task_class), 0) + 1
    open_size = 0
    for key, task_class in farm.queues.classes.items():
        assert task_class.size == sizes.pop(id(task_class), 0), f"class {key} is miscounted"
        assert (task_class.head() is not None) == (task_class.size > 0), f"class {key} lost its head"
        open_size += 0 if task_class.restricted else task_class.size
        for engine in task_class.eligible:
            assert engine.name in farm.engines.by_name, f"class {key} counts on engine {engine.id}, which is gone"
    assert not sizes, "a task waits in a class that was dropped"
    assert open_size == farm.queues.open_size, "open_size is miscounted"
    assert sum(c.size for c in farm.queues.classes.values()) == farm.queues.size, "queued is miscounted"


def _check_engines(farm: SchedulerState) -> None:
    for engine in farm.readiness.idle:
        noted = [
            entry
            for entry in farm.readiness.idle_heaps.get(engine.agent, ())
            if entry[-1] is engine and entry[1] == engine.last_batch
        ]
        assert noted, f"idle engine {engine.id} is not noted where it is looked for"
    assert not farm.readiness.candidates or farm.lifecycle.held or farm.lifecycle.stopping, (
        "an engine was not looked at"
    )
    for engine in farm.engines.by_name.values():
        assert engine.not_quick == sum(not h.quick for h in engine.assigned.values()), "closed is miscounted"
        for run, assigned in engine.assigned.items():
            assert run in assigned.batch.runs, f"run {run} is not in its batch"
        done = engine.retiring and not engine.assigned and engine.state == EngineState.UP
        assert not done, f"engine {engine.id} was to end and was forgotten"
        agent = farm.agents.by_session.get(engine.agent)
        able = engine.state == EngineState.UP and agent is not None and agent.accepts_tasks
        if able and not engine.assigned and engine not in farm.readiness.idle and engine not in farm.readiness.blocked:
            assert farm.lifecycle.held or farm.lifecycle.stopping or engine.retiring or engine.withheld_until_s, (
                f"idle engine {engine.id} is forgotten"
            )


def _check_claims(farm: SchedulerState) -> None:
    groups: dict[str, int] = {}
    for agent in farm.agents.by_session.values():
        used: dict[str, float] = {}
        held = [(run, h) for engine in agent.engines.values() for run, h in engine.assigned.items()]
        for _, assigned in held:
            claim = assigned.claim
            for name, value in claim.amounts.items() if claim is not None else ():
                used[name] = used.get(name, 0.0) + value
            if claim is not None and claim.group is not None:
                groups[claim.group] = groups.get(claim.group, 0) + 1
        for name in used.keys() | agent.used.keys():
            off = abs(used.get(name, 0.0) - agent.used.get(name, 0.0))
            assert off < 1e-6, f"{name} in use on {agent.node} is miscounted"
            assert not agent.capacity or used.get(name, 0.0) <= agent.capacity.get(name, 0.0) + 1e-6, (
                f"more of {name} is in use on {agent.node} than there is"
            )
        if agent.exclusive is not None:
            # Runs of tasks that have ended are only answers on their way.
            alive = [run for run, assigned in held if assigned.batch.number >= 0]
            assert alive == [agent.exclusive], f"{agent.node} is not its exclusive task's alone"
    running = {name: group.running for name, group in farm.limits.groups.items() if group.running}
    assert running == groups, f"groups are miscounted: {running} should be {groups}"


def _check_environments(farm: SchedulerState, needed: dict[str | None, int], of_jobs: dict[str | None, int]) -> None:
    for identity, use in farm.environments.uses.items():
        assert use.unfinished == needed.get(identity, 0), f"tasks of environment {identity} are miscounted"
        assert all(engine.name in farm.engines.by_name for engine in use.engines), (
            f"environment {identity} keeps a lost engine"
        )
    assert needed.keys() - {None} <= farm.environments.uses.keys(), "an environment that tasks need was forgotten"
    for engine in farm.engines.by_name.values():
        environment = engine.environment
        known = environment is None or engine in farm.environments.uses[environment.identity].engines
        assert known, f"engine {engine.id} is not counted where its environment is"
    for job_id, job in farm.jobs.by_id.items():
        assert job.unfinished == of_jobs.get(job_id, 0), f"tasks of job {job_id} are miscounted"
