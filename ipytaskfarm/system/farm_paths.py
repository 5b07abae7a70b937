"""The folders and files of a farm, their permissions, and the way in which a peer finds its farm.

=======================  ===================================================================================
`farm_folder`            Jupyter's data folder, ``ipytaskfarm/<name>/``: keys, ``farm.json``, store, logs, lock
`runtime_folder`         Jupyter's runtime folder: ``ipytaskfarm-<name>.json`` for clients, ``…-agent.json`` for agents
`socket_folder`          ``$XDG_RUNTIME_DIR/ipytaskfarm/…`` or ``/tmp/ipytaskfarm-<uid>/…``: unix sockets, recorders
=======================  ===================================================================================

`system.private_files` makes, reads and locks them; `system.odd_files` is for what else may have their names.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ..core import errors
from . import host
from .host import data_folder, runtime_folder, socket_bases, spare_runtime_folder
from .odd_files import remove_unless_folder
from .private_files import (
    Lock as Lock,
    private_folder as private_folder,
    read_private as read_private,
    set_aside_lock as set_aside_lock,
    write_private as write_private,
)

DEFAULT_FARM = "default"
FARM_FILE = "farm.json"
CONTROLLER_SOCKET = "controller.sock"
"""The controller's unix socket, in the farm's folder for sockets."""
IPC_PATH_MAX = 107
"""The largest number of bytes in the path of a unix socket."""
IPC_ROOM = 48
"""The number of bytes that agents add to a farm's folder for sockets: ``/agent-12/kernel-12345-ipc-5`` and the like."""
_NAME_SHOWN = 12
"""The longest name of an agent that its folder's name shows. Longer names are replaced with digests."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
TEMPORARY = re.compile(r"temporary-\d+-[0-9a-f]{6}")
"""The names of farms that end with their owners."""
_PREFIX = "ipytaskfarm-"
_AGENT = "-agent"

Where: TypeAlias = str | os.PathLike[str] | tuple[str, int] | None


class ConnectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A connection file: all that a peer needs. It contains a secret, which the repr does not show."""

    farm: str
    """The farm's name."""
    incarnation: str
    host: str
    port: int
    server_key: str
    """The controller's public key in z85."""
    public_key: str
    secret_key: str
    """The key pair of the role, in z85."""
    role: str
    """client, agent or reader."""
    controller_pid: int
    controller_started: float
    """The value of `process_started` for the controller: its pid alone may belong to another process by now."""
    version: str
    protocol: int
    node: str = ""
    """The host to which the pid belongs; "" if the pid has no meaning."""
    blobs: str = ""
    """The folder of large values, for peers that see the same file system (`storage.blobs`)."""
    location: str = ""
    """The address of the controller for other hosts; "" if `host` is that address."""
    agent: str = ""
    """The agent that the key was made for; "" if the key belongs to a role."""
    socket: str = ""
    """The controller's unix socket, for peers of its user on its machine; "" for TCP only."""
    folder: str = ""
    """The farm's folder, on the host `node`."""

    def __repr__(self) -> str:
        return f"ConnectionInfo(farm={self.farm!r}, role={self.role!r}, host={self.host!r}, port={self.port}, ...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("farm", self.farm), ("role", self.role), ("host", self.host), ("port", self.port)]


def dialled(info: ConnectionInfo) -> str:
    """Return the controller's address for this host."""
    return info.host if not info.location or info.node == socket.gethostname() else info.location


def remedy(info: ConnectionInfo) -> str:
    """Return what to do about a controller that does not answer."""
    if info.node in ("", socket.gethostname()):
        return f"start it: ipytaskfarm start --farm {info.farm}"
    return (
        f"see on {info.node} whether it runs there (`ipytaskfarm list`), and whether a firewall lets TCP port "
        f"{info.port} through"
    )


_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # to the address by which the host itself connects


def addresses(host: str, location: str | None) -> tuple[str, str]:
    """Return the addresses of a controller that listens on `host`: (from its own host, from other hosts).

    `location` is the configured address for other hosts. Without it, they use the same address, or for a wildcard this
    host's name.
    """
    elsewhere = socket.gethostname() if host in _WILDCARDS else host
    return _WILDCARDS.get(host, host), location or elsewhere


