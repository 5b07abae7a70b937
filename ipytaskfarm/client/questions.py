"""Questions and commands that were sent to the controller and are not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from ..core import errors
from ..core.messages import AskQuestion, CommandAnswer, Question, Reply, SendCommand
from ..core.messages.payload import FailureBody
from .arrivals import WakeFlag
from .results import error_named

NOBODY = -1
"""The engine id of an answer to a command that is about no engine in particular."""


class PendingQuestion:
    """A question or a command that was sent, with its answers as they arrive."""

    __slots__ = (
        "message",
        "after",
        "event",
        "reply",
        "expected",
        "answers",
        "answered",
        "on_done",
        "on_answer",
        "blobs",
        "error",
    )

    def __init__(
        self, message: AskQuestion | SendCommand, after: int, on_done: Callable[[], None] | None = None
    ) -> None:
        self.message = message
        self.after = after
        """The number of the last chunk of tasks before it; it is sent after this chunk."""
        self.event = WakeFlag()
        self.reply: Reply | None = None
        engines = message.engines if isinstance(message, SendCommand) else None
        self.expected: set[int] | None = None if engines is None else set(engines)
        """The engines that will answer a command; None: not known yet."""
        self.answers: dict[int, CommandAnswer] = {}
        self.answered = False
        self.on_done = on_done
        self.on_answer: Callable[[CommandAnswer], None] | None = None
        """Called in the IO thread with each engine's answer to a command."""
        self.blobs: tuple[str, ...] = ()
        """Digests of the blobs that a command needs."""
        self.error: Exception | None = None
        """Why it could not be sent."""

    def done(self) -> None:
        """Wake the callers: the answer has arrived, or will never arrive."""
        self.event.set()
        if self.on_done is not None:
            self.on_done()


def refused_by_controller(answer: CommandAnswer) -> errors.TaskFarmError | None:
    """Return the controller's error in an answer: the command ran on no engine.

    None: the answer is an engine's own.
    """
    try:
        failure = msgspec.msgpack.decode(answer.body, type=FailureBody)
    except (msgspec.MsgspecError, ValueError):
        return None  # an unreadable answer of an engine: `engine_answers.error_of_answer` handles it
    if answer.engine_id != NOBODY and (failure.etype != "InvalidEngineID" or failure.pickled or failure.traceback):
        return None
    error = error_named(failure.etype, failure.value)
    return error if isinstance(error, errors.TaskFarmError) else errors.KernelError(failure.value)


class AsksController(Protocol):
    """The methods of `Session` with which other parts of the client ask the controller."""

    def ask(self, question: Question, timeout_s: float | None = None) -> Reply:
        """Ask the controller and wait for the answer.  Raises the error that a `Refusal` names, and TimeoutError."""

    def begin(self, question: Question) -> PendingQuestion:
        """Ask the controller without waiting; the caller then calls `answer` or `forget`."""

    def answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> Reply:
        """Wait for the answer to a question that `begin` sent."""

    def forget(self, asked: PendingQuestion) -> None:
        """Drop a question; its answer will be ignored."""
