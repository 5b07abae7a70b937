"""MultiEngine commands on their way to engines and back, sticky commands, and stacks."""

from __future__ import annotations

import msgspec

from .. import messages as m
from ..limits import COUNTS
from ..messages.engine_commands import CHECKPOINT, CLEAR_QUEUE, PROFILE
from ..messages.tables import CommandQueueTable, StickyTable
from ..saves import DropSticky, SaveSticky
from ..scheduler.decision import Decision, Now
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.kept_engines import drop_kept
from ..scheduler.requests import PendingCommand
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned
from ..states import State
from ..validation import why_not_storable
from .checkpoints import checkpoint_answered, session_saved
from .held_commands import AT_ONCE, awaited, drop_held, hold, queue_name, refuse
from .replacements import begin_keeping, engine_is_ready, failure_in, keep_answered, omit_lost, prepare, tell_engine

NOBODY = -1
"""The engine id of an answer that is about no engine in particular."""

STACKS_KEPT = 100
"""The number of stack queries of one client that may wait for answers."""
STACKS_KEPT_IN_ALL = 10_000

STARTUP = "startup"
"""The key of the farm's start-up code among the sticky commands."""

COMMANDS_MAX = 100_000
"""The number of commands of all clients that engines have not answered, counted once for each engine."""


def on_command(farm: SchedulerState, session: str, event: m.SendCommand, now: Now, out: Decision) -> None:
    """Send a command to each of its engines, or answer at once why that is not possible."""
    fault = why_not_storable(event)
    if not fault and len(farm.requests.commands) >= COMMANDS_MAX:
        fault = f"{COMMANDS_MAX:,} commands wait for the answers of engines, the most of a farm: wait for some of them"
    if fault:
        refuse(session, event.n, NOBODY, "ValueError", fault, out)
        return
    if event.verb == CLEAR_QUEUE:
        drop_held(farm, session, event, out)
    by_id = {engine.id: engine for engine in farm.engines.visible()}
    held = [] if event.verb in AT_ONCE else awaited(farm)
    there = {*by_id, *held}
    ids = sorted(there)
    if not ids:
        refuse(session, event.n, NOBODY, "NoEnginesRegistered", "the farm has no engines now", out)
        return
    if event.engines is not None:
        unknown = [i for i in event.engines if i not in there]
        if unknown:
            text = f"there is no engine {unknown[0]}: the farm has {ids}"
            refuse(session, event.n, unknown[0], "InvalidEngineID", text, out)
            return
        ids = list(dict.fromkeys(event.engines))
    _send(farm, session, event, ids, by_id, out)
    if event.engines is None:
        # The engines that will answer, so that the client knows how many answers to expect.
        out.sends.append((session, m.CommandAnswer(event.n, NOBODY, True, msgspec.msgpack.encode(ids))))


def _send(
    farm: SchedulerState,
    session: str,
    event: m.SendCommand,
    ids: list[int],
    by_id: dict[int, EngineEntry],
    out: Decision,
) -> None:
    """Send a command to the engines of these ids; hold it for those that are not in `by_id`, see `held_commands`."""
    keeping = begin_keeping(farm, session, event, ids)
    for engine_id in ids:
        engine = by_id.get(engine_id)
        checkpoint = farm.kept_number() if event.verb == CHECKPOINT else 0
        if engine is None:
            hold(farm, session, event, engine_id, keeping, checkpoint, out)
            continue
        engine.ran_commands = (
            engine.ran_commands or event.verb != PROFILE
        )  # profiling leaves nothing on an engine that a replacement would lack
        key = (session, event.n, engine.name)
        pending = PendingCommand(session, event.n, engine.name, event.verb, event.text, keeping, checkpoint)
        farm.requests.begin_command(key, pending)
        out.sends.append((engine.agent, m.EngineCommand(engine.name, session, event.n, event.verb, event.body)))


def on_command_done(farm: SchedulerState, session: str, event: m.CommandDone, now: Now, out: Decision) -> None:
    """Pass an engine's answer on.  When all of the farm's own commands are answered, the engine is ready."""
    engine = farm.engines.by_name.get(event.engine)
    if event.session == "":
        if engine is not None and engine.saving and event.n == -engine.saving:
            session_saved(farm, engine, event, out)
        elif engine is not None:
            _prepared(farm, engine, event, now, out)
        return
    pending = farm.requests.end_command((event.session, event.n, event.engine))
    if pending is None or engine is None:
        return
    if pending.checkpoint and event.ok:
        out.sends.append((event.session, checkpoint_answered(farm, engine, pending, event, out)))
    else:
        keep_answered(farm, engine, pending, "" if event.ok else failure_in(event.body), out)
        answer = m.CommandAnswer(event.n, engine.id, event.ok, event.body, event.began_s, event.ended_s)
        out.sends.append((event.session, answer))


def _prepared(farm: SchedulerState, engine: EngineEntry, event: m.CommandDone, now: Now, out: Decision) -> None:
    if event.n not in engine.preparing:
        return
    text = engine.preparing.pop(event.n)
    engine.steps_done += 1
    engine.step_since_s = now.mono_s
    if not event.ok:
        failure = failure_in(event.body)
        engine.note = f"start-up: {failure}"
        if event.n < 0:
            engine.not_replayed.append((text, failure))
            engine.note = f"not done again: {text}: {failure}"
        out.notes.append(f"engine {engine.id}: {engine.note}")
    if engine.preparing or engine.state != EngineState.PREPARING:
        return
    kept = farm.requests.kept.get(engine.id)
    if kept is not None and not engine.replaces:
        tell_engine(farm, engine, kept, out)
    else:
        engine_is_ready(farm, engine, now, out)


