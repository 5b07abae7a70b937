"""A durable task farm of IPython kernels.

The folders say where code runs, and an import only ever points to a line above its own:

``core``        values and decisions: no IO, no clock, no chance, no threads
``policies``    the queue policies a user may choose, or write
``environment`` what prepares engines: classes that users fill in
``doors``       each opens onto exactly one outside thing: the wire, the store, pickle, the flight recorder …
``engine``      runs in the engine's process, an IPython kernel with one more lane
``evaluator``   the child process that calls users' ``depend`` functions
``agent``       one per machine: starts, watches and replaces its engines
``controller``  one per farm: takes in, decides, writes down, hands out
``client``      runs in the user's process: `TaskClient`, `MultiEngineClient`, results
``launchers``   how processes get onto machines
``settings``    how a farm is to be; ``home``: its folders on this machine
``questions``   asking a farm without the weight of the client
``enrol``       keys of a farm, made, replaced and taken away
``groups``      agents on other machines: asked of launchers, remembered, sent away; ``tender``: looks after them
``supervisor``  one per farm: has controller and agents running; ``start_errors``: why they did not start
``farm``        `Farm`: starts, connects, stops
``detached``    farms that go on by themselves: started and stopped from outside
``doctor``      looks for what could keep a farm from working
``jupyter``     magics and displays
``cli``         the ``ipytaskfarm`` command

``engine`` to ``client`` never import one another: they meet in ``core/messages.py``.
``docs/architecture.md`` has the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

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
    "__version__",
]

if TYPE_CHECKING:
    from . import client as client
    from .client import Job as Job
    from .client import Join as Join
    from .client import MapTask as MapTask
    from .client import MultiEngineClient as MultiEngineClient
    from .client import Ref as Ref
    from .client import StringTask as StringTask
    from .client import Task as Task
    from .client import TaskClient as TaskClient
    from .client import TaskFuture as TaskFuture
    from .client import TaskResult as TaskResult
    from .client import add_dependency as add_dependency
    from .core import errors as errors
    from .environment import RecycleSettings as RecycleSettings
    from .environment import TaskEnvironment as TaskEnvironment
    from .farm import Farm as Farm
    from .settings import Agents as Agents
else:
    # Controller, agent and evaluator import this file too, on their way to their own folder: what they
    # do not use (the client, the launchers) must not cost them start-up time. The list above is for
    # static tools, this one for the interpreter; tests/test_api.py holds them together.
    _WHERE = {
        "client": ("ipytaskfarm.client", None),
        "errors": ("ipytaskfarm.core.errors", None),
        "Farm": ("ipytaskfarm.farm", "Farm"),
        "Agents": ("ipytaskfarm.settings", "Agents"),
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
