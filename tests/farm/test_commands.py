"""Commands on a running farm: result, failures, top, and completion in real shells."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ipytaskfarm import Farm, Task
from ipytaskfarm.cli import main
from ipytaskfarm.cli.completion import entries
from ipytaskfarm.cli.start import Terminal
from tests.support.farms import DEADLINE_S, module_farm
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(1, name="default") as farm:
        yield farm


@pytest.fixture(scope="module")
def ids(farm: Farm) -> dict[str, int]:
    """Tasks that have ended: code, a call, two failures of one kind and one of another, and one that runs."""
    with farm.task_client() as tc:
        code = "print('seen\\x1b[2J'); a = [1, 2]; b = 'text'"
        made = {
            "code": tc.run(Task(code, pull=["a", "b"])),
            "call": tc.run(Task(pow, args=(2, 100), cache=True)),
            "nothing": tc.run(Task("a = 1")),
            "failed": tc.run(Task("1/0", name="divides")),
            "failed too": tc.run(Task("1/0")),
            "other": tc.run(Task("import no_such_module")),
        }
        tc.barrier(list(made.values()), timeout=60)
        job = tc.create_job("sweep")
        for n in range(3):
            job.add_task(Task("import time; time.sleep(300)", name=f"fit {n}"))
        made |= zip(("first", "second", "third"), job.submit(), strict=True)
        tc.flush()
        eventually(lambda: tc.status(made["first"]).state == "running", what="the first task of the job runs")
    return made


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_result_shows_values(ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "result", str(ids["code"])) == (0, "a = [1, 2]\nb = 'text'\n", "")
    assert command(capsys, "result", str(ids["call"])) == (0, f"{2**100}\n", "")
    assert command(capsys, "result", str(ids["nothing"])) == (0, "", "")
    code, out, _ = command(capsys, "result", str(ids["code"]), "--output")
    assert (code, out.splitlines()[0]) == (0, "seen [2J")


def test_result_shows_failures_and_what_has_not_ended(ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "result", str(ids["failed"]))
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: division by zero\n")
    assert command(capsys, "result", str(ids["first"])) == (
        1, "", f"task {ids['first']} has not ended; --wait waits for it\n",
    )  # fmt: skip
    assert command(capsys, "result", "999999")[0] == 1
    for words in (["failures", "999999"], ["history", "999999"], ["cache", "why", "999999"], ["debug", "999999"]):
        code, _, said = command(capsys, *words)
        assert (code, "there is no task 999999" in said) == (1, True), (words, said)


def test_ctrl_c_in_a_wait_for_a_result_names_the_commands(farm: Farm) -> None:
    with farm.task_client() as tc:
        task = tc.run(Task("a = 1", targets=[77]))
        tc.flush()
        words = ["-m", "ipytaskfarm", "result", str(task), "--wait", "--farm", str(farm.connection_file)]
        terminal = pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=DEADLINE_S, dimensions=(24, 200))
        terminal.expect_exact("nothing of what you wait for can run now")
        terminal.sendintr()
        terminal.expect_exact(f"`ipytaskfarm result {task} --wait` waits for it again, `ipytaskfarm abort {task}` ends")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 130
        tc.abort(task)
        tc.clear(task)


def test_result_as_json(ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "result", str(ids["code"]), "--json")
    shape = json.loads(out)
    assert (code, shape["state"], shape["result"]) == (0, "succeeded", {"a": [1, 2], "b": "text"})
    code, out, _ = command(capsys, "result", str(ids["failed"]), "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "ZeroDivisionError")
    code, out, _ = command(capsys, "result", str(ids["first"]), "--json")
    assert (code, json.loads(out)["state"]) == (1, "running")


def test_the_cache_as_json(ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    shape = json.loads(command(capsys, "cache", "--json")[1])
    assert (shape["entries"], shape["hits"]) == (1, 0)
    (entry,) = shape["listed"]
    assert (entry["function"], entry["task"], entry["bytes"]) == ("pow", ids["call"], shape["bytes"])
    assert [argument["value"] for argument in entry["arguments"]] == ["2", "100"]
    why = json.loads(command(capsys, "cache", "why", str(ids["call"]), "--json")[1])
    assert why == {"task": ids["call"], "hit": False, "explanation": "nothing was kept of `pow` before it"}


def test_failures_are_grouped(ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "failures", "--traceback")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:3]]
    assert [row[:2] for row in rows] == [["1", "ModuleNotFoundError"], ["2", "ZeroDivisionError"]]
    assert f"\ntask {ids['failed']}:\nTraceback" in out
    (group,) = json.loads(command(capsys, "failures", str(ids["other"]), "--json")[1])
    assert group["ids"] == [ids["other"]]
    assert command(capsys, "failures", "--job", "sweep")[1] == "no failed tasks\n"


def test_list_shows_one_farm(farm: Farm, ids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    (shape,) = json.loads(command(capsys, "list", "--farm", "default", "--json")[1])
    assert (shape["name"], shape["state"]) == ("default", "running")
    code, _, err = command(capsys, "list", "--farm", "nowhere")
    assert (code, "there is no farm 'nowhere'" in err) == (4, True)


def test_top_prints_one_screen_where_there_is_no_terminal(
    ids: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(capsys, "top")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.startswith("farm 'default': running")
    assert all(part in out for part in ("sweep", "fit 0", "divides", "ZeroDivisionError"))
    assert "\x1b" not in out


def test_top_shows_priorities_and_puts_urgent_tasks_before_those_that_wait(
    ids: dict[str, int], farm: Farm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert "priority" not in command(capsys, "top")[1]
    with farm.task_client() as tc:
        tc.job("sweep").set_priority(2)
        tc.set_priority(ids["third"], 5)
        lines = command(capsys, "top")[1].splitlines()
        assert [line.split()[0] for line in lines if " scheduled " in line] == [str(ids["third"]), str(ids["second"])]
        assert sum("priority" in line for line in lines) == 2, "the table of jobs, and that of tasks"
        rows = {row["id"]: row["priority"] for row in json.loads(command(capsys, "tasks", "--json")[1])}
        assert (
            {*rows}
            > {row["id"] for row in json.loads(command(capsys, "tasks", "failed", "--json")[1])}
            >= {ids["failed"]}
        )
        assert (rows[ids["second"]], rows[ids["third"]], rows[ids["failed"]]) == (2, 5, None)
        tc.job("sweep").set_priority(0)


def test_top_in_a_terminal_aborts_and_retries(ids: dict[str, int], farm: Farm) -> None:
    with farm.task_client() as tc:
        child = pexpect.spawn(
            sys.executable, ["-m", "ipytaskfarm", "top", "--every", "0.3"],
            dimensions=(30, 80), encoding="utf-8", timeout=60, env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        try:
            child.expect("q quit")
            child.send("a")
            child.expect("select a task first")
            child.send("j")  # the running one is the first
            child.expect(f"> +{ids['first']} ")
            child.send("j")
            child.expect(f"> +{ids['second']} ")
            child.send("a")
            child.expect(f"abort task {ids['second']}\\?")
            child.send("n")
            child.expect(f"task {ids['second']} goes on")
            child.send("a")
            child.expect(f"abort task {ids['second']}\\?")
            child.send("y")
            child.expect(f"task {ids['second']}: aborted")
            assert tc.status(ids["second"]).reason == "aborted"
            child.setwinsize(24, 100)
            child.send("\x1b[A")  # up: to the last of the list, or by one
            child.send("r")
            child.expect("has not failed: only failed tasks are tried again|submitted again as task")
            go_down_to(child, ids["failed"])
            child.send("r")
            child.expect(rf"task {ids['failed']}: submitted again as task (\d+)")
            again = int(child.match.group(1))
            tc.abort(ids["first"])
            tc.abort(ids["third"])
            tc.barrier(again, timeout=90)
            assert tc.status(again).error.startswith("ZeroDivisionError")
            child.send("q")
            child.expect(pexpect.EOF)
        finally:
            child.close()
        assert child.exitstatus == 0


def test_json_has_no_number_that_json_does_not_know(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    def unknown(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    with farm.task_client() as tc:
        task = tc.run(Task("a = [float('nan'), 1.5, float('-inf')]", pull="a", priority=9))
        tc.barrier(task, timeout=60)
    out = command(capsys, "result", str(task), "--json")[1]
    assert json.loads(out, parse_constant=unknown)["result"]["a"] == ["nan", 1.5, "-inf"]


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for term, shown in (("xterm", "\r\033[Kstarting …\r\033[K"), ("dumb", "starting …\n")):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys, "stderr", screen := Screen())
        terminal = Terminal("x")
        terminal.progress("starting")
        terminal.wipe()
        assert screen.getvalue() == shown


def test_top_that_is_told_to_end_leaves_the_terminal_as_it_was(farm: Farm) -> None:
    with pexpect.spawn(sys.executable, ["-m", "ipytaskfarm", "top"], encoding="utf-8", timeout=60) as child:
        child.expect("q quit")
        child.kill(signal.SIGTERM)
        child.expect_exact("\x1b[?1049l")  # the other screen is gone
        child.expect(pexpect.EOF)
    assert child.exitstatus == 128 + signal.SIGTERM


def test_commands_work_without_standard_input(farm: Farm, ids: dict[str, int]) -> None:
    for words, code in ((["top"], 0), (["clean"], 0)):
        line = f'exec "{sys.executable}" -m ipytaskfarm {" ".join(words)} <&-'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert "Nobody is here to answer: use --yes" in done.stderr


def go_down_to(child: Any, task: int) -> None:
    """Go down until this task is selected: the latest failures come first."""
    for _ in range(20):
        child.send("j")
        if child.expect([f"> ✗? +{task} ", pexpect.TIMEOUT], timeout=1) == 0:
            return
    raise AssertionError(f"task {task} was not reached")


# ------------------------------------------------------------------------------------------------------------
# Completion, in the shells themselves


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Provide the completion script of a shell, and the command that it completes."""
    (tmp_path / "ipytaskfarm").write_text(f'#!/bin/sh\nexec {sys.executable} -m ipytaskfarm "$@"\n')
    (tmp_path / "ipytaskfarm").chmod(0o755)
    path = tmp_path / "script"
    done = subprocess.run(
        [sys.executable, "-m", "ipytaskfarm", "completion", request.param], capture_output=True, text=True, check=True
    )
    path.write_text(done.stdout)
    return path


