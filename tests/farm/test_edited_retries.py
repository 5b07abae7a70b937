"""A note says that tasks are retried with a function that has been defined anew since."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipytaskfarm import Farm, TaskClient
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
    assert "defined anew" not in shell.ok(call).err
    shell.ok(f"\n\n{DEFINED}")
    assert "defined anew" not in shell.ok(call).err, "the same definition, in another line"
    shell.ok(MENDED)
    told = shell.ok(call).err
    assert told.count(NOTE) == 1
    assert "For the new definition: tc.submit(inverse, …), or a Task of it" in told
    shell.ok("del inverse")
    assert "defined anew" not in shell.ok(call).err


def test_items_of_a_map_too(shell: Shell) -> None:
    shell.ok(DEFINED)
    shell.ok("job = tc.map(inverse, [1, 0], block=False)\njob.wait()")
    shell.ok(MENDED)
    assert NOTE in shell.ok("tc.retry(job.ids[1])").err


def test_a_job_of_another_program_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok(f"{DEFINED}\njob = tc.map(inverse, [1, 0], block=False, name='theirs')\njob.wait()")
    monkeypatch.setattr("ipytaskfarm.client.edited_functions._submitted", {})
    shell.ok(MENDED)
    assert NOTE in shell.ok("tc.job('theirs').retry_failed()").err
