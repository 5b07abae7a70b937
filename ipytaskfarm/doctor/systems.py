"""Checks of the systems that place agents: whether their commands exist here and answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.doctor import Finding, doubtful, fine, wrong
from ipytaskfarm.launchers.batch.commands import LSF, PBS, SLURM, System
from ipytaskfarm.launchers.batch.launchers import Lsf, Pbs, Slurm
from ipytaskfarm.launchers.interface import ENTRY_POINTS, Handle

_NOBODYS: Handle = {"job": "1", "cluster": "", "names": []}
"""A handle for a test question: every batch system has had its job 1, or says that it does not know it."""


def systems(needed: Collection[str]) -> Iterator[Finding]:
    """Check each system. `needed` has the launchers that the farm has asked for agents."""
    checks: dict[str, Callable[[], Finding | None]] = {
        "slurm": lambda: _batch(SLURM, Slurm({}).status, "slurm" in needed),
        "pbs": lambda: _batch(PBS, Pbs({}).status, "pbs" in needed),
        "lsf": lambda: _batch(LSF, Lsf({}).status, "lsf" in needed),
        "ssh": _ssh,
        "dask": _dask,
    }
    remedies = {
        "ssh": "install an OpenSSH client (Debian: openssh-client)",
        "dask": "pip install 'ipytaskfarm[dask]'",
    }
    absent = []
    for name, check in checks.items():
        found = check()
        if found is not None:
            yield found
        elif name in needed:
            remedy = remedies.get(name, "start the farm where jobs are submitted, or load the module that brings it")
            yield wrong(name, "agents were asked of it, and its command is not here", remedy)
        else:
            absent.append(name)
    others = sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)} - checks.keys())
    if others:
        yield fine("launchers", f"of other packages: {', '.join(others)}")
    if absent:
        yield fine("launchers", f"not on this machine: {', '.join(absent)}")


def _batch(system: System, ask: Callable[[Handle], object], needed: bool) -> Finding | None:
    name = system.name.lower()
    path = shutil.which(system.submit)
    if path is None:
        return None
    try:
        ask(_NOBODYS)
    except LauncherError as error:
        found, _, _ = str(error).partition("\n")
        remedy = f"no agents are started by {system.name} until its commands answer; its administrators know"
        return wrong(name, found, remedy) if needed else doubtful(name, found, remedy)
    return fine(name, f"{path}; it answers")


def _ssh() -> Finding | None:
    path = shutil.which("ssh")
    return None if path is None else fine("ssh", path)


def _dask() -> Finding | None:
    return None if find_spec("distributed") is None else fine("dask", "distributed is installed")
