"""ipyparallel's interface over a farm: ``import ipytaskfarm.ipyparallel as ipp``.

    import ipytaskfarm.ipyparallel as ipp

    with ipp.Cluster(n=4) as rc:
        rc[:].push({"a": 7})
        rc.load_balanced_view().map_sync(f, range(100))

The package ipyparallel is not needed.
"""

from __future__ import annotations

from concurrent.futures import (
    ALL_COMPLETED as ALL_COMPLETED,
    FIRST_COMPLETED as FIRST_COMPLETED,
    FIRST_EXCEPTION as FIRST_EXCEPTION,
)
from typing import TYPE_CHECKING, Any

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
    "bind_kernel",
    "depend",
    "dependent",
    "error",
    "interactive",
    "parallel",
    "register_joblib_backend",
    "remote",
    "require",
]

if TYPE_CHECKING:
    from ipytaskfarm.adapters.ipyparallel.async_results import (
        AsyncHubResult as AsyncHubResult,
        AsyncMapResult as AsyncMapResult,
        AsyncResult as AsyncResult,
    )
    from ipytaskfarm.adapters.ipyparallel.balanced_view import LoadBalancedView as LoadBalancedView
    from ipytaskfarm.adapters.ipyparallel.client import Client as Client
    from ipytaskfarm.adapters.ipyparallel.cluster import Cluster as Cluster
    from ipytaskfarm.adapters.ipyparallel.dependencies import (
        Dependency as Dependency,
        depend as depend,
        dependent as dependent,
        require as require,
    )
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
    from ipytaskfarm.adapters.ipyparallel.references import Reference as Reference, interactive as interactive
    from ipytaskfarm.adapters.ipyparallel.remote_functions import (
        PartsFunction as ParallelFunction,
        RemoteFunction as RemoteFunction,
        ViewExecutor as ViewExecutor,
        parallel as parallel,
        remote as remote,
    )
    from ipytaskfarm.adapters.ipyparallel.views import BroadcastView as BroadcastView, DirectView as DirectView
    from ipytaskfarm.ipyparallel import error as error
else:
    # A module of functions for engines imports this one for `require` and the like.  Engines must not import the
    # client then, which takes longer than most calls.
    _MODULES = {
        "async_results": ("AsyncHubResult", "AsyncMapResult", "AsyncResult"),
        "balanced_view": ("LoadBalancedView",),
        "client": ("Client",),
        "cluster": ("Cluster",),
        "dependencies": ("Dependency", "depend", "dependent", "require"),
        "references": ("Reference", "interactive"),
        "remote_functions": ("ParallelFunction", "RemoteFunction", "ViewExecutor", "parallel", "remote"),
        "views": ("BroadcastView", "DirectView"),
    }
    _WHERE = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name == "error":
            return import_module("ipytaskfarm.ipyparallel.error")
        if name not in __all__:
            raise AttributeError(f"module 'ipytaskfarm.ipyparallel' has no attribute {name!r}")
        module = import_module(f"ipytaskfarm.adapters.ipyparallel.{_WHERE.get(name, 'errors')}")
        found = getattr(module, "PartsFunction" if name == "ParallelFunction" else name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def register_joblib_backend(name: str = "ipyparallel", make_default: bool = False) -> None:
    """Let ``joblib.Parallel(backend=name)`` submit to the farm "default"."""
    from ipytaskfarm.adapters.ipyparallel.joblib_views import register

    register(name, make_default)


def bind_kernel(**options: Any) -> None:
    """Do nothing: an engine is a kernel from its start, and ``%connect_info`` on it says how to connect."""


def load_ipython_extension(shell: Any) -> None:
    """Do nothing: ``%load_ext`` is not needed, because a `Client` registers the magics."""
