"""``python -m benchmarks.fake_agents FILE``: many agents with many engines in one process, for a real controller.

They use the real protocol and the real `Link`, and act like agents: they report their engines, start, prepare and stop
engines, keep results until they are acknowledged, report again in a new epoch, and send beats.  Only their engines are
simulated: a run takes a set time, and its result is empty.

A line ``service S`` on standard input sets the duration of runs; the end of standard input ends the process.  A line of
JSON on standard output tells that the controller sees the planned number of engines.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import platform
import random
import select
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ipytaskfarm import __version__
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.payload import ResultBody
from ipytaskfarm.core.messages.task_types import Ended, RunKey, encode_runs
from ipytaskfarm.core.requirements import Environment
from ipytaskfarm.serialization.pack import pack
from ipytaskfarm.system.farm_paths import read_connection_file
from ipytaskfarm.transport.peer import Acked, Link, NewEpoch, ReceivedMessage, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

PACE_S = 0.005
"""Least time between two rounds over all agents, so that one turn handles the events that have gathered."""
DEADLINES_S = 0.02
"""Time between two checks which agents must send a beat or an acknowledgement."""
BODY = msgspec.msgpack.encode(ResultBody(value=pack({"a": 1})))


@dataclass
class FakeEngine:
    """Runs its tasks in order, each for the set time."""

    name: str
    id: int
    started_s: float
    waiting: deque[RunKey] = field(default_factory=deque)
    running: RunKey | None = None
    since_s: float = 0.0
    open: dict[RunKey, None] = field(default_factory=dict)
    """Runs that it was given and that the controller has not acknowledged."""
    unacked: dict[RunKey, Ended] = field(default_factory=dict)
    prepared: bool = False
    finished: int = 0
    environment: Environment | None = None

    def report(self, node: str) -> m.EngineReport:
        """Return a report like that of a real engine on a Linux machine."""
        facts = {
            "id": self.id, "hostname": node, "cores": 64, "memory": 2**38, "platform": "linux", "os": "Linux",
            "bits": 64, "version": __version__, "python": platform.python_version(), "node": node,
            "started": self.started_s,
        }  # fmt: skip
        return m.EngineReport(
            self.name, self.id, 1000 + self.id, True, self.started_s, facts, encode_runs(list(self.open)), None,
            f"/run/user/1000/ipytaskfarm/many/agent-0/kernel-{self.id}.json", self.prepared, self.finished,
            self.environment,
        )  # fmt: skip


class FakeAgent:
    """One node: a link, its engines, and their finished runs."""

    def __init__(self, number: int, path: Path, crowd: Crowd) -> None:
        self.node = f"node{number:03}"
        self.session = f"agent:{number:016x}"
        self.link = Link(lambda: read_connection_file(path), "agent", self.session, self.node)
        self.crowd = crowd
        self.engines: dict[str, FakeEngine] = {}
        self.results: dict[str, list[Ended]] = {}
        self.over = False
        self._counter = 0
        self._introduced = False

    def turn(self, now_s: float) -> None:
        """Report runs that have ended, receive messages of the controller, and answer them."""
        for name, ended in self.results.items():
            self._say(m.Results(name, ended), [(name, (one.task, one.attempt)) for one in ended])
        self.results.clear()
        while self._hear(now_s):
            pass

    def _hear(self, now_s: float) -> bool:
        said = False
        for event in self.link.step(now_s):
            if isinstance(event, ReceivedMessage):
                self._on_message(event.message)
                said = True
            elif isinstance(event, Acked):
                self._on_acked(event.token)
            elif isinstance(event, NewEpoch):
                self._introduced = True
                self._restate()
                said = True
            elif isinstance(event, Refused):
                raise RuntimeError(f"{self.node} is refused: {event.refuse.text}")
        return said

    def _say(self, message: object, token: object = None) -> None:
        if self._introduced:
            self.link.send(message, token)

    def _restate(self) -> None:
        reports = [engine.report(self.node) for engine in self.engines.values()]
        self.link.send(
            m.AgentState(
                self.node, os.getpid(), 64, 2**38, platform.platform(), platform.python_version(), reports,
                self.crowd.engines, [], {"cores": 64.0, "memory": float(2**38)},
            )
        )  # fmt: skip
        self.link.send(m.NodeState(0.1, 2**37, 2**39))
        for engine in self.engines.values():
            if engine.unacked:
                keys = [(engine.name, run) for run in engine.unacked]
                self.link.send(m.Results(engine.name, list(engine.unacked.values())), keys)

    def _on_acked(self, token: object) -> None:
        if isinstance(token, list):
            for name, run in token:
                engine = self.engines.get(name)
                if engine is not None:
                    engine.open.pop(run, None)
                    engine.unacked.pop(run, None)
        elif isinstance(token, m.EngineDown):
            self.engines.pop(token.engine, None)

    def _on_message(self, message: object) -> None:
        if isinstance(message, m.StartEngine):
            self._counter += 1
            engine = FakeEngine(f"{self.session}.{self._counter}", message.id, time.time())
            self.engines[engine.name] = engine
            self._say(m.EngineUp(engine.report(self.node)))
        elif isinstance(message, m.Shutdown):
            self.over = True
            for engine in list(self.engines.values()):
                self._lose(engine)
        elif isinstance(message, m.StackQuery):
            self._say(m.StackText(message.n, "on paper"))
        else:
            engine_name = getattr(message, "engine", "")
            found = self.engines.get(engine_name)
            if found is not None:
                self._on_engine_message(found, message)

    def _on_engine_message(self, engine: FakeEngine, message: object) -> None:
        if isinstance(message, m.HandOut):
            engine.environment = engine.environment or message.environment
            engine.open.update(dict.fromkeys(message.runs))
            engine.waiting.extend(message.runs)
            if engine.running is None:
                self.crowd.begin(self, engine)
        elif isinstance(message, m.Recall):
            back = [run for run in message.runs if run in engine.waiting]
            for run in back:
                engine.waiting.remove(run)
            if back:
                self._say(m.Returned(engine.name, back), [(engine.name, run) for run in back])
        elif isinstance(message, m.Interrupt):
            if engine.running == message.run:
                self.end(engine, message.run, "aborted")
        elif isinstance(message, m.EngineCommand):
            self._say(m.CommandDone(engine.name, message.session, message.n, True))
        elif isinstance(message, m.EnginePrepared):
            engine.prepared = True
            self.crowd.is_prepared()
        elif isinstance(message, m.StopEngine):
            self._lose(engine)

    def _lose(self, engine: FakeEngine) -> None:
        ended = self.results.pop(engine.name, [])
        if ended:
            self._say(m.Results(engine.name, ended), [(engine.name, (one.task, one.attempt)) for one in ended])
        running, engine.running = engine.running, None
        engine.waiting.clear()
        lost = m.EngineDown(engine.name, engine.id, running, True, m.Crash(exit_code=0), expected=True)
        self._say(lost, lost)

    def end(self, engine: FakeEngine, run: RunKey, outcome: str = "") -> None:
        """End a run and begin the next."""
        if engine.running != run:
            return
        taken_s = time.monotonic() - engine.since_s
        ended = Ended(run[0], run[1], outcome, time.time() - taken_s, taken_s, None, BODY)
        engine.running = None
        engine.finished += 1
        engine.unacked[run] = ended
        self.results.setdefault(engine.name, []).append(ended)
        self.crowd.wake(self)
        if engine.waiting:
            self.crowd.begin(self, engine)


class Crowd:
    """All agents, driven by one loop."""

    def __init__(
        self, path: Path, agents: int, engines: int, service_s: float, say: Callable[[dict[str, float]], None]
    ):
        self.engines = engines
        self.service_s = service_s
        self._say = say
        self._began_s = time.monotonic()
        self._chance = random.Random(1)
        self._due: list[tuple[float, int, FakeAgent, FakeEngine, RunKey]] = []
        self._ties = itertools.count()
        self._awake: dict[FakeAgent, None] = {}
        self._prepared = 0
        self._planned = agents * engines
        self._poll = select.epoll()
        self._agents: dict[int, FakeAgent] = {}
        for number in range(agents):
            agent = FakeAgent(number, path, self)
            (fd,) = agent.link.fds()
            self._agents[fd] = agent
            self._poll.register(fd, select.EPOLLIN)
            self._awake[agent] = None
        os.set_blocking(sys.stdin.fileno(), False)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)

    def wake(self, agent: FakeAgent) -> None:
        """Mark an agent that has something to send."""
        self._awake[agent] = None

    def is_prepared(self) -> None:
        """Count another engine to which the controller may give tasks."""
        self._prepared += 1
        if self._prepared == self._planned:
            self._say({"engines": self._prepared, "s": time.monotonic() - self._began_s})

    def begin(self, agent: FakeAgent, engine: FakeEngine) -> None:
        """Begin an engine's next run.

        The first run of an engine ends at a random time within the duration of a run, so that the engines do not all
        end at the same moments.
        """
        run = engine.running = engine.waiting.popleft()
        engine.since_s = time.monotonic()
        taken_s = self.service_s if engine.finished else self._chance.uniform(0.0, self.service_s)
        heapq.heappush(self._due, (engine.since_s + taken_s, next(self._ties), agent, engine, run))

    def run(self) -> None:
        """Run until standard input or the farm ends."""
        looked_s = 0.0
        while self._agents:
            if not self._listen():
                return
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                _, _, agent, engine, run = heapq.heappop(self._due)
                agent.end(engine, run)
            if now_s - looked_s > DEADLINES_S:
                looked_s = now_s
                for agent in self._agents.values():
                    if agent.link.next_deadline() <= now_s:
                        self._awake[agent] = None
            awake, self._awake = self._awake, {}
            for agent in awake:
                agent.turn(now_s)
                if agent.over and not agent.link.unacked_bytes:
                    self._leave(agent)

    def _listen(self) -> bool:
        time.sleep(PACE_S)
        for fd, _ in self._poll.poll(DEADLINES_S):
            if fd == sys.stdin.fileno():
                words = os.read(fd, 4096).decode().split()
                if not words:
                    return False
                self.service_s = float(words[-1])
            else:
                self._awake[self._agents[fd]] = None
        return True

    def _leave(self, agent: FakeAgent) -> None:
        (fd,) = agent.link.fds()
        self._poll.unregister(fd)
        del self._agents[fd]
        agent.link.close()

    def close(self) -> None:
        """Say good-bye for all agents."""
        for agent in self._agents.values():
            agent.link.close()


def main() -> int:
    """Run the agents until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fake_agents", description=__doc__)
    parser.add_argument("connection_file", type=Path)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--engines", type=int, default=50, help="of each agent")
    parser.add_argument("--service", type=float, default=1.0, help="seconds that a run takes")
    given = parser.parse_args()
    crowd = Crowd(
        given.connection_file,
        given.agents,
        given.engines,
        given.service,
        lambda line: print(json.dumps(line), flush=True),
    )
    try:
        crowd.run()
    finally:
        crowd.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
