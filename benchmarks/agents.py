"""Measure the real controller process with two hundred simulated agents of fifty engines each.

The questions: how soon all of them are registered, how many tasks they finish, and what the controller needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import Options, Row
from ipytaskfarm import StringTask, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import QueueStatusReply
from ipytaskfarm.deployment.light_client import connect

ROOT = Path(__file__).parent.parent
ENGINES = 50
"""Engines of each agent."""
TOO_SHORT_S = 0.2
"""Duration of runs so short that all engines together could run more tasks than the controller can hand out, …"""
LIMIT_MAX = 40_000
"""… which is less than this number per second."""


class Crowded:
    """A controller without a supervisor, a client, and simulated agents."""

    def __init__(self, folder: Path, agents: int) -> None:
        """Start in an empty folder with mode 0700."""
        self.agents = agents
        self._environment = {
            **os.environ,
            "JUPYTER_RUNTIME_DIR": f"{folder}/run",
            "JUPYTER_DATA_DIR": f"{folder}/data",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._crowd: subprocess.Popen[bytes] | None = None
        # The controller ends when the other end of this pipe is closed, however this process ends.
        read, self._owner = os.pipe()
        try:
            self.controller = psutil.Process(self._start_controller(read).pid)
        finally:
            os.close(read)
        self._agents_file = folder / "run" / "ipytaskfarm-crowded-agent.json"
        self.client_file = str(folder / "run" / "ipytaskfarm-crowded.json")
        self.tc = TaskClient(self.client_file)
        self.tc.progress = False
        # A session of its own: in the client's session answers wait behind the results that are pushed to it.
        self._questioner = connect(self.client_file)

    def _start_controller(self, owner: int) -> subprocess.Popen[bytes]:
        ready, write = os.pipe()
        words = ["--farm", "crowded", "--farm-folder", f"{self._folder}/farm", "--log", f"{self._folder}/log"]
        words += ["--socket-folder", f"{self._folder}/sockets", "--ready-fd", str(write), "--owner-fd", str(owner)]
        started = self._start("ipytaskfarm.controller", *words, fds=(write, owner))
        os.close(write)
        with os.fdopen(ready) as pipe:
            if not pipe.readline():
                raise RuntimeError(f"the controller did not start, see {self._folder}/log")
        return started

    def _start(self, module: str, *words: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", module, *words]
        started = subprocess.Popen(
            command, env=self._environment, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._processes.append(started)
        return started

    def register(self, service_s: float) -> float:
        """Start the agents; return the seconds until the controller can give tasks to each engine.

        service_s: the duration of each run.
        """
        engines = self.agents * ENGINES
        self.ask(messages.SetWanted(engines))
        words = ["--agents", str(self.agents), "--engines", str(ENGINES), "--service", str(service_s)]
        began_s = time.monotonic()
        self._crowd = self._start("benchmarks.fake_agents", str(self._agents_file), *words)
        assert self._crowd.stdout is not None
        told = json.loads(self._crowd.stdout.readline())
        taken_s = time.monotonic() - began_s
        assert told["engines"] == engines
        return taken_s

    def set_service(self, service_s: float) -> None:
        """Set the duration of runs from now on."""
        assert self._crowd is not None
        assert self._crowd.stdin is not None
        self._crowd.stdin.write(f"service {service_s}\n".encode())
        self._crowd.stdin.flush()

    def submit(self, count: int) -> None:
        """Submit tasks; they run as they arrive."""
        for _ in range(count):
            self.tc.run(StringTask("a = 1", pull="a"))
        self.tc.flush()

    def hold(self, on: bool) -> None:
        """Start no more tasks, or start them again."""
        self.ask(messages.HoldFarm(on))

    def ended(self) -> int:
        """Return the number of tasks that have succeeded until now."""
        return self._counts()["succeeded"]

    def _counts(self) -> dict[str, int]:
        reply = self.ask(messages.QueueStatus())
        assert isinstance(reply, QueueStatusReply)
        return reply.counts

    def ask(self, question: messages.Question) -> messages.Reply:
        """Return the controller's answer to a question."""
        return self._questioner.answer(question, timeout_s=30.0)

    def rate(self, window_s: float) -> float:
        """Return the tasks per second during a window from now on; there must be more tasks than engines."""
        began, began_s = self.ended(), time.monotonic()
        time.sleep(window_s)
        done = self.ended() - began
        taken_s = time.monotonic() - began_s
        assert self._counts()["scheduled"], "there were too few tasks"
        return done / taken_s

    def close(self) -> None:
        """End all processes by pid."""
        self._questioner.close()
        self.tc.close()
        os.close(self._owner)
        for process in reversed(self._processes):
            process.kill()  # the controller's folder is removed with ours
            process.communicate()


@contextlib.contextmanager
def crowded(agents: int) -> Iterator[Crowded]:
    """Provide a controller with this number of agents inside a block."""
    with tempfile.TemporaryDirectory(prefix="itf-many-") as folder:
        world = Crowded(Path(folder), agents)
        try:
            yield world
        finally:
            world.close()


def settle(world: Crowded, service_s: float, window_s: float) -> None:
    """Submit enough tasks for a window, and wait until the first runs, which are shorter, have ended."""
    offered = world.agents * ENGINES / service_s
    world.submit(int(offered * (2 * service_s + 1.5 * window_s + 2.0)) + world.agents * ENGINES)
    time.sleep(1.5 * service_s)


def measure(options: Options) -> list[Row]:
    """Measure registration and memory with all agents, throughput against that of one agent, and the limit of
    throughput.
    """
    many = options.count(200, 2)
    window_s = max(1.0, 5.0 * options.scale)
    with crowded(1) as world:
        world.register(1.0)
        settle(world, 1.0, window_s)
        one = world.rate(window_s)
    rows = []
    with crowded(many) as world:
        empty_bytes = world.controller.memory_info().rss
        taken_s = world.register(1.0)
        engines = many * ENGINES
        rss = world.controller.memory_info().rss
        each = (rss - empty_bytes) / engines
        question = f"{many} agents with {ENGINES} engines each start: all {engines:,} can be given work"
        rows.append(Row(question, f"{taken_s:.1f} s", "", taken_s, 10.0, 5.0, False, "s"))
        question = f"… controller's memory: {rss / 2**20:.0f} MiB (RSS); per engine"
        rows.append(Row(question, f"{each / 1024:.1f} KiB", "", each / 1024, 10.0, 5.0, False, "KiB"))
        settle(world, 1.0, window_s)
        rate = world.rate(window_s)
        share = rate / (many * one)
        question = f"… tasks of 1 s, against {many} times one agent's rate"
        rows.append(Row(question, f"{rate:,.0f}/s", f"{many * one:,.0f}/s", share, 0.9, 0.95))
        world.set_service(TOO_SHORT_S)
        world.hold(True)
        world.submit(int(LIMIT_MAX * (window_s + 1.0)))
        world.hold(False)
        time.sleep(1.0)
        most = world.rate(window_s)
        offered = f"{engines / TOO_SHORT_S:,.0f}/s"
        rows.append(
            Row(
                "… tasks of 0.2 s: the controller's limit",
                f"{most:,.0f}/s",
                offered,
                most / 1000,
                None,
                None,
                True,
                "thousand/s",
            )
        )
    return rows
