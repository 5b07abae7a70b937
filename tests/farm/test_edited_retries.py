"""A note says that tasks are retried with a function that has been defined anew since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.shells import Shell, shell_with_magics

pytestmark = pytest.mark.farm

DEFINED = "def inverse(x):\n    return (lambda: 1 / x)()"
MENDED = "def inverse(x):\n    return (lambda: 1 / (x or 1))()"
NOTE = "inverse has been defined anew since these tasks were submitted; they run again as they were."


@pytest.fixture
def shell(tc: TaskClient, farm: Farm) -> Iterator[Shell]:
    with shell_with_magics() as shell:
        shell["tc"] = tc
        shell.ok(f"%taskfarm connect {farm.connection_file}")
        yield shell


@pytest.mark.parametrize("call", ["tc.retry(ids)", "tc.restart(ids)", "%task retry {ids[0]}"])
def test_a_note_tells_of_tasks_that_are_retried(shell: Shell, call: str) -> None:
    shell.ok(f"from ipytaskfarm import Task\n{DEFINED}")
    shell.ok("ids = [tc.run(Task(inverse, args=(0,))) for _ in range(2)]\ntc.barrier(ids)")
    again = f"tc.barrier(tc.tasks(state='unfinished'))\n{call}"
    assert "defined anew" not in shell.ok(again).err
    shell.ok(f"\n\n{DEFINED}")
    assert "defined anew" not in shell.ok(again).err, "the same definition, in another line"
    shell.ok(MENDED)
    shell.ok("tc.barrier(tc.tasks(state='unfinished'))")
    told = shell.ok(call).err
    assert told.count(NOTE) == 1
    assert "For the new definition: tc.retry(ids, inverse)" in told
    shell.ok("del inverse")
    assert "defined anew" not in shell.ok(call).err


def test_items_of_a_map_too(shell: Shell) -> None:
    shell.ok(DEFINED)
    shell.ok("job = tc.map(inverse, [1, 0], block=False)\njob.wait()")
    shell.ok(MENDED)
    assert NOTE in shell.ok("tc.retry(job.ids[1])").err


def test_a_job_of_another_program_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok(f"{DEFINED}\njob = tc.map(inverse, [1, 0], block=False, name='theirs')\njob.wait()")
    monkeypatch.setattr("ipytaskfarm.client.copied_tasks._submitted", {})
    shell.ok(MENDED)
    told = shell.ok("tc.job('theirs').retry_failed()").err
    assert NOTE in told
    assert "For the new definition: tc.retry(ids, inverse)" in told


@pytest.mark.parametrize("cache", [False, True])
def test_failed_items_run_again_with_the_mended_function(tc: TaskClient, tmp_path: Path, cache: bool) -> None:
    """Some of the items share runs; those that have succeeded are kept, and nothing runs twice."""
    table = list(range(200_000))  # a large value of the mended function

    def noted(name: str, x: int) -> None:
        with Path(tmp_path, name).open("a") as file:
            file.write(f"{x} ")

    def broken(x: int) -> str:
        noted("broken", x)
        if x % 5 == 0:
            raise ValueError(x)
        return f"broken {x}"

    def mended(x: int) -> str:
        noted("mended", x)
        if x == 10:
            raise KeyError(x)
        return f"mended {table[x]}"

    async def at_last(x: int) -> str:
        return f"at last {x}"

    job = tc.map(broken, range(15), name="sweep", cache=cache, block=False)
    job.wait()
    assert len(job.retry_failed(mended)) == 3
    values = job.results(return_exceptions=True)
    error = values[10]
    assert isinstance(error, KeyError)
    want = [f"{'broken' if x % 5 else 'mended'} {x}" for x in range(15)]
    assert [value for x, value in enumerate(values) if x != 10] == [value for x, value in enumerate(want) if x != 10]
    other = tc.job("sweep")
    assert len(other.retry_failed(at_last)) == 1
    assert other.results() == [*want[:10], "at last 10", *want[11:]]
    assert job.retry_failed(mended) == [], "it has succeeded meanwhile"
    assert job.results() == other.results()
    assert sorted(map(int, Path(tmp_path, "broken").read_text().split())) == list(range(15))
    assert sorted(map(int, Path(tmp_path, "mended").read_text().split())) == [0, 5, 10]


def test_a_retry_of_several_has_the_function_of_their_latest_retries(tc: TaskClient) -> None:
    first = tc.submit(lambda x: 1 / x, 0)
    tc.barrier([first])
    (second,) = tc.retry(first, lambda x: [][x])
    tc.barrier([second])
    (third,) = tc.retry([first, second])
    with pytest.raises(IndexError):
        tc.get_task_result(third, block=True).result  # noqa: B018


def test_tasks_that_call_no_function_are_named(tc: TaskClient) -> None:
    job = tc.create_job("mixed")
    for task in (Task(lambda x: 1 / x, args=(0,)), Task("1 / 0")):
        job.add_task(task)
    _, code = job.submit()
    job.wait()
    with pytest.raises(TypeError, match=rf"task {code} calls no function .* tc\.fetch_task\({code}\)"):
        job.retry_failed(abs)
    assert len(tc.tasks(job=job)) == 2, "none was submitted again"
    with pytest.raises(TypeError, match="function must be a function, or None, not int: 5"):
        tc.retry(job.ids, 5)  # type: ignore[arg-type]
