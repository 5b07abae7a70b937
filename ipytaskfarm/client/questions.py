"""Questions and commands that are under way between a session's callers and its IO thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from ..core import errors
from ..core.messages import AskQuestion, CommandAnswer, Question, Reply, SendCommand
from ..core.messages.payload import FailureBody
from .results import error_named

NOBODY = -1
"""The engine id of an answer to a command that is about no engine in particular."""


class PendingQuestion:
    """A question or a command under way, and its answer or answers."""

    __slots__ = ("message", "after", "event", "reply", "expected", "answers", "answered", "on_done", "blobs", "error")

    def __init__(
        self, message: AskQuestion | SendCommand, after: int, on_done: Callable[[], None] | None = None
    ) -> None:
        self.message = message
        self.after = after
        """The last chunk of tasks handed in before it: it must not overtake that one."""
        self.event = threading.Event()
        self.reply: Reply | None = None
        engines = message.engines if isinstance(message, SendCommand) else None
        self.expected: set[int] | None = None if engines is None else set(engines)
        """Who will answer a command; None: not known yet."""
        self.answers: dict[int, CommandAnswer] = {}
        self.answered = False
        self.on_done = on_done
        self.blobs: tuple[str, ...] = ()
        """Digests that a command needs."""
        self.error: Exception | None = None
        """Why it could not be sent."""

    def done(self) -> None:
        """Wake who waits, because the answer is there or because none will come."""
        self.event.set()
        if self.on_done is not None:
            self.on_done()


def refused_by_controller(answer: CommandAnswer) -> errors.TaskFarmError | None:
    """Return the error of an answer that is not an engine's: nothing was run anywhere."""
    try:
        failure = msgspec.msgpack.decode(answer.body, type=FailureBody)
    except (msgspec.MsgspecError, ValueError):
        return None  # an engine's, and its own fault: `commands.error_of_answer` says so
    if answer.engine_id != NOBODY and (failure.etype != "InvalidEngineID" or failure.pickled or failure.traceback):
        return None
    error = error_named(failure.etype, failure.value)
    return error if isinstance(error, errors.TaskFarmError) else errors.KernelError(failure.value)


class AsksController(Protocol):
    """What the parts of a client need of their session: to ask the controller.  `Session` has these methods."""

    def ask(self, question: Question, timeout_s: float | None = None) -> Reply:
        """Ask the controller and wait for the answer.  Raises the error that a `Refusal` names, and TimeoutError."""

    def begin(self, question: Question) -> PendingQuestion:
        """Ask the controller; the caller then calls `answer`, or `forget`."""

    def answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> Reply:
        """Wait for the answer to a question that `begin` has asked."""

    def forget(self, asked: PendingQuestion) -> None:
        """Drop a question: nobody waits for its answer any more."""
