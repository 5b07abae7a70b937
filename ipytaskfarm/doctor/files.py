"""Checks of a farm's folders and files: their owners and permissions, free space, and whether they belong together."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import STORE_NAME, Home
from ipytaskfarm.display.text import size
from ipytaskfarm.doctor import Finding, doubtful, fine, wrong
from ipytaskfarm.storage.disk import is_full, least_room, network_file_system
from ipytaskfarm.storage.free_room import has_inodes
from ipytaskfarm.system import farm_paths, host
from ipytaskfarm.system.farm_paths import ConnectionInfo, FarmRecord
from ipytaskfarm.system.flight_recorder import RING_BYTES
from ipytaskfarm.transport.keys import KEYS_FILE, SERVER, FarmKeys, agent_file, load_keys


def refused(check: str, error: Exception, remedy: str) -> Finding:
    """Return a finding for an error of the farm: its text, and the remedy after its last colon if it has one."""
    said, colon, rest = str(error).rpartition(": ")
    own = colon and isinstance(error, errors.SecurityError)
    return wrong(check, said if own else str(error), rest if own else remedy)


# ------------------------------------------------------------------------------------------------ folders


def private(check: str, path: Path, variable: str, needed_bytes: int = 0) -> Finding:
    """Check a folder that must be private to this user, whether it exists or not.

    Args:
        check: the name of the check.
        path: the folder.
        variable: the environment variable that sets another folder.
        needed_bytes: the free space that it should have.
    """
    if os.path.lexists(path):
        try:
            farm_paths.private_folder(path)
        except errors.SecurityError as error:
            return refused(check, error, "")
    return _usable(check, path, f"set {variable} to a folder that is", needed_bytes)


def runtime_folder() -> Finding:
    """Check the folder of connection files: Jupyter's, or its replacement."""
    path = host.runtime_folder()
    if path == host.spare_runtime_folder():
        return doubtful(
            "runtime folder",
            f"Jupyter's cannot be used (somebody else's, or not to be written to): connection files are in {path}",
            "set JUPYTER_RUNTIME_DIR to a folder of yours, the same for all who connect",
        )
    return private("runtime folder", path, "JUPYTER_RUNTIME_DIR")


def data_folder(path: Path) -> Finding:
    """Check the folder of a farm's lasting files. `path` is its present or future path."""
    if host.spare_data_folder() in path.parents:
        return doubtful(
            "data folder",
            f"there is no home: farms with names are in {path.parent}, which may go when this machine starts again",
            "set JUPYTER_DATA_DIR to a folder that stays; a Farm without a name needs none",
        )
    return private("data folder", path, "JUPYTER_DATA_DIR")


def temporary() -> Finding:
    """Check the folder for farms without a name, and for temporary files of tasks."""
    try:
        path = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return wrong("temporary folder", str(error), "set TMPDIR to a folder of yours with room")
    found = _usable("temporary folder", path, "set TMPDIR to a folder that is")
    if not found.remedy and os.statvfs(path).f_flag & os.ST_NOEXEC:
        return doubtful(
            found.check,
            f"{path} is mounted noexec: what tasks compile and load there (numba, ctypes, cffi) cannot run",
            "set TMPDIR to another folder before the farm (or agent) is started",
        )
    return found


def _usable(check: str, path: Path, otherwise: str, needed_bytes: int = 0) -> Finding:
    """Check that files can be created in a folder, or that the folder can be created.

    `otherwise` is the advice if nothing else helps.
    """
    # Path.exists would raise if a parent folder may not be entered.
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    problem = _cannot_write(there)
    if problem is not None:
        remedy = f"make {there} yours and writable, or {otherwise}"
        return wrong(check, f"nothing can be written into {there}: {problem}", remedy)
    free = shutil.disk_usage(there).free
    room = f"{size(free)} free"
    if free < (least := max(needed_bytes, 1 << 16)):
        text = f"{path}: {size(free)} free, at least {size(least)} are needed"
        return wrong(check, text, "make room on its disk")
    if is_full(there):
        inodes = "a quota is used up" if has_inodes(there) else "its disk's inodes are used up: remove files"
        return wrong(check, f"{path}: there is no room for a file, with {room}: {inodes}", "make room on its disk")
    kind = network_file_system(there)
    return fine(check, f"{path}{'' if path == there else ' (not made yet)'}: {f'{kind}, ' if kind else ''}{room}")


