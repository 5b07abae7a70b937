"""The magics in plain terminal IPython, through a pseudo-terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pexpect
import pytest

from ipytaskfarm import Farm
from tests.support.farms import DEADLINE_S, Gate

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
    assert re.search(r"task \d+: handed in\.  %task result \d+", shown)
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
    assert re.search(r"task \d+ goes on: tc\.barrier\(\d+\) waits for it again, tc\.abort\(\d+\) ends", said)
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


def test_progress_is_told_without_waiting(terminal: Terminal, farm: Farm) -> None:
    terminal.type(f"from ipytaskfarm import TaskClient; tc = TaskClient({str(farm.connection_file)!r})")
    terminal.type("ids = [tc.run(abs) for _ in range(3)]; tc.barrier(ids)")
    assert "3/3 tasks: 3 failed, in " in terminal.type("tc.progress(ids)")
