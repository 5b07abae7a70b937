"""The scheduler: events in, decisions out. It could run on paper.

    scheduler = Scheduler(farm)
    out = scheduler.turn([(session, event), ...], now)

The caller *must* commit ``out.saves`` in one transaction before it acts on anything else in ``out``, and must call
again at `next_deadline` at the latest, with or without events. Nothing here reads a clock, draws a random number,
touches a socket or logs.

Two rules: handlers decide (`core.handlers`, one function per event), and only `core.scheduler.transitions` moves tasks.
An invalid message is answered or ignored. An exception from here is a bug in the farm: the caller commits nothing of
the turn, and starts again from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import messages as m
from ..handlers import (
    agents,
    clients,
    commands,
    depends,
    explain,
    freezing,
    held_commands,
    jobs,
    leaving,
    lifecycle,
    losses,
    nodes,
    operate,
    priorities,
    replacements,
    requirements,
    result_cache,
    results,
    running_tasks,
    second_copies,
    streams,
    submit,
    sweeps,
    tables,
    timers,
    view,
)
from ..message_bounds import with_short_reason
from ..messages.evaluator import Evaluated
from ..messages.running_task import ItemsLeft, ProgressReport, TaskCall
from ..text import text_of
from ..validation import validated, why_refused
from . import graph, nested_waits, task_messages
from .clients import ClientEntry
from .decision import Decision, Now
from .eligibility import refresh_classes
from .entries import EngineState
from .events import (
    Back,
    EndedLoaded,
    Event,
    Gone,
    JobsCleared,
    Joined,
    LookedUp,
    Originals,
    ProcessGone,
    Revoked,
    Silent,
    StoreRoom,
    Tick,
    UnusedFunctions,
)
from .failed_answers import AnswerFailed, MessageFailed
from .invariants import check
from .placement import dispatch
from .recycling import settle_jobs
from .state import SchedulerState

Handler = Callable[[SchedulerState, str, Any, Now, Decision], None]
Answerer = Callable[[SchedulerState, str, int, Any, Now, Decision], None]

QUESTIONS: dict[type, Answerer] = {
    m.WatchTasks: clients.on_watch,
    m.FetchResults: clients.on_fetch,
    m.AbortTasks: clients.on_abort,
    m.Clear: clients.on_clear,
    m.RetryTasks: clients.on_retry,
    m.QueueStatus: tables.on_queue_status,
    m.ListTasks: tables.on_tasks,
    m.ExplainTasks: explain.on_explain,
    m.CheckTask: requirements.on_check,
    m.Stuck: explain.on_stuck,
    m.Outputs: streams.on_outputs,
    m.CommandOutputs: streams.on_command_outputs,
    m.MarkTasksDone: operate.on_mark_done,
    m.MarkTasksFailed: operate.on_mark_failed,
    m.PauseJobs: sweeps.on_pause_jobs,
    m.SetPriority: priorities.on_set_priority,
    m.SetJobPriority: priorities.on_set_job_priority,
    m.DrainNode: nodes.on_drain,
    m.FindJobs: operate.on_find_jobs,
    m.SendToTask: task_messages.on_send,
    m.ReadTaskMessages: task_messages.on_read,
    m.ProgressOf: running_tasks.on_progress_of,
    m.ListRunning: running_tasks.on_list_running,
    m.Stack: commands.on_stack,
    m.SpinFarm: lifecycle.on_spin,
    m.ListEngines: tables.on_engines,
    m.ListCommandQueues: commands.on_command_queues,
    m.FarmStatus: tables.on_farm_status,
    m.SetWanted: lifecycle.on_set_wanted,
    m.RemoveEngines: lifecycle.on_remove_engines,
    m.ReleaseFrozen: freezing.on_release,
    m.ExchangeBytes: freezing.on_exchange,
    m.RemoveAgents: leaving.on_remove_agents,
    m.AgentsEnded: leaving.on_agents_ended,
    m.HoldFarm: lifecycle.on_hold,
    m.StopFarm: lifecycle.on_stop,
    m.SetSticky: commands.on_set_sticky,
    m.ListSticky: commands.on_list_sticky,
    m.ClearSticky: commands.on_clear_sticky,
    m.ListKept: replacements.on_list_kept,
    m.ClearKept: replacements.on_clear_kept,
    m.FollowFarm: view.on_follow,
    m.ReadJobs: view.on_read_jobs,
    m.ReadEngines: view.on_read_engines,
    m.WhyWaiting: view.on_why_waiting,
}


STORED = (m.SendToTask, m.SetSticky, m.MarkTasksDone)
"""The questions with data of any size for the store: refused like new tasks while the disk has no room."""
CONSEQUENCES_AT_ONCE = 2_000
"""How many tasks are aborted with their jobs, told that a task has ended for which they wait, or moved because their
job was paused, in one turn."""
READ_ONLY = (
    m.FetchResults, m.QueueStatus, m.ListTasks, m.ExplainTasks, m.Stuck, m.FindJobs, m.ProgressOf, m.ListRunning,
    m.ListEngines, m.ListCommandQueues, m.FarmStatus, m.ListSticky, m.ListKept,
    m.ReadJobs, m.ReadEngines, m.WhyWaiting,
)  # fmt: skip
"""The questions that change nothing in the scheduler's state."""


