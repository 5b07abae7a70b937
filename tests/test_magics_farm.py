"""``%taskfarm`` in an IPython shell: farms that it starts, and farms of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from IPython.core.error import UsageError

from ipytaskfarm import Farm, TaskClient, errors
from tests.conftest import Dirs
from tests.shells import Shell, shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def shell(farm_dirs: Dirs) -> Iterator[Shell]:
    with shell_with_magics() as shell:
        yield shell


@pytest.fixture
def started(shell: Shell) -> Iterator[Shell]:
    """A shell that has started the default farm."""
    try:
        cell = shell.ok("%taskfarm start -n 2")
        assert "farm 'default' is ready: 2 engines" in cell.out
        yield shell
    finally:
        shell.run("%taskfarm stop --force")


def test_without_a_farm_it_says_how_to_start_one(shell: Shell) -> None:
    for code in ("%taskfarm", "%%task\n1", "%tasks", "%taskfarm stop", "%taskfarm connect"):
        cell = shell.fails(code, errors.FarmNotRunning, "ipytaskfarm start")
        assert len(cell.out.strip().splitlines()) == 1
    shell.fails("%taskfarm connect elsewhere", errors.FarmNotRunning, "elsewhere")


def test_start_work_look_stop(started: Shell) -> None:
    shell = started
    shell.ok("%%task --pull a -b\na = 6 * 7")
    assert shell["a"] == 42
    status = shell.ok("%taskfarm status").value
    assert "farm 'default'" in repr(status)
    assert "1 succeeded" in repr(status)
    assert [row.state for row in status.state.engines] == ["idle", "idle"]
    assert "<table>" in status._repr_html_()
    shell.fails("%taskfarm start", UsageError, "runs already")
    cell = shell.ok("%taskfarm stop")
    assert "has stopped" in cell.out
    shell.fails("%taskfarm status", errors.FarmNotRunning)


def test_a_farm_outlives_the_session_that_started_it(farm_dirs: Dirs) -> None:
    code = (
        "from tests.shells import shell_with_magics\n"
        "with shell_with_magics() as shell:\n"
        "    shell.ok('%taskfarm start lasting -n 1')\n"
        "    shell.ok('%%task -o h\\nimport time; time.sleep(0.2); print(1)')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    with shell_with_magics() as shell:
        shell.ok("%taskfarm connect lasting")
        (task_id,) = shell.ok("%tasks").value
        shell.ok(f"%task barrier {task_id}")
        assert shell.ok(f"%task result {task_id}").value.stdout == "1\n"
        cell = shell.fails("%taskfarm stop", UsageError, "was not started here")
        assert "controller" in cell.shown
        assert "--force" in cell.shown
        shell.ok("%taskfarm stop --force")


def test_somebody_elses_farm_is_named(shell: Shell) -> None:
    with Farm(n=1, name="theirs"):
        shell.ok("%taskfarm connect theirs")
        cell = shell.fails("%taskfarm stop", UsageError, "was not started here")
        assert "looked after by process" in cell.shown
        with TaskClient("theirs") as tc:
            assert tc.run("".upper, block=True).result == ""
        shell.ok("%taskfarm stop --force")


def test_magics_go_on_after_the_farm_was_started_anew(started: Shell) -> None:
    shell = started
    shell.ok("%%task -b\n1")
    shell.ok("%taskfarm stop")
    shell.ok("%taskfarm start -n 1")
    shell.ok("%%task -b --pull a\na = 2")
    assert shell["a"] == 2
    assert len(shell.ok("%tasks").value) == 2, "the store is the same"
    shell.ok("%taskfarm stop")
    cell = shell.ok("%taskfarm start -n 1 --fresh")
    assert "set aside" in cell.shown
    assert len(shell.ok("%tasks").value) == 0
