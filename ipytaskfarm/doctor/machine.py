"""Checks of this machine: its Python and packages, the user's limits, its memory and its clock."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

import psutil

from ipytaskfarm.agent.memory import LEAST_SHARE
from ipytaskfarm.display.text import size
from ipytaskfarm.doctor import Finding, doubtful, fine, wrong
from ipytaskfarm.storage.opening import OLDEST_SQLITE
from ipytaskfarm.system.control_groups import MemoryRoom, process_counts
from ipytaskfarm.system.host import user_name
from ipytaskfarm.system.jupyter_extension import ExtensionState
from ipytaskfarm.version import __version__

OLDEST_PYTHON = "3.11"
# Measured with pyzmq 27 and ipykernel 7.4, 1 to 9 engines: the resources of each process when it is idle.
AGENT_FILES, AGENT_FILES_EACH, ENGINE_FILES = 28, 3, 46
ENGINE_THREADS, OTHER_THREADS = 9, 9
ENGINE_BYTES, OTHER_BYTES = 14 * 2**20, 55 * 2**20
JUMP_S = 60.0
"""Smaller jumps are ignored: a controller with a large store starts slowly, which looks like a jump of the clock."""

Installed = Callable[[str], str | None]


def python(found: str, oldest: str = OLDEST_PYTHON) -> Finding:
    """Check the version of Python that runs."""
    if _numbers(found) < _numbers(oldest):
        return wrong("python", f"Python {found} ({sys.executable})", f"use Python {oldest} or newer")
    return fine("python", f"Python {found} ({sys.executable}), ipytaskfarm {__version__}")


def jupyter(state: ExtensionState) -> Finding:
    """Check whether Jupyter's server and JupyterLab of this environment find ipytaskfarm."""
    if not state.jupyter:
        return fine("jupyter", "its server is not in this environment; `ipytaskfarm web` works without it")
    if not state.works:
        return doubtful(
            "jupyter",
            f"the server extension is {state.server}, the lab extension {state.lab}: JupyterLab shows no farms",
            "ipytaskfarm jupyter enable, and start Jupyter's server again",
        )
    if state.lab_version != __version__:
        return doubtful(
            "jupyter",
            f"JupyterLab's part is of version {state.lab_version}, the package of {__version__}",
            f"{sys.executable} -m pip install --force-reinstall --no-deps ipytaskfarm=={__version__}",
        )
    return fine("jupyter", "its server shows farms below taskfarm/, and JupyterLab has the panel of the farms")


def packages(required: Sequence[str], installed: Installed, sqlite: str) -> Finding:
    """Check the installed packages.

    Args:
        required: the requirements as in the package's metadata (``pyzmq>=27``).
        installed: returns a package's version, None if it is not installed.
        sqlite: the version of SQLite.
    """
    lacking = []
    minima = [match for match in map(_MINIMUM.match, required) if match is not None]
    for match in minima:
        name, oldest = match["name"], match["oldest"] or ""
        there = installed(name)
        if there is None:
            lacking.append((f"{name} is missing", match[0]))
        elif _numbers(there) < _numbers(oldest):
            lacking.append((f"{name} {there} is older than {oldest}", match[0]))
    if lacking:
        words = " ".join(f"'{need}'" for _, need in lacking)
        return wrong("packages", "; ".join(what for what, _ in lacking), f"{sys.executable} -m pip install {words}")
    if _numbers(sqlite) < _numbers(OLDEST_SQLITE):
        return wrong(
            "packages", f"SQLite {sqlite} is older than {OLDEST_SQLITE}", "use a Python that was built with a newer one"
        )
    if not minima:
        return doubtful(
            "packages",
            f"ipytaskfarm {__version__} is not installed here, so nothing says what it needs; SQLite {sqlite}",
            f"{sys.executable} -m pip install ipytaskfarm=={__version__}",
        )
    return fine("packages", f"all {len(minima)} that are needed, new enough; SQLite {sqlite}")


_MINIMUM = re.compile(r"(?P<name>[\w.-]+)\s*(?:>=\s*(?P<oldest>[\d.]+))?(?!.*\bextra\b)")


def requirements() -> list[str]:
    """Return the requirements in this package's metadata."""
    try:
        return requires("ipytaskfarm") or []
    except PackageNotFoundError:
        return []  # a checkout that is not installed


def installed_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> list[int]:
    found = re.match(r"\d+(\.\d+)*", text)
    return [int(part) for part in found[0].split(".")] if found is not None else []


