"""Count the bytes of large values on the links between hosts: each value crosses each link once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm import Farm
from ipytaskfarm.core.messages import SetWanted
from tests.conftest import assert_nothing_left, isolated
from tests.support.far import PROJECT, far_agent, far_connection
from tests.support.farms import DEADLINE_S, ask, farm_state, until_engines
from tests.support.netns import Host, network, why_not
from tests.support.polling import eventually

pytestmark = [
    pytest.mark.farm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces"),
]

ITEMS = 10_000_000 // 8
COUNT = 20

CLIENT = """
import sys
import numpy as np
from ipytaskfarm import Task, TaskClient
with TaskClient(sys.argv[1]) as tc:
    array = np.random.default_rng(1).random(int(sys.argv[2]))
    where = int(sys.argv[3]) // 2 * ["host1", "host2"]
    ids = [tc.run(Task("s = float(x.sum())", push={"x": array}, pull="s", requires={"node": each})) for each in where]
    tc.barrier(ids)
    assert {tc.get_task_result(each)["s"] for each in ids} == {array.sum()}
"""


def submit(host: Host, file: Path) -> None:
    words = host.words(sys.executable, "-P", "-c", CLIENT, str(file), str(ITEMS), str(COUNT))
    subprocess.run(words, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=60, check=True)


def test_an_array_of_twenty_tasks_crosses_each_link_once() -> None:
    """The client sends it once to the controller, and each of two nodes gets it once."""
    with isolated("itf-") as dirs, network(3) as net:
        client, one, two = net.hosts
        folders = [dirs.work / name for name in ("client", "one", "two")]
        for folder in folders:
            folder.mkdir(0o700)
        with (
            Farm(n=0, host=net.address) as farm,
            far_agent(farm.name, folders[1], 2, one.words, "host1"),
            far_agent(farm.name, folders[2], 2, two.words, "host2"),
        ):
            eventually(lambda: {"host1", "host2"} <= {agent["node"] for agent in farm_state(farm).agents}, DEADLINE_S)
            ask(farm, SetWanted(6))  # each goes where there are fewest: two are on this machine
            until_engines(farm, 6)
            before = [host.link_bytes() for host in net.hosts]
            submit(client, far_connection(farm.name, "client", folders[0]))
            after = [host.link_bytes() for host in net.hosts]
        moved = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]
        size = 8 * ITEMS
        once = range(size, size + size // 4)
        assert moved[0][0] in once, f"the client has sent {moved[0][0]:,} bytes"
        assert moved[1][1] in once, f"host1 has received {moved[1][1]:,} bytes"
        assert moved[2][1] in once, f"host2 has received {moved[2][1]:,} bytes"
        assert_nothing_left(dirs)
