"""Change and read the names and properties of engines, with the commands of `MultiEngineClient`.

Each change is kept for the replacements of its engines, or stored for every fresh engine (sticky).
"""

from __future__ import annotations

import hashlib
import operator
import tokenize
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import msgspec

from ..core import errors, messages
from ..core.arguments import check_name, check_names
from ..core.messages import tables
from ..core.messages.engine_commands import ExecuteBody, PropertiesBody, PushBody
from ..core.messages.payload import CellPlace
from ..core.text import escaped, shown
from ..display.tables import Table
from ..serialization.pack import pack
from ..storage.blobs import BlobWriter
from . import commands, engine_maps
from .command_sender import CommandSender
from .commands import CommandPart, PendingResult
from .engine_maps import Targets
from .python2 import note_names, tell_of_code, tell_of_iterators
from .session import Session
from .task_arguments import check_push

_encode = msgspec.msgpack.Encoder().encode


def execute(
    sender: CommandSender,
    lines: str,
    cell: CellPlace | None,
    targets: Targets,
    block: bool | None,
    sticky: bool | None,
    text: str | None = None,
) -> Any:
    """Run code on engines; `text` stands for it in tables."""
    lines = check_name("lines", lines)
    tell_of_code(lines, keep=True)
    body = _encode(ExecuteBody(lines, bool(sticky), cell))
    if sticky:
        key = f"execute:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"
        return sender.send_sticky([(key, body, lines)], "execute", body, targets, block, commands.executed)
    shown_as = lines if text is None else text
    return sender.send("execute", body, targets, block, commands.executed, shown_as, keep=sender.keep(sticky))


def source_of(filename: str | PathLike[str]) -> str:
    """Return the code of a file that compiles."""
    with tokenize.open(filename) as file:
        source = file.read()
    compile(source, str(filename), "exec")
    return source


# --------------------------------------------------------------------------------------------------
# Names


def push(sender: CommandSender, namespace: Any, targets: Targets, block: bool | None, sticky: bool | None) -> Any:
    """Assign names on engines."""
    if not isinstance(namespace, dict):
        raise TypeError(f"push takes a dict of names and values, not {type(namespace).__name__}")
    checked = check_push(namespace)
    note_names(checked)
    if sticky:
        body = _encode(PushBody(pack(checked), True))
        entries = [
            (f"push:{name}", _encode(PushBody(pack({name: value}), True)), f"{escaped(name)} = {shown(value)}")
            for name, value in checked.items()
        ]
        return sender.send_sticky(entries, "push", body, targets, block, commands.nothing)
    writer = BlobWriter(sender.blobs) if sender.blobs is not None else None
    body = _encode(PushBody(pack(checked, "value", writer)))
    keep = sender.keep(sticky, checked, writer)
    blobs = writer.taken() if writer is not None else ()
    return sender.send("push", body, targets, block, commands.nothing, ", ".join(checked), blobs, keep)


def pull(sender: CommandSender, names: list[str], targets: Targets, block: bool | None) -> Any:
    """Return the values of names."""

    def read(body: bytes) -> Any:
        values = commands.value(body)
        tell_of_iterators(dict(zip(names, values, strict=False)))
        return values[0] if len(names) == 1 else values

    return sender.send("pull", _encode(names), targets, block, read, ", ".join(names))


def zip_pull(sender: CommandSender, names: list[str], targets: Targets, block: bool | None) -> Any:
    """Return the values of names, by name instead of by engine."""
    chosen = sender.chosen(targets)
    pending: PendingResult = pull(sender, names, targets, False)
    if chosen is not None and len(chosen) == 1:
        pending.add_callback(operator.itemgetter(0))
    elif len(names) > 1:
        pending.add_callback(lambda values: list(zip(*values, strict=True)))
    return sender.finish(pending, block)


def scatter(
    sender: CommandSender,
    key: str,
    seq: Any,
    dist: str,
    flatten: bool,
    targets: Targets,
    block: bool | None,
    sticky: bool | None,
) -> Any:
    """Assign a part of a sequence to a name on each engine."""
    key = check_name("key", key)
    engine_maps.check_sequence("seq", seq)
    if sticky:
        raise ValueError("each engine has a part of its own: sticky=True is for execute, push and set_properties")
    engines = sender.ids_of(targets)
    sent = []
    for engine, part in zip(engines, engine_maps.parts(seq, len(engines), dist), strict=True):
        writer = BlobWriter(sender.blobs) if sender.blobs is not None else None
        value = engine_maps.flat(part) if flatten else part
        body = _encode(PushBody(pack({key: value}, "value", writer)))
        keep = sender.keep(sticky, [key], writer)
        sent.append(CommandPart([engine], body, writer.taken() if writer is not None else (), keep))
    return sender.send_parts("push", sent, block, commands.nothing, f"scatter({key})")


