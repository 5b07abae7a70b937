"""The parts of a task (`Rules`, `Submission`) and of its end (`Ended`, `Final`).

These values travel inside the messages of `core.messages`, and the store keeps them. Values that only clients and
engines read are in `core.messages.payload`, requirements of tasks in `core.requirements`.

Structs that travel by the thousand are arrays without a tag (``array_like``). Names that end in ``_s`` are seconds:
wall-clock seconds since the epoch if the name says when (``submitted_s``), plain durations otherwise (``run_s``). An
*engine* is an incarnation, ``"<agent session>.<counter>"``; an *engine id* is the small number that people see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from ..requirements import Asks, Recycle
from .result_cache import CacheKey

FAIL, SKIP, RUN = "fail", "skip", "run"
"""What happens to a task if one that it waits for has failed: it fails too, it ends as skipped, or it runs all the
same."""
IF_FAILED = (FAIL, SKIP, RUN)


class Needs(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The edges of the graph that lead to one task."""

    after: tuple[int, ...]
    """The tasks that must have ended before this one begins."""
    inputs: tuple[tuple[int, int], ...] = ()
    """(id under which the payload asks for a value, id of the task with that result). `after` has these tasks too."""
    if_failed: str = FAIL
    join: bool = False
    """Whether the task has no payload: it succeeds as soon as `after` have ended, without an engine. n tasks before
    and m after a join are n + m edges instead of n × m."""
    keep: bool = False
    """Whether the task is cleared only by its id, not with all others: later tasks need it."""

    @property
    def takes(self) -> tuple[int, ...]:
        """Return the tasks with results that this one uses."""
        return tuple(source for _, source in self.inputs)


Incarnation: TypeAlias = str
RunKey: TypeAlias = tuple[int, int]
"""(task id, attempt number): names one run of one task, and is never given again."""

_runs = msgspec.msgpack.Decoder(list[RunKey])
RUN_BYTES_MAX = 19
"""The most bytes of a run, as `encode_runs` writes it."""


def encode_runs(runs: list[RunKey]) -> bytes:
    """Return many runs as bytes, for a message that has them of many engines."""
    return msgspec.msgpack.encode(runs) if runs else b""


def decode_runs(encoded: bytes) -> list[RunKey]:
    """Return the runs that `encode_runs` has encoded.

    Raises:
        msgspec.MsgspecError: these bytes are no runs.
    """
    return _runs.decode(encoded) if encoded else []


class Recovery(msgspec.Struct, frozen=True):
    """A recovery task: it runs under the id of a task that has used all its retries."""

    payload: bytes
    function: str | None = None
    rules: Rules | None = None