CASES = [
    ("ipytaskfarm sta", {"start", "status"}),
    ("ipytaskfarm mark-d", {"mark-done"}),
    ("ipytaskfarm tasks --st", {"--state"}),
    ("ipytaskfarm tasks --state f", {"failed", "finished"}),
    ("ipytaskfarm engines a", {"add"}),
    ("ipytaskfarm status --farm d", {"default"}),
    ("ipytaskfarm abort --no-", {"--no-interrupt"}),
]


def environment(script: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "TERM": "dumb"}


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_completion_in_bash(script: Path, farm: Farm) -> None:
    for line, wanted in CASES:
        words = line.split(" ")
        code = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1};"
            ' _ipytaskfarm; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment(script), check=True)
        assert (set(done.stdout.split()), done.stderr) == (wanted, ""), line


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_completion_by_the_tab_key_in_bash(script: Path, farm: Farm) -> None:
    child = pexpect.spawn("bash", ["--norc", "-i"], encoding="utf-8", timeout=60, env=environment(script))
    try:
        child.sendline(f"PS1='$ '; bind 'set enable-bracketed-paste off'; source {script}; echo re''ady")
        child.expect("ready")
        child.send("ipytaskfarm tasks --sta\tsuc\t")
        child.expect("tasks --state succeeded")
    finally:
        child.close(force=True)


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_completion_in_zsh(script: Path, farm: Farm) -> None:
    if not shutil.which("zsh"):
        pytest.fail("zsh is needed: `make apt` installs it")
    child = pexpect.spawn("zsh", ["-f", "-i"], encoding="utf-8", timeout=60, env=environment(script))
    try:
        setup = "autoload -U compinit; compinit -u -D; zstyle ':completion:*' menu no; unsetopt zle_bracketed_paste"
        child.sendline(f"PS1='$ '; {setup}; source {script}; echo re''ady")
        child.expect("ready")
        for typed, result in (
            ("ipytaskfarm mark-d\t", "mark-done"),
            ("ipytaskfarm tasks --sta\tsuc\t", "tasks --state .{0,4}succeeded"),
            ("ipytaskfarm status --farm d\t", "--farm .{0,4}default"),
            ("ipytaskfarm engines rem\t", "engines remove"),
        ):
            child.send(typed)
            child.expect(result)
            child.send("\x15")  # the line is forgotten
    finally:
        child.close(force=True)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_completion_in_fish(script: Path, farm: Farm) -> None:
    if not shutil.which("fish"):
        pytest.fail("fish is needed: `make apt` installs it")
    for line, wanted in CASES:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
            capture_output=True, text=True, env=environment(script), check=True,
        )  # fmt: skip
        assert ({each.split("\t")[0] for each in done.stdout.splitlines()}, done.stderr) == (wanted, ""), line


def test_completion_knows_every_flag() -> None:
    found = {entry.name: {name for flag in entry.flags for name in flag.names} for entry in entries()}
    assert {"--state", "--farm", "--json", "-h"} <= found["tasks"]
    assert "--farm" not in found["completion"]
