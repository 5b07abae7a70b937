"""Agents by batch systems: Slurm, PBS, LSF. A submission is an array of one-node jobs, one agent each.

The system starts the jobs when there is room, starts them again when their node fails (requeue), and ends them at the
time limit. `scripts` writes the scripts and parses the answers, and `commands` runs the commands. A script contains no
secret: it names the connection files, which are in the farm's folder on the file system that the nodes share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.launchers.batch import scripts
from ipytaskfarm.launchers.batch.commands import LSF, PBS, SLURM, ask, carry_out, submit
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Handle, Seat

COMMON_OPTIONS: Mapping[str, str] = {
    "account": "the account that is charged",
    "memory": "memory for each agent, like '8 GiB'",
    "cpus": "cores for each agent (default: as many as it brings engines)",
    "directives": "more directives, without their prefix, separated by ';' or on lines of their own",
    "prologue": "shell lines to run before the agent, like 'module load python'",
}


def _options(system: str, **more: str) -> Mapping[str, str]:
    template = f"a file to use instead of {scripts.shipped(system)}"
    return {**more, **COMMON_OPTIONS, "template": template}


class BatchSystem:
    """The common part of these launchers."""

    NAME: ClassVar[str]

    def __init__(self, options: Mapping[str, str]) -> None:
        """Create the launcher from its options.

        Raises:
            ValueError: an option has an invalid value.
        """
        scripts.check_options(options)
        self._options = dict(options)

    def names(self, group: str, count: int | None) -> list[str]:
        """Return ``GROUP.0``, ``GROUP.1``, …; one name if `count` is None.

        Raises:
            ValueError: `count` is less than 1.
        """
        if count is not None and count < 1:
            raise ValueError(f"{self.NAME}: how many agents must be 1 or more, not {count}")
        return [f"{group}.{index}" for index in range(count or 1)]

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        """Return the script."""
        values = scripts.VALUES[self.NAME](self._options, seats, spec)
        own = self._options.get("template")
        path = scripts.shipped(self.NAME) if own is None else Path(own).expanduser()
        try:
            template = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise LauncherError(f"the template {path} cannot be read: {error}") from error
        return scripts.fill(template, values, f"the template {path}")

    def tend(self, handle: Handle) -> Handle:
        """Do nothing: the system itself starts jobs of failed nodes again."""
        return handle


class Slurm(BatchSystem):
    """Slurm, by ``sbatch``, ``squeue`` and ``scancel``."""

    OPTIONS: ClassVar[Mapping[str, str]] = _options(
        "slurm",
        partition="where to run",
        qos="quality of service",
        signal="seconds before the time limit at which agents are told to end (default: 30 more than their leave)",
    )
    NAME = "slurm"

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Submit one array."""
        said = submit(SLURM, ["sbatch", "--parsable"], self.preview(seats, spec))
        job, cluster = scripts.slurm_job(said)
        return {"job": job, "cluster": cluster, "names": [seat.name for seat in seats]}

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Ask by one ``squeue``, which knows an element for some minutes after its end."""
        words = ["--noheader", "--array", "--states=all", f"--format={scripts.SQUEUE_FORMAT}"]
        said = ask(SLURM, ["squeue", *_clusters(handle), *words, f"--jobs={handle['job']}"])
        return _by_name(handle, scripts.slurm_status(said), 0)

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """Send SIGTERM to every process of a job, including engines and their children; SIGKILL after the site's
        ``KillWait``.

        Running tasks should have been recalled before.
        """
        job = str(handle["job"])
        ids = [job] if names is None else [f"{job}_{index}" for index in _indices(handle, names)]
        if ids:
            carry_out(SLURM, ["scancel", "--quiet", *_clusters(handle), *ids])


class Pbs(BatchSystem):
    """PBS Professional and OpenPBS, by ``qsub``, ``qstat`` and ``qdel``."""

    OPTIONS: ClassVar[Mapping[str, str]] = _options("pbs", queue="where to run")
    NAME = "pbs"

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Submit one array, or a single job."""
        # -f: without it qsub leaves a process of its own behind.
        said = submit(PBS, ["qsub", "-f"], self.preview(seats, spec))
        return {"job": scripts.pbs_job(said), "names": [seat.name for seat in seats]}

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        return _by_name(handle, scripts.pbs_status(ask(PBS, ["qstat", "-t", "-f", str(handle["job"])])), 0)

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """Send SIGTERM, and SIGKILL after the site's ``kill_delay``."""
        job = str(handle["job"])
        ids = [job] if names is None else [scripts.pbs_element(job, index) for index in _indices(handle, names)]
        if ids:
            carry_out(PBS, ["qdel", *ids])


class Lsf(BatchSystem):
    """LSF from version 10.1, by ``bsub``, ``bjobs`` and ``bkill``."""

    OPTIONS: ClassVar[Mapping[str, str]] = _options("lsf", queue="where to run")
    NAME = "lsf"

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Submit one array."""
        said = submit(LSF, ["bsub"], self.preview(seats, spec))
        return {"job": scripts.lsf_job(said), "names": [seat.name for seat in seats]}

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Ask by one ``bjobs``, which knows an element for an hour after its end."""
        said = ask(LSF, ["bjobs", "-a", "-json", "-o", scripts.BJOBS_FIELDS, str(handle["job"])])
        return _by_name(handle, scripts.lsf_status(said) if said else {}, 1)

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """Send SIGINT, SIGTERM and SIGKILL, ten seconds apart.

        A job of several slots gets only SIGKILL, unless the site has ``LSB_USE_SEQUENTIAL_SIGNAL``.
        """
        job = str(handle["job"])
        ids = [job] if names is None else [f"{job}[{index + 1}]" for index in _indices(handle, names)]
        if ids:
            carry_out(LSF, ["bkill", *ids])


# ------------------------------------------------------------------------------------------------ common parts


def _by_name(handle: Handle, found: Mapping[int, AgentStatus], first: int) -> dict[str, AgentStatus]:
    forgotten = AgentStatus("ended", "", "no longer known")
    return {name: found.get(index, forgotten) for index, name in enumerate(handle["names"], first)}


def _indices(handle: Handle, names: Sequence[str]) -> list[int]:
    places = {name: index for index, name in enumerate(handle["names"])}
    return [places[name] for name in names if name in places]


def _clusters(handle: Handle) -> list[str]:
    return [f"--clusters={handle['cluster']}"] if handle["cluster"] else []
