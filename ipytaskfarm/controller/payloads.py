"""Payloads of tasks, on their way from the store to the engines.

The scheduler knows no payloads, and a million of them must not fill the controller's memory.  Payloads that were just
accepted are cached while there is room, because most tasks run soon; the others are read from the store, batch by
batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator

import msgspec

from ..core.messages import Finals, HandOut, Input, Results, Run, Special, TaskBatch
from ..core.messages.task_types import Ended, FailureSummary, Final, Function, Incarnation
from ..core.parsing import owner
from ..core.saves import Save, SaveFunction, SaveTask
from ..core.scheduler.decision import Assignment
from ..core.states import Reason
from ..storage.store import Store

CACHE_BYTES = 64 * 2**20
_ENTRY_BYTES = 120
"""The bytes of an entry in addition to its payload."""

SENT_FUNCTIONS = 4096
"""How many functions the controller expects an engine to remember. Engines keep twice as many, in order of use."""

_encode = msgspec.msgpack.Encoder().encode
_decode_batch = msgspec.msgpack.Decoder(TaskBatch).decode


class Payloads:
    """Turns assignments into hand-outs."""

    def __init__(self, store: Store, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._room = cache_bytes
        self._waiting: dict[int, bytes] = {}
        self._code: OrderedDict[str, bytes] = OrderedDict()
        self._code_room = cache_bytes
        self._sent: dict[Incarnation, OrderedDict[str, None]] = {}

    def keep(self, saves: Iterable[Save]) -> None:
        """Cache payloads and code that were just committed, as far as there is room."""
        for save in saves:
            if type(save) is SaveTask:
                if save.part is not None:
                    continue  # its payload is the chunk's
                size = len(save.payload) + _ENTRY_BYTES
                if size <= self._room:
                    self._room -= size
                    self._waiting[save.id] = save.payload
            elif type(save) is SaveFunction:
                self._keep_code(save.digest, save.code)

    def _keep_code(self, digest: str, code: bytes) -> None:
        self._code[digest] = code
        self._code_room -= len(code)
        while self._code_room < 0 and len(self._code) > 1:
            self._code_room += len(self._code.popitem(last=False)[1])

    def forget(self, task_ids: Iterable[int]) -> None:
        """Drop the payloads of aborted tasks."""
        for task_id in task_ids:
            self._take(task_id)

    def forget_engine(self, engine: Incarnation) -> None:
        """Forget which functions a lost engine was sent."""
        self._sent.pop(engine, None)

    def forget_agents(self, sessions: Collection[str]) -> None:
        """Forget which functions the engines of agents were sent that never come back."""
        for engine in [name for name in self._sent if owner(name) in sessions]:
            del self._sent[engine]

    def _take(self, task_id: int) -> bytes | None:
        payload = self._waiting.pop(task_id, None)
        if payload is not None:
            self._room += len(payload) + _ENTRY_BYTES
        return payload

    def hand_out(self, assignment: Assignment) -> HandOut:
        """Return the message for an assignment, with the functions that its engine was not sent before."""
        payloads = {task[0]: self._take(task[0]) for task in assignment.tasks}
        missing = [task_id for task_id, payload in payloads.items() if payload is None]
        if missing:
            payloads.update((task_id, payload) for task_id, payload, _ in self._store.work(missing))
        runs = []
        keys = []
        allotment = assignment.allotment
        special = self._special(assignment)
        for task_id, attempt, function, time_limit_s, version, environment, measured, wants in assignment.tasks:
            payload = payloads[task_id] or b""
            with_it = special[task_id] if wants is not None else None
            runs.append(
                Run(
                    task_id, attempt, payload, function, time_limit_s, version, environment, measured, allotment,
                    with_it,
                )
            )  # fmt: skip
            keys.append((task_id, attempt))
        batch = msgspec.Raw(
            _encode(TaskBatch(runs, self._functions_for(assignment), assignment.number, newest_s=assignment.newest_s))
        )
        return HandOut(
            assignment.engine,
            keys,
            batch,
            assignment.environment,
            allotment,
            assignment.recycling,
            assignment.graces,
            assignment.concurrent,
        )

    def _special(self, assignment: Assignment) -> dict[int, Special]:
        """Return what some runs need in addition: results of other tasks, and the state of earlier trials."""
        wanted = {task[0]: task[7] for task in assignment.tasks if task[7] is not None}
        if not wanted:
            return {}
        chunks = {source: chunk for wants in wanted.values() for source, chunk in wants.chunks}
        sources = dict.fromkeys(chunks.get(source, source) for wants in wanted.values() for _, source in wants.inputs)
        finals = {final.id: final for final in self._store.finals(list(sources))} if sources else {}
        later = [task for task, wants in wanted.items() if wants.trial > 1]
        states = self._store.states(later) if later else {}
        return {
            task: Special(
                [input_of(*of, finals.get(chunks.get(of[1], of[1]))) for of in wants.inputs],
                wants.trial,
                states.get(task, b""),
                wants.received,
                wants.parent,
                wants.part,
                wants.concurrent,
                wants.freeze,
                wants.recovery,
            )
            for task, wants in wanted.items()
        }

    def _functions_for(self, assignment: Assignment) -> list[Function]:
        needed = dict.fromkeys(task[2] for task in assignment.tasks if task[2] is not None)
        needed.update(dict.fromkeys(task[5] for task in assignment.tasks if task[5] is not None))
        if not needed:
            return []
        sent = self._sent.setdefault(assignment.engine, OrderedDict())
        unsent = []
        for digest in needed:
            if digest in sent:
                sent.move_to_end(digest)
                continue
            unsent.append(digest)
            sent[digest] = None
            if len(sent) > SENT_FUNCTIONS:
                sent.popitem(last=False)
        return self.functions(unsent)

    def functions(self, digests: list[str]) -> list[Function]:
        """Return code by digest, from the cache or the store."""
        absent = [digest for digest in digests if digest not in self._code]
        for function in self._store.functions(absent) if absent else ():
            self._keep_code(function.digest, function.code)
        return [Function(digest, self._code[digest]) for digest in digests if digest in self._code]


def input_of(number: int, source: int, final: Final | None) -> Input:
    """Return the result of a task as the input of another one; `final` None: it does not exist any more."""
    if final is None:
        return Input(number, source)
    item = source - final.id - 1 if final.id != source else None
    return Input(number, source, final.reason, final.body or b"", final.failure, item, final.from_cache)


# -- hand-outs that are larger than a message may be, because a machine does not see the farm's folder of blobs


def singly(message: HandOut) -> Iterator[HandOut]:
    """Split a hand-out of several runs into hand-outs of one run each."""
    batch = _decode_batch(message.batch)
    functions = batch.functions
    for place, run in enumerate(batch.runs, batch.first):
        alone = msgspec.Raw(_encode(TaskBatch([run], functions, batch.number, place, batch.newest_s)))
        yield msgspec.structs.replace(message, runs=[(run.task, run.attempt)], batch=alone)
        functions = []


def parts_of(message: Finals) -> Iterator[Finals]:
    """Split ends of tasks that are larger than a message may be: in halves, or one without its result and texts."""
    finals = message.finals
    if len(finals) > 1:
        yield Finals(finals[: len(finals) // 2])
        yield Finals(finals[len(finals) // 2 :])
        return
    (final,) = finals
    failure = final.failure
    if failure is not None:
        failure = FailureSummary(failure.etype[:_TEXT_MAX], failure.value[:_TEXT_MAX], failure.place[:_TEXT_MAX])
    yield Finals([msgspec.structs.replace(final, body=None, failure=failure, history=[])])


_TEXT_MAX = 10_000
"""The most characters of each text of an error that is sent without the rest of it."""


def unsent(message: HandOut, why: str, now_s: float) -> Results:
    """Return the end of a run that cannot be sent, as if its engine had reported it. `now_s` is wall-clock time."""
    ((task, attempt),) = message.runs
    failure = FailureSummary(
        "ResultTooLarge", f"task {task} and the results that it takes are too large together: {why}"
    )
    return Results(message.engine, [Ended(task, attempt, Reason.TOO_LARGE.value, now_s, 0.0, failure)])
