"""Numbers of the live view and of its report, of more tasks and jobs than they show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core.messages import Question, Reply
from ipytaskfarm.core.messages.view import ReadStretches, Stretch, StretchTable
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.web import feed as feeds, questions, report
from ipytaskfarm.web.feed import FarmFeed
from tests.support.polling import DEADLINE_S


def with_feed(farm: Farm, then: Callable[[FarmFeed], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), control=True)
        try:
            await then(feed)
        finally:
            await feed.stop()

    asyncio.run(run())


def test_a_report_of_a_job_counts_all_its_tasks_however_many_jobs_there_are(
    farm: Farm, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "TASKS_MAX", 10)
    job = tc.create_job("many")
    for n in range(30):
        job.add_task(Task("1 / 0" if n % 3 == 0 else "a = 1"))
    job.submit()
    job.wait()
    for n in range(510):
        later = tc.create_job(f"later {n}")
        later.add_task(Task("a = 1"))
        later.submit()

    async def read(feed: FarmFeed) -> None:
        picture = (await report._collected(feed, job.id))["picture"]
        assert picture["counts"] == {"scheduled": 0, "running": 0, "succeeded": 20, "failed": 10}
        assert [entry["failed"] for entry in picture["jobs"].values()] == [10]
        assert (picture["farm"]["job"], picture["report"]["tasks_total"]) == ("many", 30)
        assert picture["report"]["tasks"] <= 15

    with_feed(farm, read)


def test_a_retry_stands_for_the_task_that_failed_in_its_job(farm: Farm, tc: TaskClient, tmp_path: Path) -> None:
    """The numbers are those of the job's handle: each task counts once, and has failed if its retry has."""
    job = tc.create_job("retried")
    for n in range(4):
        job.add_task(Task(f"import os\nassert {n} or os.path.exists({str(tmp_path / 'mended')!r})"))
    job.submit()
    job.wait()

    async def told(feed: FarmFeed, numbers: tuple[int, int, int]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                row = feed.fold.picture.data["jobs"].get(job.id, {})
                if (row.get("ended"), row.get("total"), row.get("failed")) == numbers:
                    return
                await asyncio.sleep(0.02)

    async def follow(feed: FarmFeed) -> None:
        feed.open(feeds._Looker())
        await feed.first_picture()
        await told(feed, (4, 4, 1))
        (again,) = await asyncio.to_thread(lambda: tc.retry(job.ids[0]))
        await asyncio.to_thread(lambda: tc.barrier(again))
        await told(feed, (4, 4, 1))
        listed = await questions.ask(feed, "tasks", {"job": job.id, "state": "failed"})
        assert [row["id"] for row in listed["rows"]] == [again]
        (tmp_path / "mended").touch()
        await asyncio.to_thread(lambda: tc.barrier(tc.retry(again)))
        await told(feed, (4, 4, 0))
        assert tc.job(job.id).counts()["failed"] == 0

    with_feed(farm, follow)


def test_a_group_that_is_too_large_for_one_time_is_submitted_in_several(
    farm: Farm, tc: TaskClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "AT_ONCE", 500)
    mended = tmp_path / "mended"
    code = f"import os\nif not os.path.exists({str(mended)!r}): raise LookupError('of the large group')"
    tc.barrier([tc.run(Task(code)) for _ in range(700)])
    mended.touch()

    async def retry(feed: FarmFeed) -> None:
        await feed.first_picture()
        (cause,) = (key for key, row in feed.fold.picture.data["causes"].items() if row["etype"] == "LookupError")
        said = [await questions.act(feed, "retry_group", {"cause": cause}) for _ in range(3)]
        assert [each["more"] for each in said] == [True, False, False]
        assert [each["text"].partition(" submitted")[0] for each in said] == [
            "the latest 500 tasks",
            "200 tasks",
            "nothing was",
        ]

    with_feed(farm, retry)


class AskedFeed(FarmFeed):
    """A feed that notes what it asks."""

    def __init__(self) -> None:
        super().__init__("none", lambda: pytest.fail("it connects"), control=False)
        self.asked: list[tuple[Question, Callable[[Reply], None]]] = []

    def _ask(self, question: Question, then: Callable[[Reply], None]) -> int:
        self.asked.append((question, then))
        return len(self.asked)


def test_the_past_is_asked_for_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer has what the farm could look at in a moment: the latest runs alone, if there are many."""
    monkeypatch.setattr(feeds, "PAST_ROWS_MAX", 3)
    feed = AskedFeed()
    feed._ask_past()
    for before, following in ((None, 90), (90, 70), (70, 50)):
        question, then = feed.asked.pop()
        assert isinstance(question, ReadStretches)
        assert question.before == before
        then(StretchTable([Stretch(0, "", "", 1.0, 1.5, 4, following, 0.5)], following, 0.5))
    assert not feed.asked, "there are enough"
    assert sum(row[5] for row in feed.fold.picture.data["stretches"]) == 12


def test_sizes_of_large_values_are_theirs_and_not_those_of_their_digests(farm: Farm, tc: TaskClient) -> None:
    def half(data: bytes) -> bytes:
        return data[: len(data) // 2]

    by_call = tc.run(Task(half, args=(bytes(2_000_000),)))
    by_name = tc.run(Task("y = x[:1_000_000]", push={"x": bytes(2_000_000)}, pull="y"))
    small = tc.run(Task("y = 1", pull="y"))
    tc.barrier([by_call, by_name, small])

    async def read(feed: FarmFeed) -> None:
        for task in (by_call, by_name):
            found = await questions.ask(feed, "task", {"id": task})
            assert 1_000_000 <= found["end"]["value_bytes"] < 1_001_000
            assert 2_000_000 <= found["input"]["bytes"] < 2_001_000
        found = await questions.ask(feed, "task", {"id": small})
        assert found["end"]["value_bytes"] < 100

    with_feed(farm, read)
