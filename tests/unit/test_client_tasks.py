"""Task objects: what they accept, and what they become when they are packed."""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from ipytaskfarm.client.packing import pack_task
from ipytaskfarm.client.tasks import CallTask, MapTask, StringTask, Task, as_task
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.payload import CallWork, StringWork, Work
from ipytaskfarm.core.messages.task_types import Packed
from ipytaskfarm.serialization.pack import unpack, unpack_function


def work_of(payload: bytes) -> StringWork | CallWork:
    work: StringWork | CallWork = msgspec.msgpack.decode(payload, type=Work)
    return work


def double(x: float) -> float:
    return 2 * x


# Kinds


def test_task_makes_the_fitting_kind() -> None:
    assert type(Task("a = 1")) is StringTask
    assert type(Task(double, args=(1,))) is CallTask
    assert type(Task(expression="a = 1")) is StringTask
    for task in (Task("a"), Task(double), StringTask("a"), MapTask(double), CallTask(double)):
        assert isinstance(task, Task)
    with pytest.raises(TypeError, match="expression"):
        Task(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expression"):
        Task(expression=5)  # type: ignore[arg-type]


def test_old_argument_order() -> None:
    recovery = StringTask("b = 1")
    task = StringTask("a = c", "a", {"c": 1}, True, True, 3, recovery, double)
    assert (task.pull, task.push, task.clear_before, task.clear_after) == (("a",), {"c": 1}, True, True)
    assert (task.retries, task.recovery_task, task.depend) == (3, recovery, double)
    mapped = MapTask(double, (1,), {}, True, True, 3, recovery, double)
    assert (mapped.args, mapped.kwargs, mapped.clear_before, mapped.retries) == ((1,), {}, True, 3)


# Attributes


@pytest.mark.parametrize(
    ("attribute", "given", "kept"),
    [
        ("expression", "b", "b"),
        ("pull", None, ()),
        ("pull", "a", ("a",)),
        ("pull", ["a", "b"], ["a", "b"]),
        ("pull", ("a", "b"), ("a", "b")),
        ("push", None, {}),
        ("push", {"a": 1}, {"a": 1}),
        ("clear_before", 1, True),
        ("clear_after", False, False),
        ("retries", 2, 2),
        ("recovery_task", None, None),
        ("depend", 5, 5),
        ("name", "n", "n"),
        ("priority", -3, -3),
        ("time_limit", 2, 2.0),
        ("time_limit", timedelta(minutes=1), 60.0),
        ("time_limit", None, None),
        ("targets", None, None),
        ("targets", "all", None),
        ("targets", 2, (2,)),
        ("targets", [0, 2], (0, 2)),
    ],
)
def test_assignment_normalises_as_the_constructor_does(attribute: str, given: Any, kept: Any) -> None:
    task = StringTask("a")
    setattr(task, attribute, given)
    assert getattr(task, attribute) == kept
    built = StringTask(**{"expression": "a", attribute: given})
    assert getattr(built, attribute) == kept


@pytest.mark.parametrize(
    ("attribute", "wrong", "error"),
    [
        ("expression", 5, TypeError),
        ("pull", 5, TypeError),
        ("pull", [5], TypeError),
        ("push", [1], TypeError),
        ("push", {1: 1}, TypeError),
        ("clear_before", "yes", TypeError),
        ("clear_after", [], TypeError),
        ("retries", "1", TypeError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("retries", -1, ValueError),
        ("recovery_task", "b = 1", TypeError),
        ("name", 5, TypeError),
        ("priority", "high", TypeError),
        ("time_limit", "1 s", TypeError),
        ("time_limit", 0, ValueError),
        ("time_limit", math.nan, ValueError),
        ("targets", "0", TypeError),
        ("targets", [], ValueError),
        ("targets", [0.5], TypeError),
    ],
)
def test_wrong_values_are_named(attribute: str, wrong: Any, error: type[Exception]) -> None:
    task = StringTask("a")
    with pytest.raises(error, match=attribute):
        setattr(task, attribute, wrong)
    with pytest.raises(error, match=attribute):
        StringTask(**{"expression": "a", attribute: wrong})


def test_function_attributes_are_checked() -> None:
    with pytest.raises(TypeError, match="function"):
        MapTask("f")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="args"):
        MapTask(double, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kwargs"):
        CallTask(double, kwargs=[1])  # type: ignore[arg-type]
    task = MapTask(double)
    setattr(task, "args", [1])  # noqa: B010 - mypy would hold it for a list from here on
    assert task.args == (1,)


def test_a_slip_of_the_pen_is_found_but_subclasses_are_free() -> None:
    with pytest.raises(AttributeError, match="retry"):
        StringTask("a").retry = 3  # type: ignore[attr-defined]

    class Mine(StringTask):
        note: str

    task = Mine("a")
    task.note = "mine"
    assert work_of(pack_task(task).payload) == StringWork("a")


def test_defaults_are_not_shared() -> None:
    one, other = StringTask("a"), StringTask("a")
    assert one.push is not None
    one.push["x"] = 1
    assert other.push == {}


def test_repr_shows_what_was_given() -> None:
    assert repr(StringTask("a = 1", pull="a", retries=2)) == "StringTask('a = 1', pull=('a',), retries=2)"
    assert repr(CallTask(double, args=(1,))) == "CallTask(double, args=(1,))"


# Packing


def test_a_plain_string_task_is_one_payload() -> None:
    packed = pack_task(Task("a = 1", pull="a"))
    assert work_of(packed.payload) == StringWork("a = 1", ("a",))
    assert packed == Packed(packed.payload)


def test_push_and_clear_travel() -> None:
    work = work_of(pack_task(StringTask("a", push={"x": [1]}, clear_before=True, clear_after=True)).payload)
    assert isinstance(work, StringWork)
    assert work.push is not None
    assert unpack(work.push) == {"x": [1]}
    assert (work.clear_before, work.clear_after) == (True, True)


def test_rules_travel_only_if_there_are_any() -> None:
    assert pack_task(StringTask("a", retries=0, priority=0)).rules is None
    task = StringTask("a", retries=2)
    task.retries = 0
    assert pack_task(task).rules is None
    rules = pack_task(StringTask("a", retries=2, name="n", priority=5, time_limit=3, targets=1)).rules
    assert rules is not None
    assert (rules.retries, rules.name, rules.priority, rules.time_limit_s, rules.targets) == (2, "n", 5, 3.0, (1,))


def test_functions_are_named_by_their_digest() -> None:
    packed = pack_task(MapTask(lambda x: x + 1, (1,)))
    (function,) = packed.functions
    assert packed.function == function.digest
    assert packed.raw
    assert unpack_function(function.code, {})(1) == 2
    work = work_of(packed.payload)
    assert isinstance(work, CallWork)
    assert work.raw
    assert work.arguments is not None
    assert unpack(work.arguments) == ((1,), {})
    assert not pack_task(CallTask(double)).raw


def test_running_never_changes_a_task() -> None:
    task = StringTask("a", pull=["a"], push={"x": 1}, retries=1, depend=double)
    before = dict(task.__dict__)
    assert pack_task(task) == pack_task(task)
    assert task.__dict__ == before


def test_a_chain_of_recovery_tasks_travels_whole() -> None:
    third = MapTask(double, (1,), retries=7)
    second = StringTask("b", recovery_task=third)
    packed = pack_task(StringTask("a", retries=1, recovery_task=second))
    assert packed.rules is not None
    first_recovery = packed.rules.recovery
    assert first_recovery is not None
    assert work_of(first_recovery.payload) == StringWork("b")
    assert first_recovery.rules is not None
    last = first_recovery.rules.recovery
    assert last is not None
    assert last.rules is not None
    assert last.rules.retries == 7
    assert last.function in {function.digest for function in packed.functions}


def test_loops_are_shown() -> None:
    alone = StringTask("1/0")
    alone.recovery_task = alone
    with pytest.raises(ValueError, match=r"loop: StringTask\('1/0'\) -> StringTask\('1/0'\)"):
        pack_task(alone)
    assert "1/0" in repr(alone)
    one, other = StringTask("one"), StringTask("other")
    one.recovery_task, other.recovery_task = other, one
    with pytest.raises(ValueError, match=r"'one'.*'other'.*'one'"):
        pack_task(one)


def test_depend_travels_and_a_non_callable_is_never_true() -> None:
    def enough(properties: dict[str, Any]) -> bool:
        return bool(properties["RAM"] > 4)

    packed = pack_task(StringTask("a", depend=enough))
    assert packed.rules is not None
    (code,) = packed.functions
    assert packed.rules.depend == code.digest
    assert unpack_function(code.code, {})({"RAM": 5}) is True
    (code,) = pack_task(StringTask("a", depend=5)).functions
    with pytest.raises(TypeError, match="depend is 5"):
        unpack_function(code.code, {})({})


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(errors.UnpickleableException, match="push"):
        pack_task(StringTask("a", push={"g": threading.Lock()}))
    with pytest.raises(errors.UnpickleableException, match="args"):
        pack_task(CallTask(double, args=(threading.Lock(),)))


# Other things that can be run


class Executes:
    def __init__(self, returns: Any = None, sets: Any = None) -> None:
        self.returns = returns
        self.sets = sets

    def execute(self) -> Any:
        if self.sets is not None:
            self.result = self.sets
        return self.returns


def test_callables_and_objects_with_execute_become_tasks() -> None:
    assert as_task(double).run_local.__self__.function is double  # type: ignore[attr-defined]
    assert as_task(Executes(returns=5)).run_local() == 5
    assert as_task(Executes(sets=6)).run_local() == 6
    assert as_task(Executes()).run_local() is None
    with pytest.raises(TypeError, match=r"an instance is needed, Executes\(\), .*; Task\(Executes\) calls the class"):
        as_task(Executes)
    task = StringTask("a")
    assert as_task(task) is task
    for wrong in (5, None, "a = 1"):
        with pytest.raises(TypeError, match="Task"):
            as_task(wrong)


def test_run_local_raises_with_the_code_in_the_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    monkeypatch.setattr(__main__, "seven", 7, raising=False)
    assert StringTask("y_local = seven + z", pull="y_local", push={"z": 1}).run_local() == {"y_local": 8}
    assert MapTask(double, (4,)).run_local() == 8
    with pytest.raises(ZeroDivisionError) as caught:
        StringTask("x = 1\n1/0").run_local()
    assert str(caught.traceback[-1].path).startswith("<task")
    with pytest.raises(NameError, match="nowhere"):
        StringTask("x = 1", pull="nowhere").run_local()
    for name in ("y_local", "z", "x"):
        __main__.__dict__.pop(name, None)
