"""Access to a running farm: reloading keys, writing connection files, listing connections."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..core.errors import SecurityError, TaskFarmError
from ..core.messages.tables import ConnectionRow, ConnectionTable
from ..system import farm_paths
from ..system.farm_paths import ConnectionInfo
from ..system.odd_files import remove_unless_file
from ..transport.hub import Hub
from ..transport.keys import (
    KEYS_FILE,
    FarmKeys,
    info_for,
    load_keys,
    role_of,
    session_fits,
    write_agent_files,
    write_if_new,
)

log = logging.getLogger(__name__)

TITLES = ("client", "agent")
"""The keys for which each running farm has a connection file."""


class FarmAccess:
    """The keys of a running farm, and the connection files made of them."""

    def __init__(self, hub: Hub, info: ConnectionInfo, folder: Path) -> None:
        """Create it; `info` is the clients' connection file, with the controller's present key even if that is rotated
        later.
        """
        self._hub = hub
        self._info = info
        self._folder = folder
        self._keys: FarmKeys | None = None
        self._cannot_write = False
        self._written: dict[Path, tuple[int, ...] | None] = {}
        """The connection files of clients and agents on this machine -> how they were when they were written; None:
        they are to be written again."""

    def write_files(self, keys: FarmKeys) -> list[Path]:
        """Write the connection files of this farm, and return those that are removed when the controller ends."""
        paths = []
        for title in TITLES:
            path = farm_paths.connection_path(self._info.farm, title)
            if not path.is_symlink():  # which is refused by name: a farm that starts does not know who made it
                remove_unless_file(path)
            write_if_new(info_for(self._info, keys, title), path)
            paths.append(path)
        write_agent_files(self._info, keys, self._folder)
        self._keys = keys
        self._written = {path: self._state_if_own(path) for path in paths}
        return paths

    def _state_if_own(self, path: Path) -> tuple[int, ...] | None:
        """Return the state of a connection file of this farm; None if something has replaced it since it was written.

        The state is taken first: what is changed after that has another one.
        """
        state = _state_of(path)
        return state if self._incarnation_in(path) == self._info.incarnation else None

    @staticmethod
    def _incarnation_in(path: Path) -> str:
        try:
            return farm_paths.read_connection_file(path).incarnation
        except (TaskFarmError, OSError):
            return ""

    def look_after_files(self) -> None:
        """Write the connection files again if one is gone or spoiled: without it nobody finds the running farm.

        A file of another farm of this name, which runs elsewhere and shares the runtime folder, is left alone.
        """
        paths = [farm_paths.connection_path(self._info.farm, title) for title in TITLES]
        changed = [path for path in paths if _state_of(path) != self._written.get(path)]
        if not changed or self._keys is None:
            return
        try:
            if not all(map(self._is_anothers, changed)):
                for path in changed:
                    remove_unless_file(path)
                self.write_files(self._keys)
                log.warning("written again, because it was removed or changed: %s", ", ".join(map(str, changed)))
            else:
                self._written |= {path: _state_of(path) for path in changed}
            self._cannot_write = False
        except (TaskFarmError, OSError) as error:
            if not self._cannot_write:
                log.error("the connection files cannot be written again: %s", error)
            self._cannot_write = True

    def _is_anothers(self, path: Path) -> bool:
        """Return whether a connection file belongs to another farm that runs."""
        try:
            found = farm_paths.read_connection_file(path)
        except (TaskFarmError, OSError):
            return False
        return found.incarnation != self._info.incarnation and not farm_paths.is_stale(found)

    def reload(self) -> tuple[int, list[str]]:
        """Load the keys in the farm's folder, and return (number of connections that were cut, sessions that are over).

        Raises:
            SecurityError, OSError: the keys cannot be read, or the files cannot be written. The former keys stay in
                use.
        """
        keys = load_keys(self._folder)
        if keys is None:
            raise SecurityError(f"there is no {self._folder / KEYS_FILE}: the farm goes on with the keys that it has")
        # First the files: a peer with a cut connection reads them.
        self.write_files(keys)
        cut, over = self._hub.rekey(keys)
        log.info("keys read again: %d agents enrolled, %d connections cut", len(keys.agents), cut)
        return cut, over

    def connections(self) -> ConnectionTable:
        """Return the known peers, with their keys' titles."""
        known = self._hub.peers()
        return ConnectionTable([ConnectionRow(p.title, p.name, there, p.version, p.python) for p, there in known])


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is removed or changed; () if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def orphans(sessions: list[str], keys: FarmKeys) -> list[str]:
    """Return the stored sessions of agents with keys that were revoked since."""
    titles = [title for title in keys.peers() if role_of(title) == "agent"]
    return [session for session in sessions if not any(session_fits(title, session) for title in titles)]
