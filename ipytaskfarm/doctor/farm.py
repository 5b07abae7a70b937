"""Checks of a running farm: its engines, its agents and their machines, and the agents that launchers
were asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.parsing import goes_by
from ipytaskfarm.deployment.agent_groups import AgentGroup
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.farm_tables import ready_engines
from ipytaskfarm.doctor import Finding, doubtful, fine, wrong
from ipytaskfarm.doctor.network import is_loopback
from ipytaskfarm.launchers.interface import AgentStatus
from ipytaskfarm.storage.disk import MIN_FREE_BYTES
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.system.process import is_stopped
from ipytaskfarm.version import __version__

SKEW_S = 10.0
"""The tolerance for clocks: a message that was delayed looks like a clock that is slow."""
ANSWER_S = 10.0
NEARLY = 0.9
"""The share of a process's permitted open files that counts as nearly all."""


def ask(home: Home) -> tuple[Finding, FarmState | None]:
    """Return the controller's report about itself, if it answers."""
    try:
        with connect(home.name) as questioner:
            state = questioner.answer_for(FarmStatus(), FarmState, timeout_s=ANSWER_S)
    except errors.TaskFarmError as error:
        return wrong("farm", str(error), f"ipytaskfarm logs --farm {home.name}"), None
    name = f"{state.name!r}"
    if state.stopping:
        return doubtful("farm", f"{name} is stopping", "wait, then start it again"), state
    if state.refusing:
        return doubtful("farm", f"{name} accepts no task", state.refusing), state
    if state.held:
        again = f"ipytaskfarm resume --farm {home.name}"
        return doubtful("farm", f"{name} is paused: no task is started", again), state
    return fine("farm", f"{name} answers, controller pid {state.pid}"), state


def version(info: ConnectionInfo) -> Finding | None:
    """Return a finding if this ipytaskfarm and the controller's have different versions; else None."""
    if info.version == __version__:
        return None
    found = f"the controller is ipytaskfarm {info.version}, this is {__version__}"
    return doubtful("version", found, "install the same version here, or restart the farm with this one")


def controller_files(pid: int) -> Finding | None:
    """Return a finding if the controller, a process of this machine, is about to run out of descriptors.

    None: it is not, or that cannot be known.
    """
    try:
        process = psutil.Process(pid)
        used, limit = process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)[0]
    except (psutil.Error, OSError):
        return None
    if limit < 0 or used < NEARLY * limit:
        return None
    found = f"the controller has {used} of the {limit} files that it may have"
    return wrong("open files", found, "stop the farm, and start it again after `ulimit -n`, with more")


def supervisor(home: Home) -> Finding | None:
    """Return a finding if the farm's supervisor, a process of this machine, is stopped: nobody restarts what crashes.

    None: it is not, or there is none.
    """
    run = home.present_run()
    if run is None or not home.is_supervised() or not is_stopped(run.pid):
        return None
    found = f"process {run.pid} is stopped, by SIGSTOP or ^Z: what crashes of this farm is not started again"
    return wrong("supervisor", found, f"kill -CONT {run.pid}, or `fg` in its terminal")


def engines(state: FarmState) -> Finding:
    """Return whether the wanted engines come up."""
    ready = ready_engines(state)
    notes = [f"engine {row.id}: {row.note}" for row in state.engines if row.note]
    found = f"{ready} of {state.wanted} are ready"
    if notes:
        return doubtful(
            "engines", f"{found}; {'; '.join(notes[:3])}", "ipytaskfarm logs engine N shows what it printed"
        )
    if state.wanted and not ready:
        # The first and the last line of a traceback.
        lost = state.losses[-1].strip().splitlines() if state.losses else []
        why = (
            f"; the last that was lost: {' … '.join(dict.fromkeys((lost[0].strip(), lost[-1].strip())))}"
            if lost
            else ""
        )
        return doubtful(
            "engines", f"none of {state.wanted} is ready{why}",
            "look again in a moment; if it stays so: ipytaskfarm logs agent, or try: ipytaskfarm doctor --try",
        )  # fmt: skip
    return fine("engines", found)


def agents(state: FarmState, python: str) -> Iterator[Finding]:
    """Yield one finding for each agent with a problem, and one for all others. `python` is the version here."""
    sound = []
    for row in state.agents:
        found = list(_agent(row, python))
        yield from found
        if not found:
            sound.append(_shown(row))
    if sound:
        yield fine("agents", f"{', '.join(sorted(sound))}: reachable, Python {_minor(python)} as here")
    elif not state.agents and state.wanted:
        yield doubtful("agents", "there is none", "look again in a moment; then: ipytaskfarm logs agent")


def _shown(row: Mapping[str, Any]) -> str:
    return f"{row['name']} on {row['node']}" if row["name"] else str(row["node"])


