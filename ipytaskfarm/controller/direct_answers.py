"""Answers questions that need no decision, from the store, the keys and the blobs.

The scheduler does not see them, and the event log does not record them. They are answered after the commit of the turn
in which they arrived, so an answer includes everything that its client was told before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..core import messages as m
from ..core.errors import SecurityError, StoreError
from ..core.messages.blob_chunks import ReadBlob, WriteBlob
from ..core.messages.result_cache import ForgetCache, ListCache, ReadCacheKey
from ..core.messages.task_types import Final, code_of
from ..core.scheduler.events import Event
from ..core.text import text_of
from ..storage.store import Store
from .access import FarmAccess
from .cache_answers import CacheAnswers
from .payloads import input_of
from .view_answers import STORE_QUESTIONS

log = logging.getLogger(__name__)

DIRECT = STORE_QUESTIONS | {
    m.CompactStore, m.ListConnections, m.ReadTask, m.ReloadKeys, ReadBlob, WriteBlob, ListCache, ForgetCache,
    ReadCacheKey,
}  # fmt: skip
"""The types of these questions. A test checks that the scheduler answers all others."""

NO_KEYS = m.Refusal("SecurityError", "this controller has no keys of its own")


def is_direct(event: Event) -> bool:
    """Return whether the loop answers this event without the scheduler.

    `ReadBlob` and `WriteBlob` come within an `AskQuestion` from clients, and as messages of their own from agents.
    """
    return type(event) in (ReadBlob, WriteBlob) or (type(event) is m.AskQuestion and type(event.question) in DIRECT)


class DirectAnswers:
    """Answers questions that need only the store or the keys."""

    def __init__(
        self, store: Store, access: FarmAccess | None, give_up: Callable[[list[str]], None], cache: CacheAnswers
    ) -> None:
        """Create it; `give_up` is called with the sessions that are over because their keys were revoked."""
        self._cache = cache
        self._store = store
        self._access = access
        self._give_up = give_up

    def answer(self, n: int, question: object) -> m.Answer:
        """Answer question number `n` of a client. A question that cannot be answered does not end the controller.

        Raises:
            StoreError: the store is broken, which ends the controller.
        """
        if isinstance(question, m.ReloadKeys):
            return m.Answer(n, self._reloaded())
        try:
            return m.Answer(n, self._read(question))
        except StoreError:
            raise
        except Exception as error:
            log.exception("%s cannot be answered", type(question).__name__)
            text = f"{type(question).__name__} cannot be answered: {type(error).__name__}: {text_of(error)}"
            return m.Answer(n, m.Refusal("KernelError", text))

    def _read(self, question: object) -> m.Reply:
        if isinstance(question, m.ReadTask):
            return task_copy(self._store, question.id)
        if isinstance(question, ListCache | ForgetCache | ReadCacheKey):
            return self._cache.answer(question)
        assert isinstance(question, m.ListConnections), f"{type(question).__name__} is the scheduler's to answer"
        return self._access.connections() if self._access is not None else NO_KEYS

    def _reloaded(self) -> m.NumberReply | m.Refusal:
        if self._access is None:
            return NO_KEYS
        try:
            cut, over = self._access.reload()
        except (SecurityError, OSError) as error:
            log.error("the keys were not read again: %s", error)
            return m.Refusal("SecurityError", f"the keys of before hold on: {error}")
        self._give_up(over)
        return m.NumberReply(cut)


def task_copy(store: Store, task_id: int) -> m.TaskCopy | m.Refusal:
    """Return a copy of a task, or of an item of a map, as it was submitted.

    A client runs it itself: the copy has the work, the code and the inputs."""
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
    return m.TaskCopy(task, store.functions(list(dict.fromkeys(code_of(task.function, task.rules)))), inputs, item)


def _end_of(store: Store, task_id: int) -> Final | None:
    """Return the end of a task; of an item that shared its run, that of its chunk."""
    found = store.finals([task_id])
    if not found and (chunk := store.chunk_of(task_id)) is not None:
        found = store.finals([chunk])
    return found[0] if found else None


def _gone(task_id: int) -> m.Refusal:
    return m.Refusal("IndexError", f"there is no task {task_id}: it was never submitted, or has been cleared")
