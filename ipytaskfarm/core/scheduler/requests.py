"""Questions and commands that were passed on to engines and wait for their answers, and the farm's sticky commands."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..messages.task_types import Incarnation, RunKey
from ..saves import SaveSticky


@dataclass(slots=True)
class PendingCommand:
    """A MultiEngine command that an engine has not answered."""

    session: str
    n: int
    engine: Incarnation
    verb: str
    text: str = ""


@dataclass(slots=True)
class EngineRequests:
    """What was asked of engines."""

    commands: dict[tuple[str, int, Incarnation], PendingCommand] = field(default_factory=dict)
    """(session, number of the command, engine) -> the command."""
    sticky: dict[str, SaveSticky] = field(default_factory=dict)
    """Key -> a command that each new engine runs before its first task, in this order."""
    stacks: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    """Number of a stack query -> (session of the client, number of its question, session of the agent)."""
    outputs: dict[int, tuple[str, Incarnation, RunKey]] = field(default_factory=dict)
    """Number of a query about output -> (session of the client, engine, run)."""
    outputs_asked: dict[tuple[str, Incarnation], float] = field(default_factory=dict)
    """(session of the client, engine) -> when (monotonic) the engine was asked for output."""
