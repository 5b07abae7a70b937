"""Answers to peers, and other messages of theirs, that met a bug of the farm, after they may have changed the state.

The controller throws the state away and begins a new epoch from the store, as after a restart, and its peers report
what they hold. A question comes again then: it is answered with its error, and not tried again. Any other message comes
again too, and nothing of it may be lost: its peer is kept away for a while, and what it holds stays with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..text import text_of

QUESTIONS_KEPT = 1000
"""How many failed questions are remembered; their clients ask again at once, or never."""
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0


class AnswerFailed(Exception):
    """The answer to a question or a command failed, and may have changed the state before."""

    def __init__(self, session: str, n: int, kind: str, text: str) -> None:
        super().__init__(f"{kind} cannot be answered: {text}")
        self.session = session
        self.n = n
        self.kind = kind
        """The type of the question; of a command, its verb."""


class MessageFailed(Exception):
    """A message from a peer could not be handled, or one to it could not be sent. The state may have changed before."""

    def __init__(self, session: str, kind: str, error: Exception) -> None:
        super().__init__(f"{kind} of session {session} cannot be handled: {type(error).__name__}: {text_of(error)}")
        self.session = session


@dataclass(slots=True)
class FailedAnswers:
    """The questions and the other messages that failed, for all epochs of one process."""

    _by_question: dict[tuple[str, int], str] = field(default_factory=dict)
    """(session, number of the question) -> the error."""
    _pauses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Type of a question -> (until when, monotonic, none of this type is tried; how long this pause is)."""
    _peers: dict[str, float] = field(default_factory=dict)
    """Session of a peer whose message failed -> how long its last pause was, in seconds."""

    def note(self, failure: AnswerFailed, now_s: float) -> None:
        """Remember a failure. Each failure of a type makes a longer pause: each costs all clients a new epoch."""
        if failure.session:  # the controller's own questions have no numbers of their own
            self._by_question[failure.session, failure.n] = str(failure)
        while len(self._by_question) > QUESTIONS_KEPT:
            del self._by_question[next(iter(self._by_question))]
        _, before_s = self._pauses.get(failure.kind, (0.0, 0.0))
        pause_s = _next_pause_s(before_s)
        self._pauses[failure.kind] = now_s + pause_s, pause_s

    def pause_of_peer_s(self, failure: MessageFailed) -> float:
        """Remember a failure, and return for how many seconds its peer is kept away."""
        pause_s = _next_pause_s(self._peers.pop(failure.session, 0.0))
        self._peers[failure.session] = pause_s
        while len(self._peers) > QUESTIONS_KEPT:
            del self._peers[next(iter(self._peers))]
        return pause_s

    def why_not(self, session: str, n: int, kind: str, now_s: float) -> str:
        """Return why a question is not tried; "" if it is."""
        if not self._pauses:
            return ""
        known = self._by_question.get((session, n))
        if known is not None:
            return known
        until_s, _ = self._pauses.get(kind, (0.0, 0.0))
        if now_s >= until_s:
            return ""
        return f"{kind} has failed in this controller, which has a bug: it is tried again in {until_s - now_s:.0f} s"


def _next_pause_s(before_s: float) -> float:
    return min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * before_s))
