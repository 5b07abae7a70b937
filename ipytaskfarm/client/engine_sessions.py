"""Save, restore and exchange the names of engines and of this process (see ``serialization/dill_sessions.py``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from os import PathLike, fspath
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..core.messages import Keep
from ..core.messages.engine_commands import DumpSessionBody, LoadSessionBody, SavedSession
from ..serialization.pack import pack, unpack
from ..storage.blobs import BlobStore, BlobWriter
from .commands import CommandPart

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
