"""The preparation of engines. Commands that clients did by hand are kept, and repeated on the engine that replaces one.

A command is kept, under the engine's id, once its engine has answered it successfully. Sticky commands are kept by
their keys, so that they keep their place among the others.
"""

from __future__ import annotations

import msgspec

from ..messages import ClearKept, EngineCommand, EnginePrepared, ListKept, NumberReply, SendCommand
from ..messages.engine_commands import REPLACES
from ..messages.payload import FailureBody
from ..messages.tables import KeptTable
from ..saves import DropKept, SaveKept, SaveKeptOn, SaveSticky
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_classes
from ..scheduler.engine_shutdown import end_if_empty
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.kept_commands import ATTEMPTS_MAX, KeptOnEngine, is_too_large
from ..scheduler.placement import begin_oldest
from ..scheduler.requests import Keeping, PendingCommand
from ..scheduler.state import SchedulerState
from ..text import error_line
from .depends import ask_about_engine
from .held_commands import send_held

NOT_RUN = "QueueCleared"
"""The error of a command that was never run."""

AT_THE_END = "the names that it had when it was recycled"
"""What is kept of an engine with `Recycle.keep_session`."""

OPTED_OUT = "it was sent with sticky=False"
TOO_MANY = "more was done than is kept for a replacement"

NOTE_MAX = 2000
"""The most characters of what an engine says of a failure."""


def begin_keeping(farm: SchedulerState, session: str, event: SendCommand, ids: list[int]) -> Keeping | None:
    """Return the part of a command to keep once it is answered; None for nothing.  ids: its engines."""
    if event.keep is None:
        return None
    number = farm.kept_number()
    keep = event.keep
    body = b"" if keep.sticky or keep.opted_out else event.body
    command = SaveKept(
        number, session, event.n, event.verb, body, event.text or event.verb, keep.names, keep.blobs, keep.sticky
    )
    present = {*ids}
    if event.engines is None:
        present |= {i for i, found in farm.engines.by_id.items() if any(e.state == EngineState.AWAY for e in found)}
    expected = {**farm.requests.kept, **farm.requests.replaced} if event.engines is None else {}
    absent = [i for i in expected if i not in present]
    return Keeping(command, keep.opted_out, absent)


def keep_answered(
    farm: SchedulerState, engine: EngineEntry, pending: PendingCommand, failure: str, out: Decision
) -> None:
    """Keep a command that an engine has answered.  failure: why it failed; "": it did not."""
    if pending.verb == "reset" and not failure:
        farm.requests.forget_kept([engine.id], out)
        return
    keeping = pending.keeping
    if keeping is None or failure.startswith(NOT_RUN):
        return
    if failure:
        _omit_command(farm, engine.id, keeping.command, f"it failed: {failure}", out)
        return
    if keeping.opted_out:
        if keeping.command.verb == "push" and engine.id in farm.requests.kept:
            # An earlier value of the same name would be wrong: a name that is missing is noticed.
            _drop_superseded(engine.id, farm.requests.kept[engine.id], keeping.command, out)
        _omit_command(farm, engine.id, keeping.command, OPTED_OUT, out)
        return
    _keep(farm, engine.id, keeping, out)
    absent, keeping.absent = keeping.absent, []
    for engine_id in absent:
        # A command to all engines is meant for those too that are being replaced at that moment.
        if engine_id in farm.requests.kept or engine_id in farm.requests.replaced:
            _keep(farm, engine_id, keeping, out)
            for replacement in farm.engines.by_id.get(engine_id, ()):
                if replacement.state in (EngineState.PREPARING, EngineState.UP):
                    _replay(farm, replacement, keeping.command, out)


def omit_lost(farm: SchedulerState, engine: EngineEntry, pending: PendingCommand, out: Decision) -> None:
    """Note that a command was not answered by the engine that was lost."""
    if pending.keeping is not None and engine.counts_as_wanted:
        _omit_command(farm, engine.id, pending.keeping.command, "the engine was lost before it was done", out)


