"""Copies of tasks for clients that run them themselves: work, code and inputs, read from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..core.messages import Refusal, TaskCopy
from ..core.messages.task_types import Final, Function, Submission, code_of
from .payloads import input_of


class TaskStore(Protocol):
    """The methods of `storage.store.Store` that this module uses."""

    def original(self, ids: Sequence[int]) -> list[Submission]: ...

    def chunk_of(self, task: int) -> int | None: ...

    def functions(self, digests: Sequence[str]) -> list[Function]: ...

    def finals(self, ids: Sequence[int]) -> list[Final]: ...


def task_copy(store: TaskStore, task_id: int) -> TaskCopy | Refusal:
    """Return a copy of a task, or of an item of a map, as it was submitted."""
    found = store.original([task_id])
    if found:
        task, item = found[0], None
        if task.part is not None:  # the payload is the chunk's
            chunk, item = task.part
            payloads = store.original([chunk])
            if not payloads:
                return _gone(task_id)
            task = msgspec.structs.replace(task, payload=payloads[0].payload, blobs=payloads[0].blobs)
    else:
        chunk_id = store.chunk_of(task_id)
        if chunk_id is None:
            return _gone(task_id)
        (task,) = store.original([chunk_id])
        task, item = msgspec.structs.replace(task, id=task_id), task_id - chunk_id - 1
    sources = task.needs.inputs if task.needs is not None else ()
    inputs = [input_of(number, source, _end_of(store, source)) for number, source in sources]
    return TaskCopy(task, store.functions(list(dict.fromkeys(code_of(task.function, task.rules)))), inputs, item)


def _end_of(store: TaskStore, task_id: int) -> Final | None:
    """Return the end of a task; of an item that shared its run, that of its chunk."""
    found = store.finals([task_id])
    if not found and (chunk := store.chunk_of(task_id)) is not None:
        found = store.finals([chunk])
    return found[0] if found else None


def _gone(task_id: int) -> Refusal:
    return Refusal("IndexError", f"there is no task {task_id}: it was never submitted, or has been cleared")
