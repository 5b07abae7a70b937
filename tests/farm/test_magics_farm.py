"""``%taskfarm`` in an IPython shell: farms that it starts, and farms of others."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from IPython.core.error import UsageError
from jupyter_client.manager import start_new_kernel

from ipytaskfarm import Farm, TaskClient, errors
from ipytaskfarm.cli import main
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system.supervision import SUPERVISOR
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S
from tests.support.shells import Shell, shell_with_magics
from tests.support.thorough import by_hand

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
    shell.fails("%%task\n1", errors.FarmNotRunning, "%taskfarm start starts it")
    shell.fails("%taskfarm connect elsewhere", errors.FarmNotRunning, "%taskfarm start elsewhere")


def test_start_work_look_stop(started: Shell) -> None:
    shell = started
    shell.ok("%%task --pull a -b\na = 6 * 7")
    assert shell["a"] == 42
    status = shell.ok("%taskfarm status").value
    assert "farm 'default'" in repr(status)
    assert "1 succeeded" in repr(status)
    assert [row.state for row in status.state.engines] == ["idle", "idle"]
    for text in (repr(status), status._repr_html_()):
        assert all(part in text for part in ("controller: pid", "agent on", "2 of 2 ready", "store: ", "MiB"))
    assert "<table>" in status._repr_html_()
    shell.fails("%taskfarm start", UsageError, "runs already.*%taskfarm connect default")
    cell = shell.ok("%taskfarm stop")
    assert "has stopped" in cell.out
    shell.fails("%taskfarm status", errors.FarmNotRunning)


def test_a_farm_outlives_the_session_that_started_it(farm_dirs: Dirs) -> None:
    code = (
        "from tests.support.shells import shell_with_magics\n"
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
        (record,) = [r for r in Home.of("lasting").read_processes() if r["kind"] == SUPERVISOR]
        assert f"supervisor {record['pid']} of {getpass.getuser()} supervises it" in cell.shown
        assert "%taskfarm stop lasting --force" in cell.shown
        shell.ok("%taskfarm stop --force")


def test_a_restarted_kernel_knows_its_notebooks_farm(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/study.ipynb")
    with shell_with_magics() as shell:
        shell.ok("%taskfarm start of_study -n 1")
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/other.ipynb")
    with shell_with_magics() as shell:
        shell.fails("%taskfarm stop", errors.FarmNotRunning, "default")
        shell.fails("%taskfarm stop of_study", UsageError, "was not started here")
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/study.ipynb")
    with shell_with_magics() as shell:
        assert "farm 'of_study' has stopped" in shell.ok("%taskfarm stop").out
        assert main(["start", "--farm", "of_study", "-n", "1", "--daemonize"]) == 0
        shell.fails("%taskfarm stop of_study", UsageError, "was not started here")
        shell.ok("%taskfarm stop of_study --force")


def test_somebody_elses_farm_is_named(shell: Shell) -> None:
    with Farm(n=1, name="theirs"):
        shell.ok("%taskfarm connect theirs")
        cell = shell.fails("%taskfarm stop", UsageError, "was not started here")
        assert f"process {os.getpid()}, a Python of {getpass.getuser()}, supervises it" in cell.shown
        assert "has run since 20" in cell.shown
        with TaskClient("theirs") as tc:
            assert tc.run("".upper, block=True).result == ""
        shell.ok("%taskfarm stop --force")


def test_a_farm_that_somebody_else_started_again_is_theirs(started: Shell) -> None:
    """It is the same farm, with the same store and incarnation."""
    assert main(["stop"]) == 0
    assert main(["start", "-n", "1", "--daemonize"]) == 0
    started.fails("%taskfarm stop", UsageError, "was not started here")


def test_options_and_names_stand_in_any_order(shell: Shell) -> None:
    assert "1 engine," in shell.ok("%taskfarm start -n 1 --hold mine").out
    try:
        assert repr(shell.ok("%taskfarm status --farm mine").value).startswith("farm 'mine': paused")
        shell.fails("%taskfarm status mine --farm other", UsageError, "which farm, mine or other")
        shell.fails("%taskfarm fly", UsageError)
        shell.fails("%taskfarm start ../x", ValueError)
        shell.fails("%taskfarm start new --queue-policy nonsense", UsageError, "^--queue-policy 'nonsense' is neither")
    finally:
        shell.ok("%taskfarm stop mine")


def test_completion_of_farms(shell: Shell, farm_dirs: Dirs) -> None:
    with Farm(n=1, name="nightly"):
        assert shell.completions("%taskfarm st") == ["start", "stop", "status"]
        assert shell.completions("taskfarm co") == ["connect"]
        assert shell.completions("state = %taskfarm sta") == ["start", "status"]
        assert shell.completions("%taskfarm stop ") == ["nightly"]
        assert shell.completions("%taskfarm start --farm ni") == ["nightly"]
        assert shell.completions("%taskfarm start --f") == ["--farm", "--fresh", "--force"]
        assert "--fresh" not in shell.completions("%taskfarm start --fresh --f")
        assert shell.completions("%taskfarm start --queue-policy F") == ["FIFO", "FairShare", "FairShareJobs"]
        (farm_dirs.work / "first.py").touch()
        assert f"{farm_dirs.work}/first.py" in shell.completions(f"%taskfarm start --startup {farm_dirs.work}/fi")
    assert "nightly" in shell.completions("%taskfarm start ")
    assert "nightly" not in shell.completions("%taskfarm stop "), "it does not run"


def test_completion_of_tasks(shell: Shell) -> None:
    with Farm(n=2, name="nightly", hold=True):
        shell.ok("%taskfarm connect nightly")
        shell.ok("%%task -o handle\n1")
        with TaskClient("nightly") as tc:
            ids = [handle_id := shell["handle"].id, *(tc.run("".upper) for _ in range(25))]
            tc.flush()
        assert shell.completions("%task result ") == ["handle", *map(str, ids[:-21:-1])], "the last ones first"
        assert str(handle_id) in shell.completions(f"%task abort {handle_id}")
        assert shell.completions("%task retry ") == ["handle"], "nothing has failed"
        assert shell.completions("%%task -t ") == ["0", "1"]
        assert shell.completions("%%task --targets 0,") == ["0", "1"]
        assert shell.completions("%tasks --st") == ["--state"]
        shell["wide_data"], shell["wide_function"] = 1, print
        assert shell.completions("%%task --push a,wide_") == ["wide_data", "wide_function"]
        assert shell.completions("%%task --depend wide_") == ["wide_function"]
        assert shell.completions("%%taskmap n in wide_d") == ["wide_data"], "Python's matter"
        assert shell.completions("%%taskmap n in wide_data --pu") == ["--pull", "--push"]
    assert "0" not in shell.completions("%%task -t "), "a farm that is gone has no engines, and makes no noise"


def test_completion_leaves_other_lines_alone(shell: Shell) -> None:
    shell["task"] = "a variable"
    assert "status" not in shell.completions("task st")
    assert "path" in shell.completions("%%task\nimport os\nos.pa")
    shell.ok("%reload_ext ipytaskfarm")
    assert shell.completions("%taskfarm st") == ["start", "stop", "status"], "once"
    shell.ok("%unload_ext ipytaskfarm")
    assert "connect" not in shell.completions("%taskfarm co")


def test_completion_through_a_kernel(farm_dirs: Dirs) -> None:
    manager, client = start_new_kernel(startup_timeout=DEADLINE_S)
    try:
        client.execute_interactive("%load_ext ipytaskfarm", timeout=DEADLINE_S)
        reply = client.complete("%taskfarm start --fo", reply=True, timeout=DEADLINE_S)["content"]
        assert (reply["matches"], reply["cursor_start"]) == (["--force"], len("%taskfarm start "))
        reply = client.complete("%tasks --state f", reply=True, timeout=DEADLINE_S)["content"]
        assert reply["matches"] == ["failed", "finished"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@by_hand
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
