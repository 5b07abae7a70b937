"""Every error of the farm, in one tree.

    TaskFarmError
    ├── KernelError                     old name for what IPython 0.10 had
    │   ├── QueueCleared                a command that waited behind one that failed
    │   ├── EngineLost                  (RuntimeError) the engine's process ended under the task
    │   ├── InvalidEngineID             (IndexError)
    │   ├── NoEnginesRegistered         (RuntimeError)
    │   ├── InvalidDeferredID           (KeyError)
    │   ├── NotAPendingResult           (TypeError)
    │   ├── InvalidProperty             (ValueError)
    │   ├── SessionError                a saved session cannot be restored here
    │   ├── CompositeError              several engines failed
    │   ├── TaskError
    │   │   ├── TaskAborted             somebody called abort
    │   │   ├── TaskTimeout             (TimeoutError) no engine could take it within unmet_timeout
    │   │   ├── TimeLimitExceeded       (TimeoutError) it ran longer than its time_limit
    │   │   ├── TaskRejectError         raised by a task: not on this engine, please
    │   │   ├── Quarantined             it killed every engine that it met
    │   │   ├── EnvironmentSetupError
    │   │   ├── InputsLost              raised by a task: these results are gone, make them again
    │   │   ├── DependencyFailed        a task it waits for failed
    │   │   │   └── TaskSkipped         … and it was to be skipped then
    │   │   ├── DuplicateTask           another one of its unique key has not ended
    │   │   ├── DeferredTooLong         (TimeoutError) its defer_max is over
    │   │   ├── MemoryLimitExceeded     (MemoryError)
    │   │   ├── ModuleMissing           (ModuleNotFoundError) an engine cannot import what goes by name
    │   │   ├── BlobMissing             (LookupError) the data of a value is gone, or on another machine
    │   │   ├── ResultTooLarge          (ValueError)
    │   │   └── RemoteError             a task's exception that could not be rebuilt here
    │   ├── UnpickleableException       (TypeError) a value cannot be pickled
    │   ├── ConnectionError             (builtins.ConnectionError)
    │   │   ├── FarmNotRunning
    │   │   └── FarmReplaced            another farm answers under this name
    │   └── SecurityError               keys missing, wrong, or too widely readable
    ├── VersionMismatch
    ├── StoreError
    │   └── StoreFull                   (OSError) no room on the disk; what was accepted is safe
    ├── FarmExists                      a farm of this name runs already
    ├── QueuePolicyError                (ValueError) the farm's queue policy cannot be used
    └── LauncherError                   the system that is to place agents refused, or is not there

    TaskCancelled(KeyboardInterrupt)    raised inside a task that is aborted or over its time limit; outside the
                                        tree so that a task's ``except Exception`` does not swallow it

Clients see `TaskAborted` or `TimeLimitExceeded` where the task saw `TaskCancelled`.
Names from IPython 0.10's ``IPython.kernel.error`` are kept.
"""

from __future__ import annotations

import builtins
import html
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from .lost_ids import LOST_SHOWN, lost_ids


class TaskFarmError(Exception):
    """Root of all errors of the farm."""


class KernelError(TaskFarmError):
    """The errors that IPython 0.10 had, under its name for the family."""


class QueueCleared(KernelError):
    """A command that waited on the engine behind a failed one, and was dropped."""


class EngineLost(KernelError, RuntimeError):
    """The engine's process ended while the task or command was on it.

    This is neither `TaskAborted` (somebody asked for that) nor `TimeLimitExceeded` (the task's own rule)."""


class InvalidEngineID(KernelError, IndexError):
    """No engine has this id; ``mec.get_ids()`` lists the ids."""


class NoEnginesRegistered(KernelError, RuntimeError):
    """The farm has no engines now; ``ipytaskfarm engines add`` starts some."""


class InvalidDeferredID(KernelError, KeyError):
    """This pending result was flushed."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotAPendingResult(KernelError, TypeError):
    """A PendingResult was expected."""


class InvalidProperty(KernelError, ValueError):
    """A property that cannot be set: it cannot be pickled, or it is one of the engine's facts."""


class SessionError(KernelError):
    """A saved session cannot be restored here.  The message names both sides; no name was changed."""


class CompositeError(KernelError):
    """One or more engines failed.

    ``elist`` holds (engine id, verb, exception) of the failing engines alone, nested ones flattened.
    """

    elist: list[tuple[int, str, BaseException]]

    def __init__(self, message: str, elist: list[tuple[int, str, BaseException]]) -> None:
        flat: list[tuple[int, str, BaseException]] = []
        for engine_id, verb, error in elist:
            flat.extend(error.elist if isinstance(error, CompositeError) else [(engine_id, verb, error)])
        super().__init__(message, flat)
        self.message = message
        self.elist = flat

    def __str__(self) -> str:
        lines = [f"[{i}:{verb}]: {type(e).__name__}: {e}" for i, verb, e in self.elist]
        return "\n".join([self.message, *lines])

    def _repr_html_(self) -> str:
        shown = []
        for engine_id, verb, error in self.elist:
            text = getattr(error, "remote_traceback", "") or ""
            head = html.escape(f"[{engine_id}:{verb}]: {type(error).__name__}: {error}")
            shown.append(f"<details><summary>{head}</summary><pre>{html.escape(text)}</pre></details>")
        return f"<div>{html.escape(self.message)}</div>{''.join(shown)}"

    def print_tracebacks(self, excid: int | None = None, file: TextIO | None = None) -> None:
        """Print the remote traceback of one failure, or of all."""
        chosen = self.elist if excid is None else [self._pick(excid)]
        for engine_id, verb, error in chosen:
            text = getattr(error, "remote_traceback", "") or f"{type(error).__name__}: {error}"
            print(f"[{engine_id}:{verb}]:\n{text}\n", file=file or sys.stdout)

    def raise_exception(self, excid: int = 0) -> None:
        """Raise one engine's exception.  IndexError: there is none of that number."""
        raise self._pick(excid)[2]

    def _pick(self, excid: int) -> tuple[int, str, BaseException]:
        try:
            return self.elist[excid]
        except IndexError:
            raise IndexError(f"this error holds {len(self.elist)} exceptions, there is no number {excid}") from None


