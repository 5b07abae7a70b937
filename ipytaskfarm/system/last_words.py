"""The end of what the present run has written, in the flight recorder: readable after the engine's death.

The engine writes each line here as it prints it, and the rest at a flush and twenty times a second. Of what children,
C code and `os.write` have written to the descriptors, the files keep what the engine has not taken in. The places from
which on that is so (the marks) stand here too. So whoever reads all three has all that left the engine, in order.

Reading and writing need no lock: the length is stored after the text, by one aligned store of 8 bytes. Of a text that
was just overwritten the oldest characters may be damaged.
"""

from __future__ import annotations

from ..core.messages.task_types import RunKey

WORDS_BYTES = 16 * 1024
"""The size of this part of the flight recorder."""

_SLOTS_BYTES = 64
_ROOM = WORDS_BYTES - _SLOTS_BYTES
_LENGTH, _TASK, _ATTEMPT, _MARK = 0, 1, 2, 3
_COMMAND: RunKey = (2**64 - 1, 0)
"""The name of a command among the runs."""


class LastWords:
    """The last words of one engine: the engine writes them, its agent reads them."""

    def __init__(self, region: memoryview) -> None:
        """Args: the part of the mapped file, `WORDS_BYTES` long."""
        self._slots = region[:_SLOTS_BYTES].cast("Q")
        self._room = region[_SLOTS_BYTES:]
        self._length = 0
        self._run: RunKey = _COMMAND
        self._fresh = False
        self._pending: list[str] = []
        self.append = self._pending.append
        """Appends text; the caller calls `flush` itself when a line is complete."""

    def close(self) -> None:
        """Let go of the mapped file."""
        self._slots.release()
        self._room.release()

    # -- the engine's side

    def begin(self, run: RunKey | None) -> None:
        """Begin a run, or a command (None). Nothing is written before it prints, so a silent run pays nothing."""
        self._run = run if run is not None else _COMMAND
        self._fresh = True
        self._pending.clear()

    def write(self, text: str) -> None:
        """Keep what was written; a line is stored when it is complete."""
        self._pending.append(text)
        if text[-1:] == "\n":
            self.flush()

    def flush(self) -> None:
        """Store what is kept."""
        pending = self._pending
        count = len(pending)
        if not count:
            return
        data = "".join(pending[:count]).encode("utf-8", "backslashreplace")
        del pending[:count]  # and not what another thread may have added meanwhile
        slots = self._slots
        if self._fresh:
            self._fresh = False
            self._length = slots[_LENGTH] = 0
            slots[_TASK], slots[_ATTEMPT] = self._run
        at = self._length % _ROOM
        end = at + len(data)
        if end <= _ROOM:
            self._room[at:end] = data
        else:
            self._store_around(at, data)
        self._length += len(data)
        slots[_LENGTH] = self._length

    def _store_around(self, at: int, data: bytes) -> None:
        """Store text that goes beyond the end of the buffer, or is longer than the buffer."""
        over = max(0, len(data) - _ROOM)
        at, data = (at + over) % _ROOM, data[over:]
        first = data[: _ROOM - at]
        self._room[at : at + len(first)] = first
        self._room[: len(data) - len(first)] = data[len(first) :]

    def mark(self, descriptor: int, position: int) -> None:
        """Note up to where the file behind descriptor 1 or 2 was taken in."""
        if position >= 0:
            self._slots[_MARK + descriptor] = position

    # -- the agent's side

    def read(self, run: RunKey | None) -> str:
        """Return the last words of this run, or (None) of the last command. "": it has printed nothing."""
        slots = self._slots
        if (slots[_TASK], slots[_ATTEMPT]) != (run if run is not None else _COMMAND):
            return ""
        length = slots[_LENGTH]
        if length <= _ROOM:
            return bytes(self._room[:length]).decode("utf-8", "replace")
        at = length % _ROOM
        return (bytes(self._room[at:]) + bytes(self._room[:at])).decode("utf-8", "replace").lstrip("\ufffd")

    def marked(self, descriptor: int) -> int:
        """Return up to where the file behind descriptor 1 or 2 was taken in."""
        return self._slots[_MARK + descriptor]
