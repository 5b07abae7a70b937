"""Keys of a farm, made, replaced and taken away by its own user, on the controller's host.

What is changed here is in the farm's folder when the call returns; a controller that lives has taken it over by then,
one that is away does so when it starts.  Names of keys are those of agents, or `keys.ROLES` and ``server``.
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
"""A controller that does something long (`ipytaskfarm compact`) answers nobody meanwhile."""


def enrol(home: Home, names: Sequence[str]) -> dict[str, Path]:
    """Give these agents keys, those that have none: name -> its connection file, 0600, in the farm's folder.

    While no controller runs the files are made with its next start.  ValueError: a name cannot be one.
    """
    _change(home, lambda keys: farmkeys.with_agents(keys, list(names)))
    return {name: farmkeys.agent_file(home.folder, name) for name in names}


def revoke(home: Home, names: Sequence[str]) -> int:
    """Take these agents' keys away: they are cut off at once and given up.  How many connections were cut.
    KeyError: one has no key."""
    return _change(home, lambda keys: farmkeys.without_agents(keys, list(names)))


def rotate(home: Home, names: Iterable[str]) -> int:
    """Give these fresh keys.  Who can read the farm's own files comes back by itself, losing nothing; the server's key
    takes effect when the controller starts next.  How many connections were cut.  KeyError: there is no such key."""
    return _change(home, lambda keys: farmkeys.rotated(keys, list(names)))


def connection_info(home: Home, title: str) -> ConnectionInfo:
    """Return what a connection file for the key of that title says, to be copied elsewhere.  FarmNotRunning: no
    controller lives, so nobody knows its port.  KeyError: there is no such key."""
    info, keys = home.living_info(), farmkeys.load_keys(home.folder)
    if info is None or keys is None:
        raise errors.FarmNotRunning(
            f"farm {home.name!r} is not running: start it with `ipytaskfarm start --farm {home.name}`, then its "
            "address is known"
        )
    return farmkeys.info_for(info, keys, title)


def write_copy(info: ConnectionInfo, path: Path) -> None:
    """Write a connection file for others, 0600, wherever its owner wants it; a link in its place is refused."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")
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
        # Here, for the controller would do nothing else meanwhile.
        farmkeys.write_agent_files(info, after, home.folder)
        # Under the lock, so that it never reads what is about to be replaced.
        return _tell(home)


def _tell(home: Home) -> int:
    """Have the controller read them, and write the roles' connection files anew."""
    try:
        # The key by which we ask may be the one that was replaced: then the answer comes under the new one.
        with Questioner(home.read_info) as questioner:
            reply = questioner.answer(ReloadKeys(), timeout_s=TOLD_S)
    except errors.FarmNotRunning:
        if home.living_info() is None:
            return 0  # it has ended meanwhile: it reads them when it starts
        raise errors.ConnectionError(
            f"the keys of farm {home.name!r} are changed, but its controller has not answered for {TOLD_S:g} s and "
            "still goes by those of before: stop the farm and start it again"
        ) from None
    assert isinstance(reply, NumberReply)
    return reply.value
