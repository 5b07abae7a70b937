"""A durable task farm of IPython kernels.

Start a farm of engines on this machine, submit functions, and read their values::

    from ipytaskfarm import Farm, Task

    with Farm(n=4) as farm:
        tc = farm.task_client()
        tc.map(abs, [-1, -2])                            # [1, 2]
        tc.submit(pow, 2, 100).result()                  # a future, as of concurrent.futures
        id = tc.run(Task("a = b + 1", push={"b": 1}, pull="a", retries=2, time_limit=10))
        tc.get_task_result(id, block=True).ns.a          # 2

``ipytaskfarm start -n 4 --daemonize`` starts a farm that stays; ``TaskClient()`` connects to it from any program. Tasks
and results are on disk: they outlive the client, and the crash of any process.

    `Farm`                 start a farm, or resume one by its name
    `TaskClient`           ``run``, ``submit`` and ``map`` tasks, wait for them, ``explain`` and ``retry`` them
    `Task`                 code or a call, with its rules: retries, time limit, priority, resources, conditions …
    `Job`                  tasks that belong together: ``tc.create_job``
    `File`                 a path as an argument, known to the result cache by its content
    `Ref`, `Join`          the result of a task as an argument of another one; the end of several tasks
    `TaskFuture`           what ``tc.submit`` returns
    `TaskResult`           what ``tc.get_task_result`` returns: values, error, output, times
    `TaskEnvironment`      prepares an engine once for many tasks; `RecycleSettings`: when the engine is replaced
    `MultiEngineClient`    run code on chosen engines: ``execute``, ``push``, ``pull``, ``scatter``
    `Agents`               engines on other machines: Slurm, PBS, LSF, ssh, Dask
    `add_dependency`       send a module that engines cannot import
    `StringTask`, `MapTask`  kinds of `Task`, under their names in IPython 0.10
    `errors`               all errors by name
    `client`               the names of IPython 0.10's ``IPython.kernel.client``
    `Executor`, `Pool`     a farm with the interfaces of ``concurrent.futures`` and ``multiprocessing``
    `FarmClusterExecutor`  a farm with the interface of executorlib

``import ipytaskfarm.joblib`` lets joblib and scikit-learn run on a farm, ``tc.dask_get`` dask's collections. In IPython
and Jupyter ``%load_ext ipytaskfarm`` adds ``%%task``, ``%%taskmap``, ``%tasks``, ``%%px`` and others. ``README.md`` has
a quick start, ``docs/`` a page for each subject.
"""

from __future__ import annotations

import builtins as _builtins
from typing import TYPE_CHECKING

from .old_modules import install as _install
from .version import __version__ as __version__

_install()

__all__ = [
    "client",
    "errors",
    "Farm",
    "Agents",
    "TaskClient",
    "MultiEngineClient",
    "Task",
    "StringTask",
    "MapTask",
    "TaskResult",
    "TaskFuture",
    "File",
    "Ref",
    "Join",
    "Job",
    "TaskEnvironment",
    "RecycleSettings",
    "add_dependency",
    "Executor",
    "Pool",
    "FarmClusterExecutor",
    "__version__",
]

if TYPE_CHECKING:
    from . import client as client, errors as errors
    from .adapters.executor import Executor as Executor
    from .adapters.executorlib_executor import FarmClusterExecutor as FarmClusterExecutor
    from .adapters.pool import Pool as Pool
    from .client import (
        Job as Job,
        Join as Join,
        MapTask as MapTask,
        MultiEngineClient as MultiEngineClient,
        Ref as Ref,
        StringTask as StringTask,
        Task as Task,
        TaskClient as TaskClient,
        TaskFuture as TaskFuture,
        TaskResult as TaskResult,
        add_dependency as add_dependency,
    )
    from .deployment.farm import Farm as Farm
    from .environment import RecycleSettings as RecycleSettings, TaskEnvironment as TaskEnvironment
    from .serialization.file_arguments import File as File
    from .settings.checks import Agents as Agents
