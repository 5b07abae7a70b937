"""The folder in which Jupyter's server looks for kernels that others have started.

It holds links to connection files.  A link whose file is gone counts as no file: the server forgets such a kernel.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

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