def fail_commands_of(farm: SchedulerState, engine: EngineEntry, how: str, output: str, out: Decision) -> None:
    """Answer the commands that a lost engine will never answer.

    Args:
        farm: the state.
        engine: the lost engine.
        how: half a sentence about its end.
        output: what the engine printed last.
        out: gets the answers.
    """
    lost = [key for key in farm.requests.commands if key[2] == engine.name]
    for key in lost:
        pending = farm.requests.end_command(key)
        assert pending is not None
        omit_lost(farm, engine, pending, out)
        text = f"engine {engine.id} {how} before it answered {pending.verb!r}"
        if output:
            text += f"; its last output: {output}"
        refuse(pending.session, pending.n, engine.id, "EngineLost", text, out)


def on_command_queues(
    farm: SchedulerState, session: str, n: int, question: m.ListCommandQueues, now: Now, out: Decision
) -> None:
    """Answer with the unanswered commands of each engine."""
    texts: dict[str, list[str]] = {}
    for pending in farm.requests.commands.values():
        texts.setdefault(pending.engine, []).append(pending.text or pending.verb)
    rows = []
    for engine in farm.engines.visible():
        oldest = engine.oldest()
        rows.append((engine.id, oldest[0] if oldest else None, texts.get(engine.name, [])))
    for engine_id in awaited(farm):
        rows.append((engine_id, None, ["it is being replaced", *texts.get(queue_name(engine_id), [])]))
    out.answer(session, n, CommandQueueTable(sorted(rows, key=lambda row: row[0])))


# -- sticky state


def on_set_sticky(farm: SchedulerState, session: str, n: int, question: m.SetSticky, now: Now, out: Decision) -> None:
    """Keep a command for all engines to come, and send it to engines that are being prepared."""
    sticky = farm.requests.sticky
    others = [len(entry.body) for key, entry in sticky.items() if key != question.key]
    if len(others) >= COUNTS.sticky or sum(others) + len(question.body) > COUNTS.sticky_bytes:
        text = f"a farm keeps {COUNTS.sticky:,} sticky commands of {COUNTS.sticky_bytes >> 20} MiB in all at most"
        out.answer(session, n, m.Refusal("ValueError", f"{text}: clear some, or use a task environment"))
        return
    entry = SaveSticky(question.key, question.verb, question.body, question.text)
    unchanged = farm.requests.sticky.get(question.key) == entry
    farm.requests.sticky[question.key] = entry
    if question.key == STARTUP:
        # The start-up code comes first, whenever it was set: the other commands may depend on it.
        farm.requests.sticky = {STARTUP: entry, **farm.requests.sticky}
    out.saves.append(entry)
    if not unchanged:
        drop_kept(farm, out)
        for engine in farm.engines.by_name.values():
            if engine.state == EngineState.PREPARING:
                command = m.EngineCommand(engine.name, "", farm.command_number(), entry.verb, entry.body)
                prepare(farm, engine, command, entry.text or entry.key, out)
    out.answer(session, n, m.FlagReply(True))


def on_list_sticky(farm: SchedulerState, session: str, n: int, question: m.ListSticky, now: Now, out: Decision) -> None:
    """Answer with the commands that new engines run, in order."""
    rows = [(entry.key, entry.verb, entry.text) for entry in farm.requests.sticky.values()]
    out.answer(session, n, StickyTable(rows))


def on_clear_sticky(
    farm: SchedulerState, session: str, n: int, question: m.ClearSticky, now: Now, out: Decision
) -> None:
    """Remove commands from those that new engines run."""
    asked = farm.requests.sticky if question.keys is None else dict.fromkeys(question.keys)
    keys = [key for key in asked if key in farm.requests.sticky]
    for key in keys:
        del farm.requests.sticky[key]
    out.saves.append(DropSticky(keys))
    out.answer(session, n, m.NumberReply(len(keys)))


# -- stacks


def on_stack(farm: SchedulerState, session: str, n: int, question: m.Stack, now: Now, out: Decision) -> None:
    """Ask the agent of a running task's engine for the engine's stack."""
    task = farm.tasks.unfinished.get(farm.tasks.holder(question.id))
    place = task.place if task is not None else None
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    if task is None or engine is None or task.state is not State.PENDING:
        text = (
            f"task {question.id} is not running" if task or question.id in farm.tasks.finals else _unknown(question.id)
        )
        etype = "ValueError" if task or question.id in farm.tasks.finals else "IndexError"
        out.answer(session, n, m.Refusal(etype, text))
        return
    open_stacks = farm.requests.open_stacks
    while open_stacks.by_session[session] >= STACKS_KEPT or open_stacks.total >= STACKS_KEPT_IN_ALL:
        # Agents have not answered the oldest ones; those of a client that asks too much come first.
        is_full = open_stacks.by_session[session] >= STACKS_KEPT
        oldest = next(k for k, asked in farm.requests.stacks.items() if asked[0] == session or not is_full)
        open_stacks.end(farm.requests.stacks.pop(oldest)[0])
    number = farm.number()
    farm.requests.stacks[number] = (session, n, engine.agent)
    open_stacks.begin(session)
    out.sends.append((engine.agent, m.StackQuery(number, engine.name)))


def _unknown(task_id: int) -> str:
    return f"there is no task {task_id}: it was never submitted, or has been cleared"


def on_stack_text(farm: SchedulerState, session: str, event: m.StackText, now: Now, out: Decision) -> None:
    """Pass an engine's stack on to the client that asked."""
    asked = farm.requests.stacks.pop(event.n, None)
    if asked is not None:
        farm.requests.open_stacks.end(asked[0])
        out.answer(asked[0], asked[1], m.TextReply(event.text))
