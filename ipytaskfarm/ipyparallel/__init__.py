"""ipyparallel's interface over a farm: ``import ipytaskfarm.ipyparallel as ipp``.

    import ipytaskfarm.ipyparallel as ipp

    with ipp.Cluster(n=4) as rc:
        rc[:].push({"a": 7})
        rc.load_balanced_view().map_sync(f, range(100))

The package ipyparallel is not needed.
"""

from __future__ import annotations

from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import Any

from ipytaskfarm.adapters.ipyparallel.async_results import AsyncHubResult, AsyncMapResult, AsyncResult
from ipytaskfarm.adapters.ipyparallel.balanced_view import LoadBalancedView
from ipytaskfarm.adapters.ipyparallel.client import Client
from ipytaskfarm.adapters.ipyparallel.cluster import Cluster
from ipytaskfarm.adapters.ipyparallel.dependencies import Dependency, depend, dependent, require
from ipytaskfarm.adapters.ipyparallel.errors import (
    AlreadyDisplayedError,
    CompositeError,
    DependencyTimeout,
    EngineError,
    ImpossibleDependency,
    InvalidDependency,
    IPythonError,
    KernelError,
    NoEnginesRegistered,
    RemoteError,
    TaskAborted,
    TaskRejectError,
    TaskTimeout,
    TimeoutError,
    UnmetDependency,
)
from ipytaskfarm.adapters.ipyparallel.executors import ViewExecutor
from ipytaskfarm.adapters.ipyparallel.references import Reference, interactive
from ipytaskfarm.adapters.ipyparallel.remote_functions import ParallelFunction, RemoteFunction, parallel, remote
from ipytaskfarm.adapters.ipyparallel.views import BroadcastView, DirectView
from ipytaskfarm.ipyparallel import error

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AlreadyDisplayedError",
    "AsyncHubResult",
    "AsyncMapResult",
    "AsyncResult",
    "BroadcastView",
    "Client",
    "Cluster",
    "CompositeError",
    "Dependency",
    "DependencyTimeout",
    "DirectView",
    "EngineError",
    "IPythonError",
    "ImpossibleDependency",
    "InvalidDependency",
    "KernelError",
    "LoadBalancedView",
    "NoEnginesRegistered",
    "ParallelFunction",
    "Reference",
    "RemoteError",
    "RemoteFunction",
    "TaskAborted",
    "TaskRejectError",
    "TaskTimeout",
    "TimeoutError",
    "UnmetDependency",
    "ViewExecutor",
    "depend",
    "dependent",
    "error",
    "interactive",
    "parallel",
    "register_joblib_backend",
    "remote",
    "require",
]


def register_joblib_backend(name: str = "ipyparallel", make_default: bool = False) -> None:
    """Let ``joblib.Parallel(backend=name)`` submit to the farm "default"."""
    from ipytaskfarm.adapters.ipyparallel.joblib_views import register

    register(name, make_default)


def load_ipython_extension(shell: Any) -> None:
    """Do nothing: ``%load_ext`` is not needed, because a `Client` registers the magics."""
