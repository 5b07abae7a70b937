"""Questions and commands that were sent to the controller and are not answered yet."""

from __future__ import annotations

import functools
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ..core import errors
from ..core.errors import TaskFarmError
from ..core.messages import (
    AskQuestion,
    CommandAnswer,
    FarmStatus,
    FetchResults,
    MarkTasksDone,
    Question,
    ReadBlob,
    Reply,
    SendCommand,
    SetSticky,
    WatchTasks,
    WriteBlob,
)
from ..core.messages.payload import FailureBody
from ..core.messages.tables import FarmState
from ..core.text import encoded, text_of
from .arrivals import WakeFlag
from .outbox import check_size
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
    """The methods of `Session` with which other parts of the client ask the controller; they are documented there."""

    def ask(self, question: Question, timeout_s: float | None = None) -> Reply: ...
    def begin(self, question: Question) -> PendingQuestion: ...
    def answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> Reply: ...
    def forget(self, asked: PendingQuestion) -> None: ...


_encode = msgspec.msgpack.Encoder().encode
_NO_VALUES_OF_USERS = (WatchTasks, FetchResults, ReadBlob, WriteBlob)
"""Questions that the client itself makes; they are the most frequent ones, and the largest."""
_WHERE = re.compile(r"(.*) - at `\$(?:\.(\w+))?.*`$", re.DOTALL)


def check_question(question: Question) -> None:
    """Check the values of a question, as the controller does when it reads it.

    The controller cannot tell a message with a wrong value from one of a stranger, and refuses the session.

    Raises:
        TypeError, ValueError: a value is not of the type that is expected; the error names it.
        ResultTooLarge: its body is too large to be sent.
    """
    kind = type(question)
    if isinstance(question, _NO_VALUES_OF_USERS):
        return
    if isinstance(question, SetSticky | MarkTasksDone):
        return check_size(kind.__name__, len(question.body))
    try:
        _decoder(kind).decode(encoded(_encode, question))
    except msgspec.ValidationError as error:
        found = _WHERE.fullmatch(str(error))
        what = f"{found[2]}: {found[1]}" if found is not None and found[2] else str(error)
        raise TypeError(f"{what} ({kind.__name__})") from None
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{kind.__name__} cannot be sent: {text_of(error)}") from None


@functools.cache
def _decoder(kind: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


KEPT_S = 1.0
"""How long an answer is kept: a graph or a map may have thousands of arguments."""


class EnginesHere:
    """Answers for the session of a client that sees the farm's folder."""

    def __init__(self, ask: Callable[[Question], Reply], receiver: Callable[[], threading.Thread]) -> None:
        """Create it.  receiver: returns the thread that receives the answers of `ask`, which cannot wait for them."""
        self._ask = ask
        self._receiver = receiver
        self._until_s = 0.0
        self._all_here = False

    def see(self, path: str) -> bool:
        """Return whether all engines are on this machine, so that they see the file of this path."""
        if time.monotonic() < self._until_s or threading.current_thread() is self._receiver():
            return self._all_here
        try:
            state = self._ask(FarmStatus())
        except (TaskFarmError, TimeoutError):
            return False  # whoever packs the value is told when it is sent
        if isinstance(state, FarmState):
            self._all_here = {agent["node"] for agent in state.agents} <= {socket.gethostname()}
            self._until_s = time.monotonic() + KEPT_S
        return self._all_here
