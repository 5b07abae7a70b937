"""Send commands to engines: which engines are meant, what is kept for replacements, whether the caller waits.

The commands that save, restore and exchange names are made here too (see ``serialization/dill_sessions.py``).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from os import PathLike, fspath
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from ..core import errors, messages
from ..core.arguments import check_int
from ..core.messages import Keep, tables
from ..core.messages.engine_commands import DumpSessionBody, LoadSessionBody, SavedSession
from ..core.text import escaped, exactly, shown
from ..serialization.pack import pack, unpack
from ..storage.blobs import BlobStore, BlobWriter
from . import commands
from .commands import CommandPart, PendingResult, ResultList
from .engine_maps import Targets
from .rules import flag
from .session import Session

_ID = "{id}"
_decode_saved = msgspec.msgpack.Decoder(SavedSession).decode
reasons = msgspec.msgpack.Decoder(dict[str, str]).decode

Read: TypeAlias = Callable[[bytes], Any]


class SessionCommand(NamedTuple):
    """The messages for engines, and the function that reads an answer."""

    parts: list[CommandPart]
    read: Read


def to_files(path: str | PathLike[str], engines: Sequence[int]) -> SessionCommand:
    """Make the command that saves the names of engines to files on their nodes; ``{id}`` in the path is the engine's
    id.

    Raises ValueError if several engines would write the same file.
    """
    text = fspath(path)
    if len(engines) > 1 and _ID not in text:
        raise ValueError(
            f"dump_session: {len(engines)} engines would write the same file {text!r}: "
            f"put {_ID} in its name, or name one engine"
        )
    parts = [CommandPart([n], msgspec.msgpack.encode(DumpSessionBody(text.replace(_ID, str(n))))) for n in engines]
    return SessionCommand(parts, left_out_of)


def from_files(path: str | PathLike[str], engines: Sequence[int]) -> SessionCommand:
    """Make the command that restores sessions from files on the engines' nodes; ``{id}`` in the path is the engine's
    id.
    """
    text = fspath(path)
    parts = [
        CommandPart([n], msgspec.msgpack.encode(LoadSessionBody(text.replace(_ID, str(n)))), (), Keep())
        for n in engines
    ]
    return SessionCommand(parts, reasons)


def left_out_of(body: bytes) -> dict[str, str]:
    """Decode the names that an engine left out of its session, each with the reason."""
    return _decode_saved(body).left_out


def own_to_engines(engines: list[int] | None, blobs: BlobStore | None) -> tuple[SessionCommand, dict[str, str]]:
    """Save the names of this process's ``__main__``, and make the command that restores them on engines.

    Returns:
        The command, and a dict of the names that cannot be pickled, each with the reason.
    """
    from ..serialization.dill_sessions import dump_session  # dill is imported only when it is needed

    data, left_out = dump_session(_own_names(), _hidden())
    writer = BlobWriter(blobs) if blobs is not None else None
    body = msgspec.msgpack.encode(LoadSessionBody(packed=pack(data, "session", writer)))
    keep = Keep(blobs=writer.sizes() if writer is not None else {})
    part = CommandPart(engines, body, writer.taken() if writer is not None else (), keep)
    return SessionCommand([part], reasons), left_out


def from_engine(engine: int) -> SessionCommand:
    """Make the command that sends the names of an engine; its answer binds them in ``__main__`` of this process."""
    return SessionCommand([CommandPart([engine], msgspec.msgpack.encode(DumpSessionBody()))], _bind_here)


def _bind_here(body: bytes) -> dict[str, str]:
    from ..serialization.dill_sessions import load_session

    saved = _decode_saved(body)
    assert saved.packed is not None, "an engine that is given no path sends the session"
    load_session(bytes(unpack(saved.packed)), _own_names(), "the engine's session")
    return saved.left_out


def _own_names() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def _hidden() -> Collection[str]:
    """Return the names that IPython itself keeps in the namespace, if IPython runs here."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return () if shell is None else set(shell.user_ns_hidden)


class CommandDefaults(Protocol):
    """The attributes of `MultiEngineClient` that users assign; each call reads them anew."""

    targets: Targets
    block: bool
    replay: bool


