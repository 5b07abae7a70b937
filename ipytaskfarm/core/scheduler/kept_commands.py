"""Commands that clients did by hand on the engines of one id, kept to be repeated on a replacement."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..saves import SaveKept

PROPERTIES = "properties"
"""The verb that changes an engine's properties."""
COMMANDS_MAX = 256
"""The number of commands that are kept for one engine id."""
BYTES_MAX = 64 * 2**20
"""The limit for the bytes of their bodies, which are in the controller's memory."""
BLOB_BYTES_MAX = 2**30
"""The limit for the bytes of their large values, which are files."""
OMITTED_MAX = 20
"""The number of unrepeated commands that are named."""
ATTEMPTS_MAX = 2
"""A command during which this many replacements ended is not repeated any more."""


@dataclass(slots=True)
class KeptOnEngine:
    """The commands that were done by hand on the engines of one id."""

    commands: dict[int, SaveKept] = field(default_factory=dict)
    """Number -> a command that a replacement repeats, in this order."""
    omitted: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Number -> (text, reason) of a command that a replacement does not repeat."""
    body_bytes: int = 0
    blob_bytes: int = 0
    lost: str = ""
    """How the last engine of this id ended; "" if it lives, or ended before the controller's restart."""
    ended_in: dict[int, int] = field(default_factory=dict)
    """Number -> how many engines ended while they repeated that command."""

    def add(self, command: SaveKept) -> None:
        """Keep a command, in the order of the numbers."""
        later = next(reversed(self.commands), -1) > command.number
        self.commands[command.number] = command
        if later:
            self.commands = dict(sorted(self.commands.items()))
        self.body_bytes += len(command.body)
        self.blob_bytes += sum(command.blobs.values())

    def remove(self, number: int) -> SaveKept | None:
        """Stop keeping a command; None if it was not kept."""
        command = self.commands.pop(number, None)
        if command is not None:
            self.body_bytes -= len(command.body)
            self.blob_bytes -= sum(command.blobs.values())
        return command

    def omit(self, number: int, text: str, why: str) -> list[int]:
        """Record that a command is not repeated, and return the numbers of older records that are dropped for it."""
        self.omitted[number] = text, why
        given_up = list(self.omitted)[:-OMITTED_MAX]
        for old in given_up:
            del self.omitted[old]
        return given_up

    def is_known(self, session: str, n: int) -> bool:
        """Return whether this command of a client, or a later one, is kept, so that it was answered."""
        return any(command.session == session and command.n >= n for command in self.commands.values())

    def covered_by(self, checkpoint: int) -> list[int]:
        """Return the numbers of the commands before a checkpoint, and of the notes of what was not kept until then."""
        return [number for number in (*self.commands, *self.omitted) if number < checkpoint]

    def forget(self, numbers: list[int]) -> None:
        """Keep these commands and notes no longer."""
        for number in numbers:
            self.remove(number)
            self.omitted.pop(number, None)
            self.ended_in.pop(number, None)

    def superseded_by(self, command: SaveKept) -> list[int]:
        """Return the earlier pushes of which all names are pushed again, back to the last code in between.

        Code may have used what an earlier push brought.  Of properties, which code seldom uses, all are looked at."""
        if command.verb == PROPERTIES:
            return self._properties_superseded_by(command)
        found: list[int] = []
        names = set(command.names)
        for earlier in reversed(self.commands.values()):
            if earlier.verb != "push" or command.verb != "push" or earlier.number > command.number:
                break
            if names.issuperset(earlier.names):
                found.append(earlier.number)
        return found

    def _properties_superseded_by(self, command: SaveKept) -> list[int]:
        if command.sticky:
            return []
        names = set(command.names)
        earlier = [c for c in self.commands.values() if c.verb == PROPERTIES and c.number < command.number]
        # Without names all properties were deleted.
        return [c.number for c in earlier if not names or (c.names and names.issuperset(c.names))]

    def excess(self) -> list[int]:
        """Return the numbers of the oldest commands beyond the limits."""
        count, body_bytes, blob_bytes = len(self.commands), self.body_bytes, self.blob_bytes
        found: list[int] = []
        for command in self.commands.values():
            if count <= COMMANDS_MAX and body_bytes <= BYTES_MAX and blob_bytes <= BLOB_BYTES_MAX:
                break
            found.append(command.number)
            count -= 1
            body_bytes -= len(command.body)
            blob_bytes -= sum(command.blobs.values())
        return found


def is_too_large(command: SaveKept) -> bool:
    """Return whether a single command is beyond the limits."""
    return len(command.body) > BYTES_MAX or sum(command.blobs.values()) > BLOB_BYTES_MAX
