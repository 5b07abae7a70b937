"""A disk of its own for a script: a small file system in memory, which only the script's processes see."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def said_on_small_disk(script: str, folder: Path) -> list[str]:
    """Run a script with a folder on a small disk as its argument, and return the lines that it has printed.

    The disk has 1,200 MiB, of which a farm keeps 1 GiB free for results.  Without user namespaces the test is skipped.
    """
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    mount = f'mount -t tmpfs -o size=1200m,mode=700 none {disk} && exec {sys.executable} -c "$1" {disk}'
    ended = subprocess.run(
        [unshare, "-rm", "sh", "-c", mount, "sh", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
