"""The magics in plain terminal IPython, through a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from ipytaskfarm import Farm, TaskClient
from tests.support.farms import DEADLINE_S, Gate
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

_PROMPT = re.compile(r"In \[\d+\]: $")


class Terminal:
    """IPython in a pseudo terminal, with typed input."""

    def __init__(self) -> None:
        command = [
            "-m",
            "IPython",
            "--simple-prompt",
            "--no-banner",
            "--colors=nocolor",
            "--HistoryManager.enabled=False",
        ]
        environment = {**os.environ, "TERM": "xterm", "PYTHONWARNINGS": "default"}
        self._child = pexpect.spawn(
            sys.executable,
            command,
            encoding="utf-8",
            timeout=DEADLINE_S,
            dimensions=(40, 160),
            env=environment,
            echo=False,
        )
        self._child.expect(_PROMPT)

    def type(self, *lines: str) -> str:
        """Type lines (a cell of several ends with two empty ones), and give what is shown until the next prompt."""
        self.send(*lines)
        return self.until_prompt()

    def send(self, *lines: str) -> None:
        for line in lines:
            self._child.sendline(line)

    def until(self, text: str) -> str:
        self._child.expect_exact(text)
        return str(self._child.before)

    def until_prompt(self) -> str:
        shown = ""
        while True:  # the prompts of continued lines are none
            self._child.expect(r"In \[\d+\]: ")
            shown += self._child.before
            if not shown.rstrip().endswith("...:"):
                return str(shown.replace("\r\n", "\n"))

    def interrupt(self) -> None:
        self._child.sendintr()

    def close(self) -> None:
        self._child.sendline("exit")
        self._child.close(force=True)


@pytest.fixture(scope="module")
def terminal(farm: Farm) -> Iterator[Terminal]:
    terminal = Terminal()
    try:
        assert terminal.type("%load_ext ipytaskfarm").strip() == ""
        assert f"connected to farm '{farm.name}'" in terminal.type(f"%taskfarm connect {farm.connection_file}")
        yield terminal
    finally:
        terminal.close()


def test_a_task_that_is_waited_for(terminal: Terminal) -> None:
    assert "seen" in terminal.type("%%task --pull a -b", "print('seen')", "a = 6 * 7", "", "")
    assert "42" in terminal.type("a")


def test_a_handle(terminal: Terminal) -> None:
    shown = terminal.type("%%task --pull a -o h", "a = 73", "", "")
    assert re.search(r"task \d+: submitted\.  %task result \d+", shown)
    assert "73" in terminal.type("h.ns.a")
    assert "succeeded" in terminal.type("h")


def test_an_error_is_short(terminal: Terminal) -> None:
    shown = terminal.type("%%task -b", "f = lambda x: 1 / x", "f(0)", "", "")
    assert "ZeroDivisionError: division by zero" in shown
    assert "f = lambda x: 1 / x" in shown
    assert "ipytaskfarm/" not in shown
    assert "f = lambda x: 1 / x" in terminal.type("%tb")


def test_many_tasks_with_a_bar(terminal: Terminal) -> None:
    shown = terminal.type("%%taskmap n in range(8) --pull y -o ys", "import time; time.sleep(0.4); y = n * n", "", "")
    assert "/8 tasks: " in shown
    assert "[0, 1, 4, 9, 16, 25, 36, 49]" in terminal.type("ys")
    table = terminal.type("%tasks --last 3")
    assert re.search(r"id +state +engine", table)
    assert len(re.findall(r"\d +succeeded +\d", table)) == 3


def test_ctrl_c_returns_and_says_how_to_go_on(terminal: Terminal) -> None:
    terminal.type("from ipytaskfarm import TaskClient")
    terminal.type("%%task -o long", "print('it has begun'); import time; time.sleep(60)", "", "")
    terminal.send("get_ipython().run_line_magic('task', 'barrier long') if print('waiting') is None else 0")
    terminal.until("waiting")
    terminal.until("0/1 tasks")  # the bar: it waits
    terminal.interrupt()
    shown = terminal.until_prompt()
    terminal.type("%task abort long")
    said = re.sub(r"\s+", " ", shown)
    assert re.search(r"task \d+ continues: tc\.barrier\(\d+\) waits for it again, tc\.abort\(\d+\) ends", said)
    assert "KeyboardInterrupt" in shown
    assert "failed" in terminal.type("long.status")


def test_engines(terminal: Terminal, farm: Farm) -> None:
    terminal.type(f"from ipytaskfarm import MultiEngineClient; mec = MultiEngineClient({str(farm.connection_file)!r})")
    assert "%px, %%px, %autopx, %pxresult" in terminal.type("mec.activate()")
    shown = terminal.type("%%px", "print('on', int(id))", "", "")
    assert "[0] on 0" in shown
    assert "[1] on 1" in shown
    assert "NameError" in terminal.type("%px no_such_name")


def test_what_there_is_can_be_asked(terminal: Terminal) -> None:
    shown = terminal.type("%taskfarm status")
    assert "2" in shown
    assert "idle" in shown
    assert "Start, stop, inspect" in terminal.type("print(get_ipython().find_line_magic('taskfarm').__doc__)")


def test_a_print_appears_while_the_task_runs(terminal: Terminal, gate: Gate) -> None:
    """The bar moves on below the printed line, and the line stays."""
    terminal.send("%%task -b", f"print('half', 'way'); exec({gate.code!r}); print('through', 'it')", "", "")
    terminal.until("half way\r\n")
    terminal.until("0/1 tasks: 1 running")
    gate.open()
    assert "through it" in terminal.until_prompt()


def test_a_map_names_its_failed_items_and_runs_them_again(terminal: Terminal, farm: Farm, tmp_path: Path) -> None:
    terminal.type(f"from ipytaskfarm import TaskClient; tc = TaskClient({str(farm.connection_file)!r})")
    mended = f"os.path.exists({str(tmp_path / 'mended')!r})"
    terminal.type(f"import os; fit = lambda x: x if x not in (7, 37, 59) or {mended} else 1 // 0")
    shown = terminal.type("tc.map(fit, range(60), name='terminal')")
    assert "ZeroDivisionError" in shown
    assert "item 7 of 60: <lambda>(x=7)" in shown
    assert "3 of 60 items of 'terminal' failed" in shown
    assert "ipytaskfarm/" not in shown
    assert "57 succeeded, 3 failed" in terminal.type("job = tc.job('terminal'); job")
    (tmp_path / "mended").touch()
    assert "3" in terminal.type("len(job.retry_failed())")
    assert "True" in terminal.type("job.results() == list(range(60))")
    assert "60 succeeded" in terminal.type("job")


def test_ctrl_c_in_a_map_ends_the_wait_alone(terminal: Terminal, farm: Farm, gate: Gate) -> None:
    terminal.type(f"from ipytaskfarm import TaskClient; tc = TaskClient({str(farm.connection_file)!r})")
    terminal.type(f"def waits(x): exec({gate.code!r}, {{}}); return x", "")
    terminal.send("tc.map(waits, range(60), name='stopped')")
    terminal.until("0/60 items")
    terminal.interrupt()
    shown = re.sub(r"\s+", " ", terminal.until_prompt())
    assert "job 'stopped' continues: tc.job('stopped').results() waits for it again" in shown
    assert "KeyboardInterrupt" in shown
    assert "ipytaskfarm/" not in shown
    gate.open()
    assert "True" in terminal.type("tc.job(tc.jobs()[-1]).results() == list(range(60))")


SCRIPT = """
import os, sys, time
from ipytaskfarm import Task, TaskClient

