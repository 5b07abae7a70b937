"""An engine's checkpoint: its names, and what was changed by hand beside them, so that a replacement begins with it."""

from __future__ import annotations

import os
import sys

import msgspec

from ..core.errors import SessionError
from ..core.messages.engine_commands import LoadSessionBody, SavedCheckpoint, SessionSurroundings
from ..core.scheduler.kept_commands import BLOB_BYTES_MAX, BYTES_MAX
from ..core.text import encoded
from ..serialization.pack import pack, unpack
from ..storage.blobs import BlobStore, BlobWriter
from .namespace import Namespace
from .properties import Properties
from .surroundings import folder_now


class Checkpoints:
    """Saves and restores checkpoints; made at the engine's start, before anything is done by hand."""

    def __init__(self, namespace: Namespace, properties: Properties, blobs: BlobStore | None) -> None:
        """Create it; `blobs` is the store for large values.

        Without a store, large values are part of the checkpoint, because other machines do not see this node's folder.
        """
        self._namespace = namespace
        self._properties = properties
        self._blobs = blobs
        self._folder = folder_now()
        self._variables = dict(os.environb)
        self._path = list(sys.path)

    def save(self) -> SavedCheckpoint:
        """Save the names and surroundings.  SessionError: they are more than a checkpoint may hold."""
        data, left_out = self._namespace.dump_session()
        names = [name for name in self._namespace.user_keys() if name not in left_out]
        writer = BlobWriter(self._blobs) if self._blobs is not None else None
        packed = pack(data, "session", writer)
        body = encoded(msgspec.msgpack.encode, LoadSessionBody(packed=packed, surroundings=self._surroundings(names)))
        blobs = writer.sizes() if writer is not None else {}
        if len(body) > BYTES_MAX or sum(blobs.values()) > BLOB_BYTES_MAX:
            largest = BYTES_MAX if len(body) > BYTES_MAX else BLOB_BYTES_MAX
            raise SessionError(
                f"the session has {len(data) / 2**20:,.0f} MiB, and a checkpoint holds at most "
                f"{largest / 2**20:,.0f} MiB: delete what can be made again, or save it with dump_session"
            )
        return SavedCheckpoint(body, blobs, len(names), left_out)

    def load(self, packed: bytes, found: SessionSurroundings) -> dict[str, str]:
        """Restore a checkpoint, and return the names that are not in it, each with the reason.

        SessionError: it cannot be restored here; or all of it is there but the working folder."""
        self._properties.replace(unpack(found.properties))
        for name, value in found.variables.items():
            if value is None:
                os.environb.pop(name, None)
            else:
                os.environb[name] = value
        known = set(sys.path)
        sys.path[:0] = [each for each in found.path_first if each not in known]
        sys.path += [each for each in found.path_last if each not in known]
        _, left_out = self._namespace.load_session(unpack(packed), "the checkpoint")
        for by in dict.fromkeys(found.placed.values()):
            self._namespace.place([name for name, how in found.placed.items() if how == by], by)
        if found.folder:
            try:
                os.chdir(found.folder)
            except OSError as error:
                raise SessionError(f"the names are there, but not the working folder: {error}") from None
        return left_out

    def _surroundings(self, names: list[str]) -> SessionSurroundings:
        folder, variables = folder_now(), dict(os.environb)
        changed: dict[bytes, bytes | None] = {n: v for n, v in variables.items() if self._variables.get(n) != v}
        changed |= dict.fromkeys(self._variables.keys() - variables.keys())
        path = [each for each in sys.path if isinstance(each, str)]
        at_start = set(self._path)
        first = next((i for i, each in enumerate(path) if each in at_start), 0)
        return SessionSurroundings(
            self._namespace.placed_of(names),
            folder if folder != self._folder else "",
            changed,
            path[:first],
            [each for each in path[first:] if each not in at_start],
            pack(dict(self._properties)),
        )
