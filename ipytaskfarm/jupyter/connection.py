"""Which farm the magics of a shell talk to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from ..client import MultiEngineClient, TaskClient
from ..deployment.settings import DEFAULT_NAME

Run: TypeAlias = tuple[str, int, float]
"""One run of a farm: its name, and the pid and the start of the process that looks after it."""


@dataclass
class MagicsConnection:
    """Of one shell."""

    where: str | None = None
    """A farm's name or a connection file; None: the default farm."""
    clients: list[TaskClient | MultiEngineClient] = field(default_factory=list)
    """Kept, so that the connection stays between one magic and the next."""
    started: set[Run] = field(default_factory=set)
    """The farms that were started here."""


_of_shell: WeakKeyDictionary[Any, MagicsConnection] = WeakKeyDictionary()


def connection(shell: Any) -> MagicsConnection:
    """Return the shell's; one that talks to the default farm at first."""
    return _of_shell.setdefault(shell, MagicsConnection())


def connect(shell: Any, where: str | None) -> TaskClient:
    """Talk to this farm from now on.  FarmNotRunning and the like: everything stays as it was."""
    mine = connection(shell)
    client = TaskClient(where)
    _close(mine)
    mine.where = where
    mine.clients.append(client)
    return client


def disconnect(shell: Any) -> None:
    """Let go of the connection; the farm and its tasks go on."""
    mine = _of_shell.pop(shell, None)
    if mine is not None:
        _close(mine)


def task_client(shell: Any) -> TaskClient:
    """Return a client of the shell's farm; it works again after the farm was stopped and started."""
    mine = connection(shell)
    client = TaskClient(mine.where)
    _close(mine)
    mine.clients.append(client)
    return client


def engine_client(shell: Any) -> MultiEngineClient:
    """Return the same for its engines."""
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
