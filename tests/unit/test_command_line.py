"""Test the errors of wrong command lines, and the output of each command in 80 and in 200 columns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

import ipytaskfarm
from ipytaskfarm.cli import COMMANDS, main, top
from ipytaskfarm.cli.application import UsageError, _command
from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages import tables, view
from ipytaskfarm.core.messages.task_types import FailureSummary
from ipytaskfarm.deployment.light_client import Questioner
from tests.conftest import Dirs

STORED = Path(__file__).parents[1] / "data" / "commands"
"""A file for each width: ``python -m tests.unit.test_command_line`` writes them again."""
WIDTHS = (80, 200)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "--frm", "x"], "there is no flag --frm, did you mean --farm?"),
        (["tasks", "--stat", "failed"], "there is no flag --stat, did you mean --state?"),
        (["abort", "1", "--no-interupt"], "there is no flag --no-interupt, did you mean --no-interrupt?"),
        (["status", "-farm", "x"], "there is no flag -farm, did you mean --farm?"),
        (["status", "-x"], "there is no flag -x"),
        (["status", "--Status.frm=x"], "did you mean --Status.farm?"),
        (["stauts"], "there is no command 'stauts', did you mean status?"),
        (["clear", "3"], "there is no command 'clear', did you mean remove?"),
        (["pbs", "-n", "4"], "there is no command 'pbs', did you mean agents add pbs?"),
        (["ipcluster", "-n", "4"], "there is no command 'ipcluster', did you mean start?"),
        (["start", "--profile=x"], "there is no flag --profile, did you mean --farm?"),
        (["status", "--farm"], "--farm needs a value: --farm NAME"),
        (["status", "--farm", "--json"], "--farm needs a value: --farm NAME"),
        (["start", "-n"], "-n needs a value: -n N"),
        (["start", "-n4x"], "-n takes a whole number, not '4x'"),
        (["start", "-n", "1", "--engines", "2"], "--engines was given twice, and takes one value"),
        (["start", "--port", "x"], "--port takes the number of a port, not 'x'"),
        (["start", "--fresh=yes"], "--fresh takes no value: --fresh alone, or not at all"),
        (["start", "--fresh", "yes"], "what is 'yes' for? This command takes only flags"),
        (["stop", "--wait", "long"], "--wait takes a number of seconds, not 'long'"),
        (["tasks", "--state", "faild"], "not 'faild', did you mean 'failed'?"),
        (["tasks", "--last", "ten"], "--last takes a whole number, not 'ten'"),
        (["tasks", "--last", str(2**63)], "--last takes at most 9223372036854775807"),
        (["cache", "--last", "-1"], "--last takes at least 0, not -1"),
        (["tasks", "--last", "-3"], "--last takes at least 0, not -3"),
        (["history", "--last", "-1"], "--last takes at least 0, not -1"),
        (["logs", "--lines", "-2"], "--lines takes at least 0, not -2"),
        (["top", "--every", "0"], "--every takes at least 0.2, not 0"),
        (["stop", "--wait", "-1"], "--wait must be 0 seconds or more, not -1"),
        (["stop", "--wait", "nan"], "--wait must be 0 seconds or more, not nan"),
        (["start", "--port", "70000"], "--port must be a port, 65,535 at most, not 70000"),
        (["start", "--port=-1"], "--port must be 0 or more, not -1"),
        (["demo", "-n", "0"], "-n must be 1 or more, not 0"),
        (["pause", "--job", ""], "--job needs a value: --job NAME, not an empty text"),
        (["tasks", "--farm="], "--farm needs a value: --farm NAME, not an empty text"),
        (["cache", "forget", "--function", " "], "--function needs a value"),
        (["drain", ""], "one of the words is empty: it names nothing"),
        (["tasks", "9" * 30], f"{'9' * 30} is no task id: there are none so large"),
        (["engines", "add", "x"], "how many, 'x'? `engines add N`, with N at least 1"),
        (["engines", "add", "-1"], "how many, '-1'? `engines add N`, with N at least 1"),
        (["agents", "add", "slurm", "x", "--dry-run"], "how many agents, 'x'? `agents add slurm N`, with N at least 1"),
        (["cache", "why", "x"], "'x' is no task id"),
        (["cache", "forget", "--function", "f", "--last", "5"], "--last belongs to `cache`, not to `cache forget`"),
        (["cache", "--older", "7d"], "--older belongs to `cache forget`, not to `cache`"),
        (["agents", "remove", "x", "--dry-run"], "--dry-run belongs to `agents add`, not to `agents remove`"),
        (["agents", "--drain", "3"], "--drain belongs to `agents remove`, not to `agents list`"),
        (["keys", "list", "--output", "x"], "--output belongs to `keys add`, not to `keys list`"),
        (["keys", "revoke", "x", "--all"], "--all belongs to `keys rotate`, not to `keys revoke`"),
        (["debug", "1", "--here", "--frames"], "not both"),
        (["demo", "--tasks", "-3"], "--tasks must be 0 or more, not -3"),
        (["demo", "-n", "2", "--farm", "x"], "-n is for a temporary farm"),
        (["result", "1", "2"], "one task at a time"),
        (["--farm", "x", "status"], "the command comes first: `ipytaskfarm status`, and then the flags"),
        (["logs", "15"], "--task ID: all about a task"),
        (["completion", "csh"], "there is no script for 'csh', only for bash, zsh, fish"),
        (["completion"], "which shell? One of bash, zsh, fish"),
        (["session", "checkpoint", "--engines", "0,x"], "--engines: 'x' is no engine id"),
    ],
)
def test_a_wrong_command_line_gets_a_sentence(
    words: list[str], sentence: str, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
    assert len(said.err.splitlines()) == 2, "a sentence, and where to read on"
    assert not re.search(r"trait|usage:|instance|argument", said.err), said.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("c.Start.n = 'many'\n", "c.Start.n takes a whole number, not 'many'"),
        ("c.Start.n = 1.5\n", "c.Start.n takes a whole number, not 1.5"),
        ("c.Start.egnines = 3\n", "there is no setting c.Start.egnines"),
        ("c.Controller.queue_polici = 'LIFO'\n", "did you mean 'queue_policy'?"),
        ("1/0\n", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_config_file_gets_a_sentence(text: str, sentence: str, farm_dirs: Dirs) -> None:
    (farm_dirs.config / "ipytaskfarm_config.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        _command("start").read([])
    assert sentence in str(caught.value)
    assert f"the config file {farm_dirs.config / 'ipytaskfarm_config.py'}" in str(caught.value)


def test_the_settings_of_another_command_are_not_judged(farm_dirs: Dirs) -> None:
    (farm_dirs.config / "ipytaskfarm_config.py").write_text("c.Start.n = 'many'\nc.Command.farm = 'nightly'\n")
    command = _command("status")
    command.read([])
    assert command.farm == "nightly"


def test_values_are_read_wherever_they_stand(farm_dirs: Dirs) -> None:
    command = _command("abort")
    command.read(["1", "--farm=x", "2", "--reason", "-- no --", "--no-interrupt", "--", "3"])
    assert (command.farm, command.reason, command.interrupt) == ("x", "-- no --", False)  # type: ignore[attr-defined]
    assert command.extra_args == ["1", "2", "3"]
    start = _command("start")
    start.read(["-n4", "--policy-path", "a", "--policy-path=b", "--Start.hold=True"])
    assert start.config.Controller.policy_path == ["a", "b"]
    assert (start.n, start.hold) == (4, True)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------
# What is printed

MINUTE = 60.0
LONG = "a very long name of a task that somebody has made of all its parameters, alpha=0.01 beta=0.02"


def replies(now_s: float) -> dict[type, messages.Reply]:
    """Return the answers of a farm: few rows with long texts."""
    text = "the first line\nand the last line of a text of two lines"
    failure = FailureSummary("ValueError", text, "model.py:12 in fit")
    tasks = [
        tables.TaskRow(7, "failed", "error", LONG, 0, 3, now_s - MINUTE, now_s - 50, 10.5, now_s - 40, failure),
        tables.TaskRow(8, "pending", "", "fit", 1, 1, now_s - MINUTE, now_s - 50, None, None, None),
        tables.TaskRow(123_456, "scheduled", "", None, None, 0, now_s - MINUTE, None, None, None, None),
    ]
    node = "node-with-a-long-name-17"
    engines = [
        tables.EngineRow(0, "1.0", node, 4711, "busy", 8, 12, now_s - 7500, {}, "", "", "Model"),
        tables.EngineRow(1, "1.1", "vm", 4712, "idle", None, 0, now_s - 75, {}, "", "set up: 3 of 4 commands", ""),
    ]
    agent = {
        "name": "", "node": node, "state": "up", "guard": "", "engines": 2, "slots": 4, "cores": 8, "load": 0.734,
        "memory": 2**34, "free_memory": 2**33, "free_disk": 2**40, "used": {"cores": 2.0, "memory": 2.0**30},
        "environments": {"0": "Model"}, "idle": None, "time_left": 7200.0,
    }  # fmt: skip
    counts = {"scheduled": 1, "pending": 1, "succeeded": 1234, "failed": 1}
    losses = ["engine 3 on node n7 (pid 12): killed by SIGKILL while task 7 ran"]
    state = tables.FarmState(
        "nightly", "abc", 1, 4700, now_s - 7500, 2, False, False, counts, engines, [agent], 3, 2**21, losses
    )
    job = tables.JobRow(
        id="0123456789abcdef", name="a sweep over all parameters that there are", total=120, arrived=120, unfinished=7,
        paused=False, failed="", opened_s=now_s - 90, ids=[],
    )  # fmt: skip
    events: list[tuple[float, int, str | None, str, int, str]] = [
        (now_s - 60, 7, LONG, "accepted", -1, ""),
        (now_s - 40, 7, LONG, "failed: error", 0, f"ValueError: {text}"),
    ]
    return {
        messages.FarmStatus: state,
        messages.FindJobs: tables.JobTable([job]),
        view.ReadCauses: view.CauseTable([], by_job=[(job.id, 3)]),
        messages.ListTasks: tables.TaskRows(tasks, omitted=40),
        messages.ListEngines: tables.EngineTable(engines),
        messages.ReadHistory: tables.EventTable(events),
        messages.FetchResults: messages.Fetched([], [], [7]),
        messages.ExplainTasks: messages.TextReply("task 7 failed: error\n  attempt 1 on engine 0: ValueError"),
    }


class Answers:
    """Stands for a connection to a farm."""

    def __init__(self, known: dict[type, messages.Reply]) -> None:
        self._known = known

    def answer(self, question: object, timeout_s: float | None = None) -> messages.Reply:
        reply = self._known[type(question)]
        if isinstance(question, messages.ListTasks) and isinstance(reply, tables.TaskRows) and question.state:
            failed = question.state == "failed"
            return tables.TaskRows([row for row in reply.rows if (row.state == "failed") is failed])
        return reply

    answer_for = Questioner.answer_for


SHOWN = [
    ["status"], ["tasks"], ["engines", "list"], ["jobs"], ["history"], ["explain", "7"], ["agents", "list"],
    ["top", "--once"],
]  # fmt: skip
"""Commands that print tables."""


def shown_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(words)
    # Templates are shown with the folder of the package.
    return capsys.readouterr().out.replace(str(Path(ipytaskfarm.__file__).parents[1]), "…")


@contextmanager
def a_world(width: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of that width, at a moment that does not move, in front of a farm that always says the same."""
    now_s = 1_790_000_000.0
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: now_s)

    @contextmanager
    def connect(farm: str) -> Iterator[Any]:
        yield Answers(replies(now_s))

    for module in ("status", "jobs", "logs", "engines", "agents", "top"):
        monkeypatch.setattr(f"ipytaskfarm.cli.{module}.connect", connect)
    yield


