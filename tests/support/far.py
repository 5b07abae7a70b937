"""A second "machine" for tests on real farms: an agent, or a client, that does not see the farm's folder of blobs.

Its connection file names no such folder, like a file that was copied by hand, and it connects by TCP.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ipytaskfarm import Farm
from ipytaskfarm.client.tables import Node
from ipytaskfarm.core.messages import SetWanted
from ipytaskfarm.system import farm_paths
from tests.support.farms import DEADLINE_S, ask, farm_state as farm_state, until_engines
from tests.support.polling import eventually

PROJECT = Path(__file__).parents[2]
NODE = "far"


def far_connection(name: str, role: str, folder: Path) -> Path:
    """A copy of the farm's connection file that names neither a folder of blobs nor a unix socket."""
    info = farm_paths.read_connection_file(farm_paths.connection_path(name, role))
    path = folder / f"far-{role}.json"
    farm_paths.write_connection_file(msgspec.structs.replace(info, blobs="", socket=""), path)
    return path


def _as_it_is(*command: str) -> list[str]:
    return list(command)


@contextmanager
def far_agent(
    name: str, folder: Path, engines: int = 2, start: Callable[..., list[str]] = _as_it_is, node: str = NODE
) -> Iterator[Path]:
    """Start an agent on that machine, with at most this number of engines; yield its folder.

    `start` makes of the words of its command those that are run.
    """
    own = folder / "agent"
    words = ["--connection-file", str(far_connection(name, "agent", folder)), "--folder", str(own)]
    words += ["--farm", name, "--node", node, "--slots", str(engines), "--log", str(folder / "agent.log"), "--verbose"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = start(sys.executable, "-P", "-m", "ipytaskfarm.agent", *words)
    agent = subprocess.Popen(command, env=environment, cwd=folder)
    try:
        yield own
    finally:
        agent.terminate()
        try:
            agent.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
    assert not own.exists(), "the agent left something behind"


@contextmanager
def far_engines(
    farm: Farm, folder: Path, engines: int = 2, start: Callable[..., list[str]] = _as_it_is
) -> Iterator[Path]:
    """Start as many engines there as the farm has here (`engines` on each); yield the folder of the far agent."""
    with far_agent(farm.name, folder, engines, start) as own:
        eventually(lambda: NODE in {agent["node"] for agent in farm_state(farm).agents}, DEADLINE_S)
        ask(farm, SetWanted(2 * engines))  # each goes where there are fewest
        until_engines(farm, 2 * engines)
        assert far_node(farm).engines == engines
        yield own


def far_node(farm: Farm) -> Node:
    """Return the row of the other machine."""
    (row,) = [agent for agent in farm_state(farm).agents if agent["node"] == NODE]
    return Node(row)