def listening(host: str, port: int, location: str) -> str:
    """Return a text about who can reach the controller; "" if only this machine can."""
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return ""
    where = "all addresses of this machine" if host in _WILDCARDS else host
    return f"listening on {where}, port {port}; other machines find it at {endpoint(location, port)}"


def endpoint(host: str, port: int) -> str:
    """Return an address with its port; one of IPv6 is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class FarmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``farm.json`` in the farm's folder: the facts that stay the same over restarts."""

    name: str
    incarnation: str
    host: str
    port: int
    store: str
    """The path of the store."""
    node: str
    """The host that has the store."""
    former: str = ""
    """The incarnation that the farm had before it was copied."""
    file: str = ""
    """Which folder and file these are, see `storage.beside.identity`. "": the farm was not started yet."""


class FarmEntry(msgspec.Struct, frozen=True):
    """A line of `list_farms`."""

    name: str
    running: bool
    """Whether its controller lives, as far as this host can tell."""
    folder: Path | None
    """None for a farm that keeps nothing here: a farm of another host, or one that ends with its owner."""
    connection_file: Path | None


# ------------------------------------------------------------------------------------------------ folders


def check_name(name: str) -> str:
    """Return a farm's name, checked for use in file names.

    Raises:
        TypeError: the name is no text.
        ValueError: the name is not allowed. The message says which names are.
    """
    if not isinstance(name, str):
        raise TypeError(f"a farm's name must be a str, not {type(name).__name__}: {name!r}")
    if not _NAME.fullmatch(name) or name.endswith(_AGENT):
        raise ValueError(
            f"{name!r} cannot be a farm's name: letters, digits, '.', '_' and '-', at most 48, beginning with a letter "
            f"or digit, not ending in {_AGENT!r}"
        )
    return name


def farm_folder(name: str) -> Path:
    """Return the folder of a farm's lasting files. It is not created here."""
    return data_folder() / "ipytaskfarm" / check_name(name)


def connection_path(name: str, role: str = "client") -> Path:
    """Return the path of a farm's connection file for clients or agents."""
    return runtime_folder() / f"{_PREFIX}{check_name(name)}{_AGENT if role == 'agent' else ''}.json"


def socket_folder(name: str, folder: Path | None = None) -> Path:
    """Create and return the folder for a farm's sockets. All folders that this creates are 0700.

    Raises:
        SecurityError: another user made one of the folders; or see `socket_place`.
    """
    path = socket_place(name, folder)
    for each in (path.parent, path):
        remove_unless_folder(each)
    try:
        private_folder(path)
    except FileNotFoundError:
        # The last other farm has just ended and removed the empty base folder too.
        private_folder(path)
    return path


def socket_place(name: str, folder: Path | None = None) -> Path:
    """Return the path of the folder for a farm's sockets. It is not created here.

    Args:
        name: the farm's name. If the path would be too long for unix sockets, it is shortened.
        folder: the farm's folder, which distinguishes farms of one name in different places.

    Raises:
        SecurityError: no possible path is short enough.
    """
    place = os.path.abspath(folder or farm_folder(name))
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    for base in socket_bases():
        for leaf in (f"{check_name(name)}-{digest}", digest):
            path = base / leaf
            if len(os.fsencode(path)) + IPC_ROOM <= IPC_PATH_MAX:
                return path
    raise errors.SecurityError(f"no folder for sockets has a path short enough: {base} is too long")


def agent_folder(farm: str, incarnation: str, name: str) -> Path:
    """Return the folder of an agent on this machine that was not given one.

    A later agent of that farm and name finds it again.

    It is not created here, but its parent is, which has the folders of all agents of a farm.
    """
    # The names of sockets in the folder must stay short.
    leaf = name if len(name) <= _NAME_SHOWN else hashlib.sha256(name.encode()).hexdigest()[:_NAME_SHOWN]
    # Only the incarnation distinguishes farms, so that the place of the start does not matter.
    return socket_folder(farm, Path("/", incarnation)) / f"agent-{leaf or socket.gethostname()[:_NAME_SHOWN]}"


