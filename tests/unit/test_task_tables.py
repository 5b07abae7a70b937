"""Tables of tasks for the live view: pages, filters, causes and stretches, read beside the controller's turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.core import saves as s
from ipytaskfarm.core.messages import Refusal
from ipytaskfarm.core.messages.task_types import FailureSummary, Final, Rules
from ipytaskfarm.core.messages.view import (
    JOBS_COUNTED,
    PAGE_MAX,
    ReadCauses,
    ReadStretches,
    ReadTaskInput,
    ReadTaskPage,
    TaskPage,
)
from ipytaskfarm.storage import task_tables
from ipytaskfarm.storage.store import Store
from ipytaskfarm.storage.task_tables import TaskTables
from tests.support.store_model import task

COUNT = 500
FAILS = [FailureSummary("ValueError", "no such thing", "a.py:3 in f"), FailureSummary("KeyError", "'x'", "b.py:9 in g")]


def ended(id: int, failure: FailureSummary | None = None) -> s.SaveFinal:
    times = (1000.0 + id, 1000.0 + id, 0.5, 1000.5 + id)
    return s.SaveFinal(Final(id, "error" if failure else "", id % 4, "n", 1, *times, failure, b"body"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 500 tasks: every 10th failed, every 20th of another cause, and the last 20 have not ended."""
    path = tmp_path_factory.mktemp("tables") / "store.sqlite"
    with closing(Store.open(path)) as store:
        rules = [
            Rules(name=f"{'Größe' if n % 7 == 6 else 'fit'} 100%_{n % 7}", job="odd" if n % 2 else None)
            for n in range(COUNT)
        ]
        store.commit([task(n, rules=rules[n]) for n in range(COUNT)])
        failures = {n: FAILS[n % 20 == 0] for n in range(0, COUNT, 10)}
        store.commit([ended(n, failures.get(n)) for n in range(COUNT - 20)])
    return path


@pytest.fixture
def tables(path: Path) -> Iterator[TaskTables]:
    found = TaskTables(path)
    yield found
    found.close()


def page(tables: TaskTables, failed: int = 48, **asked: object) -> TaskPage:
    found = tables.page(ReadTaskPage(**asked), failed)  # type: ignore[arg-type]
    assert not isinstance(found, Refusal)
    assert found[1] == [row.id for row in found[0].rows]
    return found[0]


def everything(tables: TaskTables, failed: int = 48, **asked: object) -> list[int]:
    """All pages, one after the other."""
    ids: list[int] = []
    before = None
    while True:
        found = page(tables, failed, before=before, **asked)
        ids += [row.id for row in found.rows]
        if found.next is None:
            return ids
        assert before is None or (found.next > before) is bool(asked.get("oldest_first"))
        before = found.next


FAILED = list(range(0, 480, 10))
CASES: list[tuple[dict[str, object], list[int]]] = [
    ({}, list(range(COUNT))),
    ({"state": "finished"}, list(range(COUNT))),
    ({"state": "succeeded"}, [n for n in range(480) if n % 10]),
    ({"state": "failed"}, FAILED),
    ({"state": "aborted"}, []),
    ({"state": "failed", "text": "keyerror"}, FAILED[::2]),
    ({"text": "100%_3"}, [n for n in range(COUNT) if n % 7 == 3]),
    ({"text": "100x_3"}, []),
    ({"text": "GRÖß"}, [n for n in range(COUNT) if n % 7 == 6]),
    ({"text": "GRÖßE 100%_5"}, []),
    ({"job": "odd"}, list(range(1, COUNT, 2))),
    ({"job": "odd", "state": "failed"}, []),
    ({"job": "odd", "text": "_5"}, [n for n in range(1, COUNT, 2) if n % 7 == 5]),
    ({"engine_id": 2}, list(range(2, 480, 4))),
    ({"cause": ("error", "KeyError", "b.py:9 in g")}, FAILED[::2]),
    ({"cause": ("error", "KeyError", "elsewhere")}, []),
]


