"""Checkpoints: the state of an engine is saved, and its replacements begin with this state.

A checkpoint is kept as one command that restores the session.  It replaces all commands that were kept before it, and
the notes about commands that were not kept, because their effects are in the session.
"""

from __future__ import annotations

import msgspec

from ..messages import CommandAnswer, CommandDone
from ..messages.engine_commands import LOAD_SESSION, SavedCheckpoint
from ..messages.payload import FailureBody
from ..saves import DropKept, SaveKept, SaveKeptOn
from ..scheduler.decision import Decision
from ..scheduler.engine_shutdown import SAVE_S, end_engine
from ..scheduler.entries import EngineEntry
from ..scheduler.kept_commands import KeptOnEngine, is_too_large
from ..scheduler.requests import PendingCommand
from ..scheduler.state import SchedulerState
from .replacements import AT_THE_END, NOTE_MAX, drop_excess, failure_in, omit

TOO_LARGE = "the session is larger than a checkpoint may be: delete what can be made again, or use dump_session"
_decode = msgspec.msgpack.Decoder(SavedCheckpoint).decode


def checkpoint_answered(
    farm: SchedulerState, engine: EngineEntry, pending: PendingCommand, event: CommandDone, out: Decision
) -> CommandAnswer:
    """Keep a checkpoint that a client has asked for, and return the client's answer."""
    saved = _saved_in(event.body)
    why = "the engine's answer cannot be read: controller and engine differ in version"
    if saved is not None:
        why = _keep(farm, engine, pending.checkpoint, f"checkpoint of {_names(saved.count)}", saved, out)
        if not why:
            return CommandAnswer(event.n, engine.id, True, msgspec.msgpack.encode(saved.left_out))
    return CommandAnswer(event.n, engine.id, False, msgspec.msgpack.encode(FailureBody("SessionError", why)))


def session_saved(farm: SchedulerState, engine: EngineEntry, event: CommandDone, out: Decision) -> None:
    """Keep the saved names of an engine that is recycled, and end the engine.

    Names that could not be saved are noted.
    """
    number, engine.saving = engine.saving, 0
    if event.ok:
        saved = _saved_in(event.body)
        why = "the engine's answer cannot be read"
        if saved is not None:
            why = _keep(farm, engine, number, f"the {_names(saved.count)} that it had when it was recycled", saved, out)
    else:
        why = failure_in(event.body)
    _end(farm, engine, number, why, out)


def session_not_saved(farm: SchedulerState, engine_name: str, number: int, out: Decision) -> None:
    """End an engine that has not saved its names in time."""
    engine = farm.engines.by_name.get(engine_name)
    if engine is not None and engine.saving == number:
        engine.saving = 0
        _end(farm, engine, number, f"they were not saved within {SAVE_S:.0f} s", out)


def _end(farm: SchedulerState, engine: EngineEntry, number: int, why: str, out: Decision) -> None:
    if why:
        omit(farm, engine.id, number, AT_THE_END, why, out)
        out.notes.append(f"engine {engine.id}: {AT_THE_END} are lost: {why}")
    end_engine(farm, engine, out)


def _saved_in(body: bytes) -> SavedCheckpoint | None:
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _names(count: int) -> str:
    return "1 name" if count == 1 else f"{count} names"


def _keep(
    farm: SchedulerState, engine: EngineEntry, number: int, text: str, saved: SavedCheckpoint, out: Decision
) -> str:
    """Keep a checkpoint; return why it cannot be kept, or ""."""
    command = SaveKept(number, "", -number, LOAD_SESSION, saved.body, text, (), saved.blobs)
    if is_too_large(command):
        return TOO_LARGE
    kept = farm.requests.kept.setdefault(engine.id, KeptOnEngine())
    covered = kept.covered_by(number)
    kept.forget(covered)
    out.saves += [command, SaveKeptOn(engine.id, number)]
    if covered:
        out.saves.append(DropKept(engine.id, covered))
    kept.add(command)
    if saved.left_out:
        named = ", ".join(saved.left_out)
        omit(farm, engine.id, farm.kept_number(), named[:NOTE_MAX], "; ".join(saved.left_out.values())[:NOTE_MAX], out)
    drop_excess(farm, engine.id, kept, out)
    return ""