def leave_folder(path: Path) -> None:
    """Remove a shared folder if it is empty."""
    try:
        path.rmdir()
    except OSError:
        pass  # another process still uses it


def lock_folder() -> Path:
    """Create and return the folder of the locks that tasks share on this machine, 0700.

    It is removed with the last lock.
    """
    base = socket_bases()[-1]
    private_folder(base)
    return private_folder(base / "locks")


# ------------------------------------------------------------------------------------- connection files


def write_connection_file(info: ConnectionInfo, path: Path) -> None:
    """Write the connection file atomically, 0600, into a folder of 0700."""
    private_folder(path.parent)
    write_private(path, connection_text(info))


def connection_text(info: ConnectionInfo) -> bytes:
    """Return the content of the connection file."""
    return _json(_with_paths(info, host.portable))


def _with_paths(info: ConnectionInfo, change: Callable[[str], str]) -> ConnectionInfo:
    return msgspec.structs.replace(
        info, **{name: change(getattr(info, name)) for name in ("blobs", "socket", "folder")}
    )


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def read_connection_file(path: Path) -> ConnectionInfo:
    """Read a connection file.

    Raises:
        FarmNotRunning: the file does not exist.
        SecurityError: the file is not private to this user.
        ConnectionError: the file has another content.
    """
    try:
        text = read_private(path)
    except FileNotFoundError:
        raise _not_running(path) from None
    try:
        return _with_paths(msgspec.json.decode(text, type=ConnectionInfo), host.local)
    except msgspec.MsgspecError as error:
        raise errors.ConnectionError(f"{path} is not a farm's connection file: {error}") from None


def remove_connection_file(path: Path, incarnation: str) -> None:
    """Remove the connection file, unless it belongs to another farm by now."""
    try:
        if read_connection_file(path).incarnation == incarnation:
            path.unlink(missing_ok=True)
    except errors.TaskFarmError:
        pass  # already removed, or it belongs to others


def leave_runtime_folder() -> None:
    """Remove the folder of connection files if it is the farm's own, beside the sockets, and empty."""
    if runtime_folder() == spare_runtime_folder():
        leave_folder(spare_runtime_folder())
        leave_folder(spare_runtime_folder().parent)


def find_connection(where: Where = None, key_file: str | os.PathLike[str] | None = None) -> Path | ConnectionInfo:
    """Return the connection file of a farm.

    Args:
        where: the farm's name (None: "default"), a path, or an address ``(host, port)``. A string that has a separator
            or ends in ``.json`` is a path.
        key_file: for an address: another connection file to take the keys from. None: the file here with this address.

    Raises:
        FarmNotRunning: there is no such file.
        SecurityError: there are no keys for this address.
        TypeError, ValueError: `where` is something else.
    """
    if where is None:
        where = DEFAULT_FARM
    if isinstance(where, tuple):
        return _by_address(where, key_file)
    if key_file is not None:
        raise ValueError("key_file goes with an address (host, port); a farm's name or path has its keys in its file")
    if isinstance(where, str) and os.sep not in where and not where.endswith(".json"):
        path = connection_path(where)
    elif isinstance(where, str | os.PathLike):
        path = Path(where).expanduser()
    else:
        raise TypeError(f"a Farm, its name, a path or (host, port) was expected, not {type(where).__name__}")
    # A link is not resolved here, so that `read_connection_file` refuses it.
    if not path.exists() and not path.is_symlink():
        raise _not_running(path)
    return path


def connection_reader(
    where: Where = None, key_file: str | os.PathLike[str] | None = None
) -> Callable[[], ConnectionInfo]:
    """Return a function for a `Link` that finds and reads the connection file at each call."""
    if isinstance(where, os.PathLike):
        where = Path(where)  # of a `Farm`, which gives its path only while it runs

    def read() -> ConnectionInfo:
        found = find_connection(where, key_file)
        return found if isinstance(found, ConnectionInfo) else read_connection_file(found)

    return read


