"""The output of running tasks and commands, for clients that wait, and for people who look."""

from __future__ import annotations

import msgspec

from .payload import ItemOutput
from .task_types import RunKey

_decode_items = msgspec.msgpack.Decoder(list[ItemOutput]).decode

ANY_ATTEMPT = 0
NO_DISPLAYS = 1 << 62
"""A number of the last display after which none comes."""


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Question: ask the engines for the output of these tasks (None: all of this session).

    Answer: `NumberReply`, how many engines were asked; then an `Output` from each that has new output (empty: each)."""

    ids: list[int] | None
    seen: list[tuple[int, int, int, int, int]] = []
    """What the client knows: (task, attempt or `ANY_ATTEMPT`, characters of stdout, of stderr, number of the last
    display)."""
    empty: bool = False

    @classmethod
    def latest(cls, task: int) -> Outputs:
        """Return the question for the end of what a task, or an item of a map, has written."""
        return cls([task], [(task, ANY_ATTEMPT, 0, 0, NO_DISPLAYS)], empty=True)


class CommandOutputs(msgspec.Struct, frozen=True, tag=True):
    """Question: the output of this session's command on engines that have not answered it. Answer: as for `Outputs`."""

    number: int
    seen: list[tuple[int, int, int, int]] = []
    """What the client knows: (engine id, characters of stdout, of stderr, number of the last display)."""


class Output(msgspec.Struct, frozen=True, tag=True):
    """What a running task or command has printed and displayed since the last `Output`."""

    run: RunKey
    """For a command: (-1, its number)."""
    engine_id: int
    stdout: str
    stderr: str
    seen: tuple[int, int]
    """The number of characters of stdout and stderr up to here."""
    displays: bytes = b""
    """Encoded (place, display) pairs of new and changed displays."""
    serial: int = 0
    """The number of the last of these displays."""
    items: bytes = b""
    """Of a chunk of a map: an encoded list of `payload.ItemOutput`, in place of stdout and stderr."""

    def texts_of(self, task: int) -> tuple[str, str] | None:
        """Return what a task, or an item of the chunk, has written; None: this is another task's output."""
        first = self.run[0] + 1
        if self.run[0] == task:
            return self.stdout, self.stderr
        items = _decode_items(self.items) if self.items and first <= task else []
        return next(((each.stdout, each.stderr) for each in items if first + each.index == task), None)
