"""A pass over all unfinished tasks that moves those which belong elsewhere now: their job was paused or resumed, say.

A million tasks are looked at in slices, a turn for each, so that others are answered meanwhile.  What decides where a
task belongs is changed, and saved, before the pass begins: tasks that come meanwhile find their right places by
themselves, and after a restart of the controller all do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..messages import Refusal
from .clients import OpenQuestions


class Asker(NamedTuple):
    """Who is answered when a pass is over."""

    session: str
    n: int
    jobs: frozenset[str]


@dataclass(slots=True)
class Sweep:
    """The pass that is under way, and who waits for it or for the next one."""

    left: list[int] = field(default_factory=list)
    """The tasks that were not looked at, the next one last."""
    jobs: set[str] = field(default_factory=set)
    """The jobs of which tasks move."""
    by_time_limit: bool = False
    """Whether tasks with a time limit move to classes of their own."""
    moved: Counter[str] = field(default_factory=Counter)
    """Job -> how many of its tasks have moved."""
    asked: list[Asker] = field(default_factory=list)
    asked_later: list[Asker] = field(default_factory=list)
    """Those for whom the next pass is made: the present one may have passed by their tasks."""
    jobs_later: set[str] = field(default_factory=set)
    """The jobs of which tasks move in the next pass."""
    limits_later: bool = False
    """Whether the next pass is one for time limits."""
    _open: OpenQuestions = field(default_factory=OpenQuestions)

    @property
    def under_way(self) -> bool:
        """Return whether a pass has begun and not ended."""
        return bool(self.asked) or self.by_time_limit

    @property
    def is_due(self) -> bool:
        """Return whether there is something to do in this turn."""
        return self.under_way or bool(self.asked_later) or self.limits_later

    @property
    def sorts_limits(self) -> bool:
        """Return whether tasks with a time limit may still wait among others, where any agent takes them."""
        return self.by_time_limit or self.limits_later

    def has_job(self, jobs: Iterable[str]) -> bool:
        """Return whether tasks of these jobs are being moved, or will be."""
        return any(job in self.jobs or job in self.jobs_later for job in jobs)

    def why_not(self, session: str) -> Refusal | None:
        """Return the refusal for a client that waits for too many answers already."""
        return self._open.why_not(session)

    def ask(self, session: str, n: int, jobs: Iterable[str]) -> None:
        """Move the tasks of these jobs, and answer the question `n` of this session then."""
        self._open.begin(session)
        asker = Asker(session, n, frozenset(jobs))
        self.asked_later.append(asker)
        self.jobs_later |= asker.jobs

    def begin(self, unfinished: Iterable[int]) -> None:
        """Begin a pass over these tasks for all who wait."""
        self.left = list(unfinished)
        self.left.reverse()
        self.asked, self.asked_later = self.asked_later, []
        self.by_time_limit, self.limits_later = self.limits_later, False
        self.jobs, self.jobs_later = self.jobs_later, set()
        self.moved.clear()

    def end(self) -> list[tuple[Asker, int]]:
        """End the pass.  Return who is answered, and how many tasks of their jobs have moved."""
        answers = [(asker, sum(self.moved[job] for job in asker.jobs)) for asker in self.asked]
        for asker in self.asked:
            self._open.end(asker.session)
        self.asked, self.jobs, self.by_time_limit = [], set(), False
        return answers