def fit(x):
    print("fitting", x)
    if x in (7, 37, 59): raise ValueError(f"bad {{x}}")
    return x

def waits(x):
    while not os.path.exists({go!r}): time.sleep(0.01)
    return x

tc = TaskClient({connection!r})
try:
    tc.map(fit, range(60), name="script", stream=True)
except ValueError as error:
    print(error, *error.__notes__, sep="\\n")
print(tc.job("script"))
print(tc.failures(tc.job("script").ids))
tc.barrier([tc.run(Task("import time; time.sleep(0.7)")) for _ in range(4)])
print("waiting", flush=True)
try:
    tc.map(waits, range(60), name="script stopped")
except KeyboardInterrupt:
    open({go!r}, "w").close()
print(tc.job(tc.jobs()[-1]).results() == list(range(60)))
"""


def test_a_script_whose_output_is_a_file_writes_no_control_characters(
    farm: Farm, tc: TaskClient, tmp_path: Path
) -> None:
    code = SCRIPT.format(go=str(tmp_path / "go"), connection=str(farm.connection_file))
    out, environment = tmp_path / "out.txt", {**os.environ, "IPYTASKFARM_PROGRESS": "1"}
    with (
        out.open("wb") as sink,
        subprocess.Popen([sys.executable, "-c", code], stdout=sink, stderr=sink, env=environment) as process,
    ):
        eventually(lambda: "waiting\n" in out.read_text() or process.poll() is not None, DEADLINE_S)
        eventually(lambda: "script stopped" in {line.name for line in tc.jobs()}, DEADLINE_S, what="the second map")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0, out.read_text()
    text = out.read_text()
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", text), text
    assert sorted(re.findall(r"^\[(\d+)\] fitting \1$", text, re.MULTILINE), key=int) == [str(x) for x in range(60)]
    assert "item 7 of 60: fit(x=7)" in text
    assert "57 succeeded, 3 failed" in text
    assert "3 × ValueError" in text
    assert "job 'script stopped' continues" in text
    assert text.endswith("True\n")


def test_progress_is_told_without_waiting(terminal: Terminal, farm: Farm) -> None:
    terminal.type(f"from ipytaskfarm import TaskClient; tc = TaskClient({str(farm.connection_file)!r})")
    terminal.type("ids = [tc.run(abs) for _ in range(3)]; tc.barrier(ids)")
    assert "3/3 tasks: 3 failed, in " in terminal.type("tc.progress(ids)")
