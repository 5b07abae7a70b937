"""Test what is remembered of systems that did not answer."""

from __future__ import annotations

import logging

import pytest

from ipytaskfarm.launchers.answering import DOUBT_S, FORGET_S, Answering, hurried, tell, telling


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_silent_system_gets_less_time_then_none_then_all_again() -> None:
    clock = Clock()
    answering = Answering(clock)
    assert answering.limit_s("Slurm", 15.0) == 15.0
    answering.was_silent("Slurm", "squeue did not answer")
    assert answering.limit_s("Slurm", 15.0) == DOUBT_S
    assert answering.limit_s("Slurm", 1.0) == 1.0
    assert answering.limit_s("LSF", 15.0) == 15.0
    answering.was_silent("Slurm", "scancel did not answer")
    assert answering.limit_s("Slurm", 15.0) == 0.0
    assert answering.why("Slurm") == "scancel did not answer"
    clock.now_s += FORGET_S
    assert answering.limit_s("Slurm", 15.0) == 15.0
    answering.was_silent("Slurm", "squeue did not answer")  # the count begins again
    assert answering.limit_s("Slurm", 15.0) == DOUBT_S


def test_an_answer_ends_the_doubt() -> None:
    answering = Answering(Clock())
    answering.was_silent("Slurm", "squeue did not answer")
    answering.has_answered("Slurm")
    assert answering.limit_s("Slurm", 15.0) == 15.0
    assert answering.why("Slurm") == ""


def test_a_process_that_knows_it_from_another_one_does_not_wait_long() -> None:
    answering = Answering(Clock())
    with hurried():
        assert answering.limit_s("Slurm", 15.0) == DOUBT_S
        answering.was_silent("Slurm", "scancel did not answer")
        assert answering.limit_s("Slurm", 15.0) == 0.0


def test_people_are_told_what_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with telling(told.append):
        tell("waiting for squeue")
    assert told == ["waiting for squeue"]
    with caplog.at_level(logging.WARNING):
        tell("waiting for sbatch")
    assert caplog.messages == ["waiting for sbatch"]
