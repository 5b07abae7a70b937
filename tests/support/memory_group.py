"""A control group with a limit of memory, for tests that fill it for real; a test is skipped where none can be made."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ipytaskfarm.system.control_groups import ControlGroup, control_groups
from tests.support.polling import eventually

_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
_KILLS = {1: "memory.oom_control", 2: "memory.events"}


class MemoryGroup:
    """A group of ours below that of this process."""

    def __init__(self, group: ControlGroup, limit_bytes: int) -> None:
        self.folder, version = group
        limit, used = _FILES[version]
        self.used = self.folder / used
        """The file that says how many bytes are in use."""
        self._kills = self.folder / _KILLS[version]
        (self.folder / limit).write_text(str(limit_bytes))

    def entering(self, *command: str) -> list[str]:
        """Return a command that enters the group, and then becomes the given one."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    @property
    def used_bytes(self) -> int:
        return int(self.used.read_text())

    @property
    def kills(self) -> int:
        """Return how many processes the kernel itself has killed in this group."""
        counts = dict(line.split() for line in self._kills.read_text().splitlines())
        return int(counts["oom_kill"])


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Provide a group with this limit; it is removed with all processes that are still in it."""
    made = _made()
    if isinstance(made, str):
        pytest.skip(f"no control group that limits memory can be made: {made}")
    try:
        yield MemoryGroup(made, limit_bytes)
    finally:
        eventually(lambda: _removed(made.folder), what="the group is empty and removed")


def _made() -> ControlGroup | str:
    """Make a group within the innermost one of this process whose groups can limit memory; or say why there is none."""
    why = "this machine has none"
    for group in control_groups("memory"):
        folder = group.folder / f"itf-{secrets.token_hex(3)}"
        try:
            folder.mkdir()
        except OSError as error:
            why = str(error)
            continue
        if os.access(folder / _FILES[group.version][0], os.W_OK):
            return ControlGroup(folder, group.version)
        why = f"{group.folder} does not pass the control of memory on"
        folder.rmdir()
    return why


def _removed(folder: Path) -> bool:
    for pid in (folder / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    with suppress(OSError):  # a process has not quite ended
        folder.rmdir()
    return not folder.exists()
