"""Run processes as another user, or in special surroundings, as in a container or a daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ipytaskfarm

NAMELESS = 12345
"""A user id without a name."""

_REACHABLE = r"""
set -e
# For each folder that others may not enter: put an empty one over it, with what is needed bound into that.
keep=$1; shift
while [ "$1" != -- ]; do
    closed=$1; needed=$2; shift 2
    mkdir -p "$keep$needed"; mount --bind "$needed" "$keep$needed"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$needed"; mount --move "$keep$needed" "$needed"
done
shift
exec setpriv --reuid=ID --regid=ID --clear-groups "$@"
""".replace("ID", str(NAMELESS))


def why_not() -> str:
    """Why there can be no such processes here; "": there can."""
    missing = [tool for tool in ("setpriv", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: util-linux)"
    if os.geteuid() != 0:
        return "another user's processes need root"
    tried = subprocess.run(["unshare", "-mnu", "true"], capture_output=True, text=True, check=False)
    return f"no namespace can be made here: {tried.stderr.strip()}" if tried.returncode else ""


def nameless(keep: Path, *command: str) -> list[str]:
    """The command as a user without a name, who can enter the folders of this Python.  keep: an empty folder."""
    pairs: list[str] = []
    needed = {Path(sys.base_prefix), Path(sys.prefix), Path(ipytaskfarm.__file__).resolve().parent.parent}
    for path in sorted(needed):
        closed = next((p for p in [*reversed(path.parents), path] if not p.stat().st_mode & 0o001), None)
        if closed == path:
            raise AssertionError(f"{path} itself is closed to others")
        if closed is not None:
            pairs += [str(closed), str(path)]
    return ["unshare", "-m", "bash", "-c", _REACHABLE, "bash", str(keep), *pairs, "--", *command]