def forking(platform: str) -> Finding:
    """Return whether engines can be started at all. `trial` starts one."""
    if platform == "linux" and hasattr(os, "fork"):
        return fine("forking", "engines can be forked; `doctor --try` starts a farm of one, and ends it")
    return wrong("forking", f"this is {platform}: engines run on Linux alone", "run agents on a Linux machine")


def open_files(engines: int, soft: int, hard: int) -> Finding:
    """Check the limits of RLIMIT_NOFILE, soft and hard; -1 means no limit."""
    needed = max(ENGINE_FILES, AGENT_FILES + AGENT_FILES_EACH * engines)
    if soft < 0 or soft >= needed:
        limit = "no limit" if soft < 0 else f"a process may have {soft:,}"
        return fine("open files", f"{limit}; an agent of {engines:,} engines has about {needed:,}")
    more = (
        f"ulimit -n {needed * 2}, in the shell that starts the farm (or agent)"
        if hard < 0 or hard >= needed * 2
        else f"have the limit (nofile in /etc/security/limits.conf) raised to {needed * 2}, or use fewer engines"
    )
    return wrong(
        "open files", f"a process may have {soft:,}; an agent of {engines:,} engines has about {needed:,}", more
    )


def processes(engines: int, limit: int, running: int, what: str) -> Finding:
    """Check the limit of processes and threads.

    Args:
        engines: the number of engines to come.
        limit: how many processes and threads are allowed; -1 for no limit.
        running: how many there are.
        what: to what the limit applies.
    """
    if limit < 0:
        return fine("processes", "no limit")
    needed = ENGINE_THREADS * engines + OTHER_THREADS if engines else 0
    more = f"; {engines} more engines have about {needed}" if engines else ""
    found = f"{limit:,} for {what}, {running:,} are there{more}"
    if running + needed <= limit:
        return fine("processes", found)
    return wrong(
        "processes", found, "use fewer engines (-n), end what is not needed, or have the limit (nproc, pids.max) raised"
    )


def file_limits() -> tuple[int, int]:
    """Return (soft, hard) of RLIMIT_NOFILE; -1 means no limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def process_limit() -> tuple[int, int, str]:
    """Return (limit, present number, to what the limit applies) of the tightest limit for this process; -1 for none."""
    found = [(limit, count, "this control group") for limit, count in process_counts()]
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    # There is no limit for root.
    if soft >= 0 and os.geteuid() != 0:
        found.append((soft, _own_threads(), f"the user {user_name()}"))
    return min(found, key=lambda each: each[0] - each[1], default=(-1, 0, "anybody"))


def _own_threads() -> int:
    count = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids, threads = process.info["uids"], process.info["num_threads"]
        if uids is not None and uids.real == os.getuid():
            count += threads or 1
    return count


def memory(engines: int, rooms: Sequence[MemoryRoom]) -> Finding:
    """Check the memory of this machine and of this process's control groups.

    `engines` is the number to come.
    """
    needed = ENGINE_BYTES * engines + OTHER_BYTES if engines else 0
    available, total = min(rooms, key=lambda room: (room.available - needed) / room.total)
    more = f"; {engines} more engines, idle, have about {needed / 2**20:.0f} MiB" if engines else ""
    found = f"{size(available)} of {size(total)} available{more}"
    if available - needed < LEAST_SHARE * total:
        return wrong(
            "memory",
            f"{found}: with less than {LEAST_SHARE:.0%} left agents end the largest engine",
            "use fewer engines (-n), or free memory",
        )
    return fine("memory", found)


def clock(wall_s: float, installed_s: float) -> Finding:
    """Check the clock: `wall_s` is its time, `installed_s` the time of this package's files."""
    if wall_s < installed_s:
        return doubtful(
            "clock",
            f"it says {_moment(wall_s)}, and this package's files are of {_moment(installed_s)}",
            "set the clock, and let it be kept right (chrony, systemd-timesyncd)",
        )
    return fine("clock", f"it says {_moment(wall_s)}")


def jumps(since_boot_s: float, wall_s: float, began_boot_s: float, began_wall_s: float) -> Finding:
    """Return whether the clock was set while a controller ran, from both clocks now and at its start.

    No limit and no lease depends on it: they use a clock that nobody sets.
    """
    jump_s = (wall_s - since_boot_s) - (began_wall_s - began_boot_s)
    if abs(jump_s) < JUMP_S:
        return fine("clock", f"it says {_moment(wall_s)}; not set since the controller began")
    return doubtful(
        "clock",
        f"it was set by about {jump_s:+.0f} s since the controller began: moments in the history are off by that",
        "have it kept right (chrony, systemd-timesyncd); what runs is not affected",
    )


def since_boot_s() -> float:
    """Return the time of the clock in which starts of processes are recorded."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _moment(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(wall_s))
