"""Splits hand-outs that are larger than a message may be: runs are sent one by one, and a run that is too large ends.

This happens if large values are sent inline, because a machine does not see the farm's folder of blobs.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..core.messages import HandOut, Results, TaskBatch
from ..core.messages.task_types import Ended, FailureSummary
from ..core.states import Reason

_encode = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(TaskBatch).decode


def singly(message: HandOut) -> Iterator[HandOut]:
    """Split a hand-out of several runs into hand-outs of one run each."""
    batch = _decode_batch(message.batch)
    functions = batch.functions
    for run in batch.runs:
        alone = msgspec.Raw(_encode(TaskBatch([run], functions)))
        yield msgspec.structs.replace(message, runs=[(run.task, run.attempt)], batch=alone)
        functions = []


def unsent(message: HandOut, why: str, now_s: float) -> Results:
    """Return the end of a run that cannot be sent, as if its engine had reported it. `now_s` is wall-clock time."""
    ((task, attempt),) = message.runs
    failure = FailureSummary(
        "ResultTooLarge", f"task {task} and the results that it takes are too large together: {why}"
    )
    return Results(message.engine, [Ended(task, attempt, Reason.TOO_LARGE.value, now_s, 0.0, failure)])
