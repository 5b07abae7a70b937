"""Where the keepers of one machine meet (`keeper`): a folder, 0700, that goes with the last of them.

===================  ==================================================================================
``lock``             held by the one that has the agent
``process-…``        one for each process that takes part, locked for as long as it lives; its engines
``connection.json``  how the agent connects (0600): a secret
``agent.json``       the agent's process: its pid, and when it began
``over``             the agent of these keys has ended for good on this machine, and how
``agent.out``        what it printed, if it crashed
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


class Meeting:
    """The folder, for one process."""

    def __init__(self, folder: Path, agent_folder: Path) -> None:
        """agent_folder: the agent's own, which it removes unless it is killed."""
        self.folder = folder
        self.agent_folder = agent_folder
        self._path = folder / f"process-{os.getpid()}-{secrets.token_hex(4)}"
        self._presence: int | None = None

    # ------------------------------------------------------------------ who is here

    def attend(self, engines: int) -> None:
        """Be there for the others to see, good for so many engines.  To be called again and again."""
        private_folder(self.folder)
        if self._presence is not None:
            if self._path.exists():
                return
            os.close(self._presence)  # the last of those before us took the folder with it
        new = self._path.with_name(f".{self._path.name}")
        self._presence = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._presence, str(engines).encode())
        fcntl.flock(self._presence, fcntl.LOCK_EX)
        # Only now is it seen: who is seen without a lock is taken for dead.
        os.rename(new, self._path)

    def engines(self) -> list[int]:
        """For each process that is here, how many it is good for.  What killed ones have left is removed."""
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
        """Return the lock, a file to be closed, if nobody has it."""
        path = self.folder / "lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # the folder has gone with the last of those before us
        try:
            if _try_lock(file) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)
        return None

    def depart(self) -> None:
        """Be gone for the others; the last takes the folder, if the agent has ended."""
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
            time.sleep(0.02)  # another may be leaving, too
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None

    def _remove(self) -> None:
        shutil.rmtree(self.agent_folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        leave_folder(self.folder.parent)

    # ------------------------------------------------------------------ the agent

    def note_agent(self, pid: int) -> None:
        """Say which process it is."""
        record = {"pid": pid, "started": process_started(pid)}
        write_private(self.folder / "agent.json", json.dumps(record).encode())

    def has_agent_ended(self) -> bool:
        """Return whether the one that was noted last has."""
        try:
            record: dict[str, Any] = json.loads(read_private(self.folder / "agent.json"))
        except (FileNotFoundError, ValueError):
            return True
        return record["started"] is None or process_started(int(record["pid"])) != record["started"]

    def note_over(self, digest: str, code: int) -> None:
        """No other agent with the keys of that digest is to be started here."""
        write_private(self.folder / "over", f"{digest} {code}".encode())

    def over(self, digest: str) -> int | None:
        """With which code an agent of these keys has ended for good; None: it has not."""
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
