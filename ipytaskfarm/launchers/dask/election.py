"""The folder (0700) in which the owners of one machine meet (`agent_owner`). The last owner removes it.

===================  ==================================================================================
``lock``             held by the process that runs the agent
``process-…``        one per process that takes part, locked while it lives; contains its number of engines
``connection.json``  the agent's connection file (0600): a secret
``agent.json``       the agent's process: its pid and the time of its start
``over``             exists if the agent with these keys has ended for good on this machine; contains the exit code
``agent.out``        its output, if it crashed
===================  ==================================================================================
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from ipytaskfarm.system.farm_paths import leave_folder, private_folder, process_started, read_private, write_private


class Election:
    """The folder, as one process sees it."""

    def __init__(self, folder: Path, agent_folder: Path) -> None:
        """Create it; `agent_folder` is the agent's own folder, which the agent removes unless it is killed."""
        self.folder = folder
        self.agent_folder = agent_folder
        self._path = folder / f"process-{os.getpid()}-{secrets.token_hex(4)}"
        self._presence: int | None = None

    # ------------------------------------------------------------------ members

    def attend(self, engines: int) -> None:
        """Announce this process and the number of engines that it contributes. To be called repeatedly."""
        private_folder(self.folder)
        if self._presence is not None:
            if self._path.exists():
                return
            os.close(self._presence)  # the last of the former members has removed the folder
        new = self._path.with_name(f".{self._path.name}")
        self._presence = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._presence, str(engines).encode())
        fcntl.flock(self._presence, fcntl.LOCK_EX)
        # Visible only now: a member without a lock would count as dead.
        os.rename(new, self._path)

    def engines(self) -> list[int]:
        """Return the number of engines of each member. Files of killed members are removed."""
        found = []
        for path in self.folder.glob("process-*"):
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if _try_lock(file):
                    path.unlink(missing_ok=True)
                else:
                    found.append(int(os.pread(file, 16, 0)))
            finally:
                os.close(file)
        return found

    def lock(self) -> int | None:
        """Return the lock, a file for the caller to close; None if another process holds it."""
        path = self.folder / "lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # the last of the former members has removed the folder
        try:
            if _try_lock(file) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)
        return None

    def depart(self) -> None:
        """Leave. The last member removes the folder if the agent has ended."""
        self._path.unlink(missing_ok=True)
        for _ in range(10):
            held = self.lock()
            if held is not None:
                try:
                    if not self.engines() and self.has_agent_ended():
                        self._remove()
                finally:
                    os.close(held)
                break
            time.sleep(0.02)  # another member may be leaving, too
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None

    def _remove(self) -> None:
        shutil.rmtree(self.agent_folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        leave_folder(self.folder.parent)

    # ------------------------------------------------------------------ the agent

    def note_agent(self, pid: int) -> None:
        """Record the agent's process."""
        record = {"pid": pid, "started": process_started(pid)}
        write_private(self.folder / "agent.json", json.dumps(record).encode())

    def has_agent_ended(self) -> bool:
        """Return whether the agent that was recorded last has ended."""
        try:
            record: dict[str, Any] = json.loads(read_private(self.folder / "agent.json"))
        except (FileNotFoundError, ValueError):
            return True
        return record["started"] is None or process_started(int(record["pid"])) != record["started"]

    def note_over(self, digest: str, code: int) -> None:
        """Record that no other agent with the keys of this digest may be started here."""
        write_private(self.folder / "over", f"{digest} {code}".encode())

    def over(self, digest: str) -> int | None:
        """Return the exit code with which an agent of these keys has ended for good; None if none has."""
        try:
            noted, code = read_private(self.folder / "over").decode().split()
        except FileNotFoundError:
            return None
        return int(code) if noted == digest else None


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
