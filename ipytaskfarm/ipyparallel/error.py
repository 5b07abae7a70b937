"""The names of ``ipyparallel.error``."""

from __future__ import annotations

from ipytaskfarm.adapters.ipyparallel.errors import (
    AlreadyDisplayedError as AlreadyDisplayedError,
    CompositeError as CompositeError,
    DependencyTimeout as DependencyTimeout,
    EngineError as EngineError,
    ImpossibleDependency as ImpossibleDependency,
    InvalidDependency as InvalidDependency,
    IPythonError as IPythonError,
    KernelError as KernelError,
    NoEnginesRegistered as NoEnginesRegistered,
    RemoteError as RemoteError,
    TaskAborted as TaskAborted,
    TaskRejectError as TaskRejectError,
    TaskTimeout as TaskTimeout,
    TimeoutError as TimeoutError,
    UnmetDependency as UnmetDependency,
)