@pytest.mark.parametrize("span", [7, 20_000])
@pytest.mark.parametrize("failed", [48, 10**6], ids=["few failed", "many failed"])
@pytest.mark.parametrize(("asked", "expected"), CASES, ids=str)
def test_pages_have_all_that_match_once_and_in_order(
    tables: TaskTables, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], expected: list[int], failed: int,
    span: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(task_tables, "RANGE", span)
    monkeypatch.setattr(task_tables, "ANSWER_S", -1.0 if span == 7 else 1.0)
    assert everything(tables, failed, **asked) == expected[::-1]
    assert everything(tables, failed, **asked, oldest_first=True) == expected


def test_a_page_has_what_a_person_looks_for(tables: TaskTables) -> None:
    (row,) = page(tables, state="failed", count=1, text="ValueError").rows
    assert row.id == 470
    assert (row.state, row.reason, row.name, row.job) == ("failed", "error", "fit 100%_1", "")
    assert (row.etype, row.text, row.place) == ("ValueError", "no such thing", "a.py:3 in f")
    assert (row.engine_id, row.run_s, row.items) == (2, 0.5, 1)
    assert page(tables, count=1).rows[0].state == "unfinished"
    assert isinstance(tables.page(ReadTaskPage("no such state"), 0), Refusal)
    assert len(page(tables, count=10**9).rows) == min(COUNT, PAGE_MAX)
    assert len(page(tables, count=-5).rows) == 1


def test_causes_are_grouped_the_largest_first(tables: TaskTables) -> None:
    table = tables.causes(ReadCauses())
    assert [(row.etype, row.place, row.count) for row in table.rows] == [
        ("KeyError", "b.py:9 in g", 24),
        ("ValueError", "a.py:3 in f", 24),
    ]
    assert table.rows[1].ids == list(range(470, 300, -20))[:8]
    assert (table.rows[0].text, table.rows[1].last_s) == ("'x'", 1470.5)
    assert (table.more, table.complete, table.by_job) == (0, True, [])
    assert tables.causes(ReadCauses(count=1)).more == 1
    assert tables.causes(ReadCauses("odd")).rows == []


def test_causes_are_those_of_tasks_that_were_not_submitted_again(tmp_path: Path) -> None:
    """Task 3 has failed again, as task 5; the retry of task 4 has succeeded."""
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit([task(n, rules=Rules(job="j")) for n in range(5)])
        store.commit([task(n, rules=Rules(job="j", retry_of=n - 2)) for n in (5, 6)])
        store.commit([ended(n, FAILS[n % 2]) for n in range(3, 6)])
        store.commit([ended(6)])
    with closing(TaskTables(tmp_path / "store.sqlite")) as tables:
        for question in (ReadCauses(jobs=["j"]), ReadCauses("j", jobs=["j"])):
            table = tables.causes(question)
            assert [(row.etype, row.count, row.ids) for row in table.rows] == [("KeyError", 1, [5])]
            assert table.by_job == [("j", 1)]
        cause = ("error", FAILS[1].etype, FAILS[1].place)
        assert everything(tables, state="failed", cause=cause) == [5]
        assert everything(tables, state="failed", job="j") == [5]
        assert everything(tables, state="failed") == [5, 4, 3]


def test_failed_tasks_are_counted_of_the_jobs_that_are_asked_for(tmp_path: Path) -> None:
    """The jobs with the most are others than those that a page shows."""
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit([task(n, rules=Rules(job=f"j{n % 900}")) for n in range(1000)])
        store.commit([ended(n, FAILS[0]) for n in range(1000)])
    with closing(TaskTables(tmp_path / "store.sqlite")) as tables:
        assert dict(tables.causes(ReadCauses(jobs=["j3", "j899", "none"])).by_job) == {"j3": 2, "j899": 1}
        assert tables.causes(ReadCauses(jobs=[])).by_job == []
        assert len(tables.causes(ReadCauses()).by_job) == JOBS_COUNTED