def gather(sender: CommandSender, key: str, dist: str, targets: Targets, block: bool | None) -> Any:
    """Join the parts of a sequence."""
    engine_maps.check_dist(dist)
    name = check_name("keys", key)
    pending: PendingResult = sender.send("pull", _encode([name]), targets, False, _first, name)
    pending.add_callback(engine_maps.joined, dist)
    return sender.finish(pending, block)


def _first(body: bytes) -> Any:
    return commands.value(body)[0]


# --------------------------------------------------------------------------------------------------
# Properties


def set_properties(
    sender: CommandSender, properties: Any, targets: Targets, block: bool | None, sticky: bool | None
) -> Any:
    """Set properties of engines."""
    if not isinstance(properties, dict):
        raise TypeError(f"properties must be a dict, not {type(properties).__name__}")
    checked = {check_name("a property's name", name): value for name, value in properties.items()}
    body = _properties("set", packed=_packed_properties(checked))
    if sticky:
        entries = [
            (f"property:{name}", _properties("set", packed=pack({name: value})), f"{name} = {shown(value)}")
            for name, value in checked.items()
        ]
        return sender.send_sticky(entries, "properties", body, targets, block, commands.nothing)
    return _change_properties(sender, body, targets, block, ", ".join(checked), checked, sticky)


def read_properties(
    sender: CommandSender,
    op: str,
    keys: str | Sequence[str] | None,
    targets: Targets,
    block: bool | None,
    facts: bool = False,
) -> Any:
    """Return the properties of engines ("get"; of None all), or whether they have them ("has")."""
    names = None if keys is None else check_names("keys", keys)
    return sender.send("properties", _properties(op, names, facts=facts), targets, block, commands.value)


def delete_properties(sender: CommandSender, names: list[str], targets: Targets, block: bool | None) -> Any:
    """Delete properties of engines."""
    return _change_properties(sender, _properties("del", names), targets, block, f"del {', '.join(names)}", names)


def clear_properties(sender: CommandSender, targets: Targets, block: bool | None) -> Any:
    """Delete all properties of engines."""
    body = _properties("clear")
    return sender.send("properties", body, targets, block, commands.nothing, "clear", keep=sender.keep(None))


def _change_properties(
    sender: CommandSender,
    body: bytes,
    targets: Targets,
    block: bool | None,
    text: str,
    names: Iterable[str],
    sticky: bool | None = None,
) -> Any:
    """Send a change of these properties; one of none is not kept."""
    keep = sender.keep(sticky, names) if names else None
    return sender.send("properties", body, targets, block, commands.nothing, text, keep=keep)


def _properties(op: str, keys: list[str] | None = None, packed: bytes | None = None, facts: bool = False) -> bytes:
    return _encode(PropertiesBody(op, keys, packed, bool(facts)))


def _packed_properties(properties: dict[str, Any]) -> bytes:
    try:
        return pack(properties)
    except errors.UnpickleableException as error:
        raise errors.InvalidProperty(f"a property that cannot travel: {error}") from None


class StickyEntries(list[tuple[str, str, str]]):
    """The (key, verb, text) of the code and names that every fresh engine gets, in that order."""

    def __repr__(self) -> str:
        return repr(Table(("key", "verb", "what"), self, nothing="nothing is sticky"))


class KeptEntries(list[tuple[int, str, str]]):
    """Commands that are kept for replacements: (engine id, text, why the command is not repeated; "": it
    is repeated).
    """

    def __repr__(self) -> str:
        return repr(Table(("engine", "what", "not done again"), self, nothing="nothing was done by hand"))


def sticky(session: Session) -> StickyEntries:
    """Return what every fresh engine runs after the farm's start-up code, in order."""
    return StickyEntries(session.ask_for(messages.ListSticky(), tables.StickyTable).rows)


def clear_sticky(session: Session, keys: str | Iterable[str] | None) -> int:
    """Delete sticky entries, all or those with these keys, and return their number."""
    question = messages.ClearSticky(None if keys is None else check_names("keys", keys))
    return session.ask_for(question, messages.NumberReply).value


def kept(session: Session) -> KeptEntries:
    """Return the commands that are kept for each engine."""
    return KeptEntries(session.ask_for(messages.ListKept(), tables.KeptTable).rows)


def clear_kept(session: Session, engines: list[int] | None) -> int:
    """Delete the kept commands of these engines, or of all, and return their number."""
    return session.ask_for(messages.ClearKept(engines), messages.NumberReply).value
