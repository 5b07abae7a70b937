"""Questions and commands that were passed on to engines and wait for answers, and the farm's sticky commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..messages.task_types import Incarnation, RunKey
from ..saves import DropKept, SaveKept, SaveSticky
from .clients import OpenQuestions
from .decision import Decision
from .kept_commands import KeptOnEngine


@dataclass(slots=True)
class Keeping:
    """The part of a command to keep once engines have answered it; its engines share this object."""

    command: SaveKept
    opted_out: bool
    """Whether the client does not want it to be done again."""
    absent: list[int]
    """The ids of engines that are being replaced, and would have been sent the command too."""
    kept_on: int = -1
    """The engine id on which the command was kept last."""


@dataclass(slots=True)
class PendingCommand:
    """A MultiEngine command that an engine has not answered."""

    session: str
    n: int
    engine: Incarnation
    verb: str
    text: str = ""
    keeping: Keeping | None = None
    checkpoint: int = 0
    """The number under which a checkpoint is kept.  0: it is another command."""


HELD_S = 30.0
"""How long a command is held for an engine while no replacement of it starts, or while it is unreachable."""


@dataclass(slots=True)
class HeldCommand:
    """A MultiEngine command to an engine that is being replaced."""

    key: tuple[str, int, Incarnation]
    """Its key in `EngineRequests.commands`."""
    body: bytes


@dataclass(slots=True)
class EngineRequests:
    """The open requests to engines."""

    commands: dict[tuple[str, int, Incarnation], PendingCommand] = field(default_factory=dict)
    """(session, number of the command, engine) -> the command."""
    open_commands: OpenQuestions = field(default_factory=OpenQuestions)
    """The clients of `commands`."""
    sticky: dict[str, SaveSticky] = field(default_factory=dict)
    """Key -> a command that each new engine runs before its first task, in this order."""
    kept: dict[int, KeptOnEngine] = field(default_factory=dict)
    """Engine id -> commands that were done by hand on its engines."""
    replaced: dict[int, bool] = field(default_factory=dict)
    """The ids of engines that are lost or unreachable, until one of that id is ready -> whether commands wait."""
    unwanted: set[int] = field(default_factory=set)
    """The ids of starting engines that were removed: each is ended as soon as it is up."""
    held: dict[int, list[HeldCommand]] = field(default_factory=dict)
    """Engine id -> commands that wait for the replacement of the engine, in their order."""
    held_bytes: int = 0
    """The size of all of these commands."""
    stacks: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    """Number of a stack query -> (session of the client, number of its question, session of the agent)."""
    open_stacks: OpenQuestions = field(default_factory=OpenQuestions)
    """The clients of `stacks`."""
    kernels: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    """The same for questions to the kernels of frozen engines."""
    outputs: dict[int, tuple[str, Incarnation, RunKey, bool]] = field(default_factory=dict)
    """Number of a query about output -> (session of the client, engine, run, whether an empty answer is
    passed on too).
    """
    outputs_asked: dict[tuple[str, Incarnation, RunKey], tuple[float, int]] = field(default_factory=dict)
    """(session of the client, engine, run) -> when (monotonic) the engine was asked for the run's output last, and the
    number of that query."""

    def begin_command(self, key: tuple[str, int, Incarnation], command: PendingCommand) -> None:
        """Record that a command waits for an engine's answer."""
        if key not in self.commands:
            self.open_commands.begin(key[0])
        self.commands[key] = command

    def end_command(self, key: tuple[str, int, Incarnation]) -> PendingCommand | None:
        """Record that a command does not wait any more, and return it; None if it did not."""
        command = self.commands.pop(key, None)
        if command is not None:
            self.open_commands.end(key[0])
        return command

    def forget_kept(self, ids: Iterable[int], out: Decision) -> None:
        """Forget the commands that were done by hand on the engines of these ids."""
        for engine_id in ids:
            if self.kept.pop(engine_id, None) is not None:
                out.saves.append(DropKept(engine_id, None))
