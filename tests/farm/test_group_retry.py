"""A group of failed tasks is submitted again once, whoever asks how often."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Ref, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.web import questions
from ipytaskfarm.web.feed import FarmFeed
from tests.support.polling import eventually


def both(first: Questioner, second: Questioner, ids: list[int]) -> list[messages.Retried]:
    """Ask from two sessions at once, as two pages do."""
    replies: list[messages.Retried] = []

    def answered(reply: messages.Reply) -> None:
        assert isinstance(reply, messages.Retried)
        replies.append(reply)

    for each in (first, second):
        each.ask(messages.RetryTasks(ids, once=True), answered)

    def done() -> bool:
        first.step()
        second.step()
        return len(replies) == 2

    eventually(done, 30.0, every_s=0.01, what="two answers")
    return replies


def test_two_sessions_at_once_submit_each_task_once(farm: Farm, tc: TaskClient) -> None:
    ids = [tc.run(Task("raise ValueError('once')")) for _ in range(20)]
    tc.barrier(ids)
    with connect(str(farm.connection_file)) as first, connect(str(farm.connection_file)) as second:
        replies = both(first, second, ids)
        assert sorted(old for reply in replies for old, _ in reply.ids) == ids
        assert [reply.ids for reply in both(first, second, ids)] == [[], []]
    assert len(tc.retry(ids[0:1])) == 1, "whoever names a task submits it again"


def test_a_group_that_fails_again_does_not_grow_by_what_was_submitted_again(farm: Farm, tc: TaskClient) -> None:
    ids = [tc.run(Task("raise KeyError('grows')", name="grows")) for _ in range(3)]
    tc.barrier(ids)

    async def press() -> list[str]:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), True)
        said = []
        try:
            for _ in range(3):
                await feed.first_picture()
                causes = feed.fold.picture.data["causes"]
                (key,) = [key for key, cause in causes.items() if cause["etype"] == "KeyError"]
                said.append((await questions.act(feed, "retry_group", {"cause": key}))["text"])
                await asyncio.to_thread(settle)
        finally:
            await feed.stop()
        return said

    def settle() -> None:
        eventually(lambda: not tc.tasks(state="unfinished").rows, 30.0, what="all have ended")

    assert asyncio.run(press()) == ["3 tasks submitted again"] * 3
    assert len([row for row in tc.tasks(state="failed").rows if row.name == "grows"]) == 12


def flaky(x: int, folder: str, good: int) -> int:
    """Fail on each third item: those below `good` once, the others always."""
    runs = Path(folder, str(x))
    count = len(runs.read_text()) if runs.exists() else 0
    runs.write_text("x" * (count + 1))
    if x % 3 == 1 and (x >= good or not count):
        raise ValueError(f"bad {x}")
    return x


def test_all_failed_tasks_of_a_job_run_again_once_and_never_those_whose_retry_has_succeeded(
    farm: Farm, tc: TaskClient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Items 1 and 4 fail once, 7 always."""

    def runs() -> dict[int, int]:
        return {x: len(Path(tmp_path, str(x)).read_text()) for x in (0, 1, 4, 7)}

    job = tc.map(flaky, range(9), [str(tmp_path)] * 9, [7] * 9, name="again", block=False)
    job.wait()
    assert runs() == {0: 1, 1: 1, 4: 1, 7: 1}
    first = tc.tasks(name="again", state="failed")
    tc.barrier(tc.retry(first))
    assert runs() == {0: 1, 1: 2, 4: 2, 7: 2}
    for count in (3, 4):  # four and five failed tasks are listed by now
        args = [sys.executable, "-m", "ipytaskfarm", "retry", "--job", "again", "--farm", str(farm.connection_file)]
        assert subprocess.run(args, capture_output=True, text=True, timeout=60).stderr == ""
        eventually(lambda: not tc.tasks(state="unfinished").rows, 30.0, what="all have ended")
        assert runs() == {0: 1, 1: 2, 4: 2, 7: count}
    capfd.readouterr()
    for ids in (tc.tasks(name="again", state="failed"), [job.ids[x] for x in (1, 4, 7)]):
        (again,) = tc.retry(ids)
        tc.barrier([again])
        assert "not submitted again: 2 tasks with a retry that has not failed" in capfd.readouterr().err
    assert runs() == {0: 1, 1: 2, 4: 2, 7: 6}
    assert len(tc.retry(job.ids[1])) == 1, "whoever names a task submits it again"
    eventually(lambda: runs()[1] == 3, 30.0, what="it has run")


def test_failures_are_those_that_were_not_submitted_again(farm: Farm, tc: TaskClient, tmp_path: Path) -> None:
    """Items 1 and 4 fail once, 7 always.  The page, the command and the client list the same."""

    async def on_the_page() -> tuple[list[list[int]], list[int]]:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), True)
        try:
            await feed.first_picture()
            causes = feed.fold.picture.data["causes"]
            of_job = [job["failed"] for job in feed.fold.picture.data["jobs"].values() if job["name"] == "mended"]
            found = [await questions.ask(feed, "tasks", {"cause": key}) for key in causes]
            return [[row["id"] for row in page["rows"]] for page in found if page["rows"]], of_job
        finally:
            await feed.stop()

    def by_command(*more: str) -> list[list[int]]:
        args = [sys.executable, "-m", "ipytaskfarm", "failures", "--json", "--farm", str(farm.connection_file), *more]
        found = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True).stdout
        return [group["ids"] for group in json.loads(found)]

    tc.clear()
    job = tc.map(flaky, range(9), [str(tmp_path)] * 9, [7] * 9, name="mended", block=False)
    job.wait()
    old = [job.ids[x] for x in (1, 4, 7)]
    assert asyncio.run(on_the_page()) == ([old[::-1]], [3])
    assert [group.ids for group in tc.failures()] == by_command() == [old]
    still = job.retry_failed()[2]
    job.wait()
    assert [group.ids for group in tc.failures()] == [group.ids for group in tc.failures(job=job)] == [[still]]
    assert by_command() == by_command("--job", "mended") == [[still]]
    assert asyncio.run(on_the_page()) == ([[still]], [1])
    assert [group.ids for group in tc.failures(old)] == by_command(*map(str, old)) == [old], "these were named"
    assert [row.id for row in tc.tasks(state="failed").rows] == [*old, still], "the table of tasks has all"


def test_a_task_that_is_retried_later_takes_the_result_of_the_retry(tc: TaskClient, tmp_path: Path) -> None:
    source = tc.run(Task(flaky, args=(1, str(tmp_path), 9)))
    after = tc.run(Task(lambda x: x + 41, args=(Ref(source),)))
    tc.barrier([source, after])
    tc.barrier(tc.retry(source))
    (again,) = tc.retry(after)
    assert tc.get_task_result(again, block=True).result == 42
