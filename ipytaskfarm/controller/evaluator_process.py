"""One evaluator: a child process in which users' depend functions are called.

It has one question at a time, so when the child hangs or dies, the function to blame is known. `evaluators` decides
which question comes next, and how long it may take.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from ..core.messages.evaluator import Evaluate, Evaluated

START_LIMIT_S = 20.0
"""How long Python may take to start."""
UNREAD_S = 0.5
"""How long the child may take to read a question, and a second more for each `READ_BYTES_PER_S`."""
READ_BYTES_PER_S = 50 << 20
ANSWER_BYTES_MAX = 64 << 20
"""More than the verdicts on ten thousand engines take."""
ENDED_S = 0.1
"""How long a child that has closed its output may take to end: the controller waits."""

_LENGTH = struct.Struct(">I")
_GREETING = Evaluate(0, "", [])
"""It is about no engine: the answer shows that the child has started."""


class EvaluatorFailed(Exception):
    """The child has ended, or answered nonsense; the text says what happened."""


class EvaluatorProcess:
    """Sends questions to the child, and reads its answers."""

    def __init__(self, code_of: Callable[[str], bytes | None], folder: str) -> None:
        self._code_of = code_of
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()
        self._inbox = bytearray()
        self.asked: Evaluate | None = None
        """The question that it has not answered."""
        self.asked_s = 0.0
        """When (monotonic) it was asked."""

    @property
    def is_running(self) -> bool:
        """Return whether there is a child, which may be starting."""
        return self._child is not None

    @property
    def is_starting(self) -> bool:
        """Return whether the child has not answered yet that it is there."""
        return self.asked is _GREETING

    def fd(self) -> int | None:
        """Return a descriptor that is readable when the child has answered or has ended; None if there is no child."""
        return self._child.stdout.fileno() if self._child and self._child.stdout else None

    def start(self) -> None:
        """Start the child, which answers when it can be asked.

        Raises:
            EvaluatorFailed: it cannot be started, or reached.
        """
        self._known.clear()
        self._inbox.clear()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "ipytaskfarm.controller.evaluator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=self._folder,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:  # no descriptors, processes or memory are left
            raise EvaluatorFailed(f"the evaluator process cannot be started: {error}") from error
        if self._child.stdin is not None:
            os.set_blocking(self._child.stdin.fileno(), False)
        if self._child.stdout is not None:
            os.set_blocking(self._child.stdout.fileno(), False)
        self.ask(_GREETING)

    def ask(self, question: Evaluate) -> None:
        """Send a question; the code of its function only once.

        Raises:
            EvaluatorFailed: the child has ended.
        """
        code = None if question.depend in self._known else self._code_of(question.depend)
        self.asked, self.asked_s = question, time.monotonic()
        body = msgspec.msgpack.encode(msgspec.structs.replace(question, code=code, session=""))
        try:
            if self._child is None or self._child.stdin is None:
                raise BrokenPipeError("no evaluator")
            _write(self._child.stdin.fileno(), _LENGTH.pack(len(body)) + body)
        except OSError as error:
            self.close()
            raise EvaluatorFailed(f"the evaluator process could not be asked: {error}") from error
        self._known.add(question.depend)

    def answer(self) -> Evaluated | None:
        """Return the answer to the question; None if it has not come.

        Raises:
            EvaluatorFailed: there will be none. The child is closed.
        """
        if self._child is None or self._child.stdout is None:
            return None
        try:
            piece = os.read(self._child.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return None
        if not piece:
            status = self._end_status()
            self.close()
            raise EvaluatorFailed(f"the evaluator process ended under it ({status})")
        self._inbox += piece
        if len(self._inbox) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._inbox)
        if size > ANSWER_BYTES_MAX:
            self.close()
            raise EvaluatorFailed("the evaluator process wrote nonsense")
        if len(self._inbox) < _LENGTH.size + size:
            return None
        body = bytes(self._inbox[_LENGTH.size : _LENGTH.size + size])
        del self._inbox[: _LENGTH.size + size]
        try:
            answer = msgspec.msgpack.decode(body, type=Evaluated)
        except msgspec.MsgspecError as error:
            # Users' code runs in the child. What it wrote is not an answer.
            self.close()
            raise EvaluatorFailed("the evaluator process wrote nonsense") from error
        if self.asked is None or answer.n != self.asked.n:
            return None
        if len(answer.verdicts) != len(self.asked.subjects):
            self.close()
            raise EvaluatorFailed("the evaluator process wrote nonsense")
        self.asked = None
        return answer

    def _end_status(self) -> str:
        if self._child is None:
            return "it was not running"
        try:
            code = self._child.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the child. A question that it has not answered will not be answered."""
        self.asked = None
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unwritten data has no receiver
                    pass


def _write(fd: int, data: bytes) -> None:
    """Write a question into the child's pipe.

    The child has answered everything before, so it reads, unless a function that it has called has stopped it.

    Raises:
        OSError: it does not read, or has ended.
    """
    left = memoryview(data)
    until_s = time.monotonic() + UNREAD_S + len(data) / READ_BYTES_PER_S
    room = select.poll()
    room.register(fd, select.POLLOUT)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            patience_s = until_s - time.monotonic()
            if patience_s <= 0 or not room.poll(patience_s * 1000):
                raise TimeoutError("it does not read") from None
