"""A controller for tests of the client: it accepts tasks and answers with prepared replies, but runs nothing.

It is the real `transport.hub.Hub` in a thread, so sockets, keys and sessions are real; only the decisions are fake.
`submitted` and similar attributes are its "store": they outlive a `restart`, which begins a new epoch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ipytaskfarm import __version__
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import payload, tables
from ipytaskfarm.core.messages.task_types import Final, Submission
from ipytaskfarm.serialization.pack import pack
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import PeerNewEpoch
from ipytaskfarm.transport.keys import make_farm_keys

encode = msgspec.msgpack.encode


def final(task_id: int, reason: str = "", body: bytes | None = b"", **changes: Any) -> Final:
    """The end of a task, submitted at 1000.5 and run for 0.25 s on engine 1."""
    values: dict[str, Any] = {
        "engine_id": 1,
        "node": "here",
        "attempts": 1,
        "submitted_s": 1000.5,
        "started_s": 1001.0,
        "run_s": 0.25,
        "completed_s": 1001.25,
    }
    return Final(task_id, reason, **(values | changes), body=body)


def names(**values: Any) -> bytes:
    """The result body of a StringTask that pulled these."""
    return encode(payload.ResultBody(value=pack(values)))


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a function in a thread; the returned list gets its value or its exception."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


class FakeController:
    """The fake controller; `connection_file` is the file for clients.

    Args:
        respond: returns the `Final` of a submission, or None for a task that never ends.
        answers: the type of a question -> a function that makes the reply.
    """

    def __init__(self, folder: Path, name: str = "fake") -> None:
        self.name = name
        self.incarnation = os.urandom(8).hex()
        self.keys = make_farm_keys()
        farm_paths.private_folder(folder)
        self.connection_file = folder / "connection.json"
        self.respond: Callable[[Submission], Final | None] = lambda task: final(task.id)
        self.command: Callable[[m.SendCommand, int], m.CommandAnswer] = lambda c, i: m.CommandAnswer(c.n, i, True)
        self.answers: dict[type, Callable[[Any], Any]] = {
            m.WatchTasks: self._watch,
            m.FetchResults: self._fetch,
            m.QueueStatus: lambda q: tables.QueueStatusReply(
                {"succeeded": len(self.finals)}, {"succeeded": [*self.finals]}
            ),
        }
        self.engines: list[int] = []
        """Whom a command to all goes to."""
        self.full: str | None = None
        self.mute = False
        """Take everything in and answer nothing."""
        self.push = True
        """Whether finals are sent without a question, in full."""
        self.block = 1024
        # The state that outlives a restart
        self.submitted: dict[int, Submission] = {}
        self.functions: dict[str, bytes] = {}
        self.finals: dict[int, Final] = {}
        self.heard: list[Any] = []
        """Every message that came, in order."""
        self._next_id = 0
        self._blocks: dict[int, tuple[int, int]] = {}
        self._epoch = 0
        self._stop_bell = -1
        self._said: list[Any] = []
        self._sessions: set[str] = set()
        self._refusing_from: int | None = None
        self.port = 0
        self.start()

    # Life

    def start(self) -> None:
        """Begin an epoch, on the same port."""
        self._epoch += 1
        self._refusing_from = None
        self._hub = Hub("127.0.0.1", self.port, self.keys, self.incarnation, self.name, self._epoch)
        self.port = self._hub.port
        self._stop_bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._running = True
        self.write_file()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write_file(self) -> None:
        """The connection file for clients."""
        info = farm_paths.ConnectionInfo(
            farm=self.name,
            incarnation=self.incarnation,
            host="127.0.0.1",
            port=self.port,
            server_key=self.keys.server.public,
            public_key=self.keys.client.public,
            secret_key=self.keys.client.secret,
            role="client",
            controller_pid=os.getpid(),
            controller_started=0.0,
            version=__version__,
            protocol=m.PROTOCOL,
        )
        farm_paths.write_connection_file(info, self.connection_file)

    def stop(self) -> None:
        """End like a crash: unsent messages are lost."""
        self._running = False
        os.eventfd_write(self._stop_bell, 1)
        self._thread.join(60.0)
        os.close(self._stop_bell)

    def restart(self) -> None:
        """Stop and begin a new epoch."""
        self.stop()
        self.start()

    def __enter__(self) -> FakeController:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._running:
            self.stop()

    def say(self, message: Any) -> None:
        """Send a message to every client."""
        self._said.append(message)
        os.eventfd_write(self._stop_bell, 1)

    def count(self, kind: type) -> int:
        """How many messages of a kind, or questions of a kind, have come."""
        return sum(isinstance(h, kind) or isinstance(getattr(h, "question", None), kind) for h in list(self.heard))

    # The loop

    def _run(self) -> None:
        hub = self._hub
        while self._running:
            if self._stop_bell in hub.poll(0.2, [self._stop_bell]):
                os.eventfd_read(self._stop_bell)
            for peer, message in hub.receive():
                if isinstance(message, PeerNewEpoch):
                    self._sessions.add(peer.session)
                self.heard.append(message)
                if not self.mute:
                    self._on_message(peer.session, message)
            while self._said:
                message = self._said.pop(0)
                for session in self._sessions:
                    hub.send(session, message)
            hub.flush(time.monotonic())
        hub.close()

    def _on_message(self, session: str, message: Any) -> None:
        hub = self._hub
        if isinstance(message, m.NeedIds):
            hub.send(session, m.IdBlock(self._next_id, self._next_id + self.block - 1))
            self._blocks[self._next_id] = (self._next_id, self._next_id + self.block - 1)
            self._next_id += self.block
        elif isinstance(message, m.Submit):
            self._submit(session, message)
        elif isinstance(message, m.AskQuestion):
            hub.send(session, m.Answer(message.n, self._reply(message.question)))
            if isinstance(message.question, m.WatchTasks):
                known = [self.finals[i] for i in message.question.ids if i in self.finals]
                hub.send(session, m.Finals(known))
        elif isinstance(message, m.SendCommand):
            self._command(session, message)

    def _command(self, session: str, message: m.SendCommand) -> None:
        engines = message.engines
        if engines is None:
            engines = self.engines
            if not engines:
                body = encode(payload.FailureBody("NoEnginesRegistered", "the farm has no engines now"))
                self._hub.send(session, m.CommandAnswer(message.n, -1, False, body))
                return
            self._hub.send(session, m.CommandAnswer(message.n, -1, True, encode(engines)))
        for engine_id in engines:
            self._hub.send(session, self.command(message, engine_id))

    def _submit(self, session: str, message: m.Submit) -> None:
        first = message.tasks[0].id
        if self.full is not None or (self._refusing_from is not None and first > self._refusing_from):
            self._refusing_from = first if self._refusing_from is None else min(first, self._refusing_from)
            self._hub.send(session, m.Full(first, self.full or "still"))
            return
        self._refusing_from = None
        ended = []
        for code in message.functions:
            self.functions[code.digest] = code.code
        for task in message.tasks:
            if task.id not in self.submitted:
                self.submitted[task.id] = task
                answer = self.respond(task)
                if answer is not None:
                    self.finals[task.id] = answer
                    ended.append(answer)
        block = next(b for b, (lo, hi) in self._blocks.items() if lo <= first <= hi)
        self._hub.send(session, m.Accepted([(block, message.tasks[-1].id)]))
        if ended and self.push:
            self._hub.send(session, m.Finals(ended))

    def _reply(self, question: Any) -> Any:
        make = self.answers.get(type(question))
        return make(question) if make else m.Refusal("ValueError", f"no answer to {type(question).__name__}")

    def _watch(self, question: m.WatchTasks) -> m.Watched:
        return m.Watched([i for i in question.ids if i not in self.submitted and i not in self.finals])

    def _fetch(self, question: m.FetchResults) -> m.Fetched:
        found = [self.finals[i] for i in question.ids if i in self.finals]
        unfinished = [i for i in question.ids if i in self.submitted and i not in self.finals]
        unknown = [i for i in question.ids if i not in self.submitted and i not in self.finals]
        return m.Fetched(found, unfinished, unknown)
