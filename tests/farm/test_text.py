"""Text is any text: lone surrogates, subclasses of str, names and errors that do odd things, on one real farm."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from ipytaskfarm import MultiEngineClient, Task, TaskClient
from ipytaskfarm.core import errors
from ipytaskfarm.core.arguments import check_bytes, check_int, check_name, check_number, check_seconds, check_text
from ipytaskfarm.core.messages.payload import FailureBody, ResultBody
from ipytaskfarm.core.text import encoded, escaped, is_utf8, shown, text_of
from ipytaskfarm.engine import current_task
from tests.support.bad_values import SURROGATE, OddText, Unshowable
from tests.support.farms import module_farm
from tests.support.polling import eventually

ESCAPED = "caf\\udce9"


class TestTheGate:
    def test_most_text_is_returned_as_it_is(self) -> None:
        for text in ("plain", "äöü €", "\U0001f600", "a\0b", ""):
            assert escaped(text) is text
            assert is_utf8(text)

    def test_surrogates_are_escaped(self) -> None:
        assert escaped(SURROGATE) == ESCAPED
        assert escaped("\ud800\udc00") == "\\ud800\\udc00"
        assert not is_utf8(SURROGATE)

    @pytest.mark.parametrize(
        "kind",
        [OddText, np.str_, enum.StrEnum("Word", {"ODD": "odd"})],
    )
    def test_a_subclass_is_taken_for_its_characters(self, kind: type[str]) -> None:
        text = kind("odd")
        assert type(escaped(text)) is str
        assert escaped(text) == "odd"

    def test_no_object_keeps_its_text_from_being_told(self) -> None:
        assert shown(Unshowable()) == "<a Unshowable without a text: RuntimeError>"
        assert text_of(OddText("odd")) == "odd"
        assert len(shown("x" * 10**6)) == 80

    def test_the_last_gate_escapes_text_wherever_it_stands(self) -> None:
        body = ResultBody(None, FailureBody(SURROGATE, "value"), SURROGATE, "", [{"data": {SURROGATE: SURROGATE}}])
        found = msgspec.msgpack.decode(encoded(msgspec.msgpack.encode, body), type=ResultBody)
        assert found == ResultBody(None, FailureBody(ESCAPED, "value"), ESCAPED, "", [{"data": {ESCAPED: ESCAPED}}])
        with pytest.raises(TypeError):
            encoded(msgspec.msgpack.encode, [object()])


@pytest.mark.parametrize(
    ("check", "value", "kept"),
    [
        (check_int, np.int64(3), 3),
        (check_int, 2**63 - 1, 2**63 - 1),
        (check_number, np.float32(1.5), 1.5),
        (check_number, 10**400, float("inf")),
        (check_seconds, np.float64(2.5), 2.5),
        (check_bytes, np.uint8(7), 7),
        (check_text, SURROGATE, ESCAPED),
        (check_text, np.str_("n"), "n"),
        (check_name, OddText("n"), "n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_meant_is_kept_as_pythons_own(check: Any, value: Any, kept: Any) -> None:
    found = check("it", value)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (check_int, 2**63), (check_int, -(2**63) - 1), (check_int, 10**5000), (check_int, True), (check_int, 1.0),
        (check_number, float("nan")), (check_number, Unshowable()), (check_seconds, float("inf")),
        (check_seconds, 10**400), (check_bytes, "9" * 400), (check_bytes, 2**64), (check_name, SURROGATE),
        (check_name, None), (check_text, b"bytes"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_refused_names_the_argument(check: Any, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^the thing "):
        check("the thing", value)


# -- on a farm


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[TaskClient, MultiEngineClient]]:
    with module_farm(1) as farm, farm.task_client() as tc, farm.multiengine_client() as mec:
        tc.progress = False
        yield tc, mec


@pytest.fixture
def tc(world: tuple[TaskClient, MultiEngineClient]) -> Iterator[TaskClient]:
    """The client; afterwards the engine is the one that it was, and takes the next task."""
    client, mec = world
    before = [row.pid for row in mec.engines()]
    yield client
    assert client.run(Task("a = 6 * 7", pull="a"), block=True).results == {"a": 42}
    # An engine that stood in while a task waited for its child leaves a moment later.
    eventually(lambda: [row.pid for row in mec.engines()] == before)


def prints() -> str:
    print(SURROGATE)
    return "done"


def logs() -> str:
    import logging

    logging.warning("%s", SURROGATE)
    return "done"


def writes_stderr() -> str:
    import sys

    sys.stderr.write(SURROGATE)
    return "done"


def writes_bytes() -> str:
    os.write(1, b"caf\xe9")
    return "done"


def displays() -> str:
    from IPython.display import display

    display({"text/plain": SURROGATE, "x/" + SURROGATE: 1}, raw=True)
    return "done"


def displays_numbers() -> str:
    from IPython.display import display

    display({"text/plain": "x"}, raw=True, metadata={"n": 10**30, "o": object})
    return "done"


def says_progress() -> str:
    current_task().progress(0.5, message=SURROGATE)
    time.sleep(0.15)
    current_task().progress(1.0, message=SURROGATE)
    return "done"


def sends() -> str:
    current_task().send({SURROGATE: SURROGATE})
    return "done"


def has_named_child() -> str:
    from ipytaskfarm import Task as Child

    job = current_task().create_job(SURROGATE)
    job.add_task(Child("b = 1", name=SURROGATE))
    job.submit()
    job.wait()
    return "done"


def locks_the_node() -> str:
    with current_task().node_lock(SURROGATE):
        return "done"


def sets_the_environment() -> str:
    os.environ["IPYTASKFARM_TEXT"] = SURROGATE
    return "done"


def changes_folder() -> str:
    import tempfile

    folder = os.path.join(tempfile.mkdtemp(), SURROGATE)
    os.mkdir(folder)
    os.chdir(folder)
    print(os.getcwd())
    os.rmdir(folder)
    return "done"


def warns() -> str:
    import warnings

    warnings.warn(SURROGATE, stacklevel=1)
    return "done"


WELL = [
    prints, logs, writes_stderr, writes_bytes, displays, displays_numbers, says_progress, sends,
    has_named_child, locks_the_node, sets_the_environment, changes_folder, warns,
]  # fmt: skip


@pytest.mark.farm
@pytest.mark.parametrize("function", WELL, ids=lambda function: function.__name__)
def test_a_task_with_odd_text_ends_well(tc: TaskClient, function: Any) -> None:
    assert tc.run(Task(function), block=True).result == "done"


@pytest.mark.farm
def test_properties_of_any_kind(tc: TaskClient, world: tuple[TaskClient, MultiEngineClient]) -> None:
    values = {"word": SURROGATE, "number": 10**30, "huge": 10**400, "nan": float("nan"), "numpy": np.int64(3)}
    code = "from ipytaskfarm.engine import get_engine\nget_engine(id).properties.update(values)"
    tc.run(Task(code, push={"values": values}), block=True).raise_exception()
    assert world[1].get_properties(["word", "huge"]) == [{"word": SURROGATE, "huge": 10**400}]
    rules = {"property:word": SURROGATE, "property:number": "> 1e29", "property:nan": "!= 1"}
    assert tc.run(Task("a = 1", requires=rules, pull="a", fail_if_unmet=True), block=True).results == {"a": 1}
    depend = tc.run(Task("a = 1", depend=lambda properties: properties["word"] == SURROGATE, pull="a"))
    tc.barrier([depend], timeout=60)
    with pytest.raises(Exception, match="must be text"):
        tc.run(Task("get_engine(id).properties[name] = 1", push={"name": SURROGATE}), block=True).raise_exception()
    world[1].clear_properties()


@pytest.mark.farm
def test_what_was_printed_is_shown_escaped(tc: TaskClient) -> None:
    result = tc.run(Task(prints), block=True)
    assert result.stdout == f"{ESCAPED}\n"


@pytest.mark.farm
def test_a_value_is_the_value(tc: TaskClient) -> None:
    assert tc.run(Task("a = b", push={"b": SURROGATE}, pull="a"), block=True).results == {"a": SURROGATE}
    assert tc.map(str, [SURROGATE]) == [SURROGATE]
    assert tc.run(Task(dict, kwargs={SURROGATE: 1}), block=True).result == {SURROGATE: 1}


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Torn(Exception):
    """Nothing of it can be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("never")

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("never")


