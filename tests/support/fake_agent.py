"""A small agent for the engine's tests: a real zygote, real engines, their lanes and recorders."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ipytaskfarm.core.messages import (
    CommandDone,
    EngineCommand,
    FromEngine,
    LaneExit,
    LaneHello,
    Recall,
    Returned,
    Run,
    TaskBatch,
    ToEngine,
)
from ipytaskfarm.core.messages.payload import FailureBody, ResultBody, StringWork
from ipytaskfarm.core.messages.task_types import Ended, Function
from ipytaskfarm.serialization.pack import pack, unpack
from ipytaskfarm.system.bell import Bell
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.transport.lane import AgentLane

T = TypeVar("T")
_LENGTH = struct.Struct(">I")


class FakeAgent:
    """Starts a zygote; `start_engine` forks engines of it."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="itf-engine-", dir="/tmp"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control = ours
        argv = [sys.executable, "-P", "-m", "ipytaskfarm.engine.zygote", "--control-fd", str(theirs.fileno())]
        for name in preload:
            argv += ["--preload", name]
        with theirs, open(self.folder / "zygote.out", "wb") as out:
            self.zygote = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self._buffer = b""
        self.said: list[dict[str, Any]] = []
        """The reports of the zygote, in order."""
        self.lane = AgentLane(self.folder / "lane.sock")
        self.bell = Bell.listen(self.folder / "bell.sock")
        self.engines: dict[str, FakeEngine] = {}
        self.ready = self.wait_zygote(lambda message: message["op"] == "ready")

    def start_engine(self, engine_id: int = 3, **more: Any) -> FakeEngine:
        """Fork an engine and wait for its hello."""
        counter = len(self.engines)
        name = f"feed.{counter}"
        engine = FakeEngine(self, name, counter, engine_id)
        self.engines[name] = engine
        engine.fork_asked = time.perf_counter()
        self.ask_zygote(op="fork", **engine.request(**more))
        forked = self.wait_zygote(lambda message: message.get("engine") == name)
        assert forked["op"] == "forked", forked
        engine.pid = forked["pid"]
        engine.hello = engine.wait(LaneHello)
        engine.ready_s = time.perf_counter() - engine.fork_asked
        return engine

    def ask_zygote(self, **request: Any) -> None:
        body = json.dumps(request).encode()
        self.control.sendall(_LENGTH.pack(len(body)) + body)

    def wait_zygote(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """The next (or an earlier, not yet taken) message of the zygote that is wanted."""
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self.said:
                if wanted(message):
                    self.said.remove(message)
                    return message
            readable, _, _ = select.select([self.control], [], [], max(0.0, deadline - time.monotonic()))
            data = self.control.recv(1 << 16) if readable else b""
            if not data:
                text = (self.folder / "zygote.out").read_text()
                raise AssertionError(f"the zygote did not say it; it said {self.said} and printed {text}")
            self._buffer += data
            while len(self._buffer) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
                if len(self._buffer) < end:
                    break
                self.said.append(json.loads(self._buffer[_LENGTH.size : end]))
                self._buffer = self._buffer[end:]

    def exited(self, engine: FakeEngine, timeout_s: float = 60.0) -> dict[str, Any]:
        """Return how that engine ended."""
        return self.wait_zygote(
            lambda message: message["op"] == "exited" and message["engine"] == engine.name, timeout_s
        )

    def pump(self, timeout_s: float) -> bool:
        """Take what has arrived from the engines; False: nothing came."""
        if not select.select([self.lane], [], [], timeout_s)[0]:
            return False
        for engine, message in self.lane.receive():
            self.engines[engine].inbox.append(message)
        return True

    def close(self) -> None:
        try:
            self.ask_zygote(op="quit")
            self.zygote.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.zygote.kill()
            self.zygote.wait()
        self.control.close()
        for engine in self.engines.values():
            engine.recorder.close()
        self.lane.close()
        self.bell.close()
        shutil.rmtree(self.folder)


class FakeEngine:
    """One engine, as its agent sees it."""

    pid: int
    hello: LaneHello
    ready_s: float
    fork_asked: float

    def __init__(self, agent: FakeAgent, name: str, counter: int, engine_id: int) -> None:
        self.agent = agent
        self.name = name
        self.counter = counter
        self.id = engine_id
        self.recorder_path = agent.folder / f"engine-{counter}.rec"
        self.recorder = Recorder.create(self.recorder_path, name, engine_id)
        self.output = agent.folder / f"engine-{counter}.out"
        self.stack = agent.folder / f"engine-{counter}.stack"
        self.connection_file = agent.folder / f"kernel-{counter}.json"
        self.inbox: list[FromEngine] = []
        self.results: dict[tuple[int, int], Ended] = {}
        self._task = 1000 * counter
        self._n = 0

    def request(self, **more: Any) -> dict[str, Any]:
        return {
            "engine": self.name,
            "id": self.id,
            "folder": str(self.agent.folder),
            "connection_file": str(self.connection_file),
            "recorder": str(self.recorder_path),
            "output": str(self.output),
            "stack": str(self.stack),
            "env": {"MPLBACKEND": None},
            "cwd": str(self.agent.folder),
            "node": "testnode",
            **more,
        }

    def send(self, message: ToEngine) -> None:
        assert self.agent.lane.send(self.name, message)
        while self.agent.lane._by_engine[self.name].stream.has_output:
            self.agent.pump(0.05)

    def wait(self, kind: type[T], timeout_s: float = 60.0) -> T:
        """The next message of that kind."""
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self.inbox:
                if isinstance(message, kind):
                    self.inbox.remove(message)
                    return message
            if not self.agent.pump(max(0.0, deadline - time.monotonic())):
                text = self.output.read_text() if self.output.exists() else ""
                raise AssertionError(f"no {kind.__name__} within {timeout_s} s; the engine's output: {text}")

    # -- tasks

    def hand(self, *works: Any, functions: Sequence[Function] = (), **rules: Any) -> list[tuple[int, int]]:
        """Hand works to the engine as one batch; gives their run keys."""
        runs = []
        for work in works:
            self._task += 1
            runs.append(Run(self._task, 1, msgspec.msgpack.encode(work), **rules))
        self.send(TaskBatch(runs, list(functions)))
        return [(run.task, run.attempt) for run in runs]

    def collect(self) -> None:
        """Read the recorder as an agent does."""
        while True:
            records = self.recorder.read(1000)
            if not records:
                return
            for record in records:
                ended = msgspec.msgpack.decode(record.data, type=Ended)
                assert (ended.task, ended.attempt) == (record.task, record.attempt)
                assert (ended.task, ended.attempt) not in self.results
                self.results[ended.task, ended.attempt] = ended
            self.recorder.release(records[-1].cursor)

    def ended(self, key: tuple[int, int], timeout_s: float = 60.0) -> Ended:
        """Wait for a run's end, woken by the bell."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.collect()
            if key in self.results:
                return self.results[key]
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{key} did not end within {timeout_s} s; output: {self.output.read_text()}")
            select.select([self.agent.bell.fileno()], [], [], min(left, 0.2))
            self.agent.bell.take()

    def run(self, code: str, *pull: str, push: dict[str, Any] | None = None, **more: Any) -> Outcome:
        """Run one StringWork and wait for it."""
        packed = pack(push) if push is not None else None
        (key,) = self.hand(StringWork(code, pull, packed, **more))
        return Outcome(self.ended(key))

    def interrupt(self, key: tuple[int, int], cause: int, timeout_s: float = 60.0) -> Ended:
        """Interrupt like an agent: request it, and send a signal every 20 ms until it was delivered."""
        deadline = time.monotonic() + timeout_s
        self.recorder.want(key, cause)
        while key not in self.results:
            assert time.monotonic() < deadline, f"not interrupted: {self.output.read_text()}"
            if not self.recorder.was_delivered():
                os.kill(self.pid, signal.SIGRTMIN + 5)
            select.select([self.agent.bell.fileno()], [], [], 0.02)
            self.agent.bell.take()
            self.collect()
        return self.results[key]

    def wait_running(self, key: tuple[int, int], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            current = self.recorder.current()
            if current is not None and current.run == key:
                return
            assert time.monotonic() < deadline, f"{key} does not run: {current}"
            time.sleep(0.001)

    # -- commands

    def command(self, verb: str, body: bytes = b"", session: str = "alice", n: int | None = None) -> CommandDone:
        """Send a command and wait for its answer."""
        self.wait_command(sent := self.post(verb, body, session, n))
        return self.done.pop(sent)

    def post(self, verb: str, body: bytes = b"", session: str = "alice", n: int | None = None) -> tuple[str, int]:
        if n is None:
            self._n += 1
            n = self._n
        self.send(EngineCommand(self.name, session, n, verb, body))
        return session, n

    @property
    def done(self) -> dict[tuple[str, int], CommandDone]:
        if not hasattr(self, "_done"):
            self._done: dict[tuple[str, int], CommandDone] = {}
        return self._done

    def wait_command(self, name: tuple[str, int]) -> CommandDone:
        while name not in self.done:
            answer = self.wait(CommandDone)
            self.done[answer.session, answer.n] = answer
        return self.done[name]

    def recall(self, keys: Iterable[tuple[int, int]]) -> None:
        self.send(Recall(self.name, list(keys)))

    def returned(self) -> Returned:
        return self.wait(Returned)

    def exit(self) -> None:
        self.send(LaneExit())


class Outcome:
    """An `Ended`, decoded."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        self.body = msgspec.msgpack.decode(ended.body, type=ResultBody) if ended.body else ResultBody()

    @property
    def value(self) -> Any:
        assert self.ended.outcome == "", (self.ended.failure, self.body.failure)
        assert self.body.value is not None
        return unpack(self.body.value)

    @property
    def failure(self) -> FailureBody:
        assert self.body.failure is not None, self.value
        return self.body.failure
