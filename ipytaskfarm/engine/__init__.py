"""What runs inside an engine's process: an IPython kernel that also runs tasks.

`zygote` forks engines; `kernel` makes the process a Jupyter kernel; `lane` brings work from the agent; `runner` runs
it; `commands` answers MultiEngine clients; `process` puts them together.

Importing this package costs nothing: user code does it for `get_engine` and `current_task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import InvalidEngineID

if TYPE_CHECKING:
    from collections.abc import Callable

    from .current import CurrentTask
    from .properties import Properties

__all__ = ["Engine", "current_task", "get_engine", "is_engine"]


class Engine:
    """The engine this code runs on.  ``engine.properties['RAM'] = 2**33`` is seen by `depend` functions at once."""

    def __init__(self, engine_id: int, properties: Properties, facts: dict[str, Any]) -> None:
        self.id = engine_id
        self._properties = properties
        self._facts = facts

    @property
    def properties(self) -> Properties:
        """Return the user's dictionary on this engine.  Values must be picklable; the facts' names are taken."""
        return self._properties

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the farm knows of this engine: a copy."""
        return dict(self._facts)

    def __repr__(self) -> str:
        return f"<Engine {self.id}: {dict(self._properties)!r}>"


_here: Engine | None = None
_current: Callable[[], CurrentTask | None] | None = None


def current_task() -> CurrentTask:
    """Return the task that this code is part of: its id, what it was allotted, and what it may ask for while it runs.

    Raises RuntimeError where no task runs: in a client, in a MultiEngine command, in a console's cell.
    """
    found = _current() if _current is not None else None
    if found is None:
        raise RuntimeError("current_task() was called where no task runs: it is for the code of tasks")
    return found


def is_engine() -> bool:
    """Return whether this process is an engine."""
    return _here is not None


def get_engine(id: int) -> Engine:
    """Return the engine of that id, in whose process this must be called (IPython 0.10's ``get_engine``).

    Raises:
        InvalidEngineID: this is another engine, or none at all.
    """
    if _here is None:
        raise InvalidEngineID(f"get_engine({id}): this process is no engine; a client has mec.set_properties")
    if id != _here.id:
        raise InvalidEngineID(f"get_engine({id}): this is engine {_here.id}, which knows only itself")
    return _here
