"""The order of the checks: first those of conditions that everything else depends on."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ipytaskfarm
from ipytaskfarm.agent.memory import node_memory
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.deployment import agent_groups as grouped
from ipytaskfarm.deployment.agent_groups import AgentGroup
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.settings import DEFAULT_PORT
from ipytaskfarm.doctor import Finding, doubtful, farm, files, fine, machine, network, wrong
from ipytaskfarm.doctor.systems import systems
from ipytaskfarm.settings.declarations import DEFAULT_HOST
from ipytaskfarm.storage.opening import sqlite_version
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import ConnectionInfo, FarmRecord
from ipytaskfarm.system.jupyter_extension import this_environment
from ipytaskfarm.system.process import usable_cores


def of_farm(home: Home, wanted: int | None) -> Iterator[Finding]:
    """Check this machine, and the farm of this name if it runs.

    `wanted` is the number of engines that are to run here; None for the farm's own number, or one per core.
    """
    refused = False
    try:
        info = home.living_info()
    except errors.SecurityError:  # `_keys` reports the file, with the remedy
        info, refused = None, True
    here = info is not None and info.node == socket.gethostname()
    count = usable_cores() if wanted is None else wanted
    yield from _of_machine(count, 0 if here and wanted is None else count)
    yield from _guarded("jupyter", lambda: [machine.jupyter(this_environment().state())])
    yield from _guarded(
        "folders", lambda: _folders(home, count, temporary=info is not None and not home.folder.exists())
    )
    record, found = _record(home)
    yield from found
    yield from _guarded("keys", lambda: _keys(home, record))
    if info is None:
        if not refused:
            yield _stopped(home, record)
            yield from _guarded("port", lambda: [_port(record)])
        yield from _guarded("launchers", lambda: systems(()))
        return
    reached = network.connection(info)
    yield reached
    if not reached.remedy:
        yield network.handshake(info, network.greet(info))
    answer, state = farm.ask(home)
    yield answer
    if state is not None:
        yield from _guarded("farm", lambda: _of_running(home, info, state, here=here))


def of_agent(path: Path, wanted: int | None) -> Iterator[Finding]:
    """Check this machine as a machine for an agent, and its connection to the controller under the key in the file."""
    count = usable_cores() if wanted is None else wanted
    yield from _of_machine(count, count)
    try:
        info = farm_paths.read_connection_file(path)
    except errors.SecurityError as error:
        yield files.refused("agent file", error, "")
        return
    except errors.FarmNotRunning:
        yield wrong(
            "agent file", f"there is no {path} here",
            "if it is in the farm's folder, this machine does not see that file system: copy it here, over what"
            " encrypts, into a file of 0600 (on the controller's host: ipytaskfarm keys add NAME --output FILE)",
        )  # fmt: skip
        return
    except errors.ConnectionError as error:
        yield wrong("agent file", str(error), "copy it again from the controller's host")
        return
    if info.role != "agent":
        yield wrong(
            "agent file", f"{path} is a file of role {info.role}: no agent gets in with it",
            "on the controller's host: ipytaskfarm keys add NAME --output FILE",
        )  # fmt: skip
        return
    who = f"agent {info.agent!r}" if info.agent else "the agents of the controller's own host"
    yield fine("agent file", f"{path}: for {who} of farm {info.farm!r}, ipytaskfarm {info.version}")
    yield files.sockets(info.farm, Path("/", info.incarnation), count)
    reached = network.connection(info)
    yield reached
    if not reached.remedy:
        yield network.handshake(info, network.greet(info))


def _guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. An error that prevents the check is a finding too."""
    try:
        yield from look()
    except (errors.TaskFarmError, OSError, ValueError) as error:
        yield wrong(check, f"cannot be looked at: {error}", "put that right, then look again")


# ------------------------------------------------------------------------------------------------ this machine


def _of_machine(count: int, coming: int) -> Iterator[Finding]:
    """Check this machine for `count` engines of an agent, of which `coming` have not been started yet."""
    yield machine.python(platform.python_version())
    yield machine.packages(machine.requirements(), machine.installed_version, sqlite_version())
    yield machine.forking(sys.platform)
    yield machine.open_files(count, *machine.file_limits())
    yield machine.processes(coming, *machine.process_limit())
    yield machine.memory(coming, node_memory())
    yield machine.clock(time.time(), os.stat(ipytaskfarm.__file__).st_mtime)
    yield files.temporary()
    yield network.loopback()


