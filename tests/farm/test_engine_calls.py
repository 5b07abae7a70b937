"""`mec.apply`, the answers of single engines, and commands that are dropped or interrupted."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, MultiEngineClient, errors
from ipytaskfarm.client.engine_answers import EngineAnswer
from tests.support.farms import DEADLINE_S, Gate, until_engines
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def speak(x: int, y: int = 2) -> int:
    print("spoken")
    return x * y


def iter_nothing() -> Iterator[int]:
    yield from ()


def test_a_function_is_called_on_each_engine(mec: MultiEngineClient) -> None:
    assert mec.apply(speak, (3,)) == [6, 6]
    assert mec.apply(speak, [3], {"y": 5}, targets=1) == [15]
    assert mec.apply("abs", (-3,), targets=[0]) == [3]
    mec.push({"a": 5})
    assert mec.apply(lambda: a) == [5, 5]  # type: ignore[name-defined]  # noqa: F821


def test_a_coroutine_function_is_awaited(mec: MultiEngineClient) -> None:
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x

    assert mec.apply(later, (4,)) == [4, 4]


def test_errors_and_bad_input(mec: MultiEngineClient) -> None:
    with pytest.raises(errors.CompositeError, match=r"\[0:apply\]: ZeroDivisionError"):
        mec.apply(lambda x: 1 / x, (0,))
    with pytest.raises(errors.CompositeError, match="NameError"):
        mec.apply("nobody")
    with pytest.raises(TypeError, match="apply takes a function, or the name of one on the engines, not int"):
        mec.apply(5)  # type: ignore[arg-type]
    with pytest.raises(errors.UnpickleableException, match="arguments"):
        mec.apply(speak, (open,), {"y": iter_nothing()})


def test_each_engine_is_heard_as_it_answers(mec: MultiEngineClient, gate: Gate) -> None:
    heard: queue.SimpleQueue[EngineAnswer] = queue.SimpleQueue()
    mec.push({"path": str(gate.path)}, targets=1)
    mec.push({"path": "/"}, targets=0)

    def when_open(x: int) -> int:
        while not os.path.exists(path):  # type: ignore[name-defined]  # noqa: F821
            time.sleep(0.01)
        return speak(x)

    pending = mec.apply(when_open, (3,), block=False)
    pending.add_answer_callback(heard.put)
    first = heard.get(timeout=DEADLINE_S)
    assert (first.engine, first.value, first.ok, first.output.stdout) == (0, 6, True, "spoken\n")
    assert not pending.done()
    gate.open()
    assert heard.get(timeout=DEADLINE_S).engine == 1
    assert first.began_at is not None
    assert first.ended_at is not None
    assert first.began_at <= first.ended_at
    late: queue.SimpleQueue[EngineAnswer] = queue.SimpleQueue()
    pending.add_answer_callback(late.put)
    assert {late.get(timeout=DEADLINE_S).engine for _ in range(2)} == {0, 1}


def test_each_engine_has_an_answer_when_a_command_is_refused(mec: MultiEngineClient) -> None:
    heard: queue.SimpleQueue[EngineAnswer] = queue.SimpleQueue()
    pending = mec.apply(speak, (3,), targets=[0, 9], block=False)
    pending.add_answer_callback(heard.put)
    answers = {answer.engine: answer for answer in (heard.get(timeout=DEADLINE_S) for _ in range(2))}
    assert all(isinstance(answers[engine].error, errors.InvalidEngineID) for engine in (0, 9))
    with pytest.raises(errors.InvalidEngineID):
        answers[0].value  # noqa: B018


def test_a_lost_engine_is_an_answer(farm: Farm, mec: MultiEngineClient) -> None:
    heard: queue.SimpleQueue[EngineAnswer] = queue.SimpleQueue()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pending = mec.apply(die, targets=0, block=False)
    pending.add_answer_callback(heard.put)
    answer = heard.get(timeout=DEADLINE_S)
    assert isinstance(answer.error, errors.EngineLost)
    assert "engine 0" in str(answer.error)
    until_engines(farm, 2)


def test_one_waiting_command_is_dropped(mec: MultiEngineClient, gate: Gate) -> None:
    running = mec.execute(gate.code, block=False)
    dropped, kept = mec.apply(speak, (1,), block=False), mec.apply(speak, (2,), block=False)
    dropped.cancel()
    with pytest.raises(errors.CompositeError, match="QueueCleared"):
        dropped.get_result()
    gate.open()
    running.get_result()
    running.cancel()  # an ended command is left alone
    assert kept.get_result() == [4, 4]


def test_a_running_command_is_interrupted(mec: MultiEngineClient, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    running = mec.execute(f"open({str(begun)!r}, 'w').close()\nimport time\ntime.sleep(600)", targets=0, block=False)
    eventually(begun.exists, DEADLINE_S)
    mec.interrupt(0)
    with pytest.raises(errors.CompositeError, match="KeyboardInterrupt"):
        running.get_result(timeout=DEADLINE_S)
    begun.unlink()
    awaited = f"import asyncio\nopen({str(begun)!r}, 'w').close()\nawait asyncio.sleep(600)"
    running = mec.execute(awaited, targets=0, block=False)
    eventually(begun.exists, DEADLINE_S)
    mec.interrupt(0)
    with pytest.raises(errors.CompositeError, match="CancelledError"):
        running.get_result(timeout=DEADLINE_S)
    mec.interrupt(0)  # an idle engine has nothing to interrupt
    assert mec.apply(speak, (3,)) == [6, 6]


def test_engines_are_added(farm: Farm, mec: MultiEngineClient) -> None:
    assert mec.add_engines(1) == 3
    until_engines(farm, 3)
    assert mec.apply(speak, (3,), targets=2) == [6]
    mec.kill(targets=2)
    until_engines(farm, 2)
    with pytest.raises(ValueError, match="count must be 0 or more"):
        mec.add_engines(-1)
