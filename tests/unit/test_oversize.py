"""Hand-outs, results and answers that are larger than any message may be: neither controller nor agent ends over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from ipytaskfarm.agent.relay import ANSWER_BYTES_MAX, Account, Relay
from ipytaskfarm.controller import loop as loop_module
from ipytaskfarm.controller.loop import ControllerLoop
from ipytaskfarm.core.errors import ResultTooLarge
from ipytaskfarm.core.messages import (
    AgentState,
    CommandDone,
    EngineReport,
    Finals,
    HandOut,
    NeedIds,
    Results,
    Run,
    Submit,
    TaskBatch,
)
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.core.messages.running_task import Spawn, TaskCall
from ipytaskfarm.core.messages.task_types import Ended, Function, Submission
from ipytaskfarm.core.scheduler.decision import Now
from ipytaskfarm.core.scheduler.restore import restored_farm
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.states import Reason
from ipytaskfarm.storage.store import Store
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import Peer, PeerNewEpoch
from ipytaskfarm.transport.peer import Link

LIMIT = 10_000
CLIENT, AGENT = Peer("c", "client", "c"), Peer("a", "agent", "a")


class SmallWire:
    """A hub, or a link, that takes no message above the limit."""

    is_up = True
    unacked_bytes = 0

    def __init__(self) -> None:
        self.heard: list[tuple[Peer, object]] = []
        self.sent: list[tuple[str, object]] = []

    def send(self, session: object, message: object = None, can_wait: bool = False) -> bool:
        to, what = (session, message) if isinstance(session, str) else ("", session)
        if len(msgspec.msgpack.encode(what)) > LIMIT:
            raise ResultTooLarge(f"{type(what).__name__} is too much")
        self.sent.append((to, what))
        return True

    def poll(self, timeout_s: float, fds: object) -> set[int]:
        return set()

    def receive(self, limit: int = 256) -> list[tuple[Peer, object]]:
        heard, self.heard = self.heard, []
        return heard

    def backlog_bytes(self, session: str) -> int:
        return 0

    def charge_answer(self, session: str, seconds: float) -> None:
        pass

    def flush(self, now_s: float) -> None:
        pass


@pytest.fixture
def wire() -> SmallWire:
    return SmallWire()


@pytest.fixture
def loop(tmp_path: Path, wire: SmallWire) -> Iterator[ControllerLoop]:
    """A controller with one client, which has ids, and one idle engine."""
    store = Store.open(tmp_path / "store.sqlite", farm_incarnation="f")
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    farm.lifecycle.wanted = 1
    loop = ControllerLoop(Scheduler(farm), store, cast(Hub, wire), tmp_path)
    report = EngineReport("a.1", 0, 1, True, 1.0, prepared=True)
    wire.heard = [
        (CLIENT, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (AGENT, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (AGENT, AgentState("n", 1, 1, 1, "linux", "3.11", [report])),
        (CLIENT, NeedIds()),
    ]
    loop.turn()
    yield loop
    store.close()


def finals(wire: SmallWire) -> dict[int, str]:
    """Return the ends of tasks as the client received them."""
    return {f.id: f.reason for _, m in wire.sent if isinstance(m, Finals) for f in m.finals}


def test_a_run_that_cannot_be_handed_out_ends_and_the_next_one_runs(loop: ControllerLoop, wire: SmallWire) -> None:
    wire.heard = [(CLIENT, Submit([Submission(0, bytes(LIMIT), 1.0), Submission(1, b"small", 1.0)]))]
    loop.turn()
    loop.turn()
    assert finals(wire) == {0: Reason.TOO_LARGE}
    handed = [message for _, message in wire.sent if isinstance(message, HandOut)]
    assert [message.runs for message in handed] == [[(1, 1)]]


def test_a_hand_out_of_several_runs_goes_as_one_of_each(loop: ControllerLoop, wire: SmallWire) -> None:
    runs = [Run(task, 1, bytes(LIMIT // 2), "f") for task in (5, 6, 7)]
    batch = msgspec.Raw(msgspec.msgpack.encode(TaskBatch(runs, [Function("f", b"code")])))
    loop._hand_out("a", HandOut("a.1", [(5, 1), (6, 1), (7, 1)], batch))
    handed = [message for _, message in wire.sent if isinstance(message, HandOut)]
    assert [message.runs for message in handed] == [[(5, 1)], [(6, 1)], [(7, 1)]]
    batches = [msgspec.msgpack.decode(message.batch, type=TaskBatch) for message in handed]
    assert [each.runs for each in batches] == [[run] for run in runs]
    assert [len(each.functions) for each in batches] == [1, 0, 0], "code goes ahead of who needs it, once"


def test_large_results_are_announced_and_fetched(
    loop: ControllerLoop, wire: SmallWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "PUSH_BYTES", LIMIT)
    wire.heard = [(CLIENT, Submit([Submission(0, b"work", 1.0), Submission(1, b"work", 1.0)]))]
    loop.turn()
    ended = [Ended(task, 1, "", 1.0, 0.1, None, bytes(LIMIT * 2 // 3)) for task in (0, 1)]
    wire.heard = [(AGENT, Results("a.1", ended[:1]))]
    loop.turn()
    wire.heard = [(AGENT, Results("a.1", ended[1:]))]
    loop.turn()
    bodies = [f.body for _, m in wire.sent if isinstance(m, Finals) for f in m.finals]
    assert [body is not None for body in bodies] == [True, True]
    wire.sent.clear()
    loop._send("c", loop._completed("c", Finals(loop._store.finals([0, 1]))))
    ((_, told),) = wire.sent
    assert isinstance(told, Finals)
    assert [final.body for final in told.finals] == [None, None]


# -- the agent


@pytest.fixture
def relay(wire: SmallWire) -> Relay:
    relay = Relay(cast(Link, wire))
    relay.restate(AgentState("n", 1, 1, 1, "linux", "3.11", []), [])
    return relay


def test_a_command_s_answer_that_is_too_large_says_so(relay: Relay, wire: SmallWire, tmp_path: Path) -> None:
    account = Account("a.1", Recorder.create(tmp_path / "engine-1.rec", "a.1", 0))
    relay.keep(CommandDone("a.1", "c", 4, True, bytes(ANSWER_BYTES_MAX + 1)), account)
    _, said = wire.sent[-1]
    assert isinstance(said, CommandDone)
    assert (said.session, said.n, said.ok) == ("c", 4, False)
    failure = msgspec.msgpack.decode(said.body, type=FailureBody)
    assert failure.etype == "ResultTooLarge"
    assert "in pieces" in failure.value
    account.recorder.close()


def test_a_running_task_s_question_that_is_too_large_is_declined(relay: Relay, wire: SmallWire) -> None:
    before = len(wire.sent)
    small = TaskCall("a.1", (0, 1), 1, Spawn(1, [Submission(0, b"work", 1.0)]))
    assert relay.say(small) == ""
    assert "too much" in relay.say(TaskCall("a.1", (0, 1), 2, Spawn(1, [Submission(0, bytes(LIMIT), 1.0)])))
    assert wire.sent[before:] == [("", small)]
