"""Maps whose functions are large: each is packed once for all items, and items share tasks however it travels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ipytaskfarm import TaskClient
from ipytaskfarm.client import map_submission, packing
from ipytaskfarm.core.messages.task_types import Packed
from ipytaskfarm.serialization.pack import pack_function
from ipytaskfarm.storage.backup import needed_blobs
from ipytaskfarm.storage.blobs import Blobs
from tests.support.polling import DEADLINE_S, eventually

pytestmark = pytest.mark.farm

ROWS = 100_000


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Provide a table of numbers, which are blobs, and of strings, which take long to pack."""
    return pd.DataFrame({"x": range(ROWS), "name": [f"row {n}" for n in range(ROWS)]})


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the digests of the functions that are packed."""
    found: list[str] = []

    def pack(*args: Any) -> Any:
        code = pack_function(*args)
        found.append(code.digest)
        return code

    monkeypatch.setattr("ipytaskfarm.client.packing.pack_function", pack)
    return found


@pytest.fixture
def submitted(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> list[Packed]:
    """Record the tasks that are submitted."""
    found: list[Packed] = []
    submit = tc.session.submit

    def record(packed: Packed, *args: Any) -> int:
        found.append(packed)
        return submit(packed, *args)

    monkeypatch.setattr(tc.session, "submit", record)
    return found


def row_of(table: pd.DataFrame) -> Callable[[int], int]:
    """Return a function of a notebook with the table as a global."""
    names: dict[str, Any] = {"__name__": "__main__", "table": table}
    exec("def row(i): return int(table.iloc[i].x)", names)
    function: Callable[[int], int] = names["row"]
    return function


@pytest.mark.parametrize("chunksize", [None, 3])
def test_a_table_is_packed_once_for_a_map(
    tc: TaskClient, table: pd.DataFrame, packed: list[str], submitted: list[Packed], chunksize: int | None
) -> None:
    assert tc.map(row_of(table), range(300), chunksize=chunksize or "auto") == list(range(300))
    assert len(packed) == 1
    assert len(submitted) > 1
    assert submitted[0].blobs
    assert {task.blobs for task in submitted} == {submitted[0].blobs}


def test_large_items_and_a_large_function_are_needed_by_their_tasks(
    tc: TaskClient, table: pd.DataFrame, packed: list[str], submitted: list[Packed]
) -> None:
    items = [bytes([n]) * 200_000 for n in range(3)]
    large = row_of(table)
    assert tc.map(lambda item: large(len(item) // 2000), items, chunksize=1) == [100] * 3
    (shared,) = set.intersection(*[set(task.blobs) for task in submitted])
    assert [len(set(task.blobs) - {shared}) for task in submitted] == [1, 1, 1]
    assert len(packed) == 1


def test_the_table_is_kept_for_each_item(
    tc: TaskClient, table: pd.DataFrame, blobs: Blobs, submitted: list[Packed], tmp_path: Path
) -> None:
    """The first tasks are cleared, and what is not needed is swept, before the last ones begin."""
    gate, row = tmp_path / "gate", row_of(table)

    def after_gate(i: int) -> int:
        import time

        end_s = time.monotonic() + 120
        while i > 1 and not gate.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        return row(i)

    job = tc.map(after_gate, range(8), chunksize=1, block=False)
    tc.barrier(job.ids[:2], timeout=DEADLINE_S)
    tc.clear(job.ids[:2])
    tc.session.forget_results(None)  # the function's code is sent again with the next task that needs it
    store = blobs.folder.with_suffix("")
    blobs.sweep(lambda old: needed_blobs(store, sorted(old)), older_than_s=-1.0)
    gate.touch()
    tc.barrier(job.ids[2:], timeout=DEADLINE_S)
    assert [tc.get_task_result(i, raw=False).result for i in job.ids[2:]] == list(range(2, 8))
    assert all(task.blobs for task in submitted)


def test_a_function_is_packed_again_before_its_blobs_could_be_removed(
    tc: TaskClient, table: pd.DataFrame, packed: list[str], submitted: list[Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TOUCH_S", 0.0)
    assert tc.map(row_of(table), range(4), chunksize=1) == list(range(4))
    assert len(packed) == len(submitted) == 4
    assert len(set(packed)) == 1


def test_imap_packs_what_the_caller_has_changed_meanwhile(tc: TaskClient, packed: list[str]) -> None:
    factors = [1]
    values = tc.imap(lambda x: x * factors[0], range(500))
    assert next(values) == 0
    factors[0] = 2
    assert list(values)[-1] == 998
    assert len(set(packed)) == 2


def counting(table: pd.DataFrame) -> Callable[[int], int]:
    calls = [0]

    def row(i: int) -> int:
        calls[0] += 1
        return int(table.iloc[i].x)

    return row


@pytest.mark.parametrize("lazily", [False, True], ids=["map", "imap"])
def test_items_share_tasks_whose_function_is_costly(
    tc: TaskClient, table: pd.DataFrame, submitted: list[Packed], lazily: bool
) -> None:
    """An engine unpacks a function for each task if it changes itself, which takes far longer than an item does."""
    row = counting(table)
    found: Iterator[int] | list[int] = tc.imap(row, range(1_000)) if lazily else tc.map(row, range(1_000))
    assert list(found) == list(range(1_000))
    assert len(submitted) < 200


def test_the_pace_is_noted_after_the_measurement_too(
    tc: TaskClient, submitted: list[Packed], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No item ends while the pace is measured, as it is with a function that takes long to unpack."""
    monkeypatch.setattr(map_submission, "LEARN_S", 0.0)
    monkeypatch.setattr(map_submission, "UNKNOWN_TASKS", 10**9)
    ends = 0

    def items() -> Iterator[int]:
        yield from range(3_000)

    submit = map_submission.MapSubmission.submit

    def slowly(self: map_submission.MapSubmission, count: int) -> int | None:
        nonlocal ends
        ends += 1
        if ends == 20:  # packing large items takes long
            first = {task_id for task_id, _ in self.members}
            eventually(lambda: not any(map(self.session.arrivals.is_live, first)), DEADLINE_S)
        return submit(self, count)

    monkeypatch.setattr(map_submission.MapSubmission, "submit", slowly)
    assert tc.map(abs, items()) == list(range(3_000))
    assert len(submitted) < 1_000
