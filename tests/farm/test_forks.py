"""Forked children of tasks and commands that leave the user's code: they end as a script does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ipytaskfarm import MultiEngineClient, Task, TaskClient

pytestmark = pytest.mark.farm


def fails_in_a_child(x: int) -> int:
    pid = os.fork()
    if pid == 0:
        raise ValueError(f"in the child of item {x}")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def exits_in_a_child(status: object) -> int:
    pid = os.fork()
    if pid == 0:
        sys.exit(status)  # type: ignore[arg-type]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def returns_in_a_child(x: int) -> int:
    pid = os.fork()
    if pid == 0:
        return x
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_of_a_child_has_the_users_frames_alone(tc: TaskClient, count: int) -> None:
    found = tc.map(fails_in_a_child, range(count), chunksize=count)
    assert list(found) == [1] * count
    for number, text in enumerate(found.stderr):
        first, place, *_, last = text.splitlines()
        assert first == "Traceback (most recent call last):"
        assert place.endswith("in fails_in_a_child")
        assert last == f"ValueError: in the child of item {number}"
        assert text.count("  File ") == 1


def test_a_child_ends_with_the_status_of_a_script(tc: TaskClient) -> None:
    found = tc.map(exits_in_a_child, [None, 0, 3, "a reason"], chunksize=4)
    assert list(found) == [0, 0, 3, 1]
    assert found.stderr == ["", "", "", "a reason\n"]
    assert list(tc.map(returns_in_a_child, range(3), chunksize=3)) == [0, 0, 0]


def test_a_child_runs_no_further_item(tc: TaskClient, tmp_path: Path) -> None:
    def f(x: int) -> int:
        if x == 800:  # by then the items run in a loop in C
            pid = getattr(os, "fo" + "rk")()
            if pid == 0:
                return x
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if x > 800:
            with open(tmp_path / f"{x}", "a") as file:
                file.write("once ")
        return 0

    assert list(tc.map(f, range(820), chunksize=820)) == [0] * 820
    assert {path.read_text() for path in tmp_path.iterdir()} == {"once "}


def test_code_and_commands_too(tc: TaskClient, mec: MultiEngineClient) -> None:
    code = (
        "import os, warnings; warnings.filterwarnings('ignore', 'This process .* is multi-threaded')\n"
        "pid = os.fork()\nif pid == 0: raise ValueError('child')\nstatus = os.waitpid(pid, 0)[1]"
    )
    found = tc.run(Task(code, pull="status"), block=True)
    assert os.waitstatus_to_exitcode(found["status"]) == 1
    shown = mec.execute(code, targets=0)
    assert os.waitstatus_to_exitcode(mec.pull("status", targets=0)[0]) == 1
    for text in (found.stderr, shown[0]["stderr"]):
        assert text.startswith("Traceback (most recent call last):\n  File ")
        assert "line 3, in <module>\n    if pid == 0: raise ValueError('child')\n" in text
        assert text.count("  File ") == 1
        assert text.endswith("ValueError: child\n")
