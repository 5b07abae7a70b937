"""Reads questions and writes answers: each is a 4-byte big-endian length and an encoded `Evaluate` or `Evaluated`."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

from ...core.messages.evaluator import Evaluate, Evaluated, Subject, Verdict
from ...core.text import encoded, error_line
from ...serialization.pack import brief_error, unpack, unpack_function
from ...system.process import name_process

_ERROR_CHARACTERS_MAX = 500
_PR_SET_PDEATHSIG = 1
SCORE_MAX = 2**53
"""The upper bound of a locality's score."""


class Evaluator:
    """Answers questions, and keeps functions by their digests."""

    def __init__(self) -> None:
        # Nothing is ever removed: the controller sends each function's code once in this process's life.
        self._functions: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self._namespace: dict[str, Any] = {"__name__": "__main__"}

    def answer(self, question: Evaluate) -> Evaluated:
        """Return one verdict per subject, in the subjects' order. Errors of the user's function are not raised."""
        try:
            function = self._function(question)
        except Exception as error:
            problem = _describe(error)
            verdicts = [Verdict(each.engine, each.version, question.scored, problem) for each in question.subjects]
        else:
            verdicts = [self._verdict(function, each, question.scored) for each in question.subjects]
        return Evaluated(question.n, question.depend, verdicts, question.scored)

    def _function(self, question: Evaluate) -> Callable[[dict[str, Any]], Any]:
        known = self._functions.get(question.depend)
        if known is not None:
            return known
        if question.code is None:
            raise LookupError(f"the code of depend function {question.depend} has not come")
        function = unpack_function(question.code, self._namespace)
        self._functions[question.depend] = function
        return function

    def _verdict(self, function: Callable[[dict[str, Any]], Any], subject: Subject, scored: bool) -> Verdict:
        """Return the verdict: of a depend function its truth; of a locality function its value, or 0 if it raises."""
        score = 0
        try:
            # Made again for each call: the function may change its copy.
            properties = unpack(subject.packed, self._namespace) if subject.packed else {}
            found, problem = function({**msgspec.to_builtins(subject.facts), **properties}), ""
            score = min(max(-1, int(found)), SCORE_MAX) if scored else 0
            fits = score >= 0 if scored else bool(found)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            fits, problem = scored, _describe(error)
        return Verdict(subject.engine, subject.version, fits, problem, score)


def _describe(error: BaseException) -> str:
    brief = brief_error(error)
    place = f" ({brief.place})" if brief.place else ""
    return f"{error_line(brief.etype, brief.value)}{place}"[:_ERROR_CHARACTERS_MAX]


def main() -> int:
    """Serve until standard input ends."""
    name_process("ipytaskfarm evaluator")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    questions, answers = _take_standard_streams()
    evaluator = Evaluator()
    decoder = msgspec.msgpack.Decoder(Evaluate)
    while True:
        question = _read_frame(questions)
        if question is None:
            return 0
        body = encoded(msgspec.msgpack.encode, evaluator.answer(decoder.decode(question)))
        try:
            answers.write(struct.pack(">I", len(body)) + body)
            answers.flush()
        except BrokenPipeError:
            return 0


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the two pipes, moved away from users' code: its prints go to stderr, and its input is empty."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


def _read_frame(stream: BinaryIO) -> bytes | None:
    head = stream.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack(">I", head)
    body = stream.read(length)
    return body if len(body) == length else None


def _die_with_parent() -> None:
    # The end of standard input is noticed only between questions, not while a function hangs.
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