def on_ask(farm: SchedulerState, session: str, event: m.AskQuestion, now: Now, out: Decision) -> None:
    """Answer a client's question; its type says which function answers it.  A question that makes no sense is refused.

    A bug in a function that only reads is that question's error: the state is whole, so the farm goes on.

    Raises:
        AnswerFailed: a function that changes the state has a bug.
    """
    question = event.question
    kind = type(question).__name__
    refusal = why_refused(question)
    if refusal is None and (why := farm.failed_answers.why_not(session, event.n, kind, now.mono_s)):
        refusal = m.Refusal("KernelError", why)
    if refusal is None and farm.lifecycle.full is not None and isinstance(question, STORED):
        refusal = m.Refusal("StoreFull", farm.lifecycle.full)
    if refusal is not None:
        out.answer(session, event.n, refusal)
        return
    try:
        QUESTIONS[type(question)](farm, session, event.n, with_short_reason(question), now, out)
    except Exception as error:
        failure = AnswerFailed(session, event.n, kind, f"{type(error).__name__}: {text_of(error)}")
        if not isinstance(question, READ_ONLY):
            raise failure from error
        out.notes.append(str(failure))
        out.answer(session, event.n, m.Refusal("KernelError", str(failure)))


def on_command(farm: SchedulerState, session: str, event: m.SendCommand, now: Now, out: Decision) -> None:
    """Pass a command on to its engines.  One that has failed before is refused.

    Raises:
        AnswerFailed: a command could not be passed on because of a bug.
    """
    if why := farm.failed_answers.why_not(session, event.n, event.verb, now.mono_s):
        held_commands.refuse(session, event.n, commands.NOBODY, "KernelError", why, out)
        return
    try:
        commands.on_command(farm, session, event, now, out)
    except Exception as error:
        raise AnswerFailed(session, event.n, event.verb, f"{type(error).__name__}: {text_of(error)}") from error


def on_joined(farm: SchedulerState, session: str, event: Joined, now: Now, out: Decision) -> None:
    """Note a new session of a peer.  An agent is registered by its `AgentState`.

    Until that has come, the engines of a known agent get no work: the report cannot say that they hold it."""
    agent = farm.agents.by_session.get(session)
    if agent is not None:
        agent.rejoining = True
        losses.agent_silent(farm, agent, now)
    elif event.role != "agent":
        clients.on_client_joined(farm, session, event, now, out)


def on_silent(farm: SchedulerState, session: str, event: Silent, now: Now, out: Decision) -> None:
    """Give no more work to a silent agent. For a silent client, abort the jobs that must end with it."""
    agent = farm.agents.by_session.get(session)
    if agent is not None:
        losses.agent_silent(farm, agent, now)
    else:
        farm.followers.leave(session)
        jobs.abort_disconnected(farm, session)


