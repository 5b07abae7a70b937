"""The order in which users' depend functions are called: sessions take turns, and slow functions delay only slow ones.

There are up to three evaluators, and at most one of them is held by a slow function. A function is slow if one call of
it takes more than `QUICK_S`. Of a new function that is not known. So it may take that long, and then it holds its
evaluator, or, if a slow function holds another one, it is stopped and waits among the slow ones. So do the further new
functions of its session, until one was quick. A session has one question at most among the quick ones.

The engines of a question are judged in parts that take about `PART_S`: by that time others have their turn. The first
part is one engine, because nothing is known of the function.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ..core.messages.evaluator import Evaluate, Evaluated, Verdict
from ..core.turn_shares import GroupedOrder
from .evaluator_process import START_LIMIT_S, EvaluatorFailed, EvaluatorProcess

TIME_LIMIT_S = 2.0
"""Seconds for one function on one engine."""
QUICK_S = 0.5
"""A function that takes longer on one engine is slow."""
EVALUATORS = 3
"""One for a slow function, one for a new one, and one for the others. Most farms need one."""
PART_S = 0.1
"""The expected time of one part of a question."""
PACES_MAX = 10_000
"""Of how many functions the pace is kept; then all are forgotten."""


@dataclass(slots=True, eq=False)
class _OpenEvaluation:
    """A question that is not answered yet."""

    question: Evaluate
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def session(self) -> str:
        return self.question.session

    @property
    def function(self) -> tuple[str, bool]:
        return self.question.depend, self.question.scored


class _Queue:
    """Questions in the order of fair turns, first of keys and then of sessions."""

    def __init__(self) -> None:
        self._order = GroupedOrder()
        self._of: dict[str, deque[_OpenEvaluation]] = {}
        self._served: set[str] = set()
        """Sessions with a question that was taken and is not done: their next ones wait."""

    def __bool__(self) -> bool:
        return bool(self._order)

    def put(self, question: _OpenEvaluation) -> None:
        session = question.session
        self._of.setdefault(session, deque()).append(question)
        if session not in self._served:
            self._order.wait(_key_of(session), session)

    def take(self) -> _OpenEvaluation:
        session = self._order.pop()
        assert session is not None
        self._served.add(session)
        return self._of[session].popleft()

    def done(self, session: str, seconds: float) -> None:
        """Record that an evaluator had a question of a session for this time, and has it no longer."""
        self._served.discard(session)
        self._order.charge(session, seconds)
        if self._of.get(session):
            self._order.wait(_key_of(session), session)
        else:
            self._of.pop(session, None)
            self._order.forget(session)


def _key_of(session: str) -> str:
    return session.rpartition(":")[0]  # see `transport.keys.session_fits`


@dataclass(slots=True, eq=False)
class _Place:
    """An evaluator, and what it does."""

    process: EvaluatorProcess
    open: _OpenEvaluation | None = None
    is_slow: bool = False
    """Whether it is held by a slow function."""

    @property
    def is_free(self) -> bool:
        return self.process.is_running and self.process.asked is None


class Evaluators:
    """Answers the questions about functions, or blames the function for which there is no answer."""

    def __init__(self, code_of: Callable[[str], bytes | None], folder: str) -> None:
        self._places = [_Place(EvaluatorProcess(code_of, folder)) for _ in range(EVALUATORS)]
        self._quick, self._slow = _Queue(), _Queue()
        self._pace_s: dict[tuple[str, bool], float] = {}
        """(digest, whether it is a locality function) -> how long its last calls took, for one engine."""
        self._slow_sessions: set[str] = set()
        """Sessions of which the last function was slow when it was new."""
        self._was_asked = False
        """Whether there was any question: until then no process runs."""

    def ask(self, question: Evaluate) -> None:
        """Queue a question; the answer comes from `answers`."""
        self._was_asked = True
        self._put(_OpenEvaluation(question))

    def _put(self, question: _OpenEvaluation) -> None:
        (self._slow if self._is_slow(question) else self._quick).put(question)

    def _is_slow(self, question: _OpenEvaluation) -> bool:
        pace_s = self._pace_s.get(question.function)
        return question.session in self._slow_sessions if pace_s is None else pace_s > QUICK_S

    def fds(self) -> list[int]:
        """Return the descriptors that are readable when an evaluator has answered or has ended."""
        if not self._was_asked:
            return []
        return [fd for place in self._places if (fd := place.process.fd()) is not None]

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which the next time limit ends; None if no question is open."""
        if not self._was_asked:
            return None
        return min((_deadline(place) for place in self._places if place.process.asked is not None), default=None)

    def answers(self) -> list[Evaluated]:
        """Return the answers that have arrived."""
        if not self._was_asked:  # each turn of the controller looks here, and most farms have no such functions
            return []
        found: list[Evaluated] = []
        now_s = time.monotonic()
        for place in self._places:
            self._read(place, now_s, found)
            if place.process.asked is not None and now_s > _deadline(place):
                self._is_over(place, now_s, found)
        self._begin(found)
        return found

    def _read(self, place: _Place, now_s: float, found: list[Evaluated]) -> None:
        asked_s, is_starting, question = place.process.asked_s, place.process.is_starting, place.open
        try:
            answer = place.process.answer()
        except EvaluatorFailed as error:
            if is_starting:
                self._has_not_started(place, str(error), found)
            elif question is not None:
                self._note_pace(question, 2 * QUICK_S)  # starting an evaluator takes as long
            self._blame(place, now_s, str(error), found)
            return
        if answer is None or question is None:
            return
        question.verdicts += answer.verdicts
        self._note_pace(question, (now_s - asked_s) / max(1, len(answer.verdicts)))
        self._leave(place, now_s)
        if len(question.verdicts) < len(question.question.subjects):
            self._put(question)
        else:
            found.append(_answer_to(question))

    def _is_over(self, place: _Place, now_s: float, found: list[Evaluated]) -> None:
        """Judge a question that has taken as long as it may."""
        question, asked = place.open, place.process.asked
        if question is None or asked is None:
            place.process.close()
            self._has_not_started(place, f"the evaluator process did not start within {START_LIMIT_S:g} s", found)
            return
        if place.is_slow and len(asked.subjects) == 1:
            place.process.close()
            self._note_pace(question, TIME_LIMIT_S)
            self._blame(place, now_s, f"it did not answer within {TIME_LIMIT_S:g} s", found)
        elif self._is_held():
            place.process.close()
            self._note_pace(question, 2 * QUICK_S)
            self._leave(place, now_s)
            self._put(question)
        else:
            self._note_pace(question, 2 * QUICK_S)
            self._quick.done(question.session, now_s - place.process.asked_s)
            place.is_slow = True

    def _note_pace(self, question: _OpenEvaluation, seconds: float) -> None:
        if len(self._pace_s) >= PACES_MAX:
            self._pace_s.clear()
            self._slow_sessions.clear()
        self._pace_s[question.function] = seconds
        if seconds > QUICK_S:
            self._slow_sessions.add(question.session)
        else:
            self._slow_sessions.discard(question.session)

    def _leave(self, place: _Place, now_s: float) -> None:
        """Record that an evaluator has no question any more."""
        if place.open is not None:
            queue = self._slow if place.is_slow else self._quick
            queue.done(place.open.session, now_s - place.process.asked_s)
        place.open, place.is_slow = None, False

    def _blame(self, place: _Place, now_s: float, why: str, found: list[Evaluated]) -> None:
        """Answer for an evaluator that will not."""
        question = place.open
        self._leave(place, now_s)
        if question is None:
            return
        fits = question.question.scored  # a locality function that fails has no preference
        left = question.question.subjects[len(question.verdicts) :]
        question.verdicts += [Verdict(subject.engine, subject.version, fits, why) for subject in left]
        found.append(_answer_to(question))

    def _begin(self, found: list[Evaluated]) -> None:
        """Give the evaluators that are free the next questions, and start one if it is needed."""
        for place in self._places:
            while place.is_free:
                # A slow one leaves an evaluator that is free, for quick ones.
                if self._slow and not self._is_held() and sum(each.is_free for each in self._places) > 1:
                    self._ask(place, self._slow.take(), True, found)
                elif self._quick:
                    self._ask_quick(place, self._quick.take(), found)
                else:
                    break
        self._start(found)

    def _ask_quick(self, place: _Place, question: _OpenEvaluation, found: list[Evaluated]) -> None:
        if self._is_slow(question):  # that is known since it began to wait
            self._quick.done(question.session, 0.0)
            self._slow.put(question)
        else:
            self._ask(place, question, False, found)

    def _is_held(self) -> bool:
        return any(place.is_slow for place in self._places)

    def _start(self, found: list[Evaluated]) -> None:
        """Start an evaluator if too few are free for what waits, or may come while a slow function holds one."""
        needed = 1 if self._quick or self._is_held() else 2 if self._slow else 0
        if sum(place.is_free or place.process.is_starting for place in self._places) >= needed:
            return
        place = next((place for place in self._places if not place.process.is_running), None)
        if place is None:
            return
        try:
            place.process.start()
        except EvaluatorFailed as error:
            self._has_not_started(place, str(error), found)

    def _has_not_started(self, place: _Place, why: str, found: list[Evaluated]) -> None:
        """Answer the next question, so that it is not tried without end."""
        if waiting := self._quick or self._slow:
            place.open, place.is_slow = waiting.take(), waiting is self._slow
            self._blame(place, time.monotonic(), why, found)

    def _ask(self, place: _Place, question: _OpenEvaluation, is_slow: bool, found: list[Evaluated]) -> None:
        asked = question.question
        pace_s = self._pace_s.get(question.function)
        count = 1 if pace_s is None else max(1, int(PART_S / max(pace_s, 1e-6)))
        part = asked.subjects[len(question.verdicts) :][:count]
        place.open, place.is_slow = question, is_slow
        try:
            place.process.ask(msgspec.structs.replace(asked, subjects=part))
        except EvaluatorFailed as error:
            self._blame(place, time.monotonic(), str(error), found)

    def close(self) -> None:
        """End the evaluators."""
        for place in self._places:
            place.process.close()


def _deadline(place: _Place) -> float:
    """Return when the evaluator's question has taken as long as it may for now."""
    process = place.process
    if process.is_starting:
        return process.asked_s + START_LIMIT_S
    return process.asked_s + (TIME_LIMIT_S if place.is_slow else min(QUICK_S, TIME_LIMIT_S))


def _answer_to(question: _OpenEvaluation) -> Evaluated:
    asked = question.question
    return Evaluated(asked.n, asked.depend, question.verdicts, asked.scored)
