"""The key with which a feed connects: a reader's, unless pages may act."""

from __future__ import annotations

from collections.abc import Callable

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system.farm_paths import ConnectionInfo, connection_reader
from ipytaskfarm.transport.keys import info_for, load_keys


def page_connection(farm: str, control: bool) -> Callable[[], ConnectionInfo]:
    """Return a function that reads the connection file of a farm, with a reader's key unless pages may act.

    On another machine than the farm's own there are no keys but the one in the file: then it is used, and the feed
    itself keeps pages from acting.

    Args:
        farm: the farm's name, or the path of its connection file.
        control: whether pages may act.
    """
    read = connection_reader(farm)

    def connection() -> ConnectionInfo:
        info = read()
        if control:
            if info.role == "reader":
                raise errors.SecurityError(
                    f"the connection file of farm {info.farm!r} is for readers, who may change nothing:"
                    " leave --control out"
                )
            return info
        try:
            keys = load_keys(Home.of(info.farm).folder) if info.role == "client" else None
        except (errors.TaskFarmError, OSError, ValueError):
            keys = None
        # A farm of the same name may be here and there: its keys fit only its own connection file.
        if keys is None or keys.client.public != info.public_key:
            return info
        return info_for(info, keys, "reader")

    return connection