def on_back(farm: SchedulerState, session: str, event: Back, now: Now, out: Decision) -> None:
    """Give work again to the engines of an agent that was silent."""
    agent = farm.agents.by_session.get(session)
    if agent is None or not agent.present or agent.rejoining:
        return
    agent.reachable = True
    agent.deadline_s = None
    for engine in agent.engines.values():
        if engine.state in (EngineState.AWAY, EngineState.UP):
            engine.state = EngineState.UP
            held_commands.send_held(farm, engine, out)
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
        losses.give_up(farm, agent, event.why, now, out)


def on_process_gone(farm: SchedulerState, session: str, event: ProcessGone, now: Now, out: Decision) -> None:
    """Do not wait for the lease of an agent whose process is gone, unless it was heard in the meantime."""
    agent = farm.agents.by_session.get(session)
    if agent is not None and not agent.reachable:
        losses.agent_gone(farm, agent, event.why, now, out)


def on_ended_loaded(farm: SchedulerState, session: str, event: EndedLoaded, now: Now, out: Decision) -> None:
    """Reopen ended tasks that were read from the store."""
    for record in graph.to_run_again(farm, event.tasks, event.asked):
        job_id = record.rules.job if record.rules is not None else None
        if job_id is not None and job_id not in farm.jobs.to_abort and farm.tasks.finals.get(record.id) == "":
            jobs.revive_job(farm, job_id, out)
    again = {task.id: task for task in graph.on_ended_loaded(farm, event.tasks, event.asked, event.outcome, now, out)}
    task_messages.restore_conversations(
        farm, [row for row in event.children if row[0] in again], [row for row in event.mail if row[0] in again]
    )
    for task in again.values():
        submit.apply_rules(farm, task, now, out)
    if event.asker is not None:
        left = [each for each in event.tasks if each.id not in again]
        why = graph.why_not_again(farm, left[0]) if left else ""
        refusal = m.Refusal("TaskError", f"task {event.asked[0]} cannot be run again: {why}")
        out.answer(event.asker[0], event.asker[1], refusal if why else m.TextReply("reopened"))


def on_store_room(farm: SchedulerState, session: str, event: StoreRoom, now: Now, out: Decision) -> None:
    """Note whether tasks can be accepted."""
    if (event.why is None) != (farm.lifecycle.full is None):
        out.notes.append(f"store: {event.why}" if event.why else "store: there is room again")
    farm.lifecycle.full = event.why


def on_unused_functions(farm: SchedulerState, session: str, event: UnusedFunctions, now: Now, out: Decision) -> None:
    """Forget code that no task needs any more."""
    farm.functions.drop(event.digests, out)


HANDLERS: dict[type, Handler] = {
    m.Submit: submit.on_submit,
    m.NeedIds: submit.on_need_ids,
    m.AskQuestion: on_ask,
    m.SendCommand: on_command,
    m.AgentState: agents.on_agent_state,
    m.Leaving: leaving.on_leaving,
    m.EngineUp: agents.on_engine_up,
    m.EngineDown: losses.on_engine_lost,
    m.Results: results.on_results,
    m.Returned: results.on_returned,
    m.CommandDone: commands.on_command_done,
    m.PropertiesChanged: agents.on_properties,
    m.StackText: commands.on_stack_text,
    m.OutputText: streams.on_output_text,
    m.EngineNote: agents.on_engine_note,
    m.NodeState: requirements.on_node_state,
    m.SetUp: agents.on_set_up,
    m.Frozen: freezing.on_frozen,
    m.KernelAnswer: freezing.on_kernel_answer,
    m.ResourceRequest: agents.on_resource_request,
    TaskCall: running_tasks.on_task_call,
    ProgressReport: running_tasks.on_progress,
    ItemsLeft: results.on_items_left,
    Evaluated: depends.on_evaluated,
    Joined: on_joined,
    Back: on_back,
    Silent: on_silent,
    Gone: on_gone,
    Revoked: on_revoked,
    ProcessGone: on_process_gone,
    StoreRoom: on_store_room,
    UnusedFunctions: on_unused_functions,
    Originals: clients.on_originals,
    EndedLoaded: on_ended_loaded,
    JobsCleared: jobs.on_jobs_cleared,
    LookedUp: result_cache.on_looked_up,
    Tick: timers.on_tick,
}
"""The handler of each event.  A new event needs its struct, its handler, and a line here."""


