"""Keep the farm that the magics of a shell use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from ..client import MultiEngineClient, TaskClient
from ..deployment.settings import DEFAULT_NAME

Run: TypeAlias = tuple[str, int, float]
"""One run of a farm: the farm's name, and the pid and the start time of the process that supervises it."""


@dataclass
class MagicsConnection:
    """The connection of one shell."""

    where: str | None = None
    """A farm's name or a connection file; None: the default farm."""
    clients: list[TaskClient | MultiEngineClient] = field(default_factory=list)
    """Clients that keep the connection open between two magics."""
    started: set[Run] = field(default_factory=set)
    """The farms that this shell has started."""


_of_shell: WeakKeyDictionary[Any, MagicsConnection] = WeakKeyDictionary()


def connection(shell: Any) -> MagicsConnection:
    """Return the shell's connection; at first it is to the default farm."""
    return _of_shell.setdefault(shell, MagicsConnection())


def connect(shell: Any, where: str | None) -> TaskClient:
    """Use this farm from now on.  After an error such as FarmNotRunning the shell keeps its farm."""
    mine = connection(shell)
    client = TaskClient(where)
    _close(mine)
    mine.where = where
    mine.clients.append(client)
    return client


def disconnect(shell: Any) -> None:
    """Close the shell's connection; the farm and its tasks go on."""
    mine = _of_shell.pop(shell, None)
    if mine is not None:
        _close(mine)


def task_client(shell: Any) -> TaskClient:
    """Return a task client of the shell's farm, which also works after the farm was stopped and started again."""
    mine = connection(shell)
    client = TaskClient(mine.where)
    _close(mine)
    mine.clients.append(client)
    return client


def engine_client(shell: Any) -> MultiEngineClient:
    """Return an engine client of the shell's farm."""
    client = MultiEngineClient(connection(shell).where)
    connection(shell).clients.append(client)
    return client


def farm_name(shell: Any) -> str:
    """Return the name of the shell's farm, or its connection file."""
    return connection(shell).where or DEFAULT_NAME


def _close(mine: MagicsConnection) -> None:
    for client in mine.clients:
        client.close()
    mine.clients.clear()