def _cannot_write(folder: Path) -> str | None:
    if not folder.is_dir():
        return "it is not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        # A full disk is reported by the checks that measure free space.
        return None if is_full(folder) else str(error.strerror)


def sockets(name: str, place: Path, engines: int) -> Finding:
    """Check the folder of sockets and flight recorders.

    `place` distinguishes farms of one name (`farm_paths.socket_place`); `engines` is the number of engines to come.
    """
    check = "socket folder"
    path = farm_paths.socket_place(name, place)
    for folder in (path.parent, path):
        found = private(check, folder, "XDG_RUNTIME_DIR", engines * RING_BYTES)
        if found.remedy:
            return found
    kind = network_file_system(path)
    if kind is not None:
        return wrong(
            check,
            f"{path} is on a network file system ({kind}), where unix sockets and flight recorders cannot be relied on",
            "set XDG_RUNTIME_DIR to a folder on a local disk, or leave it unset",
        )
    return found


def store(home: Home, record: FarmRecord | None) -> Finding:
    """Check the present or future place of the store, and the free space on its disk."""
    path = home.folder / STORE_NAME if record is None else Path(record.store)
    kind = network_file_system(path.parent)
    if kind is not None and record is not None:
        return wrong(
            "store",
            f"{path} is on a network file system ({kind}), where SQLite's locks cannot be relied on",
            "stop the farm, move the store to a local disk and name it in farm.json, or make a new one: start --fresh",
        )
    place = path.parent if kind is None else Path("/var/tmp")  # `Home` puts it there in this case
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    return _usable("store", place, "give a new farm a --store-dir that is", least_room(there))


# ------------------------------------------------------------------------------------------------ keys and connections


def keys(folder: Path) -> tuple[Finding | None, FarmKeys | None]:
    """Check the farm's keys. There is no finding if the farm has none yet."""
    try:
        found = load_keys(folder)
    except errors.SecurityError as error:
        return refused("keys", error, ""), None
    if found is None:
        return None, None
    enrolled = f", agents {', '.join(sorted(found.agents))}" if found.agents else ""
    return fine(
        "keys", f"{folder / KEYS_FILE}: server, client, agent, reader{enrolled}; only this user can read them"
    ), found


def connection_files(home: Home, record: FarmRecord | None, held: FarmKeys | None) -> Iterator[Finding]:
    """Check the connection files of clients and agents: they must be readable, complete, and of this farm."""
    restart = f"`ipytaskfarm stop --farm {home.name}`, then start it: they are written again"
    paths = [(home.client_file, "client"), (home.agent_file, "agent")]
    if held is not None:
        paths += [(agent_file(home.folder, name), f"agent:{name}") for name in sorted(held.agents)]
    there = [(path, title) for path, title in paths if os.path.lexists(path)]
    sound = []
    for path, title in there:
        try:
            info = farm_paths.read_connection_file(path)
        except errors.SecurityError as error:
            yield refused("connection file", error, "")
            continue
        except errors.ConnectionError as error:
            yield wrong("connection file", str(error), restart)
            continue
        problem = _misfit(info, title, record, held)
        if problem:
            yield wrong("connection file", f"{path} {problem}", restart)
        else:
            sound.append((path, info))
    if sound and held is not None and sound[0][1].server_key != held.server.public:
        yield doubtful(
            "connection file",
            f"the key of the {SERVER} was rotated; the controller has the one of before until it is started again",
            f"{restart}, and copies have to be made again",
        )
    elif sound:
        yield fine("connection file", ", ".join(str(path) for path, _ in sound))


def _misfit(info: ConnectionInfo, title: str, record: FarmRecord | None, held: FarmKeys | None) -> str:
    if record is not None and info.incarnation != record.incarnation:
        other, own = info.incarnation[:8], record.incarnation[:8]
        return f"is another farm's: it says {info.farm!r}, incarnation {other}, and this one's is {own}"
    if held is not None and info.public_key != held.peers()[title].public:
        return f"has another key than the farm's own for {title}"
    return ""