def _by_address(where: tuple[str, int], key_file: str | os.PathLike[str] | None) -> ConnectionInfo:
    try:
        host, port = where
        host, port = str(host), int(port)
    except (TypeError, ValueError):
        raise ValueError(f"an address is (host, port), not {where!r}") from None
    if key_file is not None:
        info = read_connection_file(Path(key_file).expanduser())
        return msgspec.structs.replace(info, host=host, port=port, location="", socket="")
    for path in _connection_files():
        try:
            info = read_connection_file(path)
        except errors.TaskFarmError:
            continue
        if info.port == port and _same_host(info.host, host):
            return msgspec.structs.replace(info, host=host, location="", socket="")
    raise errors.SecurityError(
        f"there are no keys for {host}:{port}: no connection file in {runtime_folder()} has this address. Copy the "
        "farm's connection file from its host and give its path as key_file"
    )


def _same_host(one: str, other: str) -> bool:
    loopback = {"localhost", "127.0.0.1", "::1", ""}
    return one == other or (one in loopback and other in loopback)


def _connection_files() -> list[Path]:
    """Return the connection files for clients, in order of their names."""
    try:
        found = list(runtime_folder().glob(f"{_PREFIX}*.json"))
    except PermissionError:
        return []
    return sorted(path for path in found if not path.stem.endswith(_AGENT))


def _not_running(path: Path) -> errors.FarmNotRunning:
    name = path.stem.removeprefix(_PREFIX).removesuffix(_AGENT)
    if path.parent == runtime_folder() and _NAME.fullmatch(name):
        if TEMPORARY.fullmatch(name):
            return errors.FarmNotRunning(f"farm {name!r} was temporary and has ended: start another one, Farm(n=…)")
        text = f"farm {name!r} is not running (there is no {path}): start it with `ipytaskfarm start --farm {name}`"
        others = ", ".join(repr(farm.name) for farm in list_farms() if farm.running)
        return errors.FarmNotRunning(f"{text}. Running here: {others}" if others else text)
    return errors.FarmNotRunning(
        f"there is no connection file {path}: `ipytaskfarm start --farm NAME` starts a farm, `ipytaskfarm list` shows "
        "those that run here"
    )


# ------------------------------------------------------------------------------- processes and farms


def process_started(pid: int | None = None) -> float | None:
    """Return the time when a process started, in seconds since boot; None: there is none, or only a zombie."""
    # since boot, because the wall clock may be set while the process runs
    try:
        fields = Path(f"/proc/{os.getpid() if pid is None else pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_stale(info: ConnectionInfo) -> bool:
    """Return whether the controller that wrote this file has ended. False if this host cannot tell."""
    if info.node != socket.gethostname():
        return False
    return process_started(info.controller_pid) != info.controller_started


def write_farm_record(record: FarmRecord, folder: Path) -> None:
    """Write ``farm.json``."""
    private_folder(folder)
    write_private(folder / FARM_FILE, _json(msgspec.structs.replace(record, store=host.portable(record.store))))


def read_farm_record(folder: Path) -> FarmRecord | None:
    """Return ``farm.json`` of a farm's folder; None if there is no farm.

    Raises:
        StoreError: the file is damaged.
    """
    path = folder / FARM_FILE
    try:
        record = msgspec.json.decode(read_private(path), type=FarmRecord)
        record = msgspec.structs.replace(record, store=host.local(record.store))
        if not 0 <= record.port < 1 << 16 or not os.path.isabs(record.store):
            raise ValueError(f"port {record.port}, store {record.store!r}")
        return record
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, ValueError) as error:
        raise errors.StoreError(f"{path} is damaged: {error}. `ipytaskfarm start --fresh` sets it aside") from None


def list_farms() -> list[FarmEntry]:
    """Return all farms that have a folder or a connection file here, in order of their names."""
    try:
        folders = {path.parent.name: path.parent for path in data_folder().glob(f"ipytaskfarm/*/{FARM_FILE}")}
    except PermissionError:
        folders = {}  # a home that this user may not read
    files = {path.stem.removeprefix(_PREFIX): path for path in _connection_files()}
    return [
        FarmEntry(name, _is_running(files.get(name)), folders.get(name), files.get(name))
        for name in sorted({*folders, *files})
    ]


def _is_running(path: Path | None) -> bool:
    try:
        return path is not None and not is_stale(read_connection_file(path))
    except errors.TaskFarmError:
        return False
