"""The error message for a module that goes by name and cannot be imported on the other side."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re
import sys

from ..core.errors import ModuleMissing
from .module_origin import UNPACK, archive_of

_MODULE = re.compile(r"(?:^module|No module named) '([\w.]+)'")
_place = ["in this process"]


def name_place(place: str) -> None:
    """Set the words by which errors name this process. An engine names its node."""
    _place[:] = [place]


def missing(error: ModuleNotFoundError) -> ModuleMissing:
    """Return the error to raise when a pickle needs a module that does not exist here."""
    if isinstance(error, ModuleMissing) or error.name is None:
        return ModuleMissing(str(error), name=error.name)
    top = error.name.partition(".")[0]
    return ModuleMissing(
        f"module {error.name!r} cannot be imported {_place[0]} (Python {platform.python_version()}): install it there, "
        f"or, if it is pure Python, send it along: add_dependency({top!r})",
        name=error.name,
    )


def complete(error: BaseException) -> None:
    """Add to an error from elsewhere which version of the module this client has, or that it has it in an archive."""
    if not isinstance(error, ModuleNotFoundError):
        return
    found = _MODULE.search(str(error))
    module = sys.modules.get(found[1]) if found is not None else None
    if archive := archive_of(getattr(module, "__file__", None)):
        error.msg = f"{str(error).partition(':')[0]}: here it is in the archive {archive}: {UNPACK}"
        error.args = (error.msg,)
        return
    version = _version_of(found[1]) if found is not None else ""
    # A part that this client does not have either is not missing for want of the package.
    is_known = found is not None and ("." not in found[1] or found[1] in sys.modules)
    if not version or not is_known:
        return
    if isinstance(error, ModuleMissing):
        error.args = (f"{error} (this client has {version})",)
        error.msg = error.args[0]
    else:
        error.add_note(f"this client has {version}: install it where the engines run")


def _version_of(name: str) -> str:
    """Return the distribution of a top-level module and its version, like ``numpy 2.1.0``; "" if unknown."""
    top = name.partition(".")[0]
    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        pass
    for distribution in metadata.packages_distributions().get(top, ()):  # slow, but only used for error messages
        return f"{distribution} {metadata.version(distribution)}"
    version = getattr(sys.modules.get(top), "__version__", None)
    return f"{top} {version}" if isinstance(version, str) else ""
