"""The process of an engine: an IPython kernel that also runs tasks.

`zygote` forks engines; `kernel` makes the process a Jupyter kernel; `lane` brings work from the agent; `runner` runs
it; `commands` answers MultiEngine clients; `process` connects them.

Importing this package must cost nothing, because user code imports it for `get_engine` and `current_task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import InvalidEngineID

if TYPE_CHECKING:
    from collections.abc import Callable

    from .current import CurrentTask
    from .properties import Properties

__all__ = ["Engine", "current_task", "get_engine", "is_engine", "user_namespace"]


class Engine:
    """The engine on which this code runs.

    ``engine.properties['RAM'] = 2**33`` is visible to `depend` functions at once.
    """

    def __init__(self, engine_id: int, properties: Properties, facts: dict[str, Any]) -> None:
        self.id = engine_id
        self._properties = properties
        self._facts = facts

    @property
    def properties(self) -> Properties:
        """Return the user's dictionary on this engine. Values must be picklable, and names of facts cannot be used."""
        return self._properties

    @property
    def facts(self) -> dict[str, Any]:
        """Return a copy of the farm's facts about this engine."""
        return dict(self._facts)

    def __repr__(self) -> str:
        return f"<Engine {self.id}: {dict(self._properties)!r}>"


_here: Engine | None = None
_names: dict[str, Any] | None = None
_current: Callable[[], CurrentTask | None] | None = None


def current_task() -> CurrentTask:
    """Return the task to which this code belongs: its id, its allotment, and its questions to the farm.

    Raises:
        RuntimeError: no task runs here: in a client, in a MultiEngine command, in a console's cell.
    """
    found = _current() if _current is not None else None
    if found is None:
        raise RuntimeError("current_task() was called where no task runs: it is for the code of tasks")
    return found


def is_engine() -> bool:
    """Return whether this process is an engine."""
    return _here is not None


def user_namespace() -> dict[str, Any]:
    """Return the namespace of this engine, in which code is executed and names are pushed.

    Raises:
        RuntimeError: this process is no engine.
    """
    if _names is None:
        raise RuntimeError("user_namespace() was called outside an engine: it is for code that engines run")
    return _names


def get_engine(id: int) -> Engine:
    """Return the engine with this id (IPython 0.10's ``get_engine``). It must be the engine of the calling process.

    Raises:
        InvalidEngineID: this process is another engine, or no engine.
    """
    if _here is None:
        raise InvalidEngineID(f"get_engine({id}): this process is no engine; a client has mec.set_properties")
    if id != _here.id:
        raise InvalidEngineID(f"get_engine({id}): this is engine {_here.id}, which knows only itself")
    return _here
