"""Questions that are answered from the store in a thread: many of one client do not shut others out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.controller import view_answers
from ipytaskfarm.controller.view_answers import ALL_WAITING_MAX, WAITING_MAX, ViewAnswers
from ipytaskfarm.core.messages import Answer, ReadHistory, Refusal
from ipytaskfarm.core.scheduler.state import SchedulerState
from tests.support.polling import eventually

QUESTION = ReadHistory()


class Held:
    """In the place of the store's tables: answers when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, *_: Any) -> Held:
        return self

    def history(self, question: ReadHistory) -> Refusal:
        assert self.go.wait(30)
        return Refusal("", "")

    def close(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(view_answers, "TaskTables", held)
    return held


@pytest.fixture
def answers(held: Held) -> Iterator[ViewAnswers]:
    answers = ViewAnswers(Path("store"), SchedulerState("farm", "incarnation"))
    yield answers
    held.go.set()
    answers.close()


def test_one_question_of_each_session_may_always_wait(answers: ViewAnswers) -> None:
    sessions = [f"s{n}" for n in range(ALL_WAITING_MAX // WAITING_MAX + 1)]
    refused = [answers.ask(s, "client", n, QUESTION) is not None for s in sessions for n in range(WAITING_MAX + 1)]
    assert refused.count(False) >= ALL_WAITING_MAX
    assert answers.ask("other", "client", 1, QUESTION) is None
    refusal = answers.ask("other", "client", 2, QUESTION)
    assert isinstance(refusal, Answer)
    assert isinstance(refusal.reply, Refusal)


def test_the_question_of_another_key_comes_before_those_of_many_sessions(answers: ViewAnswers, held: Held) -> None:
    for n in range(20):
        assert answers.ask(f"s{n}", "one", 1, QUESTION) is None
    assert answers.ask("other", "two", 1, QUESTION) is None
    held.go.set()
    found: list[str] = []

    def all_there() -> bool:
        found.extend(session for session, _ in answers.answers())
        return len(found) == 21

    eventually(all_there)
    assert found.index("other") < 3