def everything(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    with a_world(width, monkeypatch):
        parts = [["--help"], *([name, "--help"] for name in COMMANDS), *SHOWN]
        return "".join(f"$ ipytaskfarm {' '.join(words)}\n{shown_by(words, capsys)}\n" for words in parts)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_commands_print_is_as_stored(
    width: int, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = everything(width, capsys, monkeypatch)
    path = STORED / f"{width}.txt"
    if os.environ.get("WRITE_COMMANDS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), f"if this is meant: WRITE_COMMANDS=1 pytest {Path(__file__).name}"
    command = ""
    for line in found.splitlines():
        command = line if line.startswith("$ ") else command
        assert len(line) <= width or (width == 80 and _is_an_example(line)), (command, line)


def _is_an_example(line: str) -> bool:
    """Examples are command lines to be copied: they are not broken."""
    return line.startswith(("    ipytaskfarm ", "$ ", '    eval "'))


# ------------------------------------------------------------------------------------------------------------
# top

SIZES = [(80, 24), (40, 15), (20, 6), (5, 2)]


class Gone(Answers):
    """Stands for a connection to a farm that does not answer any more."""

    def answer(self, question: object, timeout_s: float | None = None) -> messages.Reply:
        raise errors.FarmNotRunning("the farm does not answer within 5 s: busy")


def test_top_fits_each_size_and_says_when_what_it_shows_is_from_before() -> None:
    answers = replies(1_790_000_000.0)
    aborted = FailureSummary("TaskAborted", "task 9 was aborted")
    known = answers[messages.ListTasks]
    assert isinstance(known, tables.TaskRows)
    known.rows.append(tables.TaskRow(9, "failed", "aborted", "表" * 30, -1, 0, 1.0, None, None, 2.0, aborted))
    live = top.Live(Answers(answers), 1.0)  # type: ignore[arg-type]
    seen = top.look(live._questioner)
    for width, height in SIZES:
        lines = top.screen(seen, width, height, 8)
        assert len(lines) == height
        assert all(cell_len(line) <= width for line in lines), lines
    assert not any(" -1 " in line for line in top.screen(seen, 200, None)), "it has never been on an engine"
    live._questioner = Gone({})  # type: ignore[assignment]
    assert live._look(seen) is seen, "what was known stays on the screen"
    live._selected = live._asks_about = 8
    live._heed("y", seen)
    assert live._note.startswith("task 8: not known to be done, the farm does not answer within 5 s")
    first, *_ = top.screen(seen, 80, 24, 8, live._note, live._trouble)
    assert re.match(r"farm 'nightly', as it was at \d\d:\d\d:\d\d: the farm does not answer within 5 s", first)
    live._questioner = Answers(answers)  # type: ignore[assignment]
    assert live._look(seen) is not seen
    assert top.screen(seen, 80, 24, 8, "", live._trouble)[0].startswith("farm 'nightly': running")


@pytest.mark.parametrize("words", [["help"], [], ["--version"], ["status", "--help"]], ids=str)
def test_help_on_a_full_disk_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ipytaskfarm", *words]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "No space left on device" in run.stderr