class CommandSender:
    """Sends the commands of one client."""

    def __init__(self, session: Session, defaults: CommandDefaults) -> None:
        self._session = session
        self._defaults = defaults
        self._pending: weakref.WeakSet[PendingResult] = weakref.WeakSet()
        self.is_closed = False
        """Whether its client was closed, although others of this process may use the connection."""

    @property
    def blobs(self) -> BlobStore | None:
        """Return the store for large values; None: large values are sent inline."""
        return self._session.blobs

    # ----------------------------------------------------------------------------------------------
    # Engines

    def engines(self, timeout_s: float | None = None) -> list[tables.EngineRow]:
        """Return all engines by id."""
        return self._session.ask_for(messages.ListEngines(), tables.EngineTable, timeout_s).rows

    def working(self) -> list[int]:
        """Return the ids of the engines that take commands; for those that are being replaced, commands wait."""
        table = self._session.ask_for(messages.ListEngines(), tables.EngineTable)
        return sorted({*table.commanded, *(row.id for row in table.rows if row.state in ("idle", "busy"))})

    def chosen(self, targets: Targets) -> list[int] | None:
        """Return engine ids; None: all engines that exist when the command arrives.

        An id that is listed twice gets the command twice.  Raises ConnectionError if the client was closed.
        """
        if self.is_closed:
            farm = self._session.farm
            raise errors.ConnectionError(
                f"this client of farm {farm!r} was closed: make a new one, MultiEngineClient({farm!r})"
            )
        targets = self._defaults.targets if targets is None else targets
        if isinstance(targets, str) and exactly(targets) == "all":
            return None
        ids = [engine_id(i) for i in targets] if isinstance(targets, (list, tuple, range)) else [engine_id(targets)]
        if not ids:
            raise ValueError("targets is empty: name at least one engine id, or 'all'")
        return ids

    def ids_of(self, targets: Targets) -> list[int]:
        """Return the ids of the engines that `targets` selects now; see `MultiEngineClient.ids_of`."""
        chosen = self.chosen(targets)
        if chosen is not None:
            return chosen
        ids = self.working()
        if not ids:
            raise errors.NoEnginesRegistered(f"farm {self._session.farm!r} has no engines now")
        return ids

    # ----------------------------------------------------------------------------------------------
    # Commands

    def send(
        self,
        verb: str,
        body: bytes,
        targets: Targets,
        block: bool | None,
        read: Callable[[bytes], Any],
        what: str = "",
        blobs: tuple[str, ...] = (),
        keep: messages.Keep | None = None,
    ) -> Any:
        """Send one command to the engines that are meant."""
        chosen = self.chosen(targets)
        repeated = chosen is not None and len(set(chosen)) < len(chosen)
        groups = [[engine] for engine in chosen or ()] if repeated else [chosen]
        parts = [CommandPart(engines, body, blobs, keep) for engines in groups]
        return self.send_parts(verb, parts, block, read, f"{verb}({escaped(what[:60])})")

    def send_parts(
        self, verb: str, parts: list[CommandPart], block: bool | None, read: Callable[[bytes], Any], text: str = ""
    ) -> Any:
        """Send a command of which engines get parts of their own."""
        return self.finish(self.record(PendingResult(self._session, verb, parts, read, text)), block)

    def send_session(self, verb: str, command: SessionCommand, block: bool | None) -> Any:
        """Send a command that saves or restores sessions."""
        opted_out = None if self._defaults.replay else messages.Keep(opted_out=True)
        parts = [part if part.keep is None else part._replace(keep=opted_out or part.keep) for part in command.parts]
        return self.send_parts(verb, parts, block, command.read)

    def send_sticky(
        self,
        entries: list[tuple[str, bytes, str]],
        verb: str,
        body: bytes,
        targets: Targets,
        block: bool | None,
        read: Callable[[bytes], Any],
    ) -> Any:
        """Store the entries, then send them to the running engines; an engine that starts in between may run them
        twice.
        """
        if (self._defaults.targets if targets is None else targets) != "all":
            raise ValueError("sticky=True is for all engines, also those to come: leave targets at 'all'")
        for key, entry, text in entries:
            self._session.ask(messages.SetSticky(key, verb, entry, text))
        keep = messages.Keep(sticky=tuple(key for key, _, _ in entries)) if entries else None
        text = f"{verb}({escaped(entries[0][2][:60])})" if entries else verb
        part = CommandPart(None, body, keep=keep)
        pending = self.record(PendingResult(self._session, verb, [part], read, text))
        if not self.waits(block):
            return pending
        try:
            return pending.get_result()
        except errors.NoEnginesRegistered:
            return ResultList()
        except errors.CompositeError as error:
            if len({engine for engine, _, _ in error.elist}) == len(pending.engines):
                # The code fails on every engine: a stored entry would break every later engine too.
                self._session.ask(messages.ClearSticky([key for key, _, _ in entries]))
            raise

    def keep(self, sticky: bool | None, names: Iterable[str] = (), writer: BlobWriter | None = None) -> messages.Keep:
        """Return how a command is kept for replacements of its engines."""
        if sticky is False or not flag("replay", self._defaults.replay):
            return messages.Keep(tuple(names), opted_out=True)
        return messages.Keep(tuple(names), writer.sizes() if writer is not None else {})

    # ----------------------------------------------------------------------------------------------
    # Results

    def waits(self, block: bool | None) -> bool:
        """Return whether a call with this argument waits for its result."""
        return flag("block", self._defaults.block if block is None else block)

    def finish(self, pending: PendingResult, block: bool | None) -> Any:
        """Return the result, or the pending one to a caller that does not wait."""
        return pending.get_result() if self.waits(block) else pending

    def record(self, pending: PendingResult) -> PendingResult:
        """Record a running command, so that `discard` can discard it."""
        self._pending.add(pending)
        return pending

    def discard(self) -> None:
        """Let the ``get_result`` of all pending results raise InvalidDeferredID."""
        for pending in list(self._pending):
            pending.invalidate()
        self._pending.clear()

    # ----------------------------------------------------------------------------------------------
    # Queues

    def queue_status(self, targets: Targets, block: bool | None) -> Any:
        """Return what runs and waits on engines; see `MultiEngineClient.queue_status`."""
        found = self._queues(targets)
        if self.waits(block):
            return found
        pending = PendingResult(self._session, "queue_status", [], commands.nothing)
        pending.add_callback(lambda _: found)
        return pending

    def _queues(self, targets: Targets) -> list[tuple[int, dict[str, Any]]]:
        table = self._session.ask_for(messages.ListCommandQueues(), tables.CommandQueueTable)
        rows = {engine: (task, texts) for engine, task, texts in table.rows}
        found = []
        for engine in self.ids_of(targets):
            if engine not in rows:
                raise errors.InvalidEngineID(f"there is no engine {engine}: the farm has {sorted(rows)}")
            task, texts = rows[engine]
            running = texts[:1] if task is None else [f"task {task}"]
            queue = texts[1:] if task is None else texts
            found.append((engine, {"queue": list(queue), "pending": running[0] if running else None}))
        return found


def engine_id(value: object) -> int:
    """Return an engine's id, or raise InvalidEngineID for what cannot be one."""
    try:
        return check_int("targets", value)
    except TypeError:
        expected = "an engine id, a list or tuple of ids, or 'all'"
        raise errors.InvalidEngineID(f"targets must be {expected}, not {shown(value)}") from None


def await_commands(pending_results: PendingResult | Iterable[PendingResult]) -> None:
    """Wait for pending results; only their ``get_result`` raises their errors."""
    several = not isinstance(pending_results, PendingResult) and isinstance(pending_results, Iterable)
    wanted: list[Any] = list(pending_results) if several else [pending_results]  # type: ignore[arg-type]
    for pending in wanted:
        if not isinstance(pending, PendingResult):
            raise errors.NotAPendingResult(f"barrier takes pending results, not {type(pending).__name__}")
    for pending in wanted:
        try:
            pending.get_result()
        except Exception:
            continue  # `get_result` raises it
