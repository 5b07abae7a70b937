"""The user, the folders and the descriptors of a process, where some of them may be missing.

In a container the user's id may have no name, and the home may not be writable. A daemon may be started with closed
standard descriptors, or in a folder that was removed.
"""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

from ..core import errors

FOLDER_VARIABLES = (
    "HOME",
    "IPYTHONDIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
)
"""Environment variables that name a folder. A relative path means another folder in a process that works elsewhere."""


def user_name() -> str:
    """Return the user's name; for an id without a name, a text like ``uid1000``."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid{os.getuid()}"


def working_folder() -> Path:
    """Return the working folder; the root if it was removed or may not be entered any more."""
    try:
        return Path.cwd()
    except OSError:
        return Path("/")


def home_folder() -> Path:
    """Return the user's home; the folder for temporary files if there is no home."""
    try:
        home = Path.home()
    except (KeyError, RuntimeError):
        return Path(tempfile.gettempdir())
    return home if home.is_dir() else Path(tempfile.gettempdir())


def socket_bases() -> list[Path]:
    """Return this user's own folders for sockets, the best one first. They are not created here."""
    leaf = f"ipytaskfarm-{os.geteuid()}"
    bases = [Path("/tmp") / leaf]
    if not is_usable(bases[0]):
        # The system's folder for temporary files is not writable: use the one that TMPDIR names.
        given = os.environ.get("TMPDIR", "")
        if os.path.isabs(given) and is_usable(Path(given) / leaf):
            bases = [Path(given) / leaf]
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    # After `su` the variable may still name another user's folder.
    if os.path.isabs(given) and os.path.isdir(given) and os.stat(given).st_uid == os.geteuid():
        own = Path(given) / "ipytaskfarm"
        if is_usable(own):
            bases.insert(0, own)
    return bases


def data_folder() -> Path:
    """Return Jupyter's data folder; for a user without a home, one beside the sockets."""
    return _jupyter(jupyter_data_dir) or spare_data_folder()


def spare_data_folder() -> Path:
    """Return the data folder of a user without a home."""
    return socket_bases()[-1] / "data"


def runtime_folder() -> Path:
    """Return the folder of connection files: Jupyter's runtime folder, or if it is unusable, one beside the sockets."""
    found = _jupyter(jupyter_runtime_dir)
    return found if found is not None and is_usable(found) else spare_runtime_folder()


def spare_runtime_folder() -> Path:
    """Return the folder of connection files that is used if Jupyter's is not usable."""
    return socket_bases()[-1] / "runtime"


def _jupyter(asked: Callable[[], str]) -> Path | None:
    try:
        return Path(os.path.abspath(asked()))
    except (KeyError, RuntimeError, OSError):
        return None  # the user has no home, or a relative path starts at a folder that was removed


def is_usable(folder: Path) -> bool:
    """Return whether the folder belongs to this user and is writable, or can be created."""
    for place in (folder, *folder.parents):
        try:
            found = os.stat(place)
        except FileNotFoundError:
            continue
        except OSError:
            return False
        if place == folder and found.st_uid != os.geteuid():
            return False
        return stat.S_ISDIR(found.st_mode) and os.access(place, os.W_OK | os.X_OK, effective_ids=True)
    return False


def portable(path: str) -> str:
    """Return a path as text for a file, which is the same in every locale.

    Raises:
        StoreError: the bytes of the path are not UTF-8.
    """
    if path.isascii():
        return path
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeError:
        raise errors.StoreError(
            f"the name of the folder {os.fsencode(path)!r} is not UTF-8: a farm's files need a folder whose name is"
        ) from None


def local(text: str) -> str:
    """Return the path for such a text in this process's locale."""
    return text if text.isascii() else os.fsdecode(text.encode("utf-8"))


def absolute_folders() -> dict[str, str]:
    """Return the environment variables that name relative folders, with absolute paths for children."""
    named = {name: os.environ.get(name, "") for name in FOLDER_VARIABLES}
    relative = {name: path for name, path in named.items() if path and not os.path.isabs(path)}
    here = working_folder() if relative else Path("/")
    return {name: str(here / path) for name, path in relative.items()}


def open_standard_descriptors() -> None:
    """Open /dev/null as each of the descriptors 0 to 2 that is closed.

    Otherwise the next file or socket would get its number, and prints would write into it.
    """
    while True:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened > 2:
            os.close(opened)
            return
        os.set_inheritable(opened, True)
