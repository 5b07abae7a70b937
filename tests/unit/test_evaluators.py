"""The order in which functions that judge engines are called, by real evaluators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.controller import evaluators
from ipytaskfarm.controller.evaluators import Evaluators
from ipytaskfarm.core.messages.evaluator import Evaluate, Evaluated, Subject
from ipytaskfarm.serialization.pack import pack_function
from tests.support.polling import DEADLINE_S, eventually


class Desk:
    """Asks questions for sessions, and notes the answers in their order."""

    def __init__(self, folder: Path) -> None:
        self._codes: dict[str, bytes] = {}
        self.evaluators = Evaluators(self._codes.get, str(folder))
        self.answers: dict[int, Evaluated] = {}
        self._number = 0

    def ask(self, body: str, session: str = "one", engines: int = 1) -> int:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(f"def f(p):\n    import os, time\n    {body}", names)
        packed = pack_function(names["f"])
        self._codes[packed.digest] = packed.code
        self._number += 1
        subjects = [Subject(f"e.{n}", 1, {"id": n}) for n in range(engines)]
        self.evaluators.ask(Evaluate(self._number, packed.digest, subjects, session=session))
        return self._number

    def look(self) -> None:
        self.answers.update((answer.n, answer) for answer in self.evaluators.answers())

    def wait(self, number: int) -> Evaluated:
        self.until(lambda: number in self.answers)
        return self.answers[number]

    def until(self, condition: Callable[[], object]) -> None:
        def look() -> object:
            self.look()
            return condition()

        eventually(look, DEADLINE_S)

    @property
    def running(self) -> int:
        return len(self.evaluators.fds())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.evaluators.close()


def test_all_engines_are_judged_in_order_and_by_one_process(desk: Desk) -> None:
    numbers = [desk.ask(f"return p['id'] % {n} == 0", engines=1000) for n in (2, 3, 5)]
    for number, divisor in zip(numbers, (2, 3, 5), strict=True):
        verdicts = desk.wait(number).verdicts
        assert [each.engine for each in verdicts] == [f"e.{n}" for n in range(1000)]
        assert [each.fits for each in verdicts] == [n % divisor == 0 for n in range(1000)]
    assert desk.running == 1


def test_quick_functions_of_another_session_are_answered_while_slow_ones_are_pending(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluators, "TIME_LIMIT_S", 1000.0)
    slow = [desk.ask(f"time.sleep(1000 + {n})", "hostile", 2) for n in range(10)]
    desk.until(lambda: desk.evaluators._is_held())
    for n in range(5):
        assert desk.wait(desk.ask(f"return {n} < 5", "other", 3)).verdicts[2].fits
    assert not desk.answers.keys() & set(slow)
    assert desk.running <= evaluators.EVALUATORS


def test_a_function_that_hangs_ends_for_all_its_engines_and_the_next_slow_one_has_its_turn(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluators, "TIME_LIMIT_S", 1.0)
    numbers = [desk.ask(f"time.sleep(1000 + {n})", "hostile", 100) for n in range(3)]
    own = desk.ask("time.sleep(0.7); return True", "other")
    for number in numbers:
        errors = {verdict.error for verdict in desk.wait(number).verdicts}
        assert errors == {"it did not answer within 1 s"}
    assert desk.wait(own).verdicts[0].fits
    assert list(desk.answers).index(own) < 3, "sessions take turns among slow ones"


def test_a_function_that_becomes_slow_is_asked_about_one_engine_at_a_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pace was that of the first engines."""
    monkeypatch.setattr(evaluators, "TIME_LIMIT_S", 2.0)
    number = desk.ask("time.sleep(0.8 if p['id'] in (3, 4, 5) else 0); return p['id'] != 4", engines=8)
    verdicts = desk.wait(number).verdicts
    assert [each.fits for each in verdicts] == [n != 4 for n in range(8)]
    assert not any(each.error for each in verdicts)


def test_an_evaluator_that_dies_blames_the_function_and_quick_ones_go_on(desk: Desk) -> None:
    dying = [desk.ask(f"os._exit(3 + {n})", "hostile", 2) for n in range(3)]
    assert desk.wait(desk.ask("return True", "other")).verdicts[0].fits
    for n, number in enumerate(dying):
        assert f"exit code {3 + n}" in desk.wait(number).verdicts[1].error


def test_an_answer_for_other_engines_is_nonsense(desk: Desk) -> None:
    """Users' code can write into the pipe of the answers."""
    body = r"""
    from ipytaskfarm.core.messages.evaluator import Evaluated
    import msgspec
    for number in range(50):
        body = msgspec.msgpack.encode(Evaluated(1, "", []))
        for fd in range(3, 30):
            try:
                os.write(fd, len(body).to_bytes(4, "big") + body)
            except OSError:
                pass
    return True"""
    assert "nonsense" in desk.wait(desk.ask(body.strip())).verdicts[0].error


def test_an_evaluator_that_does_not_start_is_not_tried_without_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    numbers = [desk.ask(f"return {n} < 5") for n in range(3)]
    for number in numbers:
        assert desk.wait(number).verdicts[0].error
    began_s = time.monotonic()
    desk.look()
    assert desk.running == 0
    assert time.monotonic() - began_s < DEADLINE_S


def test_an_answer_without_end_is_nonsense(desk: Desk) -> None:
    body = r"""
    for fd in range(3, 30):
        try:
            os.write(fd, b"\xff" * 1000)
        except OSError:
            pass
    return True"""
    assert "nonsense" in desk.wait(desk.ask(body.strip())).verdicts[0].error
