"""The modules of ``IPython.kernel`` (0.10), ``IPython.parallel`` and ipyparallel under the same names.

An old program imports ``IPython.kernel.task`` or ``ipyparallel.client.view`` besides its client.  When only the
package's name is changed, these imports find an alias here, or an error that says what to write.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    # `importlib.abc` imports tempfile, zipfile and others: 20 ms of each process.
    Loader = object

_PACKAGE = __name__.partition(".")[0]
_IPYPARALLEL = f"{_PACKAGE}.ipyparallel"
_ALIASES = {
    "task": "client", "taskclient": "client", "multiengineclient": "client", "multiengine": "client",
    "engineservice": "engine",
}  # fmt: skip
"""Old module -> the module that has its names."""
_OF_IPYPARALLEL = (
    "client", "client.asyncresult", "client.client", "client.remotefunction", "client.view", "cluster",
    "cluster.cluster", "controller", "controller.dependency", "util",
)  # fmt: skip
"""Modules of ipyparallel with names that `ipytaskfarm.ipyparallel` has itself."""
_GONE = {
    "asyncclient": "all clients work beside a running event loop, `await` a PendingResult or tc.result(id)",
    "contexts": "code runs on the engines by mec.execute(lines), mec.run(filename), or in a cell that begins with %%px",
    "magic": "mec.activate() registers %px, %autopx and %result; delete this import",
    "parallelmagic": "mec.activate() registers %px, %autopx and %result; delete this import",
    "mapper": "tc.mapper(…) and mec.mapper(…) make mappers",
    "parallelfunction": "@tc.parallel() and @mec.parallel() are the decorators",
    "newserialized": "push and pull pickle every value that can be pickled; delete this import",
    "pickleutil": "functions are sent as they are; delete this import",
    "codeutil": "functions are sent as they are; delete this import",
    "twistedutil": "nothing of Twisted is left; delete this import",
    "pendingdeferred": "a PendingResult has its value: get_result(), add_callback(f)",
    "util": "its functions were for callbacks of Twisted",
    "clientconnector": "TaskClient() and MultiEngineClient() connect",
    "controllerservice": "`ipytaskfarm start` starts a controller",
    "map": "mec.scatter and mec.gather split and join sequences",
    "kernel": f"the modules of IPython.kernel are those of {_PACKAGE}: from {_PACKAGE} import client",
    "parallel": f"import {_PACKAGE}.ipyparallel as ipp, for IPython.parallel too",
}
"""Old module -> what to write in its place."""
_GONE_OF_IPYPARALLEL = {
    "apps": "`ipytaskfarm start -n 4` starts a farm",
    "datapub": "current_task().send(value) and current_task().progress(done, total) tell the client of a task",
    "engine": f"from {_PACKAGE}.engine import current_task",
    "joblib": "ipp.register_joblib_backend()",
    "serialize": "values and functions are sent as they are; delete this import",
}
"""The same for ipyparallel's modules."""

_NAMES = {
    "Client": f"TaskClient() and MultiEngineClient(); ipyparallel's Client: import {_PACKAGE}.ipyparallel as ipp",
    **dict.fromkeys(("enqueue", "launch"), "tc.run(task); in a task current_task().submit(f, …)"),
    **dict.fromkeys(("remote", "RemoteMultiEngine"), _GONE["contexts"]),
    **dict.fromkeys(("ClusterJobScheduler", "EmbeddedJobScheduler"), "TaskClient() connects, Farm(n=4) starts a farm"),
    "JobPriority": "job.priority is a number, the highest first: -20, -10, 0, 10, 20",
    "JobTaskPreconditions": "job.requires = {'memory': '>= 4 GiB'}",
    "JobAgentSelectionPreference": "job.placement = 'random'",
    "HostRecycleSettings": "RecycleSettings(after_tasks=32)",
    "TaskEnvironmentRecycleSettings": "RecycleSettings(after_tasks=32)",
    **dict.fromkeys(("CoreJob", "CoreLoadJob"), "a task may be any object with execute()"),
    "RmiTask": "Task(f, args=…, kwargs=…)",
    "ExecutionContext": "TaskClient()",
    "BlockingTaskClient": "TaskClient()",
    **dict.fromkeys(("FullBlockingMultiEngineClient", "InteractiveMultiEngineClient"), "MultiEngineClient()"),
    **dict.fromkeys(("FIFOScheduler", "LIFOScheduler", "IScheduler"), "ipytaskfarm.policies.QueuePolicy, FIFO, LIFO"),
    **dict.fromkeys(("SynchronousTaskMapper", "TaskMapper"), "tc.mapper(…)"),
    "MultiEngineMapper": "mec.mapper(…)",
    "ParallelFunction": "tc.parallel(…), mec.parallel(…)",
    "BaseTask": "Task",
    "FailedDependency": "errors.DependenciesFailed",
}
"""Name of an old program's import -> what to write in its place."""


class _AliasLoader(Loader):
    """Loads a module that has the names of another one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        of = importlib.import_module(self._name)
        module.__dict__["__getattr__"] = lambda name: getattr(of, name)
        module.__dict__["__all__"] = list(getattr(of, "__all__", ()))


class OldNamesFinder:
    """Finds old modules and names after all other finders."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of an alias.  Raises ModuleNotFoundError for what has another name here."""
        parent, _, name = fullname.rpartition(".")
        if parent.partition(".")[0] != _PACKAGE:
            return None
        if fullname.startswith(_IPYPARALLEL + "."):
            return _of_ipyparallel(fullname)
        if parent == _PACKAGE and name in _ALIASES:
            return ModuleSpec(fullname, _AliasLoader(f"{_PACKAGE}.{_ALIASES[name]}"))
        found = _GONE.get(name) if parent == _PACKAGE else None
        if found is None and parent in (_PACKAGE, f"{_PACKAGE}.client", *(f"{_PACKAGE}.{each}" for each in _ALIASES)):
            found = _NAMES.get(name)
        if found is not None:
            raise _not_found(_PACKAGE, name, found)
        return None


def _of_ipyparallel(fullname: str) -> ModuleSpec | None:
    name = fullname.removeprefix(_IPYPARALLEL + ".")
    if name in _OF_IPYPARALLEL:
        return ModuleSpec(fullname, _AliasLoader(_IPYPARALLEL), is_package="." not in name)
    if name in _GONE_OF_IPYPARALLEL:
        raise _not_found(_IPYPARALLEL, name, _GONE_OF_IPYPARALLEL[name])
    return None


def _not_found(package: str, name: str, instead: str) -> ModuleNotFoundError:
    # With the asked name, ``from … import …`` would replace the error by one without the sentence.
    return ModuleNotFoundError(f"{package} has no {name!r}; instead: {instead}", name=f"old {name}")


def install() -> None:
    """Let imports find the old names, once."""
    if not any(isinstance(finder, OldNamesFinder) for finder in sys.meta_path):
        sys.meta_path.append(OldNamesFinder())
