"""The commands that act on tasks, jobs and nodes, without a farm: their words, and the shapes of their JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.cli import main
from ipytaskfarm.cli.application import JsonCommand, _command
from ipytaskfarm.cli.json_output import (
    engine_shape,
    event_shape,
    farm_shape,
    job_shape,
    moment,
    print_json,
    task_shape,
)
from ipytaskfarm.cli.logs import lines_about
from ipytaskfarm.client.tables import Event, JobLine, TaskStatus, event_listing, job_listing
from ipytaskfarm.core.messages.tables import EngineRow, FarmState, JobRow, TaskRow
from ipytaskfarm.core.messages.task_types import FailureSummary
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.display.farm_tables import event_table
from ipytaskfarm.display.tables import MARK
from tests.conftest import Dirs

AT_S = 1_700_000_000.25
ENGINE = EngineRow(0, "a.1", "node", 42, "idle", None, 0, AT_S, {"memory": 2**30})
FARM = FarmState("f", "uuid", 1, 7, AT_S, 2, False, False, {"scheduled": 3}, [ENGINE], [{"node": "n"}], 1, 4096)
SHOWING = ("list", "status", "engines", "tasks", "explain", "jobs", "history", "logs")
ACTING = ("abort", "retry", "restart", "remove", "mark-done", "mark-failed", "pause", "resume", "drain")


@pytest.mark.parametrize("name", SHOWING + ACTING)
def test_it_can_print_json(name: str) -> None:
    assert isinstance(_command(name), JsonCommand)
    assert any(line.strip().startswith("--json") for line in _command(name)._flag_lines())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["restart"], "which task? Give one or more ids, like 3, 3-9 or 3,5,7"),
        (["remove"], "which task?"),
        (["mark-done"], "which task?"),
        (["mark-failed", "x"], "'x' is no task id"),
        (["abort", "9-3"], "write 3-9"),
        (["abort", "3", "--job", "primes"], "not both"),
        (["remove", "3", "--all"], "not both"),
        (["remove", "--job", "primes", "--all"], "not both"),
        (["tasks", "3", "--job", "primes"], "not both"),
        (["pause", "primes"], "takes only flags"),
        (["drain"], "which nodes?"),
        (["jobs", "a", "b"], "one job at a time"),
        (["history", "--since", "yesterday"], "--since: 'yesterday' is not a time"),
        (["mark-done", "3", "--result", "{a}"], "is not JSON"),
        (["logs", "--task", "3", "-f"], "--follow shows one log"),
        (["logs", "--json", "-f"], "--follow shows one log"),
        (["logs", "agent", "--task", "3"], "no log can be named"),
        (["logs", "engine", "²"], "which log?"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    words: list[str], told: str, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["jobs"], ["history"], ["pause", "--job", "x"], ["remove", "--all"], ["drain", "n"], ["mark-done", "1"]]
    + [[word, "1"] for word in ("restart", "remove", "mark-failed")],
)
def test_a_farm_that_does_not_run_ends_with_4(
    words: list[str], farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--farm", "nowhere"]) == 4
    complaint = capsys.readouterr().err
    assert "ipytaskfarm start --farm nowhere" in complaint
    assert len(complaint.splitlines()) == 1


def test_a_result_may_be_any_json() -> None:
    command: Any = _command("mark-done")
    command.read(["3", "--result", '"quoted"'])
    assert command.result == '"quoted"'


# ---------------------------------------------------------------------------------------- JSON


def parsed(shape: dict[str, Any], *moments: str) -> dict[str, Any]:
    """Return the output as a program reads it, with times as datetimes."""
    read: dict[str, Any] = json.loads(json.dumps(shape))
    return {key: datetime.fromisoformat(value) if key in moments and value else value for key, value in read.items()}


@pytest.mark.parametrize(
    "row",
    [
        TaskRow(1, "scheduled", "queued", None, None, 0, AT_S),
        TaskRow(2, "failed", "error", "n", 3, 2, AT_S, AT_S + 1, 0.5, AT_S + 2, FailureSummary("ValueError", "no")),
    ],
)
def test_a_task_has_the_names_of_python(row: TaskRow) -> None:
    assert parsed(task_shape(row), "submitted_at", "started_at", "completed_at") == vars(TaskStatus(row))


def test_a_job_has_the_names_of_python() -> None:
    row = JobRow("id", "primes", 3, 3, 1, False, "", AT_S)
    failed = {"id": 2}
    (line,) = job_listing([row], failed)
    assert parsed(job_shape(row, failed), "opened") == line._asdict()
    assert list(job_shape(row, failed)) == list(JobLine._fields)
    assert re.fullmatch(r"<job 'primes': 3 tasks, 1 unfinished, 2 failed, running, opened 2023-11-1\d .*>", repr(line))
    alone = JobRow("id", "primes", 1, 1, 1, False, "", None)  # type: ignore[arg-type]
    assert repr(job_listing([alone], {})[0]) == "<job 'primes': 1 task, 1 unfinished, running>"
    with pytest.raises(TypeError, match="number of a row, not 'state': `to_dataframe"):
        job_listing([row], {})["state"]  # type: ignore[index]


@pytest.mark.parametrize("engine", [-1, 3])
def test_an_event_has_the_names_of_python(engine: int) -> None:
    row = (AT_S, 1, None, "started", engine, "attempt 1")
    (event,) = event_listing([row])
    assert parsed(event_shape(row), "at") == event._asdict()
    assert list(event_shape(row)) == list(Event._fields)
    where = " on engine 3" if engine == 3 else ""
    assert re.fullmatch(rf"<task 1: started{where} at 2023-11-1\d \S+, attempt 1>", repr(event))


def test_only_failures_are_marked_in_a_history() -> None:
    happened = ("accepted", "priority 0 → 5", "started", "failed: error")
    table = event_table([(AT_S, 1, None, what, -1, "") for what in happened])
    assert [MARK in line for line in str(table).splitlines() if any(what in line for what in happened)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_engines_and_farms_tell_moments_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(farm_shape(FARM))
    read = json.loads(capsys.readouterr().out)
    assert read["started_at"] == read["engines"][0]["started_at"] == moment(AT_S)
    assert read["engines"][0]["facts"] == {"memory": 2**30}
    fields = {*FarmState.__struct_fields__} - {"started_s", "waiting_s"} | {"started_at", "waiting_time"}
    assert read.keys() == fields
    assert engine_shape(ENGINE).keys() == {*EngineRow.__struct_fields__} - {"started_s"} | {"started_at"}


def test_a_moment_names_its_time_zone() -> None:
    assert moment(None) is None
    told = datetime.fromisoformat(str(moment(AT_S)))
    assert told.tzinfo is not None
    assert told.timestamp() == AT_S


# ---------------------------------------------------------------------------------------- logs


def test_the_lines_that_speak_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "controller.log").write_text(
        "2026-11-21 10:00:02,000 INFO c: engine 7 was lost; it ran task 12\n"
        "2026-11-21 10:00:03,000 INFO c: task 120 has run for more than 12 s\n"
        "2026-11-21 10:00:05,000 ERROR c: Traceback\n"
        "  File x\n"
        "KeyError: of task 12\n"
        "2026-11-21 10:00:06,000 INFO c: engine 12 is up\n"
    )
    (tmp_path / "agent-0.log.1").write_text("2026-11-21 10:00:01,000 WARNING a: refused stale rows of tasks [3, 12]\n")
    (tmp_path / "agent-0.log").write_text("2026-11-21 10:00:04,000 WARNING a: time limit of task 12 ignored\n")
    (tmp_path / "controller.out").write_text("Fatal error\nin task 12\n")
    (tmp_path / "folder").mkdir()
    assert [(line.log, line.text[20:23] or line.text, line.text.count("\n")) for line in lines_about(tmp_path, 12)] == [
        ("agent-0.log.1", "000", 0),
        ("controller.log", "000", 0),
        ("agent-0.log", "000", 0),
        ("controller.log", "000", 2),
        ("controller.out", "in task 12", 0),
    ]
    assert lines_about(tmp_path, 7) == []


@pytest.fixture
def log(farm_dirs: Dirs) -> Path:
    """The controller's log of a stopped farm."""
    path = Home.of("default").log("controller")
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("lines", [0, 1, 3, 400])
def test_the_last_lines_of_a_log_are_whole(log: Path, capsys: pytest.CaptureFixture[str], lines: int) -> None:
    there = [f"{n} {'x' * 1000}" for n in range(300)]
    log.write_text("".join(f"{line}\n" for line in there))
    assert main(["logs", "--lines", str(lines)]) == 0
    assert capsys.readouterr().out.splitlines() == (there[-lines:] if lines else [])


def test_a_log_is_followed_whatever_becomes_of_its_file(log: Path) -> None:
    log.write_text("before\n")
    words = [sys.executable, "-m", "ipytaskfarm", "logs", "-f", "--lines", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "utf-8"}) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"before\n"
            with open(log, "ab") as file:
                file.write(b"half of \xc3")
                file.flush()
                assert process.stdout.read(8) == b"half of "
                file.write(b"\xa9\n")
            assert process.stdout.readline() == "é\n".encode()
            log.rename(log.with_name("controller.log.1"))
            log.write_text("another file, which is longer than the one before\n")
            assert process.stdout.readline() == b"another file, which is longer than the one before\n"
            log.write_text("cut\n")
            assert process.stdout.readline() == b"cut\n"
        finally:
            process.kill()


def test_a_farm_that_is_not_there_has_no_logs(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--farm", "nosuch"]) == 4
    assert "there is no farm 'nosuch'" in capsys.readouterr().err
