"""The controller's side of the result cache: look-ups for the scheduler, results to keep, and answers to clients."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import msgspec

from ..core.messages import NumberReply
from ..core.messages.payload import ResultBody
from ..core.messages.result_cache import (
    REFRESH,
    CacheReport,
    CacheTable,
    ForgetCache,
    ListCache,
    ReadCacheKey,
)
from ..core.scheduler.decision import CacheResult, LookUp, Wanted
from ..core.scheduler.events import Cached, LookedUp
from ..storage.result_cache import ResultCache
from ..storage.store import Store

log = logging.getLogger(__name__)

NOT_ENDED_S = 1e12
"""Later than any end of a task (wall clock)."""

FAULTS_KEPT = 1000

_decode_body = msgspec.msgpack.Decoder(ResultBody).decode


class CacheAnswers:
    """Answers questions about kept results."""

    def __init__(self, store: Store, cache: ResultCache) -> None:
        self._store = store
        self._cache = cache
        self._faults: dict[int, str] = {}
        """Task -> why a result that was kept for it was not used; the latest ones."""

    def close(self) -> None:
        """Close the cache's file."""
        self._cache.close()

    def look_up(self, load: LookUp) -> LookedUp:
        """Return what is kept for these tasks."""
        return LookedUp([self._found(wanted) for wanted in load.wanted])

    def _found(self, wanted: Wanted) -> Cached:
        key = self._full_key(wanted.key, wanted.inputs)
        if not key or not wanted.takes:
            return Cached(wanted.task, key)
        kept, note = self._cache.get(key)
        if note:
            self._note_fault(wanted.task, note)
        return Cached(wanted.task, key, note=note) if kept is None else Cached(wanted.task, key, *kept)

    def _note_fault(self, task: int, why: str) -> None:
        self._faults[task] = why
        while len(self._faults) > FAULTS_KEPT:
            del self._faults[next(iter(self._faults))]

    def _full_key(self, key: str, inputs: Sequence[int]) -> str:
        """Return a key with the results of other tasks in it; "" if one of them failed or is gone."""
        if not inputs:
            return key
        total = hashlib.sha256(key.encode())
        for task in inputs:
            digest = self._digest_of_result(task)
            if not digest:
                return ""
            total.update(digest)
        return total.hexdigest()

    def _digest_of_result(self, task: int) -> bytes:
        item = 0
        found = self._store.finals([task])
        if not found and (chunk := self._store.chunk_of(task)) is not None:
            found, item = self._store.finals([chunk]), task - chunk
        if not found or found[0].reason or not found[0].body:
            return b""
        value = _decode_body(found[0].body).value or b""
        return hashlib.sha256(b"%d %s" % (item, value)).digest()

    def keep(self, results: Sequence[CacheResult]) -> None:
        with self._cache.together():
            for result in results:
                recipe = self._recipe(result.key.recipe)
                self._cache.put(result.full_key, result.key, result.final, recipe)

    def note_uses(self) -> None:
        """Write down which entries were taken; `look_up` leaves that for later."""
        self._cache.note_uses()

    def _recipe(self, digest: str) -> bytes:
        found = self._store.functions([digest])
        return found[0].code if found else b""

    def forget_results(self, tasks: Sequence[int]) -> None:
        """Forget results that are wrong or lost: those that these tasks have made or taken."""
        for task in tasks:
            gone = self._cache.remove_of_task(task)
            of_task = self._store.cache_key(task)
            if of_task is not None:
                gone += self._cache.remove([self._full_key(of_task[0].key, of_task[1])])
            if gone:
                self._note_fault(task, f"it is wrong or cannot be read, see tc.history({task})")
                log.info("the result of task %s was removed from the result cache", task)

    def answer(self, question: ListCache | ForgetCache | ReadCacheKey) -> CacheTable | NumberReply | CacheReport:
        """Answer a client's question."""
        if isinstance(question, ListCache):
            return self._cache.table(question.function, max(0, min(question.last, 100_000)))
        if isinstance(question, ForgetCache):
            return NumberReply(self._cache.forget(question.function, question.key, question.older_s))
        return self._report(question.task)

    def _report(self, task: int) -> CacheReport:
        of_task = self._store.cache_key(task)
        if of_task is None:
            return CacheReport(None)
        key, inputs = of_task
        recipe = self._recipe(key.recipe)
        finals = self._store.finals([task])
        final = finals[0] if finals else None
        state = "" if final is None else f"failed: {final.reason}" if final.reason else "succeeded"
        hit = final is not None and final.from_cache
        full_key = self._full_key(key.key, inputs) if final is not None or not inputs else ""
        entry = self._cache.entry(full_key) if full_key else None
        nearest = None
        if not hit and key.mode != REFRESH:
            before_s = final.started_s if final is not None and final.attempts else NOT_ENDED_S
            nearest = self._cache.nearest(key, recipe, before_s, task)
        other = self._cache.recipe(nearest.recipe) if nearest is not None else b""
        note = self._cache.notes[-1] if self._cache.notes else ""
        fault = self._faults.get(task, "")
        return CacheReport(key, state, hit, full_key, entry, nearest, recipe, other, note, fault)
