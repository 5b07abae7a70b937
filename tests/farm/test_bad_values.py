"""Pass bad values of every type to every argument: each is refused at the call, or has a meaning; no process ends.

The tables are in `tests.support.bad_values`: a line there adds a call or a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.client.io import IoThread
from ipytaskfarm.controller.direct_answers import DIRECT
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import AskQuestion, Question
from ipytaskfarm.core.messages.payload import StringWork
from ipytaskfarm.core.messages.task_types import JobSpec, Packed, Recovery, Rules, Submission
from ipytaskfarm.core.scheduler.scheduler import QUESTIONS
from ipytaskfarm.core.validation import why_not_storable
from ipytaskfarm.engine import current_task
from ipytaskfarm.transport.reliable_session import HEADER
from tests.support.bad_values import CALLS, SURROGATE, VALUES, World, argument
from tests.support.fake_hub_controller import FakeController, in_thread
from tests.support.hostile import Intruder, controller_pid, data, instance, intruder
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(n=1)

REFUSALS = (TypeError, ValueError, LookupError, errors.TaskFarmError)


@pytest.fixture(scope="module")
def world(farm: Farm) -> Iterator[World]:
    with farm.task_client() as tc, farm.multiengine_client() as mec:
        tc.progress = False
        mec.execute("import numpy")  # once, and not amid a task that is aborted
        yield World(tc, mec)


def lives(farm: Farm, world: World) -> tuple[int, list[int], bool]:
    """Return the state that must be the same afterwards."""
    thread = world.tc._session.io.thread
    return controller_pid(farm), [row.pid for row in world.mec.engines()], thread.is_alive()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_no_value_ends_anything(farm: Farm, world: World, call: str) -> None:
    before = lives(farm, world)
    unnamed = []
    for name, make in VALUES.items():
        try:
            CALLS[call](world, make())
        except REFUSALS as refusal:
            if isinstance(refusal, TypeError | ValueError) and argument(call) not in str(refusal):
                unnamed.append(f"{call} of {name}: {refusal}")
        except Exception as error:
            raise AssertionError(f"{call} of {name}: {type(error).__name__}") from error
    world.tc.abort(world.tc.tasks(state="unfinished"))
    world.tc.drain([row.node for row in world.mec.engines()], on=False)
    assert world.tc.run(Task("a = 6 * 7", pull="a"), block=True).results == {"a": 42}
    assert lives(farm, world) == before
    assert not unnamed, "a refusal names the argument"


def thrown_inside(call: str, values: dict[str, Any]) -> list[str]:
    """Return the outcomes of a call inside a running task, by value."""
    task = current_task()
    calls: dict[str, Callable[[Any], Any]] = {
        "progress value": lambda v: task.progress(v),
        "progress total": lambda v: task.progress(1, v),
        "progress message": lambda v: task.progress(1, 1, v),
        "send": lambda v: task.send(v),
        "submit": lambda v: task.submit(v),
        "submit argument": lambda v: task.submit(type, v),
        "map": lambda v: task.map(type, v),
        "create_job": lambda v: task.create_job(v).add_task(Task("a = 1")),
        "children": lambda v: task.children(v),
        "wait": lambda v: task.wait([v], timeout=0.01),
        "wait timeout": lambda v: task.wait([], timeout=v),
        "reserve": lambda v: task.reserve_resources(timeout=0.01, cores=v),
        "reserve timeout": lambda v: task.reserve_resources(timeout=v, cores=0),
        "yield": lambda v: task.yield_resources(cores=v),
    }
    found = []
    for name, value in values.items():
        try:
            calls[call](value)
        except (TypeError, ValueError, LookupError, OverflowError, TimeoutError, errors.TaskFarmError):
            continue
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


INSIDE = [
    "progress value", "progress total", "progress message", "send", "submit", "submit argument", "map",
    "create_job", "children", "wait", "wait timeout", "reserve", "reserve timeout", "yield",
]  # fmt: skip


@pytest.mark.parametrize("call", INSIDE)
def test_no_value_ends_anything_inside_a_task(farm: Farm, world: World, call: str) -> None:
    before = lives(farm, world)
    left_out = {"generator", "numpy array"} | ({"long"} if call == "map" else set())
    values = {name: make() for name, make in VALUES.items() if name not in left_out}
    ended = world.tc.submit(thrown_inside, call, values)
    found = ended.result(timeout=60)
    assert found == []
    world.tc.abort(world.tc.tasks(state="unfinished"))
    assert world.tc.run(Task("a = 6 * 7", pull="a"), block=True).results == {"a": 42}
    assert lives(farm, world) == before


# -- over the wire, without a client that would refuse


HOSTILE: dict[type, list[Any]] = {
    inspect.IntType: [-1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)],
    inspect.FloatType: [float("nan"), float("inf"), float("-inf"), 1e308, -1.0],
    inspect.StrType: ["", "a\0b", "x" * 100_000, "%_" * 30_000, "\u2028"],
    inspect.BytesType: [b"", b"\xff" * 1000, b"\xc1"],
    inspect.BoolType: [True],
}


def is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 50_000


def hostile_values(kind: inspect.Type) -> list[Any]:
    """Yield values that decode as this type, and that no honest client sends."""
    match kind:
        case inspect.ListType() | inspect.VarTupleType():
            return [[value] for value in hostile_values(kind.item_type)] + [[]]
        case inspect.TupleType():
            # Together, the longest ones would be more than one packet may hold.
            firsts = [[value for value in hostile_values(item)[:7] if not is_long(value)] for item in kind.item_types]
            return [[each[min(i, len(each) - 1)] for each in firsts] for i in range(max(map(len, firsts)))]
        case inspect.UnionType():
            return [value for each in kind.types for value in hostile_values(each)]
        case inspect.NoneType():
            return [None]
        case inspect.StructType():
            return list(_structs(kind))
    return HOSTILE.get(type(kind), [])


def _structs(kind: inspect.StructType) -> Iterator[Any]:
    if kind.cls in (Rules, Recovery):  # they hold one another
        rules = [Rules(priority=2**63), Rules(time_limit_s=1e300), Rules(targets=(2**64 - 1,)), Rules(grace_s=-1.0)]
        yield from (rules if kind.cls is Rules else [Recovery(b"", None, each) for each in rules])
        return
    for field in kind.fields:
        for value in hostile_values(field.type):
            yield msgspec.structs.replace(instance(kind.cls), **{field.name: value})


MEANT = (m.StopFarm, m.RemoveEngines, m.RemoveAgents, m.AgentsEnded, m.HoldFarm, m.SetWanted, m.CompactStore)
"""Questions that are asked so that something ends: only what they cannot mean is tried."""


def questions() -> Iterator[Any]:
    for kind in get_args(Question):
        if kind in MEANT:
            continue
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        yield from _structs(info)
        if not info.fields:
            yield kind()


def test_every_question_is_in_the_fuzz() -> None:
    kinds = set(get_args(Question))
    assert kinds - DIRECT == set(QUESTIONS)
    assert {type(question) for question in questions()} == kinds - set(MEANT)


def ask_raw(raw: Intruder, session: str, asked: list[Any]) -> list[Any]:
    """The answers to these, from a session that says them as they are."""
    sock = raw.greeted(raw.keys.client, session=session)
    for number, question in enumerate(asked, 1):
        sock.send(data(number, AskQuestion(number, question)))
    answers: dict[int, Any] = {}

    def answered() -> bool:
        for message in raw.messages(sock):
            if isinstance(message, m.Answer):
                answers[message.n] = message.reply
        return len(answers) == len(asked)

    eventually(answered)
    return [answers[number] for number in range(1, len(asked) + 1)]


def test_no_question_ends_the_controller(farm: Farm, world: World) -> None:
    before = lives(farm, world)
    world.tc.run(Task("a = 1"), block=True)
    waiting = (m.ReadTaskMessages, m.CheckTask)  # answered when there is something, or when an evaluator has spoken
    asked = [question for question in questions() if not isinstance(question, (*waiting, m.ReloadKeys))]
    assert len(asked) > 150
    with intruder(farm) as raw:
        for first in range(0, len(asked), 50):
            ask_raw(raw, f"fuzz-{first}", asked[first : first + 50])
        sock = raw.greeted(raw.keys.client, session="fuzz-waiting")
        for number, question in enumerate([q for q in questions() if isinstance(q, waiting)], 1):
            sock.send(data(number, AskQuestion(number, question)))
        nan, inf = float("nan"), float("inf")
        named = [
            m.ReadHistory(last=2**63), m.StopFarm(drain_s=nan), m.SetWanted(2**63), m.SetWanted(1, 2**64 - 1),
            m.RemoveEngines([2**63]), m.RemoveAgents(["x"], nan), m.RemoveAgents(["x"], inf),
        ]  # fmt: skip
        replies = ask_raw(raw, "fuzz-named", named)
        ask_raw(raw, "fuzz-clear", [m.ClearSticky()])
    assert all(isinstance(reply, m.Refusal) and reply.etype == "ValueError" for reply in replies)
    assert world.tc.run(Task("a = 6 * 7", pull="a"), block=True).results == {"a": 42}
    assert lives(farm, world) == before


def test_no_submission_ends_the_controller(farm: Farm, world: World) -> None:
    before = controller_pid(farm)
    payload = msgspec.msgpack.encode(StringWork("a = 1"))
    info = inspect.type_info(Rules)
    assert isinstance(info, inspect.StructType)
    rules = [Rules(**{f.name: value}) for f in info.fields for value in hostile_values(f.type)]
    with intruder(farm) as raw:
        sock = raw.greeted(raw.keys.client, session="fuzz-submit")
        ids: list[int] = []
        number = 0
        while len(ids) < len(rules):
            number += 1
            sock.send(data(number, m.NeedIds()))
            (block,) = [message for message in raw.messages(sock) if isinstance(message, m.IdBlock)]
            ids += range(block.first, block.last + 1)
        jobs = [JobSpec("j", "n", 2**63, opened_s=float("nan")), JobSpec("k", "n", 1, opened_s=float("inf"))]
        sock.send(data(number + 1, m.Submit([], [], jobs)))
        last = number + 1 + len(rules)
        for packet, (task_id, rule) in enumerate(zip(ids, rules, strict=False), number + 2):
            sock.send(data(packet, m.Submit([Submission(task_id, payload, float("nan"), None, rule)])))
        eventually(lambda: HEADER.unpack_from(raw.frame(sock))[2] == last)  # all are dealt with
    assert world.tc.run(Task("a = 6 * 7", pull="a"), block=True).results == {"a": 42}
    world.tc.abort(world.tc.tasks(state="unfinished"))
    assert controller_pid(farm) == before  # engines may have been recycled: their rules say so


def test_what_cannot_be_stored() -> None:
    assert why_not_storable(Rules()) == ""
    assert why_not_storable(m.WatchTasks([1, 2, 3])) == ""
    assert "64 bits" in why_not_storable(m.WatchTasks([1, 2**63]))
    assert "finite" in why_not_storable(Rules(recovery=Recovery(b"", None, Rules(defer_s=float("nan")))))
    deep = Rules()
    for _ in range(5000):
        deep = Rules(recovery=Recovery(b"", None, deep))
    assert "deep" in why_not_storable(deep)


# -- the client's IO thread


@pytest.fixture
def tc(fake: FakeController) -> TaskClient:
    return TaskClient(str(fake.connection_file))


def test_a_question_that_cannot_be_encoded_is_its_askers_error(fake: FakeController, tc: TaskClient) -> None:
    with pytest.raises(ValueError, match=r"Tasks cannot be sent: .*unsupported"):
        tc._session.ask(m.ListTasks(name=object()))  # type: ignore[arg-type]
    asked = tc._session.command([0], "execute", b"", text=object())  # type: ignore[arg-type]
    assert asked.event.wait(60)
    assert isinstance(asked.error, ValueError)
    assert tc.run(Task("a")) == 0
    assert tc._session.io.thread.is_alive()


def test_a_question_with_a_value_of_a_wrong_type_is_not_sent(fake: FakeController, tc: TaskClient) -> None:
    # The controller would refuse it as the message of a stranger, and end the session.
    with pytest.raises(TypeError, match=r"name: Expected `str \| null`, got `int` \(ListTasks\)"):
        tc._session.ask(m.ListTasks(name=3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="task: Expected `int`"):
        tc._session.ask(m.ReadCacheKey("x"))  # type: ignore[arg-type]
    assert tc.run(Task("a")) == 0


def test_a_task_that_cannot_be_encoded_fails_alone(fake: FakeController, tc: TaskClient) -> None:
    session = tc._session
    with session._lock:
        session._outbox.has_id()
    first = tc.run(Task("a"))
    with session._lock:
        bad = session._outbox.add(Packed(b"", rules=Rules(name=object())), 0.0)  # type: ignore[arg-type]
    last = tc.run(Task("b"))
    assert (bad, last) == (first + 1, first + 2)
    tc.flush(timeout=60)
    heard = fake.submitted
    assert set(heard) >= {first, bad, last}
    work = msgspec.msgpack.decode(heard[bad].payload, type=StringWork)
    assert work.code.startswith("raise ValueError('this task could not be sent: TypeError")
    assert session.io.thread.is_alive()


def test_everybody_who_waits_hears_of_a_bug_in_the_io_thread(
    fake: FakeController, tc: TaskClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.respond = lambda task: None
    task_id = tc.run(Task("a"))
    tc.flush(timeout=60)
    future = tc.submit(len, "a")
    waits = [
        in_thread(wait)
        for wait in (
            lambda: tc.barrier([task_id]),
            lambda: tc.wait([task_id]),
            lambda: list(tc.as_completed([task_id])),
            lambda: tc.get_task_result(task_id, block=True),
            future.result,
        )
    ]

    def bug(self: IoThread, *args: Any) -> None:
        raise SystemExit(SURROGATE)

    monkeypatch.setattr(IoThread, "_gather", bug)
    tc._session.io.ring()
    for thread, found in waits:
        thread.join(60)
        assert isinstance(found[0], errors.ConnectionError)
        assert "ended by a bug" in str(found[0])
    with pytest.raises(errors.ConnectionError, match="ended by a bug"):
        tc.run(Task("a"))
    assert "SystemExit" in capfd.readouterr().err
