"""The files by which Jupyter's server and JupyterLab find ipytaskfarm, in this Python's environment.

A wheel brings them as data files. An editable install has none: `enable` makes a link to the package's own folder, and
copies the server's config file. `disable` takes both away again, or, for a wheel's files, says in Jupyter's config that
they are not to be used.

For kernels that others have started, Jupyter's server looks in a folder with links to connection files (`offer`). A
link whose file is gone counts as no file: the server forgets such a kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import msgspec

SOURCE = Path(__file__).parents[1] / "web" / "jupyter"
SERVER_MODULE = "ipytaskfarm.web.extension"
LAB_NAME = "ipytaskfarm"


@dataclass(frozen=True)
class ExtensionState:
    """How Jupyter finds ipytaskfarm in one environment."""

    prefix: Path
    server: str
    """enabled, disabled or absent."""
    lab: str
    """enabled, disabled or absent."""
    lab_version: str
    """The version of the files that JupyterLab loads; "": there are none."""
    linked: bool
    """Whether JupyterLab loads the files of the package itself, as after `enable`."""
    jupyter: dict[str, str]
    """Package of Jupyter -> its version here; empty: Jupyter's server is not in this environment."""

    @property
    def works(self) -> bool:
        """Return whether Jupyter's server of this environment shows farms, and JupyterLab has the panel."""
        return self.server == self.lab == "enabled"


class JupyterFiles:
    """The files of one environment.

    Args:
        prefix: the environment's folder, such as `sys.prefix`.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.lab_folder = prefix / "share" / "jupyter" / "labextensions" / LAB_NAME
        self.server_config = prefix / "etc" / "jupyter" / "jupyter_server_config.d" / "ipytaskfarm.json"
        self.lab_config = prefix / "etc" / "jupyter" / "labconfig" / "page_config.json"

    def state(self) -> ExtensionState:
        """Return what is there.

        Raises:
            ValueError: a file of Jupyter's configuration is not what Jupyter reads.
        """
        linked = self.lab_folder.is_symlink() and self.lab_folder.resolve() == (SOURCE / "labextension").resolve()
        package = _read(self.lab_folder / "package.json")
        extensions = _read(self.server_config).get("ServerApp", {}).get("jpserver_extensions", {})
        server = {None: "absent", True: "enabled", False: "disabled"}[extensions.get(SERVER_MODULE)]
        off = _read(self.lab_config).get("disabledExtensions", {})
        is_off = LAB_NAME in off if isinstance(off, list) else bool(off.get(LAB_NAME))
        lab = "absent" if not package else "disabled" if is_off else "enabled"
        return ExtensionState(self.prefix, server, lab, str(package.get("version", "")), linked, _jupyter_versions())

    def enable(self) -> None:
        """Let Jupyter's server and JupyterLab of this environment find ipytaskfarm.

        Raises:
            OSError: the environment may not be written.
            ValueError: a file of Jupyter's configuration is not what Jupyter reads.
        """
        _change(self.server_config, lambda config: _set_server(config, True))
        if self.lab_config.exists():
            _change(self.lab_config, lambda config: _set_lab(config, enabled=True))
        if self.lab_folder.is_symlink():
            self.lab_folder.unlink()  # it may lead to another checkout, or to one that is gone
        if not self.lab_folder.exists():
            self.lab_folder.parent.mkdir(parents=True, exist_ok=True)
            self.lab_folder.symlink_to(SOURCE / "labextension", target_is_directory=True)

    def disable(self) -> None:
        """Undo `enable`; what a wheel has brought stays, and is not used.

        Raises:
            OSError: the environment may not be written.
            ValueError: a file of Jupyter's configuration is not what Jupyter reads.
        """
        if self.lab_folder.is_symlink():
            self.lab_folder.unlink()
            with contextlib.suppress(FileNotFoundError):
                self.server_config.unlink()
            return
        if self.server_config.exists():
            _change(self.server_config, lambda config: _set_server(config, False))
        if self.lab_folder.exists():
            _change(self.lab_config, lambda config: _set_lab(config, enabled=False))


def this_environment() -> JupyterFiles:
    """Return the files of the environment of this Python."""
    return JupyterFiles(Path(sys.prefix))


def _jupyter_versions() -> dict[str, str]:
    found = {}
    for name in ("jupyter_server", "jupyterlab", "notebook"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found if "jupyter_server" in found else {}


def _set_server(config: dict[str, Any], on: bool) -> None:
    config.setdefault("ServerApp", {}).setdefault("jpserver_extensions", {})[SERVER_MODULE] = on


def _set_lab(config: dict[str, Any], *, enabled: bool) -> None:
    """Change JupyterLab's table of extensions that are not used; an old one is a list."""
    off = config.get("disabledExtensions", {})
    off = dict.fromkeys(off, True) if isinstance(off, list) else dict(off)
    if enabled:
        off.pop(LAB_NAME, None)
    else:
        off[LAB_NAME] = True
    config["disabledExtensions"] = off


class _ServerSection(TypedDict, total=False):
    jpserver_extensions: dict[str, bool]


class _JupyterConfig(TypedDict, total=False):
    """What is read of the files, all of which may have more."""

    ServerApp: _ServerSection
    disabledExtensions: dict[str, bool] | list[str]


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; an absent file has none.  Raises ValueError if Jupyter reads no such thing."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        config = msgspec.json.decode(content, type=dict[str, Any])
        msgspec.convert(config, _JupyterConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not what Jupyter reads: {error}; mend it, or remove it") from None
    return config


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = _read(path)
    change(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


FOLDER = "external_kernels"
"""The folder's name in Jupyter's runtime folder, the default of ``ServerApp.external_connection_dir``."""
_PREFIX = "taskfarm-"


def offer(connection_file: Path, name: str) -> Path:
    """Link a kernel's connection file into the folder, and return the link.  Links without a file are removed.

    Args:
        connection_file: the file.
        name: what distinguishes the kernel from others.
    """
    from jupyter_core.paths import jupyter_runtime_dir

    folder = Path(jupyter_runtime_dir()) / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in folder.glob(f"{_PREFIX}*.json"):
        if each.is_symlink() and not each.exists():
            each.unlink(missing_ok=True)
    link = folder / f"{_PREFIX}{name}.json"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(connection_file)
    return link