def _agent(row: Mapping[str, Any], python: str) -> Iterator[Finding]:
    who = f"agent {_shown(row)}"
    if row["state"] == "unreachable":
        yield doubtful(
            "agents", f"{who} is not heard",
            "see there whether it runs, and with its connection file: ipytaskfarm doctor --agent-file FILE; what runs"
            " there goes on until its lease is over",
        )  # fmt: skip
        return
    if row["state"] in ("set aside", "drained"):
        more = (
            f"ipytaskfarm drain {row['node']} --off" if row["state"] == "drained" else "ipytaskfarm explain ID says why"
        )
        yield doubtful("agents", f"{who} gets no tasks: {row['state']}", more)
    if row["guard"]:
        yield doubtful(
            "agents", f"{who} gets no tasks now: {row['guard']}", "end what else runs there, or change the guard"
        )
    if _minor(row["python"]) != _minor(python):
        yield doubtful(
            "agents",
            f"{who} has Python {row['python']}, this is {python}: functions of notebooks and scripts are refused there",
            f"give it a Python {_minor(python)} (agents add --python PATH), or use its version here",
        )  # fmt: skip
    if row["free_disk"] is not None and row["free_disk"] < MIN_FREE_BYTES:
        yield doubtful("agents", f"{who} has {row['free_disk'] / 2**20:.0f} MiB left on its disk", "make room there")
    if row["clock_ahead"] is not None and abs(row["clock_ahead"]) > SKEW_S:
        yield doubtful(
            "clock", f"{who}: its clock was {row['clock_ahead']:+.0f} s off the controller's when it joined",
            "have both kept right (chrony, systemd-timesyncd): the ends of allocations go by it",
        )  # fmt: skip


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def groups(
    home: Home, asked: Sequence[AgentGroup], statuses: Mapping[str, AgentStatus], state: FarmState
) -> Iterator[Finding]:
    """Yield a finding for each agent that was asked of a launcher and has not come."""
    heard = {row["name"] for row in state.agents if row["state"] != "unreachable"}
    for group in asked:
        missing = [name for name in group.names if not any(goes_by(each, [name]) for each in heard)]
        if not missing:
            yield fine("groups", f"{group.name}: all of {len(group.names)} are here")
        for name in missing:
            yield _missing(home, group, name, statuses.get(name))


def _missing(home: Home, group: AgentGroup, name: str, status: AgentStatus | None) -> Finding:
    launcher = group.agents.launcher
    if status is None:
        return doubtful(
            "groups", f"{name} is not here, and {launcher} does not answer", f"see what {launcher} says, by hand"
        )
    where = f" on {status.where}" if status.where else ""
    why = f": {status.why}" if status.why else ""
    if status.state == "waiting":
        return fine("groups", f"{name} waits{where}{why}")
    file, log = _left_by(home, launcher, name)
    if status.state == "ended":
        again = f"ipytaskfarm agents remove {group.name}, and add it again"
        return wrong("groups", f"{name} has ended{where}{why}", f"see {log}; then {again}")
    return wrong(
        "groups", f"{name} runs{where} by what {launcher} says, and the controller does not hear it{why}",
        f"there: ipytaskfarm doctor --agent-file {file}; see {log}",
    )  # fmt: skip


def _left_by(home: Home, launcher: str, name: str) -> tuple[str, str]:
    """Return (the agent's connection file, the place of its log) where its launcher puts them."""
    if launcher == "ssh":
        there = f"~/.cache/ipytaskfarm/{home.name}-*-{name}"
        return f"{there}/connection.json", f"{there}/agent.log there"
    file = str(home.folder / "agents" / f"{name}.json")
    if launcher in ("slurm", "pbs", "lsf"):
        return file, f"{home.logs / name}.out"
    if launcher == "dask":
        there = f"/tmp/ipytaskfarm-UID/*/keep-{name}"  # or below $XDG_RUNTIME_DIR, if that belongs to them
        return f"{there}/connection.json", f"{there}/agent.out there"
    return file, f"the logs of {launcher}"


def listening(info: ConnectionInfo, asked: Sequence[AgentGroup], state: FarmState) -> Finding:
    """Return whether other machines can reach the controller's address at all."""
    elsewhere = sorted({group.agents.launcher for group in asked} - {"ssh"})
    heard = any(row["node"] != socket.gethostname() or row["name"] for row in state.agents)
    if is_loopback(info.host) and is_loopback(info.location or info.host):
        if elsewhere and not heard:
            return doubtful(
                "listening", f"on this machine alone, and agents were asked of {', '.join(elsewhere)}",
                f"ipytaskfarm stop --farm {state.name}, then start it with --host ADDRESS (0.0.0.0: all)",
            )  # fmt: skip
        return fine("listening", f"on {info.host} port {info.port}: this machine alone")
    return fine("listening", f"at {info.location or info.host} port {info.port}, for other machines too")
