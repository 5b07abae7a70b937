"""Results that no task of the farm has written, or that end the program that rebuilds them."""

from __future__ import annotations

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import errors, messages as m
from ipytaskfarm.deployment.light_client import connect

pytestmark = pytest.mark.farm

ENDS_THE_PROGRAM = """
class Ends:
    def __reduce__(self):
        return exec, ("raise SystemExit(3)",)
a = Ends()
"""


@pytest.mark.parametrize("body", [b"\xc1", b"\x90", b"\x91" * 5000, b"\xc6\xff\xff\xff\xff"])
def test_a_result_that_cannot_be_read_is_named(farm: Farm, tc: TaskClient, body: bytes) -> None:
    task = tc.run(Task("import time; time.sleep(60)"))
    tc.flush()
    with connect(str(farm.connection_file)) as hostile:
        hostile.answer(m.MarkTasksDone(task, body))
    with pytest.raises(errors.TaskError, match=f"the result of task {task} is none that the farm has written"):
        tc.get_task_result(task, block=True).results  # noqa: B018
    assert tc.run(Task("b = 1", pull="b"), block=True)["b"] == 1


def test_a_result_that_ends_the_program_is_an_error(tc: TaskClient) -> None:
    """Its raw bytes stay: it can be had again when the cause is gone."""
    task = tc.run(Task(ENDS_THE_PROGRAM, pull="a"))
    result = tc.get_task_result(task, block=True)
    for _ in range(2):
        with pytest.raises(errors.TaskError, match=rf"task {task}, which has succeeded, ended with SystemExit\(3\)"):
            result["a"]
