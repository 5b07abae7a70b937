"""The stop button of a notebook while a cell awaits a task: a kernel, and the signal that Jupyter sends to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from ipytaskfarm import Farm, TaskClient
from tests.support.farms import DEADLINE_S, Gate
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


@pytest.fixture
def kernel(farm: Farm) -> Iterator[tuple[Any, Any]]:
    manager, client = start_new_kernel(startup_timeout=DEADLINE_S)
    try:
        code = f"from ipytaskfarm import Task, TaskClient\ntc = TaskClient({str(farm.connection_file)!r})"
        assert client.execute_interactive(code, timeout=DEADLINE_S)["content"]["status"] == "ok"
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("awaited", "fate", "states"),
    [
        ("tc.submit(waits)", "task {} is aborted with its await", ["failed"]),
        ("tc.result(tc.run(Task(waits)))", "task {} continues: tc.barrier({}) waits for it again", ["running"]),
        ("__import__('asyncio').wait([tc.submit(waits)])", "CancelledError", ["running"]),
    ],
)
def test_the_stop_button_ends_an_await_at_once(
    kernel: tuple[Any, Any], tc: TaskClient, gate: Gate, awaited: str, fate: str, states: list[str]
) -> None:
    """Nothing but the signal comes to the kernel: ipykernel's handler does not wake the loop."""
    manager, client = kernel
    body = "\n".join(f"    {line}" for line in gate.code.splitlines())
    client.execute(f"def waits():\n{body}\nawait {awaited}")
    (task_id,) = eventually(lambda: list(tc.tasks(state="running")), DEADLINE_S, what="the task runs")
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=DEADLINE_S)["content"]
    assert reply["ename"] == "CancelledError"
    shown = "\n".join(reply["traceback"])
    assert fate.format(task_id, task_id) in shown
    assert "ipytaskfarm/" not in shown
    eventually(lambda: tc.status(task_id).state in states, DEADLINE_S, what=f"the task is {states}")
    gate.open()
    tc.barrier(task_id, timeout=DEADLINE_S)
