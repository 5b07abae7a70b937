"""What a task is made of (`Rules`, `Submission`) and what comes back (`Ended`, `Final`).

Values that travel inside the messages of `core.messages`, and that the store keeps.  What client and engine say to each
other through the others' hands stands in `core.work`, what tasks ask of their engines in `core.demands`.

Structs that travel by the thousand are arrays without a tag (``array_like``).  Words ending in ``_s`` are seconds:
wall-clock seconds since the epoch where the name says when (``submitted_s``), plain durations otherwise (``run_s``).
An *engine* is an incarnation, ``"<agent session>.<counter>"``; an *engine id* is the small number people see.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from .demands import Asks, Recycle
from .needs import Needs

Incarnation: TypeAlias = str
RunKey: TypeAlias = tuple[int, int]
"""(task id, attempt number): names one run of one task, for ever."""


class Recovery(msgspec.Struct, frozen=True):
    """A recovery task: runs under the id of the task whose retries are used up."""

    payload: bytes
    function: str | None = None
    rules: Rules | None = None


class Rules(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where and how often a task runs.  None in its place means: all defaults."""

    name: str | None = None
    priority: int = 0
    retries: int = 0
    lost_retries: int | None = None
    """Retries after the loss of an engine; None: they come out of `retries`."""
    time_limit_s: float | None = None
    targets: tuple[int, ...] | None = None
    depend: str | None = None
    """Digest of the depend function, sent as a `Function`."""
    recovery: Recovery | None = None
    retry_of: int | None = None
    """The task that this one is a linked retry of."""
    job: str | None = None
    """Id of the job that it belongs to."""
    asks: Asks | None = None
    """What it asks of its engine and node; None: nothing."""
    grace_s: float | None = None
    """Between its interrupt and the signals that end its engine; None: the farm's."""
    retry_delays_s: tuple[float, ...] = ()
    """Before the first, second … run after an error; the last one holds for all that follow."""
    retry_on: tuple[str, ...] = ()
    """Qualified names of the exceptions after which it is run again, subclasses included; (): all."""
    defer_s: float = 300.0
    """Before the next trial of a deferred run that does not say it itself."""
    defer_max_s: float = 3600.0
    """So long after its first trial's begin a deferral is its end."""
    warn_after_s: float | None = None
    """So long may it run before somebody is told."""
    unique: str | None = None
    """It is refused while another task of this key has not ended."""


class JobSpec(msgspec.Struct, frozen=True):
    """A job that tasks of the same message belong to.  The same id again: it has become larger."""

    id: str
    name: str
    total: int
    """It has ended when so many tasks of it have been handed in, and have all ended."""
    environment: str | None = None
    """Identity of its default environment, which it uses as long as it has not ended."""
    recycle: Recycle | None = None
    abort_on_failure: bool = False
    """The first of its tasks that fails ends all others."""
    abort_on_disconnect: bool = False
    """So does the end of its client's connection."""
    unique: str | None = None
    """Its tasks are refused while another job of this key has not ended."""
    opened_s: float = 0.0
    """When it was first handed in."""


class Function(msgspec.Struct, frozen=True, array_like=True):
    """The code of a function, named by its normalised digest and sent once per receiver."""

    digest: str
    code: bytes


class Submission(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task as the client hands it in."""

    id: int
    payload: bytes
    submitted_s: float
    function: str | None = None
    rules: Rules | None = None
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that its payload and its recovery tasks' need, see `doors.blobs`."""
    needs: Needs | None = None
    """What it waits for."""


class Packed(NamedTuple):
    """A task ready to be handed in; the id comes later."""

    payload: bytes
    function: str | None = None
    rules: Rules | None = None
    functions: tuple[Function, ...] = ()
    """The code of `function`, of the depend functions and of the recovery tasks."""
    raw: bool = False
    blobs: tuple[str, ...] = ()
    """Digests of the large values that were written beside it."""
    needs: Needs | None = None
    """What it waits for; tasks of its own job that have no id yet stand there as -1 - position."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why an attempt failed, as much as the controller needs to know (text is hostile, and bounded)."""

    etype: str
    value: str
    place: str = ""
    """``file:line in function`` of the user's innermost frame."""
    kinds: tuple[str, ...] = ()
    """Qualified names of the exception's class and of its bases, for `Rules.retry_on`; not kept in the store."""


class Deferral(msgspec.Struct, frozen=True, tag=True):
    """The run has ended by its own wish, to come again."""

    after_s: float | None = None
    """None: as the task's rules say."""
    message: str = ""
    """For people."""
    state: bytes = b""
    """A packed dict, given to the next trial."""
    received: int = 0
    """So many of the messages sent to the task were read."""


class LostInputs(msgspec.Struct, frozen=True, tag=True):
    """The run has found that results which it was given are gone."""

    ids: tuple[int, ...]
    engines: tuple[int, ...] = ()
    """Engine ids to be replaced, because what they held is gone with them."""


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of one attempt, as the engine's runner wrote it into the flight recorder."""

    task: int
    attempt: int
    outcome: str
    """"" for success, else a `core.states.Reason` value ("error", "rejected", "time limit", ...)."""
    started_s: float
    run_s: float
    failure: Failure | None = None
    body: bytes = b""
    """An encoded `ResultBody`; opaque to agent and controller."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the body needs."""
    memory_bytes: int = 0
    """The engine's private memory after it, if the run asked for that."""
    word: Deferral | LostInputs | None = None
    """What outcome "deferred" or "inputs lost" means."""


class AttemptRow(msgspec.Struct, frozen=True, array_like=True):
    """One attempt in a task's history."""

    number: int
    engine_id: int
    node: str
    started_s: float
    ended_s: float
    outcome: str
    failure: Failure | None = None


class Final(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task's end, as clients are told.  `body` None: the result is there but has to be fetched."""

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
    failure: Failure | None = None
    body: bytes | None = None
    history: list[AttemptRow] = []
    """The attempts before the last one."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the body needs: for the store alone, it does not give them back."""
