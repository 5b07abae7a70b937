"""Commands to engines that are being replaced: they wait for the replacement.

The replacement of an engine is prepared as its predecessor was, so an engine that is being replaced still is one of the
farm's engines for commands. Without this, a ``gather`` that comes just then would return fewer parts, without a word.
A held command is sent when the replacement is ready: behind what is repeated on it, before its first task.
"""

from __future__ import annotations

import msgspec

from ..messages import CommandAnswer, EngineCommand, SendCommand
from ..messages.engine_commands import CLEAR_QUEUE, INTERRUPT, PROFILE
from ..messages.payload import FailureBody
from ..scheduler.decision import Decision, Now
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.kept_engines import count_missing
from ..scheduler.requests import HELD_S, HeldCommand, Keeping, PendingCommand
from ..scheduler.state import SchedulerState

HELD_BYTES_MAX = 64 << 20
"""The most bytes of held commands: they are in the controller's memory until the replacement is up."""

AT_ONCE = frozenset({CLEAR_QUEUE, INTERRUPT, PROFILE})
"""The verbs that concern what an engine does at present: they are never held."""


def awaited(farm: SchedulerState) -> list[int]:
    """Return the ids of engines that take no commands at present: they are replaced, or unreachable for a moment."""
    requests = farm.requests
    engines = farm.engines.by_name.values()
    ending = {e.id for e in engines if e.state == EngineState.STOPPING and e.recycled}
    if farm.lifecycle.stopping or not (ending or requests.kept or requests.replaced):
        return []
    coming = starting_replacements(farm).keys() | _prepared_replacements(farm)
    coming |= {e.id for e in engines if e.state == EngineState.AWAY and requests.replaced.get(e.id)}
    if farm.settings.warm is None:  # else a free slot may stay empty
        coming |= ending
        if _is_one_missing(farm):
            coming |= {i for i, expected in requests.replaced.items() if expected}
    return sorted(coming - {e.id for e in farm.engines.visible()})


def starting_replacements(farm: SchedulerState) -> dict[int, str]:
    """Return the ids of replacements that are being started, each with the session of its agent."""
    agents = farm.agents.by_session.values()
    return {i: agent.session for agent in agents for i in agent.starting if _is_replacement(farm, i)}


def _prepared_replacements(farm: SchedulerState) -> set[int]:
    engines = farm.engines.by_name.values()
    return {e.id for e in engines if e.state == EngineState.PREPARING and _is_replacement(farm, e.id)}


def _is_replacement(farm: SchedulerState, engine_id: int) -> bool:
    return engine_id in farm.requests.kept or engine_id in farm.requests.replaced


def _is_one_missing(farm: SchedulerState) -> bool:
    """Return whether the farm will start an engine, perhaps after a pause or under another agent."""
    bringing = (agent for agent in farm.agents.by_session.values() if agent.brings is not None)
    return count_missing(farm) > 0 or any(
        agent.present and len(agent.engines) + len(agent.starting) < (agent.brings or 0) for agent in bringing
    )


def taking_commands(farm: SchedulerState) -> list[int]:
    """Return the ids of all engines that a command to all engines goes to now."""
    return sorted({engine.id for engine in farm.engines.visible()} | {*awaited(farm)})


def note_replaced(farm: SchedulerState, engine: EngineEntry) -> None:
    """Note that another engine takes the place of one that was lost, or that one is unreachable and may come back."""
    if engine.counts_as_wanted and not farm.lifecycle.stopping:
        farm.requests.replaced[engine.id] = True
        farm.timers.set(farm.mono_s + HELD_S, "held", engine.id)


def queue_name(engine_id: int) -> str:
    """Return what stands for the engine of a held command, which has no name yet."""
    return f"the replacement of {engine_id}"