class Rules(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where and how often a task runs.  None in its place means that all rules are defaults."""

    name: str | None = None
    priority: int = 0
    retries: int = 0
    lost_retries: int | None = None
    """Retries after the loss of an engine.  None: they are taken from `retries`."""
    time_limit_s: float | None = None
    targets: tuple[int, ...] | None = None
    depend: str | None = None
    """Digest of the depend function. Its code is sent as a `Function`."""
    recovery: Recovery | None = None
    retry_of: int | None = None
    """The task of which this one is a linked retry."""
    job: str | None = None
    """Id of the job that the task belongs to."""
    asks: Asks | None = None
    """The task's requirements of its engine and node; None for none."""
    grace_s: float | None = None
    """Between the task's interrupt and the signals that end its engine.  None: as the farm's settings say."""
    retry_delays_s: tuple[float, ...] = ()
    """Before the first, second … run after an error.  The last one holds for all further runs."""
    retry_on: tuple[str, ...] = ()
    """Qualified names of the exceptions after which the task is run again, subclasses included.  (): all."""
    defer_s: float = 300.0
    """Before the next trial of a deferred run that does not give a time itself."""
    defer_max_s: float = 3600.0
    """A run that is deferred later than this after the first trial's begin has failed."""
    warn_after_s: float | None = None
    """The client is warned when a run takes longer."""
    unique: str | None = None
    """The task is refused while another task with this key has not ended."""
    coroutine: bool = False
    """The task calls a coroutine function: an engine may run it beside others of its kind."""
    freeze: bool = False
    """An engine on which an attempt fails is frozen: it keeps the attempt's frames for a debugger."""
    idempotent: bool = False
    """A second copy of the task may run beside a slow one, and the first success counts."""


class JobSpec(msgspec.Struct, frozen=True):
    """A job that tasks of the same message belong to.  When the same id comes again, the job has become larger."""

    id: str
    name: str
    total: int
    """The job has ended when this number of its tasks has been submitted and has ended."""
    environment: str | None = None
    """Identity of the job's default environment, which it uses as long as it has not ended."""
    recycle: Recycle | None = None
    abort_on_failure: bool = False
    """Whether the first of its tasks that fails ends all others."""
    abort_on_disconnect: bool = False
    """Whether the end of its client's connection ends all its tasks."""
    unique: str | None = None
    """The job's tasks are refused while another job with this key has not ended."""
    opened_s: float = 0.0
    """When the job was first submitted."""
    is_map: bool = False
    """Whether its tasks are the items of a map, in the order of acceptance."""


class Function(msgspec.Struct, frozen=True, array_like=True):
    """The code of a function, named by its normalised digest and sent once to each receiver."""

    digest: str
    code: bytes


SENT_AGAIN_BYTES = 16 * 1024
"""A client sends code of up to this size with each message whose tasks need it, and larger code once."""
LARGE_CODE_SENT = 200
"""How many larger ones a client remembers to have sent. The controller keeps twice as many for it."""


def code_of(function: str | None, rules: Rules | None) -> Iterator[str]:
    """Yield the digests of all code that a task with this function and these rules needs."""
    while True:
        if function is not None:
            yield function
        if rules is None:
            return
        if rules.depend is not None:
            yield rules.depend
        if rules.asks is not None:
            if rules.asks.identity is not None:
                yield rules.asks.identity
            if rules.asks.locality is not None:
                yield rules.asks.locality
        if rules.recovery is None:
            return
        function, rules = rules.recovery.function, rules.recovery.rules


class Submission(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task as the client submits it."""

    id: int
    payload: bytes
    submitted_s: float
    function: str | None = None
    rules: Rules | None = None
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the payload and the payloads of the recovery tasks need, see `storage.blobs`."""
    needs: Needs | None = None
    """The task's dependencies."""
    items: int = 0
    """Of a chunk: how many items of a map it has.  Their ids are the next ones after its own.  0: it is no chunk."""
    part: tuple[int, int] | None = None
    """Of a separate item: (its chunk, its index there).  Then the payload is the chunk's."""
    cache: CacheKey | None = None
    """The key of its result, if the task uses the result cache."""


class Packed(msgspec.Struct, frozen=True):
    """A task that can be submitted; it gets its id later."""

    payload: bytes
    function: str | None = None
    rules: Rules | None = None
    functions: tuple[Function, ...] = ()
    """The code of `function`, of the depend functions and of the recovery tasks."""
    raw: bool = False
    blobs: tuple[str, ...] = ()
    """Digests of the large values that were written as blobs."""
    needs: Needs | None = None
    """The task's dependencies. Tasks of its own job that have no id yet are named -1 - position."""
    items: int = 0
    """See `Submission.items`."""
    cache: CacheKey | None = None
    """See `Submission.cache`."""


class FailureSummary(msgspec.Struct, frozen=True, array_like=True):
    """Why an attempt failed, as far as the controller needs to know.  The texts are hostile, and bounded."""

    etype: str
    value: str
    place: str = ""
    """``file:line in function`` of the user's innermost frame."""
    kinds: tuple[str, ...] = ()
    """Qualified names of the exception's class and its bases, for `Rules.retry_on`.  The store does not keep them."""


class Deferral(msgspec.Struct, frozen=True, tag=True):
    """The run has ended because it asked to be run again later."""

    after_s: float | None = None
    """None: as the task's rules say."""
    message: str = ""
    """The message for people."""
    state: bytes = b""
    """A packed dict that the next trial gets."""
    received: int = 0
    """How many of the messages sent to the task were read."""


class LostInputs(msgspec.Struct, frozen=True, tag=True):
    """The run has found that results which it was given are lost."""

    ids: tuple[int, ...]
    engines: tuple[int, ...] = ()
    """Ids of engines that are replaced, because their contents are lost too."""


class ItemEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of one item of a chunk of which there is something to tell: it failed, or has written something."""

    index: int
    outcome: str
    """As in `Ended`."""
    run_s: float
    failure: FailureSummary | None = None
    body: bytes = b""
    """An encoded `ResultBody` of this item alone."""
    detail: Deferral | LostInputs | None = None


class ItemsEnded(msgspec.Struct, frozen=True, tag=True):
    """How far a chunk has come.  The values of the items that are not among `told` stand in the body of its end."""

    done: int
    """So many items were called; the others were not begun."""
    told: list[ItemEnd] = []


class FrozenRun(msgspec.Struct, frozen=True):
    """The failed attempt of which a frozen engine keeps the frames."""

    run: RunKey
    task: int
    """The task as people know it: of a chunk, the item that failed."""
    error: str
    """The type of the error, and the beginning of its text."""
    place: str = ""
    """See `FailureSummary.place`."""
    used_s: float = 0.0
    """When the attempt failed, or the last cell was run on the engine (wall clock of its node)."""


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of one attempt, as the engine wrote it into the flight recorder."""

    task: int
    attempt: int
    outcome: str
    """"" for success, else a `core.states.Reason` value ("error", "rejected", "time limit", ...)."""
    started_s: float
    run_s: float
    failure: FailureSummary | None = None
    body: bytes = b""
    """An encoded `ResultBody`; agent and controller do not look into it."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the body needs."""
    memory_bytes: int = 0
    """The engine's private memory after the run, if the run asked for it."""
    detail: Deferral | LostInputs | ItemsEnded | None = None
    """The details of outcome "deferred" or "inputs lost", and of a chunk."""
    frozen: FrozenRun | None = None
    """Set if the engine has frozen itself after this attempt: it keeps the frames, and runs nothing more."""
    outdated: str = ""
    """Why the result does not belong to its key in the result cache: a module that the engine has run is another one
    than that of the key."""


class AttemptRow(msgspec.Struct, frozen=True, array_like=True):
    """One attempt in a task's history."""

    number: int
    engine_id: int
    node: str
    started_s: float
    ended_s: float
    outcome: str
    failure: FailureSummary | None = None


RESULT_CACHE = "the result cache"
"""Stands for the node of a task whose result was taken from there."""


class Final(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task's end for clients. If `body` is None, there is a result to be fetched."""

    id: int
    reason: str
    """"" for succeeded, else why it failed (a `core.states.Reason` value)."""
    engine_id: int
    node: str
    attempts: int
    submitted_s: float
    started_s: float
    run_s: float
    completed_s: float
    failure: FailureSummary | None = None
    body: bytes | None = None
    history: list[AttemptRow] = []
    """The attempts before the last one."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the body needs.  Only the store uses them; it does not give them back."""
    items: int = 0
    """See `Submission.items`."""
    separate: tuple[int, ...] = ()
    """Of a chunk: the indexes of the items that are tasks of their own."""

    @property
    def from_cache(self) -> bool:
        """Return whether the result was taken from the result cache, so that the task ran nowhere."""
        return self.engine_id < 0 and self.node == RESULT_CACHE


class KeptResults(msgspec.Struct, frozen=True, tag=True):
    """Results that the cache has for tasks of this client, see `CacheKey.value_first`.

    They come before the tasks' ends are on disk; the same ends come in `Finals` after that.
    """

    finals: list[Final]