class Ending(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class TextOfAnotherType(Exception):
    def __str__(self) -> Any:
        return OddText("odd")


class WithAttribute(Exception):
    def __init__(self) -> None:
        super().__init__(SURROGATE, "a\0b")
        self.path = SURROGATE
        self.add_note(SURROGATE)


def missing_file() -> OSError:
    return FileNotFoundError(2, SURROGATE, SURROGATE)


def named_oddly() -> Exception:
    kind = type("Odd", (ValueError,), {"__module__": SURROGATE})
    kind.__qualname__ = "a\nb"
    odd: Exception = kind("text")
    return odd


ERRORS = [Silent, Torn, Ending, Unpicklable, TextOfAnotherType, WithAttribute, missing_file, named_oddly]


def raises(make: Any) -> None:
    raise make()


@pytest.mark.farm
@pytest.mark.parametrize("make", ERRORS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("way", ["task", "map", "code", "command"])
def test_what_an_error_was_is_always_told(
    tc: TaskClient, world: tuple[TaskClient, MultiEngineClient], make: Any, way: str
) -> None:
    error: BaseException | None
    if way == "task":
        error = tc.submit(raises, make).exception(timeout=60)
    elif way == "map":
        error = tc.map(raises, [make, make], return_exceptions=True)[1]
    elif way == "code":
        error = tc.run(Task("raise make()", push={"make": make}), block=True).failure.value
    else:
        world[1].push({"make": make})
        with pytest.raises(errors.CompositeError) as caught:
            world[1].execute("raise make()")
        error = caught.value.elist[0][2]
    name = type(make()).__name__ if make is not named_oddly else "a\nb"
    told = f"{type(error).__name__} {error}" if type(error) is not Silent else "Silent"
    assert error is not None
    assert "NoneType" not in told
    assert name in told or not isinstance(error, errors.RemoteError), told


@pytest.mark.farm
def test_names_with_surrogates_find_what_they_name(tc: TaskClient) -> None:
    task_id = tc.run(
        Task("a = 1", name=SURROGATE, group=SURROGATE, unique=SURROGATE, requires={"hostname": "!= " + SURROGATE})
    )
    tc.barrier([task_id], timeout=60)
    assert task_id in list(tc.tasks(name=SURROGATE))
    assert str(task_id) in repr(tc.history(name=SURROGATE))
    job = tc.create_job(SURROGATE)
    job.add_task(Task("a = 1"))
    job.submit()
    job.wait(timeout=60)
    assert tc.job(SURROGATE).id == job.id
    assert "udce9" in repr(job)
    assert str(task_id) in str(tc.explain(task_id))


@pytest.mark.farm
def test_reasons_and_messages_may_be_any_text(tc: TaskClient) -> None:
    waiting = tc.run(Task("a = 1", targets=[999]))
    tc.abort([waiting], reason=SURROGATE)
    with pytest.raises(Exception, match=r"caf.*udce9"):
        tc.get_task_result(waiting, block=True)
    receiver = tc.submit(lambda: current_task().receive(timeout=60).value)
    tc.send(receiver.id, SURROGATE)
    assert receiver.result(timeout=60) == SURROGATE


@pytest.mark.farm
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Task(f"x = '{SURROGATE}'"), "expression"),
        (lambda: Task("x = 1", pull=SURROGATE), "pull"),
        (lambda: Task("x = 1", requires={SURROGATE: 1}), "requires"),
        (lambda: Task("x = 1", resources={SURROGATE: 1}), "resources"),
        (lambda: Task("x = 1", retries=2**63), "retries"),
    ],
)
def test_what_must_be_exact_is_refused_at_the_call_and_no_id_is_used(tc: TaskClient, make: Any, argument: str) -> None:
    first = tc.run(Task("x = 1"))
    with pytest.raises(ValueError, match=argument):
        tc.run(make())
    assert tc.run(Task("x = 1")) == first + 1