def hold(
    farm: SchedulerState, session: str, event: SendCommand, engine_id: int, keeping: Keeping | None, checkpoint: int,
    out: Decision,
) -> None:  # fmt: skip
    """Hold a command for the replacement of an engine, or refuse it because too much is held."""
    requests, size = farm.requests, len(event.body)
    pending = PendingCommand(session, event.n, queue_name(engine_id), event.verb, event.text, keeping, checkpoint)
    key = (session, event.n, pending.engine)
    if key not in requests.commands:
        if requests.held_bytes + size > HELD_BYTES_MAX:
            text = f"engine {engine_id} is being replaced, and {HELD_BYTES_MAX >> 20} MiB of commands wait for that"
            refuse(session, event.n, engine_id, "EngineLost", text, out)
            return
        requests.held.setdefault(engine_id, []).append(HeldCommand(key, event.body))
        requests.held_bytes += size
        farm.timers.set(farm.mono_s + HELD_S, "held", engine_id)
    requests.begin_command(key, pending)


def send_held(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Send an engine that is ready the commands that were held for it, in their order."""
    farm.requests.replaced.pop(engine.id, None)
    for held in _take_held(farm, engine.id):
        pending = farm.requests.end_command(held.key)
        if pending is None:  # its client has gone, or has cleared its queue
            continue
        pending.engine = engine.name
        engine.ran_commands = True
        farm.requests.begin_command((pending.session, pending.n, engine.name), pending)
        out.sends.append(
            (engine.agent, EngineCommand(engine.name, pending.session, pending.n, pending.verb, held.body))
        )


def drop_held(farm: SchedulerState, session: str, event: SendCommand, out: Decision) -> None:
    """Drop a client's held commands, because it clears its queues: those of some numbers, or all."""
    numbers = None
    if event.body:
        try:
            numbers = set(msgspec.msgpack.decode(event.body, type=list[int]))
        except msgspec.MsgspecError:  # the engines say so
            return
    engines = farm.requests.held.keys() if event.engines is None else farm.requests.held.keys() & {*event.engines}
    for engine_id in sorted(engines):
        _end_held(farm, engine_id, session, numbers, "QueueCleared", "the queue was cleared", out)


def give_up_held(farm: SchedulerState, engine_id: int, now: Now, out: Decision) -> None:
    """Refuse the commands that are held for an engine, if its replacement does not start; the timer of `hold`."""
    held = farm.requests.held.get(engine_id, [])
    if not held and not farm.requests.replaced.get(engine_id):
        return
    if engine_id in starting_replacements(farm) or engine_id in _prepared_replacements(farm):
        farm.timers.set(now.mono_s + HELD_S, "held", engine_id)
        return
    if engine_id in farm.requests.replaced:
        farm.requests.replaced[engine_id] = False
    text = f"engine {engine_id} was lost, and its replacement does not start: see ipytaskfarm status"
    if any(engine.state == EngineState.AWAY for engine in farm.engines.by_id.get(engine_id, ())):
        text = f"engine {engine_id} is unreachable: see ipytaskfarm status"
    if held:
        _end_held(farm, engine_id, None, None, "EngineLost", text, out)
    _take_held(farm, engine_id)


def _take_held(farm: SchedulerState, engine_id: int) -> list[HeldCommand]:
    taken = farm.requests.held.pop(engine_id, [])
    farm.requests.held_bytes -= sum(len(each.body) for each in taken)
    return taken


def _end_held(
    farm: SchedulerState,
    engine_id: int,
    session: str | None,
    numbers: set[int] | None,
    etype: str,
    text: str,
    out: Decision,
) -> None:
    """Refuse commands that are held for an engine: of one client or of all, of these numbers or of all."""
    for held in farm.requests.held[engine_id]:
        if session in (None, held.key[0]) and (numbers is None or held.key[1] in numbers):
            pending = farm.requests.end_command(held.key)
            if pending is not None:
                refuse(pending.session, pending.n, engine_id, etype, text, out)


def refuse(session: str, n: int, engine_id: int, etype: str, text: str, out: Decision) -> None:
    """Answer a command with an error."""
    body = msgspec.msgpack.encode(FailureBody(etype, text))
    out.sends.append((session, CommandAnswer(n, engine_id, False, body)))
