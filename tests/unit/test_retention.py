"""Results that go by themselves, by age and by size, and code that no task needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.controller import retention
from ipytaskfarm.controller.retention import CODE_LOOK_S, FunctionSweeper, Retention
from ipytaskfarm.core import saves as s
from ipytaskfarm.core.messages.result_cache import CacheKey
from ipytaskfarm.core.messages.task_types import SENT_AGAIN_BYTES, Function, Needs, Recovery, Rules
from ipytaskfarm.core.requirements import Asks, Environment
from ipytaskfarm.storage.blobs import Blobs, blobs_folder
from ipytaskfarm.storage.store import Store

from ..support.polling import eventually
from ..support.store_model import final, task

ENDED_S = 1_700_000_001.25
"""When task 0 of the model ended; task n, n seconds later."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path / "store.sqlite")) as opened:
        yield opened


def ended(store: Store, count: int, body: bytes = b"body") -> None:
    store.commit([task(n) for n in range(count)])
    done = [final(n, body=body) for n in range(count)]
    later = [msgspec.structs.replace(d.final, completed_s=ENDED_S + d.final.id) for d in done]
    store.commit([s.SaveFinal(each) for each in later])


def test_it_is_off_unless_somebody_asks(store: Store, tmp_path: Path) -> None:
    ended(store, 10)
    assert Retention(store, tmp_path, None, None).due(0.0, ENDED_S + 1e9) == []


def test_by_age(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(store, 10)
    monkeypatch.setattr(retention, "CHUNK", 4)
    rule = Retention(store, tmp_path, 60.0, None)
    found = [rule.due(float(n), ENDED_S + 60.0 + 5.5) for n in range(6)]
    assert found == [[0, 1, 2, 3], [4, 5], [], [0, 1, 2, 3], [4, 5], []], "a part at each look, and round again"
    assert rule.due(5.1, ENDED_S + 1e9) == [], "it has just looked"


def test_by_size_the_oldest_go_and_no_more_than_need_be(store: Store, tmp_path: Path) -> None:
    ended(store, 100, os.urandom(50_000))
    used = store.used_bytes()
    assert used > 5_000_000
    assert Retention(store, tmp_path, None, used + 1).due(0.0, 0.0) == []
    rule = Retention(store, tmp_path, None, used - 1_000_000)
    going = rule.due(0.0, 0.0)
    assert going == list(range(len(going)))
    assert 15 <= len(going) <= 25
    store.commit([s.SaveClear(going)])
    assert len(rule.due(retention.SIZE_LOOK_S, 0.0)) <= 2, "what a row takes is an estimate"


def test_what_is_held_for_later_tasks_does_not_go(store: Store, tmp_path: Path) -> None:
    held = msgspec.structs.replace(task(0), needs=Needs(after=(), join=True, keep=True))
    store.commit([held, *(task(n) for n in range(1, 5))])
    body = os.urandom(50_000)
    store.commit([s.SaveFinal(msgspec.structs.replace(final(n, body=body).final, completed_s=1.0)) for n in range(5)])
    assert Retention(store, tmp_path, 60.0, None).due(0.0, ENDED_S) == [1, 2, 3, 4]
    assert Retention(store, tmp_path, None, 1).due(0.0, ENDED_S) == [1, 2, 3, 4]


def test_large_values_count(store: Store, tmp_path: Path) -> None:
    folder = blobs_folder(tmp_path / "store.sqlite")
    digests = [Blobs.create(folder, "farm").put(memoryview(os.urandom(100_000))).hex() for _ in range(10)]
    store.commit([task(n) for n in range(10)])
    store.commit([s.SaveFinal(msgspec.structs.replace(final(n).final, blobs=(digests[n],))) for n in range(10)])
    rule = Retention(store, folder, None, store.used_bytes() + 550_000)
    assert rule.due(0.0, 0.0) == [0, 1, 2, 3, 4]


def unused(sweeper: FunctionSweeper, now_s: float) -> list[str]:
    """Return what a look finds that begins now."""
    found: list[str] = []

    def is_over() -> bool:
        found.extend(sweeper.turn(now_s))
        return sweeper._needed is None

    eventually(is_over)
    return found


def test_a_look_for_code_is_left_out_while_there_is_no_thread_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error went through the controller's loop, again and again."""
    store.commit([s.SaveFunction("unneeded", b"code")])
    sweeper = FunctionSweeper(store.path, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_threads)
        assert unused(sweeper, CODE_LOOK_S) == []
    sweeper.is_worth_it = True
    assert unused(sweeper, 1000.0) == ["unneeded"]


def refuse_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_code_that_no_task_needs_is_found(store: Store) -> None:
    """It stayed for ever, and with `keep_results_size` all results went in its place."""
    asks = Asks(environment=Environment(identity="environment", name="e"), locality="locality")
    recovery = Recovery(b"", "recovery", Rules(depend="of the recovery"))
    needing = msgspec.structs.replace(
        task(0), function="function", rules=Rules(depend="depend", asks=asks, recovery=recovery),
        cache=CacheKey("key", "f", "recipe"),
    )  # fmt: skip
    needed = ["function", "depend", "environment", "locality", "recovery", "of the recovery", "recipe"]
    store.commit([s.SaveFunction(digest, b"code") for digest in [*needed, "nobody's", "of a new task"]])
    store.commit([s.SaveFunction("large", bytes(SENT_AGAIN_BYTES + 1)), needing])
    sweeper = FunctionSweeper(store.path, 0.0)
    assert sweeper.turn(0.0) == [] == sweeper.turn(CODE_LOOK_S - 0.1), "it has just begun"
    assert unused(sweeper, CODE_LOOK_S) == ["nobody's", "of a new task"], "large code may not come again"
    assert unused(sweeper, 1000.0) == [], "nothing was cleared since"
    sweeper.is_worth_it = True
    assert unused(sweeper, 1000.0) == ["large", "nobody's", "of a new task"]
    sweeper.is_worth_it = True
    assert sweeper.turn(2000.0) == []
    sweeper.note([msgspec.structs.replace(task(1), function="of a new task")])
    assert unused(sweeper, 2000.0) == ["large", "nobody's"]
    store.commit([s.DropFunctions(["large", "nobody's"])])
    assert store.functions(["large", "nobody's", "function"]) == [Function("function", b"code")]


def test_a_clock_that_is_set_ahead_clears_nothing_early(store: Store, tmp_path: Path) -> None:
    """All results were cleared when the clock of a machine was set, as after its start or by hand."""
    ended(store, 10)
    booted_s = [0.0]
    rule = Retention(store, tmp_path, 60.0, None, lambda: booted_s[0])
    assert rule.due(0.0, ENDED_S) == []
    booted_s[0] = 20.0
    assert rule.due(20.0, ENDED_S + 20.0 + 86_400.0) == []
    booted_s[0] = 65.5
    assert rule.due(65.5, ENDED_S + 65.5 + 86_400.0) == [0, 1, 2, 3, 4, 5]
    booted_s[0] = 86_400.0
    assert rule.due(100.0, ENDED_S + 86_400.0) == list(range(10)), "a machine that was suspended, and a clock set back"
