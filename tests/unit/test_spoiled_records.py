"""Records of the ends of runs that tasks have spoiled: checked in the engine and in the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ipytaskfarm.agent.relay import Account, RecordUnreadable, Relay, checked, failed
from ipytaskfarm.core.errors import InputsLost, ResultTooLarge
from ipytaskfarm.core.lost_ids import LOST_MAX
from ipytaskfarm.core.messages import AgentState, Results
from ipytaskfarm.core.messages.payload import ResultBody
from ipytaskfarm.core.messages.task_types import Deferral, Ended, FailureSummary, ItemEnd, ItemsEnded, LostInputs
from ipytaskfarm.core.states import DEFERS, LOSES_INPUTS
from ipytaskfarm.engine.current import Deferred, details_of
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.transport.peer import Link
from tests.support.fake_agent import FakeAgent, FakeEngine
from tests.unit.test_agent_parts import FakeLink

RUN = (7, 1)
encode = msgspec.msgpack.encode
GOOD = Ended(7, 1, "", 1.0, 0.5, None, b"body")


def test_a_usual_record_is_forwarded_as_it_is() -> None:
    record = encode(GOOD)
    assert checked(record, RUN) is record


@pytest.mark.parametrize(
    "ended",
    [
        Ended(7, 1, "error", 1.0, 0.5, FailureSummary("E", "text", "here", ("a", "b")), b"body", ("digest",), 5),
        Ended(7, 1, "inputs lost", 1.0, 0.5, detail=LostInputs((1, 2), (3,))),
        Ended(7, 1, "", 1.0, 0.5, detail=ItemsEnded(3, [ItemEnd(1, "deferred", 0.1, None, b"x", Deferral(1.0))])),
    ],
)
def test_a_record_with_details_keeps_them(ended: Ended) -> None:
    assert msgspec.msgpack.decode(checked(encode(ended), RUN), type=Ended) == ended


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"\xc1", "malformed"),
        (b"", "truncated"),
        (encode({"a": 1}), "object"),
        (encode(GOOD) + b"\x00", "trailing"),
        (encode([7, 1, "inputs lost", 1.0, 1.0, None, b"", [], 0, {"type": "LostInputs", "ids": ["a"]}]), "Expected"),
        (encode(Ended(8, 1, "", 1.0, 0.5)), "attempt 1 of task 8"),
        (encode(Ended(7, 2, "", 1.0, 0.5)), "attempt 2 of task 7"),
        (encode(GOOD).replace(b"body", b"\xffody").replace(b"\xa0", b"\xa1\xff"), "utf-8"),
    ],
)
def test_a_record_of_something_else_is_refused(record: bytes, why: str) -> None:
    with pytest.raises(RecordUnreadable, match=f"(?i){why}"):
        checked(record, RUN)


def test_what_stands_behind_the_known_fields_is_not_forwarded() -> None:
    """The controller, which reads records inside messages, would find it nested too deeply."""
    behind = b"\x9d" + encode(GOOD)[1:] + b"\x91" * 300 + b"\x90"
    assert checked(behind, RUN) == encode(GOOD)


def test_the_record_in_its_place_says_why() -> None:
    ended = msgspec.msgpack.decode(failed(RUN, "Expected `int`, got `str`", 9.0), type=Ended)
    assert ended.failure is not None
    assert (ended.outcome, ended.failure.etype, ended.started_s) == ("error", "TaskError", 9.0)
    assert "Expected `int`" in ended.failure.value
    assert msgspec.msgpack.decode(ended.body, type=ResultBody).failure is not None


# -- the agent


@pytest.fixture
def account(tmp_path: Path) -> Any:
    account = Account("s.1", Recorder.create(tmp_path / "engine-1.rec", "s.1", 3))
    yield account
    account.recorder.close()


def relay_of(account: Account, link: FakeLink) -> Relay:
    relay = Relay(cast(Link, link))
    relay.restate(AgentState("here", 1, 1, 1, "", "", []), [account])
    return relay


def test_a_spoiled_record_fails_its_run_and_those_beside_it_arrive(account: Account) -> None:
    link = FakeLink()
    relay = relay_of(account, link)
    account.hand([(1, 1), (2, 1), (3, 1)])
    with_engine = Recorder.open(account.recorder.path)
    for task, record in ((1, encode(Ended(1, 1, "", 1.0, 0.5))), (2, b"\xc1"), (3, encode(Ended(3, 1, "", 1.0, 0.5)))):
        with_engine.begin(task, 1)
        with_engine.end_with(record, task, 1)
    with_engine.close()
    relay.collect(account)
    assert "task 2" in account.spoiled
    (message,) = [each for each in link.sent if isinstance(each, Results)]
    ended = msgspec.msgpack.decode(encode(message), type=Results).ended
    assert [(each.task, each.outcome) for each in ended] == [(1, ""), (2, "error"), (3, "")]
    link.ack(relay)
    assert account.unacknowledged() == [], "it is not sent again"


def test_an_end_with_too_many_values_is_told_without_its_details(account: Account) -> None:
    class Counting(FakeLink):
        def send(self, message: object, token: object | None = None) -> None:
            if isinstance(message, Results) and len(encode(message)) > 1 << 20:
                raise ResultTooLarge("more than 1,000,000 values")
            super().send(message, token)

    link = Counting()
    relay = relay_of(account, link)
    account.hand([RUN])
    with_engine = Recorder.open(account.recorder.path)
    with_engine.begin(*RUN)
    with_engine.end_with(encode(Ended(7, 1, "inputs lost", 1.0, 0.5, detail=LostInputs((0,) * 1_500_000))), *RUN)
    with_engine.close()
    relay.collect(account)
    (message,) = [each for each in link.sent if isinstance(each, Results)]
    (ended,) = msgspec.msgpack.decode(encode(message), type=Results).ended
    assert (ended.outcome, ended.detail) == ("too large", None)


# -- the engine


def test_ids_of_lost_inputs_are_numbers() -> None:
    import numpy as np

    lost = InputsLost({"0": ["3", np.int64(4)]}, engine_lost=True)  # type: ignore[dict-item]
    assert (lost.ids, lost.engines) == ([3, 4], [0])
    assert all(type(each) is int for each in [*lost.ids, *lost.engines])


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({"node-a": [0]}, "engine ids, which are whole numbers, not 'node-a'"),
        ([2**70], "from 0 to 9223372036854775807"),
        ([-1], "from 0"),
        ([None], "whole numbers, not None"),
        (range(LOST_MAX + 1), "at most 100,000"),
    ],
)
def test_lost_inputs_that_cannot_be_told_are_refused(lost: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        InputsLost(lost, engine_lost=True)


def test_details_that_were_changed_later_are_refused() -> None:
    lost = InputsLost([1])
    lost.ids = ["a"]  # type: ignore[list-item]
    with pytest.raises(ValueError, match="task ids"):
        details_of(lost, LOSES_INPUTS)
    deferred = Deferred(Deferral())
    deferred.word = Deferral(after_s="soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="deferral"):
        details_of(deferred, DEFERS)


@pytest.fixture(scope="module")
def engine() -> Any:
    agent = FakeAgent()
    yield agent.start_engine()
    agent.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("from ipytaskfarm.errors import InputsLost\ne = InputsLost([1]); e.ids = [2**70]\nraise e", "from 0 to"),
        ("from ipytaskfarm.errors import InputsLost\ne = InputsLost([1]); e.ids = None\nraise e", "not iterable"),
        (
            "from ipytaskfarm.engine.current import Deferred\n"
            "from ipytaskfarm.core.messages.task_types import Deferral\n"
            "e = Deferred(Deferral()); e.word = object()\nraise e",
            "deferral",
        ),
    ],
)
def test_a_run_whose_details_cannot_be_told_fails_and_its_engine_goes_on(
    engine: FakeEngine, code: str, text: str
) -> None:
    ended = engine.run(code).ended
    assert ended.outcome == "error"
    assert ended.failure is not None
    assert text in ended.failure.value
    assert ended.detail is None
