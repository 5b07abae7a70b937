"""Play a reboot of the machine on real processes.

A power cut ends all processes at once and takes the runtime folders. What lives afterwards is of another boot: the
farm's processes read its name through `ipytaskfarm.system.machine.boot_id`, which is replaced in each new process.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import Dirs, processes_of
from tests.support.ended import has_ended
from tests.support.polling import eventually

_PATCH = """
import ipytaskfarm.system.machine as machine

machine.boot_id = lambda: {boot!r}
"""


def cut_power(dirs: Dirs) -> None:
    """End all processes of a world at once, and remove what a reboot does not leave."""
    while found := processes_of(dirs.root):
        _kill(found)
    for folder in (dirs.sockets, dirs.runtime):
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)


def _kill(found: list[psutil.Process]) -> None:
    for process in found:
        try:
            os.kill(process.pid, signal.SIGSTOP)  # nobody sees the others go
        except ProcessLookupError:
            continue
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    eventually(lambda: all(has_ended(process) for process in found), what="the processes have ended")


@contextmanager
def booted(name: str, folder: Path) -> Iterator[None]:
    """Let all processes that are started meanwhile, and this one, be of the boot with this name."""
    place = folder / f"boot-{name}"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_PATCH.format(boot=name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setattr("ipytaskfarm.system.machine.boot_id", lambda: name)
        yield
