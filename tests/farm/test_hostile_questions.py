"""Every question of clients, with hostile values in every field: it is answered, and the controller goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, get_args

import msgspec
import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.cli import main
from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment.light_client import Questioner, connect
from tests.support.farms import module_farm

pytestmark = pytest.mark.farm

NUMBERS = (0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1)
"""All that a message can carry; SQLite's numbers end at 2**63 - 1."""
FLOATS = (0.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "\x00", "'; DROP TABLE task; --", "%", "x" * 70_000, "\U0010ffff", "../..")
BYTES = (b"", b"\x00", b"\xc1", b"\x80\x04K\x01." * 100, b"\x91" * 5_000)
ENDS_THE_FARM = (messages.StopFarm,)
DEPTH = 3
KINDS = [kind for kind in get_args(messages.Question) if kind not in ENDS_THE_FARM]


def hostile(of: msgspec.inspect.Type, depth: int = DEPTH) -> Iterator[Any]:
    """Values of a type that its users would not send."""
    info = msgspec.inspect
    match of:
        case info.IntType():
            yield from NUMBERS
        case info.FloatType():
            yield from FLOATS
        case info.StrType():
            yield from TEXTS
        case info.BytesType() | info.RawType():
            yield from BYTES
        case info.BoolType():
            yield from (True, False)
        case info.NoneType():
            yield None
        case info.UnionType(types=types):
            for each in types:
                yield from hostile(each, depth)
        case info.ListType(item_type=item) | info.VarTupleType(item_type=item) | info.SetType(item_type=item):
            values = list(islice(hostile(item, depth - 1), 40)) if depth else []
            yield from ([], values, values * 50)
        case info.TupleType(item_types=items):
            yield from (tuple(row) for row in zip(*(hostile(item, depth) for item in items), strict=False))
        case info.DictType(key_type=key, value_type=value):
            yield {}
            if depth:
                yield dict(zip(hostile(key, depth - 1), hostile(value, depth - 1), strict=False))
        case info.StructType(cls=cls) if depth:
            yield from structs(cls, depth - 1)
        case info.AnyType():
            yield from (None, 2**64 - 1, "x", [[]])


def structs(cls: type, depth: int = DEPTH) -> Iterator[Any]:
    """Objects of a class, each with one hostile field, the others as harmless as they can be."""
    found = msgspec.inspect.type_info(cls)
    assert isinstance(found, msgspec.inspect.StructType)
    harmless = {}
    for field in found.fields:
        if field.required:
            first = next(hostile(field.type, depth), None)
            harmless[field.name] = first
    yield cls(**harmless)
    for field in found.fields:
        for value in hostile(field.type, depth):
            yield cls(**{**harmless, field.name: value})


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(1) as farm:
        with farm.task_client() as tc:
            tc.run(Task("a = 1", pull="a"), block=True)
        yield farm


@pytest.fixture
def questioner(farm: Farm) -> Iterator[Questioner]:
    with connect(str(farm.connection_file)) as questioner:
        yield questioner


def controller(questioner: Questioner) -> tuple[int, int]:
    """The process that answers, and how many there were before it."""
    state = questioner.answer(messages.FarmStatus(), timeout_s=60.0)
    assert isinstance(state, tables.FarmState)
    return state.pid, state.epoch


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_hostile_question_is_answered(kind: type, questioner: Questioner) -> None:
    before = controller(questioner)
    asked = 0
    for question in structs(kind):
        try:
            questioner.answer(question, timeout_s=60.0)
        except errors.FarmNotRunning as error:
            raise AssertionError(f"no answer to {question!r:.300}") from error
        except Exception:  # a refusal is an answer
            pass
        asked += 1
    assert asked
    assert controller(questioner) == before, f"{kind.__name__} ended the controller"


def test_the_farm_still_works(farm: Farm, questioner: Questioner) -> None:
    questioner.answer(messages.HoldFarm(False))
    questioner.answer(messages.SetWanted(1))
    with farm.task_client() as tc:
        tc.await_engines(1, connect_timeout=60)
        assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2


BEYOND = (2**63, -(2**63) - 1, 2**64, 10**30)
CALLS: dict[str, Callable[[TaskClient, int], object]] = {
    "history": lambda tc, n: tc.history(last=n),
    "history of an id": lambda tc, n: tc.history([n]),
    "tasks": lambda tc, n: tc.tasks(last=n),
    "tasks of an id": lambda tc, n: tc.tasks(ids=[n]),
    "status": lambda tc, n: tc.status(n),
    "explain": lambda tc, n: tc.explain(n),
    "get_task_result": lambda tc, n: tc.get_task_result(n),
    "abort": lambda tc, n: tc.abort([n]),
    "clear": lambda tc, n: tc.clear([n]),
    "retry": lambda tc, n: tc.retry([n]),
    "run": lambda tc, n: tc.run(Task("a = 1", priority=n)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_number_beyond_64_bits_is_refused_by_the_client(call: str, farm: Farm, questioner: Questioner) -> None:
    before = controller(questioner)
    with farm.task_client() as tc:
        for number in BEYOND:
            with contextlib.suppress(ValueError, LookupError, OverflowError, errors.TaskFarmError):
                CALLS[call](tc, number)
        assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2
    assert controller(questioner) == before


@pytest.mark.parametrize("last", ["9223372036854775808", "1" * 400])
def test_a_number_beyond_64_bits_is_refused_by_the_command(
    last: str, farm: Farm, questioner: Questioner, capsys: pytest.CaptureFixture[str]
) -> None:
    before = controller(questioner)
    assert main(["history", f"--last={last}", "--farm", str(farm.connection_file)]) == 2
    assert "--last" in capsys.readouterr().err
    assert controller(questioner) == before
