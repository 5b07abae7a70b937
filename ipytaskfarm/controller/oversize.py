"""Hand-outs that are larger than any message may be: runs go one by one, and one that cannot go alone ends.

It comes to that where large values travel inside, because somebody does not see the farm's folder of blobs.
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
    """A hand-out of several runs as one of each."""
    batch = _decode_batch(message.batch)
    functions = batch.functions
    for run in batch.runs:
        alone = msgspec.Raw(_encode(TaskBatch([run], functions)))
        yield msgspec.structs.replace(message, runs=[(run.task, run.attempt)], batch=alone)
        functions = []


def unsent(message: HandOut, why: str, now_s: float) -> Results:
    """The end of a run that cannot be handed out, as if its engine had said it.  now_s: by the wall clock."""
    ((task, attempt),) = message.runs
    failure = FailureSummary(
        "ResultTooLarge", f"task {task} and the results that it takes are too large together: {why}"
    )
    return Results(message.engine, [Ended(task, attempt, Reason.TOO_LARGE.value, now_s, 0.0, failure)])