class TaskError(KernelError):
    """The ends of a task other than a result."""


class TaskAborted(TaskError):
    """Somebody aborted the task.  Inside the task this was raised as `TaskCancelled`."""


class TaskTimeout(TaskError, TimeoutError):
    """No engine could take the task within the farm's ``unmet_timeout``.

    The task never began; a task that runs too long raises `TimeLimitExceeded`."""


class TimeLimitExceeded(TaskError, TimeoutError):
    """The task ran longer than its ``time_limit``.  A task that never begins raises `TaskTimeout`."""


class TaskRejectError(TaskError):
    """Raised by a task that must not run on this engine.  It goes to another engine, and no retry is spent."""


class Quarantined(TaskError):
    """Every engine that ran this task died of it.  The task is not run again."""


class EnvironmentSetupError(TaskError):
    """The task's environment could not be set up."""


class InputsLost(TaskError):
    """Raised by a task whose inputs are lost: ``InputsLost({engine: [task ids]})``, or only the ids.

    These tasks run again, then those that were made of their results, then the task that raised this.  None of it
    counts as a retry.  engine_lost: the engines are replaced too.  From bndl.execute's DependenciesFailed.

    Ids may be whatever `int` takes: numbers, numpy's numbers, text.

    Raises:
        ValueError: an id is no number of a task or engine, or there are more than 100,000 (`LOST_MAX`)."""

    def __init__(self, lost: Mapping[int, Iterable[int]] | Iterable[int] | str, engine_lost: bool = False) -> None:
        self.ids: list[int] = []
        self.engines: list[int] = []
        if isinstance(lost, str):  # as it comes back from an engine
            super().__init__(lost)
            return
        by_engine = {e: list(ids) for e, ids in lost.items()} if isinstance(lost, Mapping) else {}
        self.ids = lost_ids("task", (i for ids in by_engine.values() for i in ids) if by_engine else lost)
        self.engines = lost_ids("engine", by_engine) if engine_lost else []
        shown = [*map(str, self.ids[:LOST_SHOWN]), "…"] if len(self.ids) > LOST_SHOWN else map(str, self.ids)
        super().__init__(f"the results of tasks {', '.join(shown)} are lost")


DependenciesFailed = InputsLost


class DependencyFailed(TaskError):
    """A task that this one waits for failed."""


class TaskSkipped(DependencyFailed):
    """A task that this one waits for failed, and ``if_failed="skip"``."""


class DuplicateTask(TaskError):
    """Another task (or job) with the same unique key has not ended; `first` is its id."""

    @property
    def first(self) -> int | str | None:
        """Return the other task's id, as the message names it."""
        found = re.search(r"(?:^|: )(task|job) (\w+) of", str(self))
        if found is None:
            return None
        return int(found[2]) if found[1] == "task" else found[2]


class DeferredTooLong(TaskError, TimeoutError):
    """The task was deferred once more when its ``defer_max`` was over."""


class MemoryLimitExceeded(TaskError, MemoryError):
    """The engine used more memory than it was allowed, and was ended."""


class ModuleMissing(TaskError, ModuleNotFoundError):
    """A module that goes by name cannot be imported where the task runs; the message says which, and the remedy."""


class BlobMissing(TaskError, LookupError):
    """The data of a value is gone because its task was cleared, or is on another machine."""


class ResultTooLarge(TaskError, ValueError):
    """A result, or a task that was submitted, is larger than the farm's limit."""


class RemoteError(TaskError):
    """A task's exception whose type could not be rebuilt here.  ``etype`` names it, ``remote_traceback`` shows it."""

    def __init__(self, etype: str, value: str) -> None:
        super().__init__(etype, value)
        self.etype = etype
        self.value = value

    def __str__(self) -> str:
        return f"{self.etype}: {self.value}" if self.value else self.etype


class UnpickleableException(KernelError, TypeError):
    """A value cannot be pickled.  The message names it by its path inside the object."""


class ConnectionError(KernelError, builtins.ConnectionError):
    """The connection to the farm failed."""


class FarmNotRunning(ConnectionError):
    """No farm answers under that name or address."""


class FarmReplaced(ConnectionError):
    """Another farm answers than the one that this client knew.  Make a new client."""


class SecurityError(KernelError):
    """Keys are missing, wrong, or readable by others."""


class VersionMismatch(TaskFarmError):
    """The two sides speak different protocols.  The message names both versions."""


class StoreError(TaskFarmError):
    """The farm's store cannot be used.  The message names the file and the remedy."""


class StoreFull(StoreError, OSError):
    """The store's disk is full.  Nothing that was accepted is lost.  The client keeps the rest and repeats it."""


class FarmExists(TaskFarmError):
    """A farm of this name runs already."""


class QueuePolicyError(TaskFarmError, ValueError):
    """The farm's queue policy cannot be loaded, or fails at a trial call, so the farm does not start."""


class LauncherError(TaskFarmError):
    """The system that places agents (Slurm, ssh, …) refused, or is not there.  The text is the system's own."""


class TaskCancelled(KeyboardInterrupt):
    """Raised inside a running task that is aborted, or is over its time limit.

    It is a KeyboardInterrupt, so that ``except Exception`` does not swallow it."""
