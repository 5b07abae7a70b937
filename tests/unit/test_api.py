"""The public names: a list under test, exported once, seen by static tools, and cheap where they are not used."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

import ipytaskfarm
from ipytaskfarm.core import errors

PUBLIC = {
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
    "FarmClusterExecutor",
    "Pool",
    "__version__",
}
MODULES = {"client", "errors"}
FUNCTIONS = {"add_dependency"}
CLIENT_MODULE = {"TaskClient", "Task", "MapTask", "StringTask", "MultiEngineClient", "default_task_address"}
"""What IPython 0.10's ``IPython.kernel.client`` had, and old scripts use."""
OLD_ERRORS = {
    "KernelError", "QueueCleared", "InvalidEngineID", "NoEnginesRegistered", "InvalidDeferredID", "NotAPendingResult",
    "InvalidProperty", "TaskAborted", "TaskTimeout", "TaskRejectError", "UnpickleableException", "CompositeError",
    "SecurityError", "ConnectionError",
}  # fmt: skip
FRONT_DOOR = Path(ipytaskfarm.__file__)


def test_the_list_of_names_is_this_one() -> None:
    assert set(ipytaskfarm.__all__) == PUBLIC
    assert len(ipytaskfarm.__all__) == len(PUBLIC), "a name stands in __all__ twice"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_can_be_had(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from ipytaskfarm import {name}", namespace)
    assert namespace[name] is getattr(ipytaskfarm, name)


def test_the_packages_docstring_names_each_of_them() -> None:
    shown = inspect.getdoc(ipytaskfarm) or ""
    assert [name for name in sorted(PUBLIC - {"__version__"}) if f"`{name}`" not in shown] == []


def test_a_star_import_gives_all_of_them() -> None:
    namespace: dict[str, object] = {}
    exec("from ipytaskfarm import *", namespace)
    assert namespace.keys() >= PUBLIC


def test_each_thing_has_one_name() -> None:
    things = [id(getattr(ipytaskfarm, name)) for name in PUBLIC]
    assert len(things) == len(set(things))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ipytaskfarm' has no attribute 'Jobb'"):
        _ = ipytaskfarm.Jobb  # type: ignore[attr-defined]


def test_static_tools_and_the_interpreter_read_the_same_list() -> None:
    """The package lists its names twice: as imports for type checkers, and as a table for the interpreter."""
    tree = ast.parse(FRONT_DOOR.read_text())
    (switch,) = [node for node in tree.body if isinstance(node, ast.If)]
    static: list[tuple[str, tuple[str, str | None]]] = []
    for node in switch.body:
        assert isinstance(node, ast.ImportFrom)
        origin = ".".join(filter(None, ["ipytaskfarm", node.module]))
        for alias in node.names:
            assert alias.asname == alias.name, "import x as x: else it is private to type checkers"
            thing = (f"{origin}.{alias.name}", None) if alias.name in MODULES else (origin, alias.name)
            static.append((alias.name, thing))
    assert len(dict(static)) == len(static), "a name is imported twice"
    assert dict(static) == vars(ipytaskfarm)["_WHERE"]
    assert set(dict(static)) == PUBLIC - {"__version__"}


def test_completion_offers_every_name() -> None:
    code = "import ipytaskfarm\nipytaskfarm."
    offered = {completion.name for completion in jedi.Script(code).complete(2, len("ipytaskfarm."))}
    assert offered >= PUBLIC
    assert set(dir(ipytaskfarm)) >= PUBLIC


def test_the_client_module_has_the_old_names() -> None:
    missing = {name for name in CLIENT_MODULE if not hasattr(ipytaskfarm.client, name)}
    assert not missing
    assert issubclass(ipytaskfarm.MapTask, ipytaskfarm.Task)
    assert issubclass(ipytaskfarm.StringTask, ipytaskfarm.Task)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_public_function_has_a_docstring(name: str) -> None:
    function = getattr(ipytaskfarm, name)
    assert inspect.isfunction(function)
    assert inspect.getdoc(function)
    assert getattr(ipytaskfarm.client, name) is function


@pytest.mark.parametrize("name", sorted(PUBLIC - MODULES - FUNCTIONS - {"__version__"}))
def test_every_public_class_and_method_has_a_docstring(name: str) -> None:
    cls = getattr(ipytaskfarm, name)
    assert inspect.isclass(cls)
    assert inspect.getdoc(cls)
    bare = [
        member
        for member, value in inspect.getmembers(cls, lambda v: inspect.isfunction(v) or isinstance(v, property))
        if not member.startswith("_") and not inspect.getdoc(value)
    ]
    assert not bare, f"{name}: say what these do, what they take, return and raise: {bare}"


def test_one_tree_of_errors() -> None:
    own = {name: cls for name, cls in vars(errors).items() if getattr(cls, "__module__", "") == errors.__name__}
    outside = {name for name, cls in own.items() if not issubclass(cls, errors.TaskFarmError)}
    assert outside == {"TaskCancelled"}, "it must pass a task's `except Exception`, nothing else may"
    assert issubclass(errors.TaskCancelled, KeyboardInterrupt)
    assert own.keys() >= OLD_ERRORS
    assert all(inspect.getdoc(cls) for cls in own.values())


def test_the_tree_at_the_top_of_the_errors_shows_all_of_them() -> None:
    words = [line.strip(" │├└─").split(" ")[0] for line in (errors.__doc__ or "").splitlines()]
    drawn = {word.split("(")[0] for word in words}
    own = {cls.__name__ for cls in vars(errors).values() if getattr(cls, "__module__", "") == errors.__name__}
    assert own <= drawn


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("ipytaskfarm", "msgspec zmq IPython ipykernel traitlets tornado dill asyncio"),
        ("ipytaskfarm.core.messages", "zmq IPython ipykernel traitlets tornado dill asyncio jupyter_client"),
        ("ipytaskfarm.controller.__main__", "IPython ipykernel dill tornado tqdm rich traitlets jupyter_client"),
        ("ipytaskfarm.agent.__main__", "IPython ipykernel dill tqdm rich"),
        ("ipytaskfarm.cli", "msgspec zmq IPython ipykernel traitlets tornado dill asyncio"),
        ("ipytaskfarm.client", "IPython ipykernel tornado"),
    ],
)
def test_a_process_does_not_pay_for_what_it_does_not_use(module: str, banned: str) -> None:
    """Start-up time is felt: importing IPython costs 0.3 s, and each of a farm's processes would pay it."""
    code = f"import {module}, sys; print(*sorted(set({banned.split()!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(FRONT_DOOR.parents[1])}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
