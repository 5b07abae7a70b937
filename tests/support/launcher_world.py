"""A launcher as another package might provide it: agents are processes of this machine, behind a queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.launchers.interface import ENTRY_POINTS, AgentSpec, AgentStatus, Handle, Seat, agent_words, shell_line
from ipytaskfarm.launchers.local import child_environment
from ipytaskfarm.system.farm_paths import process_started


class Hands:
    """Each agent is started by a shell; a file called ``closed`` in the folder lets new ones wait."""

    OPTIONS: ClassVar[Mapping[str, str]] = {"folder": "where it keeps what it knows"}

    def __init__(self, options: Mapping[str, str]) -> None:
        self.folder = Path(options["folder"])

    def names(self, group: str, count: int | None) -> list[str]:
        return [f"{group}.{i}" for i in range(1 if count is None else count)]

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        return "\n".join(shell_line(self._words(seat, spec)) for seat in seats)

    def _words(self, seat: Seat, spec: AgentSpec) -> list[str]:
        return [spec.python, *agent_words(spec, seat.name, str(seat.connection_file), node=seat.name)]

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        for seat in seats:
            (self.folder / f"{seat.name}.job").write_text(json.dumps(self._words(seat, spec)))
        handle = {"names": [seat.name for seat in seats]}
        return self.tend(handle)

    def tend(self, handle: Handle) -> Handle:
        """The queue moves on."""
        for name in handle["names"]:
            job = self.folder / f"{name}.job"
            if job.exists() and not (self.folder / "closed").exists():
                self._start(name, json.loads(job.read_text()))
                job.unlink()
        return handle

    def _start(self, name: str, words: list[str]) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=child_environment({}),
            )  # fmt: skip
        child.returncode = 0  # the next caller may be another process
        (self.folder / f"{name}.pid").write_text(f"{child.pid} {process_started(child.pid)}")

    def pid(self, name: str) -> int | None:
        """Return the pid of a living agent."""
        path = self.folder / f"{name}.pid"
        if not path.exists():
            return None
        pid, started = path.read_text().split()
        return int(pid) if str(process_started(int(pid))) == started else None

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        found = {}
        for name in handle["names"]:
            if (self.folder / f"{name}.job").exists():
                found[name] = AgentStatus("waiting", why="the gate is closed")
            elif self.pid(name) is not None:
                found[name] = AgentStatus("running", "here")
            else:
                found[name] = AgentStatus("ended", why="its process is gone")
        return found

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        for name in handle["names"] if names is None else names:
            (self.folder / f"{name}.job").unlink(missing_ok=True)
            pid = self.pid(name)
            if pid is not None:
                os.kill(pid, signal.SIGTERM)


class Refusing(Hands):
    """A system that takes nothing."""

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        raise LauncherError("hands: the queue is closed for the night; try again tomorrow")


def install(site: Path) -> None:
    """Make both launchers importable for processes with this folder on their path, like an installed package."""
    info = site / "hands-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nhands = tests.support.launcher_world:Hands\n"
        "refusing = tests.support.launcher_world:Refusing\n"
    )
