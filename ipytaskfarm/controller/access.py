"""Access to a running farm: reloading keys, writing connection files, listing connections."""

from __future__ import annotations

import logging
from pathlib import Path

from ..core.errors import SecurityError
from ..core.messages.tables import ConnectionRow, ConnectionTable
from ..system import farm_paths
from ..system.farm_paths import ConnectionInfo
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


class FarmAccess:
    """The keys of a running farm, and the connection files made of them."""

    def __init__(self, hub: Hub, info: ConnectionInfo, folder: Path) -> None:
        """Create it; `info` is the clients' connection file, with the controller's present key even if that is rotated
        later.
        """
        self._hub = hub
        self._info = info
        self._folder = folder

    def write_files(self, keys: FarmKeys) -> list[Path]:
        """Write the connection files of this farm, and return those that are removed when the controller ends."""
        paths = []
        for title in ("client", "agent"):
            path = farm_paths.connection_path(self._info.farm, title)
            write_if_new(info_for(self._info, keys, title), path)
            paths.append(path)
        write_agent_files(self._info, keys, self._folder)
        return paths

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


def orphans(sessions: list[str], keys: FarmKeys) -> list[str]:
    """Return the stored sessions of agents with keys that were revoked since."""
    titles = [title for title in keys.peers() if role_of(title) == "agent"]
    return [session for session in sessions if not any(session_fits(title, session) for title in titles)]
