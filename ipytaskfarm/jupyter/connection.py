"""Keep the farm that the magics of a shell use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from ..client import TaskClient
from ..core.errors import FarmNotRunning
from ..deployment.home import FarmRun, Home
from ..deployment.settings import DEFAULT_NAME


@dataclass
class MagicsConnection:
    """The connection of one shell."""

    where: str | None = None
    """A farm's name or a connection file; None: the default farm."""
    clients: list[TaskClient] = field(default_factory=list)
    """Clients that keep the connection open between two magics."""
    started: set[FarmRun] = field(default_factory=set)
    """The runs of farms that this shell has started."""


_of_shell: WeakKeyDictionary[Any, MagicsConnection] = WeakKeyDictionary()


def connection(shell: Any) -> MagicsConnection:
    """Return the shell's connection; at first it is to the default farm."""
    return _of_shell.setdefault(shell, MagicsConnection())


def connect(shell: Any, where: str | None) -> TaskClient:
    """Use this farm from now on.  After an error such as FarmNotRunning the shell keeps its farm."""
    mine = connection(shell)
    client = _client(where)
    _close(mine)
    mine.where = where
    mine.clients.append(client)
    return client


def disconnect(shell: Any) -> None:
    """Close the shell's connection; the farm and its tasks go on.

    The shell keeps its farm: ``%reload_ext`` unloads and loads, and the next cell would be sent to another farm.
    """
    if (mine := _of_shell.get(shell)) is not None:
        _close(mine)


def task_client(shell: Any) -> TaskClient:
    """Return a task client of the shell's farm, which also works after the farm was stopped and started again."""
    mine = connection(shell)
    client = _client(mine.where)
    _close(mine)
    mine.clients.append(client)
    return client


def _client(where: str | None) -> TaskClient:
    """Return a client of a farm.  The error for a farm that does not run names the magics that help."""
    try:
        return TaskClient(where)
    except FarmNotRunning as error:
        name = DEFAULT_NAME if where is None else where
        if os.sep in name or name.endswith(".json"):
            raise
        start = f"%taskfarm start {name}".removesuffix(f" {DEFAULT_NAME}")
        raise FarmNotRunning(f"{error}. Here: {start} starts it, %taskfarm connect NAME uses another farm") from None


def notebook() -> str:
    """Return the name that Jupyter gives the notebook of this kernel, or "".  A restarted kernel gets the same name."""
    return os.environ.get("JPY_SESSION_NAME", "")


def note_start(shell: Any, home: Home) -> None:
    """Record that this shell, and its notebook, have started a farm."""
    run = home.present_run()
    if run is not None:
        connection(shell).started.add(run)
        home.remember_notebook(notebook())


def has_started(shell: Any, home: Home) -> bool:
    """Return whether this shell has started the farm's present run, or its notebook has, before the kernel was
    restarted.
    """
    return home.present_run() in connection(shell).started or home.is_of_notebook(notebook())


def farm_to_stop(shell: Any) -> str:
    """Return the farm that ``%taskfarm stop`` means: the shell's farm.

    A kernel that has used no farm yet stops the farm that its notebook started.
    """
    mine = connection(shell)
    if mine.where is None and not mine.clients and notebook():
        started = [home.name for home in Home.all() if home.is_of_notebook(notebook())]
        if len(started) == 1:
            return started[0]
    return farm_name(shell)


def farm_name(shell: Any) -> str:
    """Return the name of the shell's farm, or its connection file."""
    return connection(shell).where or DEFAULT_NAME


def _close(mine: MagicsConnection) -> None:
    for client in mine.clients:
        client.close()
    mine.clients.clear()
