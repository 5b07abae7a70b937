"""Answers the live view's questions about tasks, and those about history, in a thread beside the controller's turns.

The session, and before that the key, that has taken least of the thread's time comes next: the many questions of one
delay the question of another by one answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias, get_args

from ..core import messages as m
from ..core.handlers.view import UNFINISHED, unfinished_page, with_started, with_unfinished
from ..core.scheduler.state import SchedulerState
from ..core.states import State
from ..core.text import text_of
from ..core.turn_shares import GroupedOrder
from ..storage.task_tables import TaskTables

log = logging.getLogger(__name__)

WAITING_MAX = 32
"""The largest number of unanswered questions of one session; further ones are refused."""
ALL_WAITING_MAX = 1000
"""The same of all sessions; but one question of each session may always wait."""

StoreQuestion: TypeAlias = m.ReadCauses | m.ReadHistory | m.ReadStretches | m.ReadTaskInput | m.ReadTaskPage
STORE_QUESTIONS = frozenset(get_args(StoreQuestion))
"""The questions that are answered here."""

_Found: TypeAlias = m.Reply | Callable[[SchedulerState], m.Reply]
"""An answer, or how it is made of what the store has and what only memory knows."""


class ViewAnswers:
    """Answers `STORE_QUESTIONS`: those about unfinished tasks from memory, the others from the store."""

    def __init__(self, store: Path, farm: SchedulerState) -> None:
        self._store = store
        self._farm = farm
        self._asked: Counter[str] = Counter()
        self._to_read: dict[str, deque[tuple[int, StoreQuestion, int]]] = {}
        """Session -> (number, question, how many tasks have failed)."""
        self._key_of: dict[str, str] = {}
        """The title of the key of each session in `_to_read`."""
        self._order = GroupedOrder()
        """The sessions in `_to_read`, by key."""
        self._work = threading.Condition()
        """Held for `_to_read` and `_order`; notified of each question, and of the end."""
        self._over = threading.Event()
        self._read: deque[tuple[str, int, _Found]] = deque()
        self._bell: int | None = None
        self._thread: threading.Thread | None = None

    def begin_epoch(self, farm: SchedulerState) -> None:
        """Take the states of unfinished tasks from here: the state before was thrown away."""
        self._farm = farm

    def fd(self) -> int | None:
        """Return a descriptor that is readable when there are answers; None before the first question."""
        return self._bell

    def ask(self, session: str, key: str, n: int, question: StoreQuestion) -> m.Answer | None:
        """Return the answer to a question of a session under this key; None if it comes with `answers`."""
        if isinstance(question, m.ReadTaskPage) and question.state in UNFINISHED:
            return m.Answer(n, unfinished_page(self._farm, question))
        most = WAITING_MAX if self._asked.total() < ALL_WAITING_MAX else 1
        if self._asked[session] >= most:
            return m.Answer(n, m.Refusal("TaskError", "too many questions at once: wait for the answers to the others"))
        if self._thread is None:
            self._begin()
        self._asked[session] += 1
        with self._work:
            self._to_read.setdefault(session, deque()).append((n, question, self._farm.tasks.counts[State.FAILED]))
            self._key_of[session] = key
            self._order.wait(key, session)
            self._work.notify()
        return None

    def _next(self) -> tuple[str, int, StoreQuestion, int] | None:
        """Wait for a question and return it. None: this is over."""
        with self._work:
            self._work.wait_for(lambda: self._order or self._over.is_set())
            if self._over.is_set():
                return None
            session = self._order.pop()
            assert session is not None, "a question waits without its session"
            n, question, failed = self._to_read[session].popleft()
        return session, n, question, failed

    def _charge(self, session: str, seconds: float) -> None:
        """Add to the time that a session has used; its next question waits its turn accordingly."""
        with self._work:
            self._order.charge(session, seconds)
            if self._to_read[session]:
                self._order.wait(self._key_of[session], session)
            else:
                del self._to_read[session], self._key_of[session]
                self._order.forget(session)

    def answers(self) -> list[tuple[str, m.Answer]]:
        """Return (session, answer) for each question that was answered. Never blocks."""
        if self._bell is None:
            return []
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        found = []
        while self._read:
            session, n, reply = self._read.popleft()
            self._asked[session] -= 1
            # Tasks that have not ended stand in the store as they were submitted: only memory has their states.
            if callable(reply):
                reply = reply(self._farm)
            found.append((session, m.Answer(n, reply)))
        if found:
            self._asked += Counter()  # drops the entries with zero
        return found

    def _begin(self) -> None:
        """Start the thread.  Raises OSError or RuntimeError if no descriptor or thread is left."""
        if self._bell is None:
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        thread = threading.Thread(target=self._serve, args=(self._bell,), name="reader of tasks", daemon=True)
        thread.start()
        self._thread = thread

    def _serve(self, bell: int) -> None:
        tables: TaskTables | None = None
        while (asked := self._next()) is not None:
            session, n, question, failed = asked
            began_s = time.monotonic()
            try:
                tables = tables or TaskTables(self._store, self._over.is_set)
                reply = _answer(tables, question, failed)
            except Exception as error:  # an error of that answer, not of the thread
                log.exception("%s cannot be answered", type(question).__name__)
                text = f"{type(question).__name__} cannot be answered: {type(error).__name__}: {text_of(error)}"
                reply = m.Refusal("KernelError", text)
            self._charge(session, time.monotonic() - began_s)
            self._read.append((session, n, reply))
            os.eventfd_write(bell, 1)
        if tables is not None:
            tables.close()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._over.set()
            with self._work:
                self._work.notify()
            self._thread.join()
        if self._bell is not None:
            os.close(self._bell)
            self._bell = None


def _answer(tables: TaskTables, question: StoreQuestion, failed: int) -> _Found:
    if isinstance(question, m.ReadCauses):
        return tables.causes(question)
    if isinstance(question, m.ReadHistory):
        table = tables.history(question)
        return table if isinstance(table, m.Refusal) else partial(with_started, table=table, question=question)
    if isinstance(question, m.ReadStretches):
        return tables.stretches(question)
    if isinstance(question, m.ReadTaskInput):
        return tables.task_input(question)
    found = tables.page(question, failed)
    return found if isinstance(found, m.Refusal) else partial(with_unfinished, page=found[0], holders=found[1])
