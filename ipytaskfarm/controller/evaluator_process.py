"""The evaluator's process: a child process in which users' depend functions are called, with a time limit.

One question is in progress at a time, so when the child hangs or dies, the function to blame is known. Its answer is
then False, with the reason for `explain`, and the child is restarted for the next question.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec

from ..core.messages.evaluator import Evaluate, Evaluated, Verdict

TIME_LIMIT_S = 2.0
"""Seconds for one function on one engine. A question about n engines has n times as long."""

START_LIMIT_S = 20.0
"""Additional seconds for the first question, while Python starts."""

_LENGTH = struct.Struct(">I")


class EvaluatorProcess:
    """Sends questions to the child, and answers in its place when it fails."""

    def __init__(self, code_of: Callable[[str], bytes | None], folder: str) -> None:
        self._code_of = code_of
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()
        self._queue: deque[Evaluate] = deque()
        self._asked: Evaluate | None = None
        self._deadline_s = 0.0
        self._inbox = bytearray()

    def ask(self, question: Evaluate) -> None:
        """Queue a question; the answer comes from `answers`."""
        self._queue.append(question)

    def fd(self) -> int | None:
        """Return a descriptor that is readable when the child has answered or has ended; None if there is no child."""
        return self._child.stdout.fileno() if self._child and self._child.stdout else None

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which the child's time limit ends; None if no question is open."""
        return self._deadline_s if self._asked else None

    def answers(self) -> list[Evaluated]:
        """Return the answers that have arrived. Blocks only while a child is started."""
        found = []
        answer = self._read()
        if answer is not None:
            found.append(answer)
        elif self._asked is not None and time.monotonic() > self._deadline_s:
            seconds = TIME_LIMIT_S * len(self._asked.subjects)
            self.close()
            found.append(self._blame(f"it did not answer within {seconds:g} s"))
        while self._asked is None and self._queue:
            failed = self._send(self._queue.popleft())
            if failed is not None:
                found.append(failed)
        return found

    def _send(self, question: Evaluate) -> Evaluated | None:
        fresh = self._child is None
        if self._child is None:
            self._start()
        code = None if question.depend in self._known else self._code_of(question.depend)
        self._asked = question
        seconds = TIME_LIMIT_S * len(question.subjects) + (START_LIMIT_S if fresh else 0.0)
        self._deadline_s = time.monotonic() + seconds
        body = msgspec.msgpack.encode(Evaluate(question.n, question.depend, question.subjects, code, question.scored))
        try:
            if self._child is None or self._child.stdin is None:
                raise BrokenPipeError("no evaluator")
            # The child has answered everything before, so it is reading: this does not block long.
            self._child.stdin.write(_LENGTH.pack(len(body)) + body)
            self._child.stdin.flush()
        except OSError as error:
            self.close()
            return self._blame(f"the evaluator process could not be asked: {error}")
        self._known.add(question.depend)
        return None

    def _start(self) -> None:
        self._known.clear()
        self._inbox.clear()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ipytaskfarm.controller.evaluator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._folder,
            start_new_session=True,
        )
        if self._child.stdout is not None:
            os.set_blocking(self._child.stdout.fileno(), False)

    def _read(self) -> Evaluated | None:
        if self._child is None or self._child.stdout is None:
            return None
        try:
            piece = os.read(self._child.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return None
        if not piece:
            status = self._end_status()
            self.close()
            return self._blame(f"the evaluator process ended under it ({status})") if self._asked else None
        self._inbox += piece
        if len(self._inbox) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._inbox)
        if len(self._inbox) < _LENGTH.size + size:
            return None
        body = bytes(self._inbox[_LENGTH.size : _LENGTH.size + size])
        del self._inbox[: _LENGTH.size + size]
        try:
            answer = msgspec.msgpack.decode(body, type=Evaluated)
        except msgspec.MsgspecError:
            # Users' code runs in the child. What it wrote is not an answer.
            self.close()
            return self._blame("the evaluator process wrote nonsense") if self._asked else None
        if self._asked is None or answer.n != self._asked.n:
            return None
        self._asked = None
        return answer

    def _end_status(self) -> str:
        if self._child is None:
            return "it was not running"
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _blame(self, why: str) -> Evaluated:
        question, self._asked = self._asked, None
        if question is None:
            raise AssertionError("there is no question to answer for")
        fits = question.scored  # a locality function that fails has no preference
        verdicts = [Verdict(subject.engine, subject.version, fits, why) for subject in question.subjects]
        return Evaluated(question.n, question.depend, verdicts, question.scored)

    def close(self) -> None:
        """End the child."""
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
