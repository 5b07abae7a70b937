"""The event log: all events of a controller, written by ``start --record FILE`` and read by ``ipytaskfarm replay``.

The scheduler decides from its state, the events and the time. From a log of these three it makes the same decisions
again. The log also contains payloads, so it is as private as the store.

The file is a sequence of frames, each a length (4 bytes, big endian) and a MessagePack value: first a `LogHeader`, then
one `LoggedTurn` for each turn of the loop. A controller that is killed may leave an incomplete frame, which ends the
log.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_args

import msgspec

from ..core.errors import StoreError
from ..core.messages.task_types import encode_runs
from ..core.saves import Save, StoredState
from ..core.scheduler.decision import Now
from ..core.scheduler.events import Event
from ..core.scheduler.settings import SchedulerSettings

VERSION = 1


def _tag(kind: Any) -> str:
    """Return the name under which a type of event is written.  A renamed class keeps its tag."""
    return str(kind.__struct_config__.tag or kind.__name__)


EVENTS: dict[str, type] = {_tag(kind): kind for kind in get_args(Event)}
_WITH_REPORTS = frozenset({"AgentState", "EngineUp"})
_LENGTH = struct.Struct(">I")


class PolicyName(msgspec.Struct, frozen=True):
    """The name of the queue policy, and the folders that it was imported from."""

    name: str
    paths: tuple[str, ...] = ()


class LogHeader(msgspec.Struct, frozen=True):
    """The state at the beginning of the controller's life."""

    version: int
    farm: str
    snapshot: StoredState
    settings: dict[str, Any]
    """The fields of `core.scheduler.settings.SchedulerSettings` except the policy."""
    policy: PolicyName
    hold: bool
    mono_s: float
    wall_s: float


class LoggedTurn(msgspec.Struct, frozen=True, array_like=True):
    """One turn: the time, the events, and a checksum of the saves."""

    mono_s: float
    wall_s: float
    heard: list[tuple[str, str, bytes]]
    """(session, the event's type, the event)"""
    mark: int


class EventLog:
    """An event log that is being written.  Each turn is written at once, without an fsync."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = msgspec.msgpack.Encoder().encode

    @classmethod
    def begin(
        cls,
        path: Path,
        farm: str,
        snapshot: StoredState,
        settings: SchedulerSettings,
        policy: PolicyName,
        hold: bool,
        now: Now,
    ) -> EventLog:
        """Begin a log. An older file of that name is renamed.

        Raises:
            StoreError: the log cannot be written.
        """
        try:
            if path.exists():
                os.rename(path, path.with_name(f"{path.name}.{int(now.wall_s)}"))
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"the event log {path} cannot be written: {error.strerror}; --record takes a file"
            ) from error
        log = cls(os.fdopen(fd, "wb", buffering=0))
        kept = {name: value for name, value in vars(settings).items() if name != "policy"}
        log._write(LogHeader(VERSION, farm, snapshot, kept, policy, hold, now.mono_s, now.wall_s))
        return log

    def note(self, now: Now, events: Sequence[tuple[str, Event]], saves: Sequence[Save]) -> None:
        """Write one turn.

        Raises:
            OSError: it cannot be written. The log has a part of it at most, which ends the log.
        """
        encode = self._encode
        heard = [(session, _tag(type(event)), encode(event)) for session, event in events]
        self._write(LoggedTurn(now.mono_s, now.wall_s, heard, mark_of(saves)))

    def _write(self, frame: LogHeader | LoggedTurn) -> None:
        data = self._encode(frame)
        left = memoryview(_LENGTH.pack(len(data)) + data)
        while left:  # an unbuffered file takes less than all when the disk becomes full
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._file.close()


def mark_of(saves: Sequence[Save]) -> int:
    """Return a checksum of saves that does not depend on their order."""
    encode = msgspec.msgpack.Encoder().encode
    return sum(zlib.crc32(type(save).__name__.encode() + encode(save)) for save in saves)


def read(path: Path) -> tuple[LogHeader, Iterator[LoggedTurn]]:
    """Return the header of a log, and an iterator of its turns.

    Raises:
        StoreError: the file is not an event log, or has another version.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - the iterator closes it
    except OSError as error:
        raise StoreError(f"the event log {path} cannot be read: {error.strerror}") from error
    frames = _frames(file)
    try:
        head = msgspec.msgpack.decode(next(frames, b""), type=LogHeader)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path} is not an event log of a controller: {error}") from error
    if head.version != VERSION:
        raise StoreError(f"the event log {path} is of version {head.version}, this ipytaskfarm plays {VERSION}")
    decode = msgspec.msgpack.Decoder(LoggedTurn).decode
    return head, (decode(frame) for frame in frames)


def _frames(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while len(start := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(start)
            frame = file.read(length)
            if len(frame) < length:
                return
            yield frame


def event_of(kind: str, data: bytes) -> Event:
    """Decode an event."""
    try:
        event: Event = msgspec.msgpack.decode(data, type=EVENTS[kind])
    except msgspec.ValidationError:
        if kind not in _WITH_REPORTS:
            raise
        event = msgspec.msgpack.decode(_with_encoded_runs(data), type=EVENTS[kind])
    return event


def _with_encoded_runs(data: bytes) -> bytes:
    """Return an event with reports of engines whose runs are bytes: they were lists until protocol 9."""
    found = msgspec.msgpack.decode(data)
    for report in (*found.get("engines", ()), *([found["report"]] if "report" in found else ())):
        if isinstance(report.get("held"), list):
            report["held"] = encode_runs(report["held"])
    return msgspec.msgpack.encode(found)
