"""Rebuilds the proxies of `multiprocessing.Manager` (shared dicts, queues, locks). Pickles call this module by name.

A proxy is the address of an object in the manager's process, and the manager admits only processes that know its key.
Workers of a process pool inherit the key from the process that made the manager. Engines do not, so the key travels
with the proxy.
"""

from __future__ import annotations

from typing import Any

inherits = False
"""Whether this process takes over the key of proxies, as a pool's worker has it; True on engines.

Without the key nobody could use a proxy inside a shared list or dict, or one in a process that the task starts.
"""


def new_proxy(make: Any, token: Any, serializer: str, rest: dict[str, Any]) -> Any:
    """Return a proxy of an object of a manager.

    Args:
        make: the class of the proxy, or `multiprocessing.managers.AutoProxy`.
        token: where the object is: `multiprocessing.managers.Token`.
        serializer: the name of the manager's way of sending, such as "pickle".
        rest: its other arguments, with the manager's key as `authkey`.

    Raises:
        ConnectionError: nobody answers at the manager's address.
    """
    from multiprocessing import managers, process

    if inherits:
        process.current_process().authkey = rest["authkey"]
    try:
        return managers.RebuildProxy(make, token, serializer, rest)  # type: ignore[attr-defined]
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise ConnectionError(
            f"no multiprocessing.Manager answers at {token.address!r}: it has ended, or it is on another machine, which"
            " only reaches SyncManager(address=(host, port))"
        ) from error
