"""A durable task farm of IPython kernels.

The folders say where code runs, and an import only ever points to a line above its own:

``version``        the version
``core``           values and decisions: messages, the scheduler, its handlers; no IO, clock, chance or threads
``settings``       each setting of a farm once: flags, arguments, configuration and docs are made of it
``policies``       the queue policies that a user may choose, or write
``errors``         every error, and IPython 0.10's names for them; ``error`` is the same
``environment``    what prepares engines: classes that users fill in
``system``         what the operating system gives: the flight recorder, paths, disk, memory, cores
``storage``        SQLite: the store, blobs, the event log
``transport``      ZeroMQ: hub, peer, reliable sessions, keys
``serialization``  values and code as bytes
``engine``         runs in the engine's process, an IPython kernel with one more lane
``agent``          one per machine: starts, watches and replaces its engines
``controller``     one per farm: takes in, decides, writes down, hands out; ``controller/evaluator`` calls ``depend``
functions
``client``         runs in the user's process: `TaskClient`, `MultiEngineClient`, results
``launchers``      how processes get onto machines
``deployment``     how a farm is started, kept running and asked: `Farm`, the supervisor, settings
``doctor``         finds what keeps a farm from working
``jupyter``        magics and displays
``cli``            the ``ipytaskfarm`` command
``adapters``       other libraries' interfaces over the farm: `Executor`, dask's; ``joblib`` registers joblib's
``testing``        a farm in memory, on a clock that a test moves, for tests of one's own policies, rules and tasks

``engine`` to ``client`` never import one another: they meet in ``core/messages``.
``docs/architecture.md`` has the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__ as __version__

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
    "Ref",
    "Join",
    "Job",
    "TaskEnvironment",
    "RecycleSettings",
    "add_dependency",
    "Executor",
    "__version__",
]

if TYPE_CHECKING:
    from . import client as client, errors as errors
    from .adapters.executor import Executor as Executor
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
    from .settings.checks import Agents as Agents
else:
    # Controller, agent and evaluator import this file too, on their way to their own folder: what they
    # do not use (the client, the launchers) must not cost them start-up time. The list above is for
    # static tools, this one for the interpreter; tests/unit/test_api.py holds them together.
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
        "Ref": ("ipytaskfarm.client", "Ref"),
        "Join": ("ipytaskfarm.client", "Join"),
        "Job": ("ipytaskfarm.client", "Job"),
        "TaskEnvironment": ("ipytaskfarm.environment", "TaskEnvironment"),
        "RecycleSettings": ("ipytaskfarm.environment", "RecycleSettings"),
        "add_dependency": ("ipytaskfarm.client", "add_dependency"),
        "Executor": ("ipytaskfarm.adapters.executor", "Executor"),
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        try:
            module_name, attribute = _WHERE[name]
        except KeyError:
            raise AttributeError(f"module 'ipytaskfarm' has no attribute {name!r}") from None
        module = import_module(module_name)
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def load_ipython_extension(shell: object) -> None:
    """``%load_ext ipytaskfarm``: the magics, see docs/magics.md."""
    from .jupyter import load

    load(shell)


def unload_ipython_extension(shell: object) -> None:
    """``%unload_ext ipytaskfarm``: without the magics again; farms and tasks go on."""
    from .jupyter import unload

    unload(shell)