def test_items_that_ended_for_themselves_are_no_runs_of_their_chunk(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit(
            [
                msgspec.structs.replace(task(0), items=10),
                s.SaveSeparate(0, [2, 3]),
                task(3),
                task(4),
                ended(0),
                ended(3, FAILS[0]),
                ended(4),
            ]
        )
    with closing(TaskTables(tmp_path / "store.sqlite")) as tables:
        rows = tables.stretches(ReadStretches(999.0, 1010.0)).rows
    assert sorted((row.first_id, row.count, row.bad) for row in rows) == [(0, 8, 0), (3, 1, 1), (4, 1, 0)]


def test_a_chunk_without_items_of_its_own_is_no_line(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit([msgspec.structs.replace(task(0), items=2), s.SaveSeparate(0, [0, 1]), task(1), task(2)])
        store.commit([ended(0), ended(1, FAILS[0]), ended(2)])
    with closing(TaskTables(tmp_path / "store.sqlite")) as tables:
        assert everything(tables) == [2, 1]
        assert everything(tables, state="succeeded") == [2]


def test_stretches_are_those_of_the_window(tables: TaskTables) -> None:
    table = tables.stretches(ReadStretches(1099.2, 1200.0))
    assert sum(row.count for row in table.rows) == 102, "one that begins before the end, one that ends after the begin"
    assert (table.next, table.first_s) == (None, 1_700_000_000.5)
    assert {row.outcome for row in table.rows} == {"", "error"}
    assert sum(row.count for row in tables.stretches(ReadStretches(0.0, 1e9, job="odd")).rows) == 240
    assert tables.stretches(ReadStretches(5.0, 6.0)).rows == []


def test_stretches_go_on_where_the_time_was_over(tables: TaskTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_tables, "RANGE", 100)
    monkeypatch.setattr(task_tables, "ANSWER_S", -1.0)
    count, before, answers = 0, None, 0
    while True:
        table = tables.stretches(ReadStretches(0.0, 1e9, before))
        count += sum(row.count for row in table.rows)
        answers += 1
        if table.next is None:
            break
        before = table.next
    assert (count, answers) == (480, 5)


def test_a_chunk_is_one_line_and_its_items_lead_to_its_input(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit([msgspec.structs.replace(task(10, payload=b"p" * 99), items=5), task(20)])
        store.commit([s.SaveFinal(msgspec.structs.replace(ended(10).final, items=5))])
        with closing(TaskTables(store.path)) as tables:
            found = tables.page(ReadTaskPage(), 0)
            assert not isinstance(found, Refusal)
            assert [(row.id, row.items) for row in found[0].rows] == [(20, 1), (11, 5)]
            assert found[1] == [20, 10]
            for asked in (10, 11, 15):
                given = tables.task_input(ReadTaskInput(asked))
                assert not isinstance(given, Refusal)
                assert (given.id, given.payload, given.payload_bytes) == (10, b"p" * 99, 99)
            assert isinstance(tables.task_input(ReadTaskInput(16)), Refusal)
            assert isinstance(tables.task_input(ReadTaskInput(5)), Refusal)


def test_a_long_input_is_left_out(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "store.sqlite")) as store:
        store.commit([task(1, payload=b"p" * (task_tables.INPUT_BYTES + 1))])
        with closing(TaskTables(store.path)) as tables:
            given = tables.task_input(ReadTaskInput(1))
    assert not isinstance(given, Refusal)
    assert (given.payload, given.payload_bytes) == (b"", task_tables.INPUT_BYTES + 1)


def test_it_cannot_write(tables: TaskTables) -> None:
    with pytest.raises(Exception, match=r"readonly|read-only"):
        tables._db.execute("DELETE FROM tasks")


def test_an_unknown_id_is_looked_up_and_not_searched_for(tables: TaskTables) -> None:
    """The input of a task is one look into the tree of ids: a million rows are not looked at."""
    looked = 0

    def count() -> int:
        nonlocal looked
        looked += 1
        return 0

    tables._db.set_progress_handler(count, 20)
    for asked in (10**9, -1, COUNT):
        assert isinstance(tables.task_input(ReadTaskInput(asked)), Refusal)
    tables._db.set_progress_handler(None, 0)
    assert looked < 20
