"""Kept results that a call wants at once: they are sent before the commit, and their tasks are told of after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from ipytaskfarm.controller import loop as loop_module
from ipytaskfarm.controller.loop import ControllerLoop
from ipytaskfarm.core.messages import Accepted, AgentState, EngineReport, Finals, NeedIds, Results, Submit
from ipytaskfarm.core.messages.result_cache import CacheKey
from ipytaskfarm.core.messages.task_types import Ended, KeptResults, Submission
from ipytaskfarm.core.scheduler.decision import Now
from ipytaskfarm.core.scheduler.restore import restored_farm
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.storage.blobs import Blobs
from ipytaskfarm.storage.result_cache import ResultCache
from ipytaskfarm.storage.store import Store
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import Peer, PeerNewEpoch

CLIENT, AGENT = Peer("c", "client", "c"), Peer("a", "agent", "a")


class Wire:
    """A hub that notes what it is given: `sent` has the names of the messages, "commit" among them."""

    def __init__(self) -> None:
        self.heard: list[tuple[Peer, object]] = []
        self.sent: list[object] = []

    def send(self, session: str, message: object, *, can_wait: bool = False) -> bool:
        self.sent.append(message)
        return True

    def send_now(self, session: str, message: object) -> None:
        self.send(session, message)

    def poll(self, timeout_s: float, fds: object) -> set[int]:
        return set()

    def receive(self) -> list[tuple[Peer, object]]:
        heard, self.heard = self.heard, []
        return heard

    def backlog_bytes(self, session: str) -> int:
        return 0

    def charge_answer(self, session: str, seconds: float) -> None:
        pass

    def flush(self, now_s: float) -> None:
        pass


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def loop(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControllerLoop]:
    """A controller whose cache has the result of the key "k"."""
    store = Store.open(tmp_path / "store.sqlite", farm_incarnation="f")
    cache = ResultCache.open(tmp_path / "store.cache", Blobs(tmp_path / "blobs"), 1 << 20)
    farm = restored_farm("f", store.load(), SchedulerSettings(), Now(1.0, 1.0))
    farm.lifecycle.wanted = 1
    loop = ControllerLoop(Scheduler(farm), store, cast(Hub, wire), tmp_path, result_cache=cache)
    wire.heard = [
        (CLIENT, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (AGENT, PeerNewEpoch(None)),  # type: ignore[arg-type]
        (AGENT, AgentState("n", 1, 1, 1, "linux", "3.11", [EngineReport("a.1", 0, 1, True, 1.0, prepared=True)])),
        (CLIENT, NeedIds()),
    ]
    loop.turn()
    submit(loop, wire, 0, value_first=True)
    wire.heard = [(AGENT, Results("a.1", [Ended(0, 1, "", 1.0, 0.1, None, b"value")]))]
    loop.turn()
    commit = store.commit

    def noted_commit(saves: object) -> object:
        wire.sent.append("commit")
        return commit(saves)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "commit", noted_commit)
    yield loop
    cache.close()
    store.close()


def submit(loop: ControllerLoop, wire: Wire, task: int, *, value_first: bool) -> list[object]:
    """Submit a task with the key "k"; return what the controller sent, and where it committed."""
    key = CacheKey("k", "f", "recipe", value_first=value_first)
    wire.sent.clear()
    wire.heard = [(CLIENT, Submit([Submission(task, b"work", 1.0, cache=key)]))]
    loop.turn()
    return wire.sent


def test_a_value_is_sent_before_the_commit_and_its_task_after_it(loop: ControllerLoop, wire: Wire) -> None:
    early, commit, *late = submit(loop, wire, 1, value_first=True)
    assert isinstance(early, KeptResults)
    assert [(final.id, final.body, final.from_cache) for final in early.finals] == [(1, b"value", True)]
    assert commit == "commit"
    assert [type(message) for message in late] == [Accepted, Finals]
    assert [final for message in late if isinstance(message, Finals) for final in message.finals] == early.finals


def test_other_tasks_wait_for_the_commit(loop: ControllerLoop, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit(loop, wire, 1, value_first=False)[0] == "commit"
    monkeypatch.setattr(loop_module, "KEPT_BYTES", 4)
    assert submit(loop, wire, 2, value_first=True)[0] == "commit", "a large value is not sent twice"