def _keep(farm: SchedulerState, engine_id: int, keeping: Keeping, out: Decision) -> None:
    command = keeping.command
    kept = farm.requests.kept.setdefault(engine_id, KeptOnEngine())
    if kept.is_known(command.session, command.n):
        return
    if is_too_large(command):
        _omit_command(farm, engine_id, command, TOO_MANY, out)
        return
    other = farm.requests.kept.get(keeping.kept_on)
    if other is None or command.number not in other.commands:
        out.saves.append(command)  # for the first engine, or again: the store deletes a command that no engine needs
    keeping.kept_on = engine_id
    out.saves.append(SaveKeptOn(engine_id, command.number))
    _drop_superseded(engine_id, kept, command, out)
    kept.add(command)
    drop_excess(farm, engine_id, kept, out)


def _drop_superseded(engine_id: int, kept: KeptOnEngine, command: SaveKept, out: Decision) -> None:
    """Drop the earlier pushes of names that a command has pushed again."""
    going = kept.superseded_by(command)
    for number in going:
        kept.remove(number)
    if going:
        out.saves.append(DropKept(engine_id, going))


def drop_excess(farm: SchedulerState, engine_id: int, kept: KeptOnEngine, out: Decision) -> None:
    """Drop the oldest commands of an engine id that has more than may be kept."""
    for number in kept.excess():
        dropped = kept.remove(number)
        if dropped is not None:
            _omit_command(farm, engine_id, dropped, TOO_MANY, out)
            out.notes.append(f"a replacement of engine {engine_id} would not do again {dropped.text}: {TOO_MANY}")


def _omit_command(farm: SchedulerState, engine_id: int, command: SaveKept, why: str, out: Decision) -> None:
    omit(farm, engine_id, command.number, command.text, why, out)


def omit(farm: SchedulerState, engine_id: int, number: int, text: str, why: str, out: Decision) -> None:
    """Note what a replacement of an engine does not do again, or does not have.

    Args:
        number: of the command, or any other of `SchedulerState.kept_number`.
        text: what is missing, for people.
        why: the reason.
    """
    kept = farm.requests.kept.setdefault(engine_id, KeptOnEngine())
    out.saves.append(SaveKeptOn(engine_id, number, why, text))
    given_up = kept.omit(number, text, why)
    if given_up:
        out.saves.append(DropKept(engine_id, given_up))


def failure_in(body: bytes) -> str:
    """Return, for people, why an engine's answer says that a command failed."""
    try:
        failure = msgspec.msgpack.decode(body, type=FailureBody)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "it failed, and what the engine says of it cannot be read"
    return error_line(failure.etype, failure.value)[:NOTE_MAX]


# -- repeating commands


