"""All errors of the farm, and the other names of IPython 0.10's ``IPython.kernel.error``.

``from IPython.kernel.error import CompositeError`` becomes ``from ipytaskfarm.errors import CompositeError``.  The tree
of errors is in `core.errors`.  The names below exist only so that old scripts can import them and use them in
``except``.  If the farm raises another error in the same case, the old name is an alias of that error; otherwise it is
a class that is never raised.
"""

from __future__ import annotations

from .core.errors import (
    BlobMissing,
    CompositeError,
    ConnectionError,
    DeferredTooLong,
    DependenciesFailed,
    DependencyFailed,
    DuplicateTask,
    EngineLost,
    EnvironmentSetupError,
    FarmExists,
    FarmNotRunning,
    FarmReplaced,
    InputsLost,
    InvalidDeferredID,
    InvalidEngineID,
    InvalidProperty,
    KernelError,
    LauncherError,
    MemoryLimitExceeded,
    ModuleMissing,
    NoEnginesRegistered,
    NotAPendingResult,
    Quarantined,
    QueueCleared,
    QueuePolicyError,
    RemoteError,
    ResultTooLarge,
    SecurityError,
    SessionError,
    StoreError,
    StoreFull,
    TaskAborted,
    TaskCancelled,
    TaskError,
    TaskFarmError,
    TaskRejectError,
    TaskSkipped,
    TaskTimeout,
    TimeLimitExceeded,
    UnpickleableException,
    VersionMismatch,
)

IPythonError = TaskFarmError
ControllerError = KernelError
EngineError = EngineLost
ProtocolError = VersionMismatch
SerializationError = UnpickleableException
MessageSizeError = PBMessageSizeError = ResultTooLarge
AbortedPendingDeferredError = InvalidDeferredID


class ControllerCreationError(KernelError):
    """Never raised: a farm that cannot start raises an error about the cause."""


class EngineCreationError(KernelError):
    """Never raised: engines are started again by their agent, and `ipytaskfarm status` shows why one did not start."""


class NotDefined(KernelError):
    """Never raised: a name that is not there is a NameError."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"<NotDefined: {self.name}>"


class IdInUse(KernelError):
    """Never raised: the controller gives out the ids of engines."""


class InvalidClientID(KernelError):
    """Never raised: a client that was silent for long is accepted again."""


class ResultNotCompleted(KernelError):
    """Never raised: ``get_result(block=False)`` returns its default."""


class ResultAlreadyRetrieved(KernelError):
    """Never raised: a result may be read any number of times."""


class ClientError(KernelError):
    """Never raised: it was the base class of errors in a client."""


class MissingBlockArgument(KernelError):
    """Never raised: every call has a default for `block`."""


class StopLocalExecution(KernelError):
    """Never raised: it ended the local run of a ``with`` block that ran on the engines; such blocks are
    not supported.
    """


class FileTimeoutError(KernelError):
    """Never raised: a client that finds no connection file raises FarmNotRunning."""


__all__ = [
    "AbortedPendingDeferredError",
    "BlobMissing",
    "ClientError",
    "CompositeError",
    "ConnectionError",
    "ControllerCreationError",
    "ControllerError",
    "DeferredTooLong",
    "DependenciesFailed",
    "DependencyFailed",
    "DuplicateTask",
    "EngineCreationError",
    "EngineError",
    "EngineLost",
    "EnvironmentSetupError",
    "FarmExists",
    "FarmNotRunning",
    "FarmReplaced",
    "FileTimeoutError",
    "IPythonError",
    "IdInUse",
    "InputsLost",
    "InvalidClientID",
    "InvalidDeferredID",
    "InvalidEngineID",
    "InvalidProperty",
    "KernelError",
    "LauncherError",
    "MemoryLimitExceeded",
    "MessageSizeError",
    "MissingBlockArgument",
    "ModuleMissing",
    "NoEnginesRegistered",
    "NotAPendingResult",
    "NotDefined",
    "PBMessageSizeError",
    "ProtocolError",
    "Quarantined",
    "QueueCleared",
    "QueuePolicyError",
    "RemoteError",
    "ResultAlreadyRetrieved",
    "ResultNotCompleted",
    "ResultTooLarge",
    "SecurityError",
    "SerializationError",
    "SessionError",
    "StopLocalExecution",
    "StoreError",
    "StoreFull",
    "TaskAborted",
    "TaskCancelled",
    "TaskError",
    "TaskFarmError",
    "TaskRejectError",
    "TaskSkipped",
    "TaskTimeout",
    "TimeLimitExceeded",
    "UnpickleableException",
    "VersionMismatch",
]
