"""Questions to a farm without importing the whole client.

The supervisor and most commands need answers but no results. They use one `Questioner`, which needs neither a thread
nor `serialization.pack` (which would double the time of ``ipytaskfarm status``).
"""

from __future__ import annotations

import builtins
import math
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ipytaskfarm.core import errors, messages as m
from ipytaskfarm.core.messages.pages import ask_in_pages, of_kind
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.display.text import OUTPUT_S, output_so_far
from ipytaskfarm.system.farm_paths import ConnectionInfo, connection_reader, is_stale
from ipytaskfarm.system.host import user_name
from ipytaskfarm.system.supervision import comes_back
from ipytaskfarm.transport.peer import Link, LinkEvent, NewEpoch, ReceivedMessage, Refused

R = TypeVar("R")


@dataclass
class _Asked:
    question: m.Question
    then: Callable[[m.Reply], None]


class Questioner:
    """A client session that only asks questions. Only `answer` blocks.

    Call `step` when `fds` are readable or `next_deadline` has come. A question is kept until it is answered, over lost
    connections and restarts of the controller.
    """

    def __init__(
        self,
        read_info: Callable[[], ConnectionInfo],
        on_changes: Callable[[m.FarmChanges], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Create it.

        Args:
            read_info: reads the farm's connection file.
            on_changes: is called with the changes that a follower is told.
            folder: the farm's folder, for what its supervisor says of a controller that has ended; None: unknown.
        """
        self._on_changes = on_changes
        self._read_info = read_info
        self._folder = folder
        name = f"{user_name()}@{socket.gethostname()} {os.getpid()}"
        self._link = Link(read_info, "client", uuid.uuid4().hex, name, python=platform.python_version())
        self._asked: dict[int, _Asked] = {}
        self._commands: dict[int, Callable[[m.CommandAnswer], None]] = {}
        self.on_output: Callable[[m.Output], None] | None = None
        """Is called with the output of running tasks."""
        self._last = 0
        self.farm_version = ""
        """The controller's version of this package; "" before the first epoch."""
        self.refused: Exception | None = None
        """Set once the controller has refused this session for good."""

    def ask(self, question: m.Question, then: Callable[[m.Reply], None]) -> int:
        """Send a question with the next `step`, and return its number.

        `then` is called with the reply, which may be a `Refusal`.
        """
        self._last += 1
        self._asked[self._last] = _Asked(question, then)
        # Before the first epoch nothing may be sent; `step` sends it then.
        if self._link.epoch:
            self._link.send(m.AskQuestion(self._last, question))
        return self._last

    def command(self, engines: list[int], verb: str, body: bytes, then: Callable[[m.CommandAnswer], None]) -> int:
        """Send a command to engines at once, and return its number. `then` is called with each answer.

        An answer that is lost with the controller does not come: wait for a while, then call `forget`.
        """
        self._last += 1
        self._commands[self._last] = then
        self._link.send(m.SendCommand(self._last, engines, verb, body))
        return self._last

    def forget(self, number: int) -> None:
        """Ignore further answers to a command or a question; a question is not asked again after a restart."""
        self._commands.pop(number, None)
        self._asked.pop(number, None)

    def step(self) -> None:
        """Send what is queued, receive messages, and call the callbacks."""
        while self._take(self._link.step(time.monotonic())):
            pass

    def _take(self, events: list[LinkEvent]) -> bool:
        """Handle the events. Return whether there is something to send at once."""
        to_send = False
        for event in events:
            if isinstance(event, ReceivedMessage) and isinstance(event.message, m.Answer):
                asked = self._asked.pop(event.message.n, None)
                if asked is not None:
                    before = self._last
                    asked.then(event.message.reply)
                    to_send = to_send or self._last > before
            elif isinstance(event, ReceivedMessage) and isinstance(event.message, m.CommandAnswer):
                if event.message.n in self._commands:
                    self._commands[event.message.n](event.message)
            elif isinstance(event, ReceivedMessage) and isinstance(event.message, m.Output):
                if self.on_output is not None:
                    self.on_output(event.message)
            elif isinstance(event, ReceivedMessage) and isinstance(event.message, m.FarmChanges):
                if self._on_changes is not None:
                    self._on_changes(event.message)
            elif isinstance(event, NewEpoch):
                self.farm_version = event.welcome.version
                # Unacknowledged questions were lost with the old epoch; the others may have been lost unanswered.
                for n, asked in self._asked.items():
                    self._link.send(m.AskQuestion(n, asked.question))
                    to_send = True
            elif isinstance(event, Refused):
                self.refused = refusal_error(m.Refusal(event.refuse.etype, event.refuse.text))
        return to_send

    @property
    def epoch(self) -> int:
        """Return the controller's life that it is connected to; 0 before the first one."""
        return self._link.epoch

    @property
    def problem(self) -> str:
        """Return why there is no connection now, for people; "" while there is one."""
        return self._link.problem

    @property
    def lack_of_room(self) -> str:
        """Return why the controller handles nothing at present, if its store has no room; "" otherwise."""
        return self._link.problem if self._link.waits_for_room else ""

    def answer(self, question: m.Question, timeout_s: float | None = 5.0) -> m.Reply:
        """Ask a question, in pages if it is about many tasks, and return the reply. Raise the error of a refusal.

        Raises:
            FarmNotRunning: there is no reply to one page within `timeout_s`.
            StoreFull: the controller handles nothing at present, because its store has no room.
        """
        return ask_in_pages(question, lambda page: self._answer(page, timeout_s))

    def answer_for(self, question: m.Question, expected: type[R], timeout_s: float | None = 5.0) -> R:
        """Return the reply to a question, as `answer` does.  Raises TypeError for a reply of another type."""
        return of_kind(self.answer(question, timeout_s), expected, question)

    def _answer(self, question: m.Question, timeout_s: float | None) -> m.Reply:
        replies: list[m.Reply] = []
        self.ask(question, replies.append)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self.step()
            if replies:
                break
            if self.refused is not None:
                raise self.refused
            if self._link.waits_for_room:
                raise errors.StoreFull(self._link.problem)
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                returns = self._returns()
                raise errors.FarmNotRunning(
                    f"the farm does not answer within {timeout_s:g} s: {returns or self._link.problem or 'busy'}"
                )
            self._link.wait(math.inf if deadline is None else deadline)
        if isinstance(replies[0], m.Refusal):
            raise refusal_error(replies[0])
        return replies[0]

    def latest_output(self, task: int) -> list[str]:
        """Return lines about what a running task has written until now, as `output_so_far`."""
        found: list[tuple[str, str]] = []
        self.on_output = lambda output: found.extend(filter(None, [output.texts_of(task)]))
        if not self.answer_for(m.Outputs.latest(task), m.NumberReply).value:
            return []
        deadline_s = time.monotonic() + OUTPUT_S
        while not found and time.monotonic() < deadline_s:
            self._link.wait(deadline_s)
            self.step()
        return output_so_far(found[0] if found else None)

    def _returns(self) -> str:
        """Return how the farm comes back if its controller has ended and its supervisor starts it again; else ""."""
        return "" if self._link.is_up else comes_back(self._folder, self._read_info)

    def fds(self) -> list[int]:
        """Return the descriptors to wait for; when one is readable, call `step`."""
        return self._link.fds()

    def next_deadline(self) -> float:
        """Return the monotonic time by which `step` must be called."""
        return self._link.next_deadline()

    def close(self) -> None:
        """Say good-bye and close the connection."""
        self._link.close()

    def __enter__(self) -> Questioner:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def connect(farm: str) -> Questioner:
    """Return a `Questioner` for a farm, by the farm's name or the path of its connection file.

    Raises:
        FarmNotRunning: there is no such file, or its controller is dead and nobody starts it again.
    """
    read = connection_reader(farm)
    info = read()
    if is_stale(info) and not Home.of(info.farm).is_supervised():
        raise errors.FarmNotRunning(
            f"farm {info.farm!r} is not running: its controller (pid {info.controller_pid}) has ended without a"
            f" good-bye; `ipytaskfarm start --farm {info.farm}` resumes it"
        )
    return Questioner(read, folder=Path(info.folder) if info.folder and info.node == socket.gethostname() else None)


def refusal_error(refusal: m.Refusal) -> Exception:
    """Return the exception that a refusal names: one of the farm's, a builtin, or else a plain `TaskFarmError`."""
    chosen = getattr(errors, refusal.etype, None) or getattr(builtins, refusal.etype, None)
    if isinstance(chosen, type) and issubclass(chosen, Exception):
        return chosen(refusal.text)
    return errors.TaskFarmError(f"{refusal.etype}: {refusal.text}")