else:
    # Controller, agent and evaluator import this file too, on the way to their own packages: what they do not use (the
    # client, the launchers) must not cost them start-up time. The list above is for static tools, this one for the
    # interpreter; tests/unit/test_api.py checks that both agree.
    _WHERE = {
        "client": ("ipytaskfarm.client", None),
        "errors": ("ipytaskfarm.errors", None),
        "Farm": ("ipytaskfarm.deployment.farm", "Farm"),
        "Agents": ("ipytaskfarm.settings.checks", "Agents"),
        "TaskClient": ("ipytaskfarm.client", "TaskClient"),
        "MultiEngineClient": ("ipytaskfarm.client", "MultiEngineClient"),
        "Task": ("ipytaskfarm.client", "Task"),
        "StringTask": ("ipytaskfarm.client", "StringTask"),
        "MapTask": ("ipytaskfarm.client", "MapTask"),
        "TaskResult": ("ipytaskfarm.client", "TaskResult"),
        "TaskFuture": ("ipytaskfarm.client", "TaskFuture"),
        "File": ("ipytaskfarm.serialization.file_arguments", "File"),
        "Ref": ("ipytaskfarm.client", "Ref"),
        "Join": ("ipytaskfarm.client", "Join"),
        "Job": ("ipytaskfarm.client", "Job"),
        "TaskEnvironment": ("ipytaskfarm.environment", "TaskEnvironment"),
        "RecycleSettings": ("ipytaskfarm.environment", "RecycleSettings"),
        "add_dependency": ("ipytaskfarm.client", "add_dependency"),
        "Executor": ("ipytaskfarm.adapters.executor", "Executor"),
        "Pool": ("ipytaskfarm.adapters.pool", "Pool"),
        "FarmClusterExecutor": ("ipytaskfarm.adapters.executorlib_executor", "FarmClusterExecutor"),
    }

    _MEANT = {
        **dict.fromkeys(("Client", "connect"), "TaskClient(), or MultiEngineClient()"),
        **dict.fromkeys(("Cluster", "LocalCluster", "init", "start"), "Farm(n=4)"),
        **{name: f"TaskClient().{name}" for name in ("map", "submit", "run", "tasks", "jobs", "progress")},
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        try:
            module_name, attribute = _WHERE[name]
        except KeyError:
            if name == "TaskRejectError":  # ``from IPython.kernel import TaskRejectError``, also in code for engines
                return import_module("ipytaskfarm.errors").TaskRejectError
            near = ""
            if not name.startswith("_"):
                from .core.text import did_you_mean

                near = f"; instead: {_MEANT[name]}" if name in _MEANT else did_you_mean(name, __all__)
            raise AttributeError(f"module 'ipytaskfarm' has no attribute {name!r}{near}") from None
        try:
            module = import_module(module_name)
        except AttributeError as error:  # of it, ``from ipytaskfarm import …`` would tell nothing
            raise ImportError(f"ipytaskfarm cannot be imported: {error}{_hidden_modules()}") from error
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value

    def _hidden_modules() -> str:
        import os
        import sys

        files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sys.stdlib_module_names}
        home = os.path.dirname(os.__file__)
        found = [each for each, file in files.items() if file and not file.startswith(home) and "-packages" not in file]
        return "".join(f". {files[name]} hides Python's own {name}: rename it" for name in sorted(found))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    if hasattr(_builtins, "get_ipython"):
        from .display.ipython import hide_farms_frames as _hide_farms_frames, user_shell as _user_shell

        if _user_shell() is not None:
            _hide_farms_frames(_user_shell())


def load_ipython_extension(shell: object) -> None:
    """Load the magics: ``%load_ext ipytaskfarm``; see docs/magics.md."""
    from .jupyter import load

    load(shell)


def unload_ipython_extension(shell: object) -> None:
    """Remove the magics: ``%unload_ext ipytaskfarm``; farms and tasks go on."""
    from .jupyter import unload

    unload(shell)
