"""The keys of a farm: made, replaced and revoked by the farm's user, on the controller's host.

A change is in the farm's folder when the call returns. A living controller has taken it over by then; another reads it
when it starts. A key is named like its agent, or by a name in `keys.ROLES`, or ``server``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import NumberReply, ReloadKeys
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import Questioner
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport import keys as farmkeys
from ipytaskfarm.transport.keys import FarmKeys

TOLD_S = 30.0
"""The time to wait for an answer, as a long operation of the controller (`ipytaskfarm compact`) delays it."""


def enrol(home: Home, names: Sequence[str]) -> dict[str, Path]:
    """Give keys to the given agents that have none.

    If no controller runs, the connection files are written at its next start.

    Returns:
        Name -> connection file, 0600, in the farm's folder.

    Raises:
        ValueError: a name is not valid.
    """
    _change(home, lambda keys: farmkeys.with_agents(keys, list(names)))
    return {name: farmkeys.agent_file(home.folder, name) for name in names}


def revoke(home: Home, names: Sequence[str]) -> int:
    """Revoke the keys of these agents. They are cut off at once and given up.

    Returns:
        The number of connections that were cut.

    Raises:
        KeyError: an agent has no key.
    """
    return _change(home, lambda keys: farmkeys.without_agents(keys, list(names)))


def rotate(home: Home, names: Iterable[str]) -> int:
    """Replace these keys. Processes that can read the farm's own files reconnect by themselves without losing anything.

    A new server key takes effect when the controller starts next.

    Returns:
        The number of connections that were cut.

    Raises:
        KeyError: there is no such key.
    """
    return _change(home, lambda keys: farmkeys.rotated(keys, list(names)))


def connection_info(home: Home, title: str) -> ConnectionInfo:
    """Return the content of a connection file for the key of this title, to be copied to another place.

    Raises:
        FarmNotRunning: no controller lives, so its port is not known.
        KeyError: there is no such key.
    """
    info, keys = home.living_info(), farmkeys.load_keys(home.folder)
    if info is None or keys is None:
        raise errors.FarmNotRunning(
            f"farm {home.name!r} is not running: start it with `ipytaskfarm start --farm {home.name}`, then its "
            "address is known"
        )
    return farmkeys.info_for(info, keys, title)


def write_copy(info: ConnectionInfo, path: Path) -> None:
    """Write a connection file for others, 0600, at any path, also in the place of an earlier one.

    A link of that name is refused, and so is any other file, which would be lost.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")
    if path.is_file() and (text := path.read_bytes()) and b'"server_key"' not in text:
        raise FileExistsError(f"{path} is there, and is no connection file: choose another name")
    farm_paths.write_private(path, farm_paths.connection_text(info))


def _change(home: Home, change: Callable[[FarmKeys], FarmKeys]) -> int:
    with farmkeys.keys_lock(home.folder):
        before = farmkeys.load_keys(home.folder)
        after = change(before or farmkeys.make_farm_keys())
        if after != before:
            farmkeys.save_keys(after, home.folder)
        info = home.living_info()
        if info is None:
            farmkeys.remove_agent_files(after, home.folder)
            return 0
        # Done here, because the controller could do nothing else in the meantime.
        farmkeys.write_agent_files(info, after, home.folder)
        # Under the lock, so that the controller never reads keys that are about to be replaced.
        return _tell(home)


def _tell(home: Home) -> int:
    """Make the controller read the keys, then write the roles' connection files again."""
    try:
        # If the key of this question was replaced, the answer comes under the new key.
        with Questioner(home.read_info) as questioner:
            reply = questioner.answer(ReloadKeys(), timeout_s=TOLD_S)
    except errors.FarmNotRunning:
        if home.living_info() is None:
            return 0  # the controller has ended in the meantime, and reads the keys when it starts
        raise errors.ConnectionError(
            f"the keys of farm {home.name!r} are changed, but its controller has not answered for {TOLD_S:g} s and "
            "still goes by those of before: stop the farm and start it again"
        ) from None
    assert isinstance(reply, NumberReply)
    return reply.value
