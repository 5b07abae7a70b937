"""Counts of the questions that wait for something, by client: there is a limit for one client, and one for all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..limits import COUNTS
from ..messages import Refusal


@dataclass(slots=True)
class OpenQuestions:
    """The open questions of one kind."""

    by_session: Counter[str] = field(default_factory=Counter)
    total: int = 0

    def why_not(self, session: str) -> Refusal | None:
        """Return the refusal for a client that has asked too much; None if one more question may wait."""
        most = COUNTS.open_questions if self.total < COUNTS.open_questions_in_all else COUNTS.own_questions
        if self.by_session[session] < most:
            return None
        limits = f"{COUNTS.open_questions:,} of one client and {COUNTS.open_questions_in_all:,} of all"
        return Refusal("TaskError", f"too many such questions wait for answers ({limits} are the most): wait for some")

    def begin(self, session: str) -> None:
        """Count a question that waits."""
        self.by_session[session] += 1
        self.total += 1

    def end(self, session: str, count: int = 1) -> None:
        """Count questions that wait no longer."""
        left = self.by_session[session] - count
        if left > 0:
            self.by_session[session] = left
        else:
            del self.by_session[session]
        self.total -= count
