"""What IPython shows of errors of Python's own classes that the farm raises, and of errors of code that it calls."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipytaskfarm
from ipytaskfarm import Farm, TaskClient
from ipytaskfarm.client import maps
from tests.support.farms import DEADLINE_S
from tests.support.shells import Shell, shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def shell(tc: TaskClient, farm: Farm) -> Iterator[Shell]:
    with shell_with_magics() as shell, farm.multiengine_client() as mec:
        shell["tc"], shell["mec"] = tc, mec
        shell.ok("import ipytaskfarm\nfrom ipytaskfarm import Farm, Task\nplain = tc.run(Task('a = 1'), block=True)")
        yield shell


@pytest.mark.parametrize(
    "call",
    [
        "tc.map(abs, [1], chunksize=-1)",
        "tc.map(abs, [1], time_limit='3')",
        "tc.map(lambda: 1, [1])",
        "tc.get_task_result(999999)",
        "tc.debug(999999)",
        "tc.barrier('x')",
        "tc.job('nope')",
        "tc.create_job().results()",
        "tc.retry(plain.taskid)",
        "tc.progress('x')",
        "tc.nothing_like_it",
        "Task(abs, retires=3)",
        "Farm(startpu='x.py')",
        "mec.push(3)",
        "plain['a']",
        "plain.ns.a",
        "ipytaskfarm.TaskCleint",
        "%tb",
    ],
)
def test_a_refusal_shows_the_users_line_and_the_sentence(shell: Shell, call: str) -> None:
    if call == "%tb":
        shell.run("tc.barrier('x')")
    lines = shell.run(call).shown.splitlines()
    if call != "%tb":
        assert lines[-3:-1] == [f"----> 1 {call}", ""]
    assert not any("ipytaskfarm/" in line for line in lines), lines
    assert lines[-1].partition(":")[0].endswith(("Error", "MissingName"))


def test_code_of_the_user_that_the_farm_calls_keeps_its_lines(shell: Shell) -> None:
    shown = shell.run("def numbers():\n    yield 1\n    raise IndexError('mine')\ntc.map(abs, numbers())").shown
    assert "raise IndexError('mine')" in shown
    assert "----> 4 tc.map(abs, numbers())" in shown
    assert "ipytaskfarm/" not in shown


@pytest.mark.parametrize("refused", ["tc.submit(abs, (i for i in [1]))", "tc.barrier('x')"])
def test_a_refusal_within_code_of_the_user_that_the_farm_calls_shows_its_line(shell: Shell, refused: str) -> None:
    shown = shell.run(f"def numbers():\n    yield {refused}\ntc.map(abs, numbers())").shown
    assert f"----> 2     yield {refused}" in shown
    assert "----> 3 tc.map(abs, numbers())" in shown
    assert "ipytaskfarm/" not in shown


def test_a_group_of_exceptions_shows_no_frames_between_the_cell_and_its_magic(shell: Shell, farm: Farm) -> None:
    shell.ok(f"%taskfarm connect {farm.connection_file}")
    shown = shell.run("%%task -b\nraise ExceptionGroup('several', [ValueError('one'), TypeError('two')])").shown
    assert "ValueError: one" in shown
    assert "raise ExceptionGroup" in shown
    assert "interactiveshell.py" not in shown


def test_an_error_in_the_farm_itself_keeps_all_frames(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "ON_ERROR", None)
    assert "ipytaskfarm/client/maps.py" in shell.run("tc.map(abs, [1])").shown


def test_the_import_is_enough(tc: TaskClient) -> None:
    code = "import ipytaskfarm\nipytaskfarm.TaskCleint"
    run = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", "-c", code],
        capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ, check=False,
    )  # fmt: skip
    assert "did you mean 'TaskClient'?" in run.stdout
    assert os.path.dirname(ipytaskfarm.__file__) not in run.stdout


def test_ipython_shows_errors_of_a_script_that_it_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from ipytaskfarm.errors import TaskFarmError\nraise TaskFarmError('of the script')\n")
    words = [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", str(script)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.stderr.splitlines()[-1:] + ended.stdout.splitlines()[-1:] == ["TaskFarmError: of the script"]
    assert "During handling" not in ended.stderr + ended.stdout


@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_the_debugger_goes_through_the_users_frames_alone(shell: Shell, on_error: str) -> None:
    shell.ok("def fails(x):\n    return 1 / x")
    cell = shell.run(f"tc.map(fails, [1, 0], on_error={on_error!r})")
    assert "ipytaskfarm/" not in cell.shown + cell.err
    error = sys.last_value
    assert error is not None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert not any("/ipytaskfarm/client/" in file for file in files), files
    assert sys.last_traceback is error.__traceback__