def _folders(home: Home, engines: int, *, temporary: bool) -> Iterator[Finding]:
    if not temporary:
        yield files.data_folder(home.folder)
    yield files.runtime_folder()
    yield files.sockets(home.name, home.folder, engines)


def _record(home: Home) -> tuple[FarmRecord | None, list[Finding]]:
    try:
        record = farm_paths.read_farm_record(home.folder)
    except errors.SecurityError as error:
        return None, [files.refused("farm", error, "")]
    except errors.StoreError as error:
        return None, [
            wrong("farm", str(error), f"ipytaskfarm start --farm {home.name} --fresh, or put it back from a backup")
        ]
    if not os.path.exists(home.folder):
        return None, []
    return record, [files.store(home, record)]


def _keys(home: Home, record: FarmRecord | None) -> Iterator[Finding]:
    found, held = files.keys(home.folder)
    if found is not None:
        yield found
    yield from files.connection_files(home, record, held)


def _stopped(home: Home, record: FarmRecord | None) -> Finding:
    start = f"ipytaskfarm start --farm {home.name}"
    if home.client_file.exists():
        supervised = home.is_supervised()
        found = f"{home.client_file} is of a controller that has ended without a good-bye"
        if supervised:
            return doubtful("farm", f"{found}; its supervisor starts it again", "look again in a moment")
        return doubtful("farm", found, f"{start}: it goes on; or ipytaskfarm clean --farm {home.name}: the file goes")
    if record is None:
        return fine("farm", f"there is none called {home.name!r} yet")
    elsewhere = f", on host {record.node}" if record.node != socket.gethostname() else ""
    return fine("farm", f"{home.name!r} does not run{elsewhere}; `{start}` goes on with it")


def _port(record: FarmRecord | None) -> Finding:
    if record is None:
        return network.port(DEFAULT_HOST, DEFAULT_PORT, fixed=False)
    return network.port(record.host, record.port or DEFAULT_PORT, fixed=bool(record.port))


# ------------------------------------------------------------------------------------------------ a running farm


def _of_running(home: Home, info: ConnectionInfo, state: FarmState, *, here: bool) -> Iterator[Finding]:
    other = farm.version(info)
    if other is not None:
        yield other
    if here:
        yield from _of_controller(home, info, state)
    asked: list[AgentGroup] = grouped.read_groups(home)
    yield farm.listening(info, asked, state)
    if here and not network.is_loopback(info.location or info.host):
        connected = any(row["node"] != info.node and row["state"] == "up" for row in state.agents)
        yield network.name(info.location or info.host, connected=connected)
    yield farm.engines(state)
    yield from farm.agents(state, platform.python_version())
    yield from farm.groups(home, asked, grouped.statuses(asked), state)
    yield from systems({group.agents.launcher for group in asked})


def _of_controller(home: Home, info: ConnectionInfo, state: FarmState) -> Iterator[Finding]:
    """Check the controller, which is a process of this machine."""
    if home.folder.exists() and not home.is_supervised():
        yield doubtful(
            "supervisor", "no process supervises the farm: a process that crashes is not started again",
            f"ipytaskfarm start --farm {home.name}: it takes over what runs",
        )  # fmt: skip
    yield machine.jumps(machine.since_boot_s(), time.time(), info.controller_started, state.started_s)
    found = (farm.controller_files(info.controller_pid), farm.supervisor(home))
    yield from (each for each in found if each is not None)


TRIAL_S = 60.0


def trial() -> Finding:
    """Run the practical test, which takes some seconds and leaves nothing: a farm of one engine runs a task."""
    # Only this check needs the client, of which the import takes long.
    from ipytaskfarm.client import StringTask
    from ipytaskfarm.deployment.farm import Farm

    began_s = time.monotonic()
    try:
        with Farm(n=1, start_timeout=TRIAL_S) as farm, farm.task_client() as tc:
            ready_s = time.monotonic()
            task_id = tc.run(StringTask("x = 6 * 7", pull="x"))
            tc.barrier([task_id], timeout=TRIAL_S)
            answer = tc.get_task_result(task_id)["x"]
            done_s = time.monotonic()
    except (errors.TaskFarmError, OSError, TimeoutError) as error:
        return wrong(
            "try", " ".join(str(error).split()), "what is wrong above, first; then see what the engine printed"
        )
    if answer != 42:
        return wrong("try", f"an engine says that 6 * 7 is {answer!r}", "replace this Python")
    took = f"ready after {ready_s - began_s:.1f} s, a task done after {(done_s - ready_s) * 1000:.0f} ms more"
    return fine("try", f"a farm of one engine: {took}; it is gone")
