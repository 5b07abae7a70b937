"""Shared parts of tests on real farms: farms in worlds of their own, gates that tasks wait at, other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import EngineRow, EngineTable, FarmState
from ipytaskfarm.deployment.enrolment import enrol
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.launchers.interface import Seat
from tests.conftest import assert_nothing_left, isolated
from tests.support import polling
from tests.support.polling import eventually

DEADLINE_S = polling.DEADLINE_S


@contextmanager
def module_farm(n: int, **settings: Any) -> Iterator[Farm]:
    """Provide a farm in a world of its own, for a module's fixture; nothing is left of it afterwards."""
    with isolated("itf-") as dirs:
        with Farm(n=n, **settings) as farm:
            yield farm
        assert_nothing_left(dirs)


class Gate:
    """Something that tasks wait for: closed until it is opened.

    A task that fails to find it open for two minutes fails, so that a broken test does not leave a farm busy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reached = path.with_name(f"{path.name}.reached")

    @property
    def code(self) -> str:
        """Return code that waits until the gate is open."""
        return (
            "import os, time\n"
            "for _ in range(12_000):\n"
            f"    if os.path.exists({str(self.path)!r}): break\n"
            "    time.sleep(0.01)\n"
            "else: raise TimeoutError('nobody opened the gate')\n"
        )

    @property
    def telling_code(self) -> str:
        """Return code that also tells that it waits, see `until_reached`."""
        return f"open({str(self._reached)!r}, 'w').close()\n{self.code}"

    def open(self) -> None:
        self.path.touch()

    def until_reached(self) -> None:
        """Wait until a task with `telling_code` waits here.  A task that is on an engine need not have begun."""
        eventually(self._reached.exists, DEADLINE_S, what="a task at the gate")


def ask(farm: Farm, question: messages.Question) -> messages.Reply:
    """Ask a question for which clients have no method, as the command does."""
    with connect(str(farm.connection_file)) as questioner:
        return questioner.answer(question)


def farm_state(farm: Farm) -> FarmState:
    """Return the state that the controller reports."""
    reply = ask(farm, messages.FarmStatus())
    assert isinstance(reply, FarmState)
    return reply


def engines(farm: Farm) -> list[EngineRow]:
    """The engines that can be given work."""
    return _working(ask(farm, messages.ListEngines()))


def _working(reply: messages.Reply) -> list[EngineRow]:
    assert isinstance(reply, EngineTable)
    return [row for row in reply.rows if row.state in ("idle", "busy")]


def incarnations(farm: Farm) -> set[str]:
    """Their names, one per process."""
    return {row.engine for row in engines(farm)}


def until_engines(farm: Farm, count: int) -> None:
    """Wait until this number of engines is ready."""
    eventually(lambda: len(engines(farm)) == count, DEADLINE_S, every_s=0.05, what=f"{count} engines")


def until_engines_of(client: TaskClient | MultiEngineClient, count: int) -> None:
    """Wait, with an existing client, until at least this number of engines is ready."""

    def are_there() -> bool:
        return len(_working(client._session.ask(messages.ListEngines()))) >= count

    eventually(are_there, DEADLINE_S, every_s=0.05, what=f"{count} engines")


def until_running(tc: TaskClient, task_id: int) -> None:
    """Wait until the task is on an engine."""
    eventually(lambda: tc.status(task_id).state == "running", DEADLINE_S, what=f"task {task_id} runs")


def enrolled(farm: Farm, names: Sequence[str]) -> list[Seat]:
    """Enrol agents with these names; return their seats, as a launcher gets them."""
    return [Seat(name, path) for name, path in enrol(farm._home, names).items()]


def python(code: str, *arguments: str, timeout_s: float = 60.0) -> str:
    """Run code in another process; return its output."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=timeout_s, check=False, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def outcomes(tc: TaskClient, ids: Iterable[int]) -> set[str]:
    """The states of these tasks."""
    return {row.state for row in tc.tasks(ids=list(ids)).rows}


def value(tc: TaskClient, code: str, name: str, **rules: Any) -> Any:
    """Run code as a task; return the value of a name."""
    return tc.run(Task(code, pull=name, **rules), block=True)[name]