class Scheduler:
    """Dispatches events to handlers, then assigns tasks to engines."""

    def __init__(self, farm: SchedulerState) -> None:
        self.farm = farm

    def turn(self, events: Iterable[tuple[str, Event]], now: Now) -> Decision:
        """Handle the events, run the timers that are due, and assign tasks.

        The next event is asked for when the one before it was handled: the caller may measure what each has cost.

        Raises:
            AnswerFailed: a question or a command met a bug.
            MessageFailed: another message or event of a peer met a bug.
        """
        out = Decision()
        farm = self.farm
        farm.mono_s = now.mono_s
        for session, message in events:
            try:
                event = validated(farm, session, message, now)
                if event is not None:
                    HANDLERS[type(event)](farm, session, event, now, out)
                else:
                    _note_dropped(farm, session, message, out)
            except AnswerFailed:
                raise
            except Exception as error:
                if not session:  # an event of the controller itself
                    raise
                raise MessageFailed(session, type(message).__name__, error) from error
        timers.on_tick(farm, "", Tick(), now, out)
        _settle(farm, now, out)
        dispatch(farm, now, out)
        _tell_clients(farm, out)
        return out

    def handle(self, event: Event, now: Now, session: str = "") -> Decision:
        """Make a turn with one event."""
        return self.turn([(session, event)], now)

    def next_deadline(self) -> float | None:
        """Return when (monotonic) the next timer is due."""
        return self.farm.timers.next_s()

    def check(self) -> None:
        """Assert every invariant.  Tests call this after each event.  Raises AssertionError."""
        check(self.farm)


def _settle(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Do what follows from the events of the turn, before tasks are assigned."""
    if farm.frozen.offered:
        freezing.settle_offered(farm, now, out)
    if farm.lifecycle.stopping:
        lifecycle.look_for_the_end(farm, now, out)
    left = CONSEQUENCES_AT_ONCE
    while left > 0 and (farm.graph.ended or farm.graph.ready_joins or farm.jobs.to_abort):
        left -= graph.settle(farm, left, now, out)
        left -= clients.abort_with_jobs(farm, left, now, out) if left > 0 else 0
    if farm.sweep.is_due and left > 0:
        left -= sweeps.go_on(farm, left, now, out)
    if farm.graph.ended or farm.graph.ready_joins or farm.jobs.to_abort or farm.sweep.is_due:
        farm.timers.set(now.mono_s, "consequences")
    if farm.second_copies.groups:
        second_copies.arm_look(farm, now)
    if farm.second_copies.to_stop:
        second_copies.stop_others(farm, out)
    if farm.cache_uses.ended or farm.cache_uses.to_look or farm.cache_uses.released:
        result_cache.settle(farm, now, out)
    if farm.jobs.perhaps_ended or farm.environments.perhaps_unused:
        settle_jobs(farm, now, out)
    if farm.nested_waits.over:
        nested_waits.resume_runs(farm, now, out)
    if farm.agents.changed:
        agents.answer_resource_requests(farm, out)
    for (digest, scored), session in farm.functions.undecided.items():
        depends.ask_for_verdicts(farm, digest, session, out, scored)
    farm.functions.undecided.clear()
    if farm.functions.checks:
        requirements.answer_checks(farm, out)


def _note_dropped(farm: SchedulerState, session: str, message: Event, out: Decision) -> None:
    """Log a dropped message: one line for each power of two, so that a flood of messages is no flood of lines."""
    count = farm.diagnostics.dropped
    if count.bit_count() == 1:
        out.notes.append(f"{type(message).__name__} of {session} dropped: it may not send this ({count} so far)")


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
