"""Starting the process of a zygote.

The agent does it before its own imports, which take as long as the zygote's: so both import at the same time. This
module therefore imports little.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..system.odd_files import remove_unless_file

OUTPUT = "zygote.out"
"""The file, in the agent's folder, for the output of its zygotes."""


class ZygoteProcess(NamedTuple):
    """The process of a zygote, and our end of its socket.

    The zygote ends when that is closed, and with this process.
    """

    child: subprocess.Popen[bytes]
    control: socket.socket


def spawn_zygote(
    farm: str, output: Path, *, failure_values: str, preload: Sequence[str] = (), stays: bool = False
) -> ZygoteProcess:
    """Start a zygote, from a thread that lives as long as this process (PR_SET_PDEATHSIG refers to threads).

    Args:
        farm: the farm's name.
        output: the file for its output.
        failure_values: one of `core.failure_values.FAILURE_VALUES`, for the engines' failures.
        preload: modules to import once for all engines.
        stays: whether SIGTERM ends neither it nor the engines.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    # -P: nothing is imported from the current folder; engines add theirs themselves.
    argv = [sys.executable, "-P", "-m", "ipytaskfarm.engine.zygote", "--control-fd", str(theirs.fileno())]
    argv += ["--farm", farm, "--failure-values", failure_values]
    argv += [word for name in preload for word in ("--preload", name)]
    argv += ["--stay"] if stays else []
    remove_unless_file(output)
    with theirs, open(output, "ab", opener=_private) as out:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[theirs.fileno()])
    return ZygoteProcess(child, ours)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