def prepare_engine(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Make a fresh engine run the start-up code, the sticky commands, and the commands done by hand on
    its predecessor.
    """
    engine.state = EngineState.PREPARING
    engine.preparing.clear()  # of an engine that is reported anew: what it was sent before may be lost with the session
    kept = farm.requests.kept.get(engine.id)
    commands = list(kept.commands.values()) if kept is not None else []
    in_their_place = {key for command in commands for key in command.sticky}
    for entry in farm.requests.sticky.values():
        if entry.key not in in_their_place:
            _run_sticky(farm, engine, entry, out)
    for command in commands:
        _replay(farm, engine, command, out)
    if kept is not None:
        engine.ran_commands = True
        if not engine.preparing:
            tell_engine(farm, engine, kept, out)


def _replay(farm: SchedulerState, engine: EngineEntry, command: SaveKept, out: Decision) -> None:
    for key in command.sticky:
        entry = farm.requests.sticky.get(key)
        if entry is not None:
            _run_sticky(farm, engine, entry, out)
    if not command.sticky:
        prepare(farm, engine, _again(engine, command), command.text, out)


def _run_sticky(farm: SchedulerState, engine: EngineEntry, entry: SaveSticky, out: Decision) -> None:
    n = farm.command_number()
    prepare(farm, engine, EngineCommand(engine.name, "", n, entry.verb, entry.body), entry.text or entry.key, out)


def _again(engine: EngineEntry, command: SaveKept) -> EngineCommand:
    # The number is the same in all lives of the controller: an engine that has done it does not do it twice.
    return EngineCommand(engine.name, "", -command.number, command.verb, command.body, (command.session, command.n))


def tell_engine(farm: SchedulerState, engine: EngineEntry, kept: KeptOnEngine, out: Decision) -> None:
    """Tell a replacement what it replaces and which commands were not repeated, for errors about missing names."""
    engine.replaces = _notice(engine, kept)
    missing = [f"not done again: {text}: {why}" for text, why in kept.omitted.values() if why != OPTED_OUT]
    engine.note = engine.note or "; ".join(missing)[:NOTE_MAX]
    out.notes.append(f"engine {engine.id} is prepared: {engine.replaces}")
    body = msgspec.msgpack.encode(engine.replaces)
    command = EngineCommand(engine.name, "", farm.command_number(), REPLACES, body)
    prepare(farm, engine, command, "the last step", out)


def _notice(engine: EngineEntry, kept: KeptOnEngine) -> str:
    how = f"which {kept.lost}" if kept.lost else "which was lost"
    done = len(kept.commands) - len(engine.not_replayed)
    again = "1 command was" if done == 1 else f"{done} commands were"
    lines = [f"engine {engine.id} is the replacement of one {how}; {again} done again on it"]
    missing = [f"{text}: {why}" for text, why in (*kept.omitted.values(), *engine.not_replayed)]
    lines += [f"not done again: {entry}" for entry in missing]
    return "\n".join(lines)


def note_ended(farm: SchedulerState, engine: EngineEntry, how: str, known: bool, out: Decision) -> None:
    """Record how an engine that is being replaced has ended.

    `known`: the engine ended by itself or because of its own work. A command during which replacements end is given up.
    """
    if engine.saving and engine.counts_as_wanted:
        number, engine.saving = engine.saving, 0
        omit(farm, engine.id, number, AT_THE_END, f"while it saved them it {how}", out)
    kept = farm.requests.kept.get(engine.id)
    if kept is None:
        return
    kept.lost = f"was recycled: {engine.recycled}" if engine.recycled else how
    number = -next(iter(engine.preparing), 0)
    if engine.state != EngineState.PREPARING or not known or number not in kept.commands:
        return
    kept.ended_in[number] = kept.ended_in.get(number, 0) + 1
    if kept.ended_in[number] >= ATTEMPTS_MAX:
        command = kept.remove(number)
        assert command is not None
        why = f"{ATTEMPTS_MAX} replacements ended while they did it; the last {how}"
        _omit_command(farm, engine.id, command, why, out)


# -- questions


def on_list_kept(farm: SchedulerState, session: str, n: int, question: ListKept, now: Now, out: Decision) -> None:
    """Answer what would be done again on which engine's replacement, and what would not."""
    rows: list[tuple[int, str, str]] = []
    for engine_id, kept in sorted(farm.requests.kept.items()):
        rows += [(engine_id, command.text, "") for command in kept.commands.values()]
        rows += [(engine_id, text, why) for text, why in kept.omitted.values()]
    out.answer(session, n, KeptTable(rows))


def on_clear_kept(farm: SchedulerState, session: str, n: int, question: ClearKept, now: Now, out: Decision) -> None:
    """Forget the commands that were done by hand on these engines, and answer how many there were."""
    ids = list(farm.requests.kept) if question.engines is None else question.engines
    count = sum(len(farm.requests.kept[i].commands) for i in set(ids) & farm.requests.kept.keys())
    farm.requests.forget_kept(ids, out)
    out.answer(session, n, NumberReply(count))


def prepare(farm: SchedulerState, engine: EngineEntry, command: EngineCommand, text: str, out: Decision) -> None:
    """Make an engine run one of the farm's own commands before its first task. `text` is for people."""
    if not engine.preparing:
        engine.step_since_s = farm.mono_s
    engine.preparing[command.n] = text
    out.sends.append((engine.agent, command))


def engine_is_ready(farm: SchedulerState, engine: EngineEntry, now: Now, out: Decision) -> None:
    """Allow an engine to run tasks from now on."""
    engine.state = EngineState.UP
    out.sends.append((engine.agent, EnginePrepared(engine.name)))
    send_held(farm, engine, out)
    refresh_classes(farm, [engine])
    ask_about_engine(farm, engine, out)
    farm.readiness.wake(engine)
    begin_oldest(farm, engine, now)
    end_if_empty(farm, engine, out)
    # There may be more engines than wanted now. Thousands that come up in one turn are counted once.
    if not farm.lifecycle.balance_due:
        farm.lifecycle.balance_due = True
        farm.timers.set(now.mono_s, "balance")
