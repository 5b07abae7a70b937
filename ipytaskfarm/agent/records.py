"""Checks of the records that engines write about the ends of runs: tasks run in engines, and may write anything.

The controller refuses an agent that sends what cannot be read. So a record is read here before it is forwarded.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec

from ..core.messages.payload import FailureBody, ResultBody
from ..core.messages.task_types import Ended, FailureSummary, RunKey
from ..core.states import Reason
from ..transport.wire import READABLE


class RecordUnreadable(Exception):
    """A record is none of its run. The text says why. The error does not leave the agent."""


def _without_body() -> type[Any]:
    """Return a type like `Ended` whose body, which may be large, is not copied when a record is read."""
    types = get_type_hints(Ended)
    fields: list[Any] = []
    required = len(Ended.__struct_fields__) - len(Ended.__struct_defaults__)
    for index, name in enumerate(Ended.__struct_fields__):
        kind = memoryview if name == "body" else types[name]
        fields.append((name, kind) if index < required else (name, kind, Ended.__struct_defaults__[index - required]))
    return msgspec.defstruct("EndedRecord", fields, array_like=True, gc=False, frozen=True)


_decode = msgspec.msgpack.Decoder(_without_body()).decode
_encode = msgspec.msgpack.Encoder().encode
_WHOLE = 0x90 | len(Ended.__struct_fields__)
"""The first byte of a record that has all fields, and nothing behind them."""


def checked(record: bytes, run: RunKey) -> bytes:
    """Return a record in the form in which the controller can read it.

    Raises:
        RecordUnreadable: it is no record of this run.
    """
    try:
        ended = _decode(record)
    except READABLE as error:
        raise RecordUnreadable(str(error)) from None
    if (ended.task, ended.attempt) != run:
        raise RecordUnreadable(f"it is of attempt {ended.attempt} of task {ended.task}")
    if record[0] == _WHOLE and ended.failure is None and ended.detail is None and ended.frozen is None:
        return record
    # Written anew: what stands in the record beside the known fields is skipped here, but may be too deep for others.
    return _encode(ended)


def failed(run: RunKey, why: str, now_s: float) -> bytes:
    """Return the record that replaces an unreadable one: the run has failed. `now_s` is the wall clock's time."""
    text = (
        f"the engine's record of the end of this run cannot be read ({why:.300}), so the run counts as failed and its "
        "engine is replaced: code that ran on it has written into the engine's own objects or files"
    )
    body = _encode(ResultBody(None, FailureBody("TaskError", text)))
    return _encode(Ended(*run, Reason.ERROR.value, now_s, 0.0, FailureSummary("TaskError", text), body))
