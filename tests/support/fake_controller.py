"""A controller that only receives and sends: the transport's own `Hub`, driven by a test, without a scheduler."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from ipytaskfarm import __version__
from ipytaskfarm.core.messages import (
    PROTOCOL,
    EngineReport,
    EngineUp,
    HandOut,
    Results,
    Run,
    StartEngine,
    TaskBatch,
    ToAgent,
)
from ipytaskfarm.core.messages.payload import StringWork
from ipytaskfarm.core.messages.task_types import RunKey
from ipytaskfarm.system.farm_paths import ConnectionInfo, process_started, write_connection_file
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import PeerGone, PeerNewEpoch, PeerSilent, PeerUp
from ipytaskfarm.transport.keys import make_farm_keys
from tests.support.polling import DEADLINE_S, eventually

M = TypeVar("M")


def code_run(task: int, code: str, attempt: int = 1, time_limit_s: float | None = None, pull: str = "") -> Run:
    """A run of a line of code."""
    work = StringWork(code, (pull,) if pull else ())
    return Run(task, attempt, msgspec.msgpack.encode(work), None, time_limit_s)


class FakeController:
    """Made by a test, and driven by it: nothing happens but in `pump`."""

    def __init__(self, folder: Path, farm: str = "fake-farm") -> None:
        self.keys = make_farm_keys()
        self.farm = farm
        self.connection_file = folder / "agent.json"
        self.epoch = 1
        self.acknowledging = True
        """False: received messages are never confirmed, as if each commit were still in progress."""
        self.hub = Hub("127.0.0.1", 0, self.keys, farm, "fake", self.epoch)
        self.port = self.hub.port
        self.heard: list[object] = []
        self.session = ""
        self._write_file()

    def _write_file(self) -> None:
        pair = self.keys.agent
        info = ConnectionInfo(
            farm="fake",
            incarnation=self.farm,
            host="127.0.0.1",
            port=self.port,
            server_key=self.keys.server.public,
            public_key=pair.public,
            secret_key=pair.secret,
            role="agent",
            controller_pid=os.getpid(),
            controller_started=process_started() or 0.0,
            version=__version__,
            protocol=PROTOCOL,
        )
        write_connection_file(info, self.connection_file)

    def crash(self) -> None:
        """Be gone without a word."""
        self.hub._curve.close(0)

    def restart(self, farm: str | None = None) -> None:
        """Come back on the same port in the next epoch (or as another farm), knowing nothing."""
        self.farm = farm or self.farm
        self.epoch += 1
        self.heard = []
        self.session = ""
        self.acknowledging = True
        self._write_file()
        self.hub = Hub("127.0.0.1", self.port, self.keys, self.farm, "fake", self.epoch)

    def close(self) -> None:
        """The end of the test."""
        if not self.hub._curve.closed:
            self.hub.close()

    def pump(self, timeout_s: float = 0.05) -> None:
        """One turn."""
        self.hub.poll(timeout_s)
        for peer, message in self.hub.receive():
            self.session = peer.session
            if not isinstance(message, PeerUp | PeerNewEpoch | PeerSilent | PeerGone):
                self.heard.append(message)
        if self.acknowledging:
            self.hub.flush(time.monotonic())

    def say(self, *messages: ToAgent) -> None:
        """To the agent that was heard last."""
        for message in messages:
            assert self.hub.send(self.session, message)
        self.hub.flush(time.monotonic())

    def pump_until(self, fits: Callable[[], object], what: str) -> None:
        """Pump until something else has come about."""

        def look() -> bool:
            self.pump(0.01)
            return bool(fits())

        eventually(look, DEADLINE_S, what=what)

    def wait(
        self, kind: type[M], fits: Callable[[M], object] = lambda _: True, timeout_s: float = DEADLINE_S, after: int = 0
    ) -> M:
        """Receive until there is such a message, and return it; after: ignore this number of earlier messages."""
        found = self.wait_all(kind, 1, fits, timeout_s, after)
        return found[0]

    def wait_all(
        self,
        kind: type[M],
        count: int,
        fits: Callable[[M], object] = lambda _: True,
        timeout_s: float = DEADLINE_S,
        after: int = 0,
    ) -> list[M]:
        """Receive until there are several such messages, see `wait`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = [m for m in self.heard[after:] if isinstance(m, kind) and fits(m)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline_s, f"no {kind.__name__} within {timeout_s} s, but {self.heard}"
            self.pump()

    def start_engine(self, engine_id: int = 0) -> EngineReport:
        """Ask for an engine, and wait until it is up."""
        self.say(StartEngine(engine_id))
        return self.wait(EngineUp, lambda m: m.report.id == engine_id, after=len(self.heard)).report

    def hand(self, engine: str, *runs: Run) -> None:
        """Hand out a batch."""
        keys = [(run.task, run.attempt) for run in runs]
        self.say(HandOut(engine, keys, msgspec.Raw(msgspec.msgpack.encode(TaskBatch(list(runs))))))

    def ended(self) -> dict[RunKey, str]:
        """The outcomes heard so far; a run that ended twice is an error."""
        found: dict[RunKey, str] = {}
        for message in self.heard:
            if isinstance(message, Results):
                for ended in message.ended:
                    run = (ended.task, ended.attempt)
                    assert run not in found, f"{run} ended twice"
                    found[run] = ended.outcome
        return found

    def wait_ended(self, *runs: RunKey, timeout_s: float = DEADLINE_S) -> dict[RunKey, str]:
        """Pump until these have ended; all outcomes."""
        deadline_s = time.monotonic() + timeout_s
        while not set(runs) <= set(self.ended()):
            missing = set(runs) - set(self.ended())
            assert time.monotonic() < deadline_s, f"not ended within {timeout_s} s: {missing}; heard {self.heard}"
            self.pump()
        return self.ended()
