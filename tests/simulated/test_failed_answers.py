"""Answers with a bug: which are answered with it at once, and which begin a new epoch."""

from __future__ import annotations

import msgspec
import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers import commands
from ipytaskfarm.core.scheduler import scheduler
from ipytaskfarm.core.scheduler.failed_answers import AnswerFailed
from tests.support.simulated_farm import farm_with_engines


def test_a_change_that_fails_is_told_from_an_answer_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = farm_with_engines(1)

    def fails(*_: object) -> None:
        raise ZeroDivisionError("half way")

    for question in (m.QueueStatus, m.HoldFarm):
        monkeypatch.setitem(scheduler.QUESTIONS, question, fails)
    monkeypatch.setattr(commands, "on_command", fails)
    reply = sim.ask(m.QueueStatus())
    assert isinstance(reply, m.Refusal)
    assert "half way" in reply.text
    now_s, failed = sim.now.mono_s, sim.scheduler.farm.failed_answers
    pauses = []
    events: list[m.AskQuestion | m.SendCommand] = [m.AskQuestion(1, m.HoldFarm()), m.SendCommand(2, None, "pull")]
    for n, event in enumerate(events):
        with pytest.raises(AnswerFailed, match="half way") as raised:
            sim.handle(event, "client")
        failed.note(raised.value, now_s)
        (told,) = [message for _, message in sim.handle(event, "client").sends]  # it comes again
        assert isinstance(told, m.Answer | m.CommandAnswer)
        assert "half way" in str(told)
        again = msgspec.structs.replace(event, n=10 + n)
        (told,) = [message for _, message in sim.handle(again, "client").sends]
        assert "tried again in 10 s" in str(told)
        sim.advance(10.0)
        with pytest.raises(AnswerFailed) as raised:
            sim.handle(again, "client")
        failed.note(raised.value, sim.now.mono_s)
        pauses.append(failed._pauses[raised.value.kind][1])
        now_s = sim.now.mono_s
    assert pauses == [20.0, 20.0]


def test_a_question_of_the_controller_that_fails_does_not_refuse_its_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them have the number 0: after old results could not be cleared, a signal did not stop the farm."""
    sim = farm_with_engines(1)

    def fails(*_: object) -> None:
        raise ZeroDivisionError("half way")

    monkeypatch.setitem(scheduler.QUESTIONS, m.Clear, fails)
    with pytest.raises(AnswerFailed) as raised:
        sim.handle(m.AskQuestion(0, m.Clear([1])), "")
    sim.scheduler.farm.failed_answers.note(raised.value, sim.now.mono_s)
    sim.handle(m.AskQuestion(0, m.Clear([1])), "")  # it is tried again later
    sim.handle(m.AskQuestion(0, m.StopFarm(0.0)), "")
    assert sim.scheduler.farm.lifecycle.stopping
