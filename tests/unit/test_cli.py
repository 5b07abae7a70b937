"""The command line: every command is documented, explains itself, and ends with the right exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm.cli import COMMANDS, main
from ipytaskfarm.cli.application import STORE, JsonCommand, UsageError, _command, exit_code
from ipytaskfarm.cli.printing import confirm, print_any_text, safe, size, span, table
from ipytaskfarm.cli.start import Reporter, Start
from ipytaskfarm.core import errors
from ipytaskfarm.system.process import usable_cores
from tests.conftest import Dirs

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


def settings_of(*words: str) -> Start:
    command = Start()
    command.read(list(words))
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ipytaskfarm {name}")
    assert len(str(_command(name).description).strip()) > 30
    assert "--help" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert f"### {name}\n" in DOCS.read_text(), f"docs/commands.md says nothing about `ipytaskfarm {name}`"


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_print_json_have_its_flag(name: str) -> None:
    command = _command(name)
    assert isinstance(command, JsonCommand) <= ("json" in command._known_flags())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_help(name: str) -> None:
    lines = "\n".join(_command(name)._flag_lines())
    assert all(len(line) <= 80 for line in lines.splitlines())
    for flag in lines.split("\n    -"):
        assert len(flag.partition("  ")[2].strip()) > 5, f"{name}: {flag}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented(name: str) -> None:
    """A flag is in the section of its command; flags of all commands are at the top of the page."""
    section = DOCS.read_text().partition(f"### {name}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    command = _command(name)
    for keys in (*command.aliases, *command.flags):
        longest = max(keys, key=len)
        assert longest in ("engines", "config", "start-timeout", "farm", "json") or f"--{longest}" in section, longest


def test_without_arguments_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"    {name}" in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert main(["help"]) == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bogus"], "there is no command 'bogus'"),
        (["stats"], "did you mean status"),
        (["start", "--bogus", "3"], "--bogus"),
        (["start", "-n", "many"], "n"),
        (["start", "-n", "-2"], "0 or more"),
        (["start", "extra"], "takes only flags"),
        (["start", "--farm", "a/b"], "cannot be a farm's name"),
        (["start", "--startup", "/nowhere/file.py"], "cannot be read"),
        (["start", "--queue-policy", "nonsense"], "mine:Policy"),
        (["start", "--policy-path", "/nowhere"], "not a folder"),
        (["start", "--config", "/nowhere/config.py"], "no config file"),
        (["start", "--config", "/"], "no config file /: a file was expected whose name ends in .py or .json"),
        (["start", "--config", "/etc/passwd"], "no config file /etc/passwd: a file was expected"),
        (["stop", "--farm", "../x"], "cannot be a farm's name"),
        (["tasks", "--state", "lost"], "state"),
        (["abort"], "Give one or more ids"),
        (["abort", "12", "x13"], "'x13' is no task id"),
        (["explain", "1", "2"], "one task at a time"),
        (["engines", "fly"], "not one of list, add, remove and release"),
        (["engines", "add", "0"], "at least 1"),
        (["logs", "weather"], "which log?"),
        (["logs", "contoller"], "did you mean 'controller'"),
        (["engines", "relase"], "did you mean 'release'"),
        (["keys", "lst"], "did you mean 'list'"),
        (["agents", "lanchers"], "did you mean 'launchers'"),
        (["session", "sav", "x"], "did you mean 'save'"),
        (["jupyter", "enabel"], "did you mean 'enable'"),
        (["cache", "forgt"], "did you mean 'forget'"),
        (["start", "--agents", "slurn:2"], "did you mean 'slurm'"),
        (["start", "--max", "2"], "--min and --max go together: give both"),
        (["start", "--idle", "30"], "Give both, or leave --idle out"),
        (["start", "--agents", "slurm:1", "--idle", "30"], "--idle goes with --min and --max"),
        (["start", "--agents", "slurm:1", "--agent-time", "2x"], "time_limit: '2x' is no duration"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    words: list[str], part: str, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert part in complaint
    assert "--help" in complaint


@pytest.mark.parametrize(
    "words",
    [[word] for word in ("status", "stop", "tasks", "engines", "pause", "resume", "clean")]
    + [[word, "1"] for word in ("explain", "abort", "retry")],
)
def test_a_farm_that_does_not_run_ends_with_4(
    words: list[str], farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--farm", "nowhere"]) == 4
    complaint = capsys.readouterr().err
    assert "nowhere" in complaint
    assert "ipytaskfarm" in complaint
    assert "Traceback" not in complaint


def test_no_farms_is_no_error(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr().out.endswith("[]\n")
    assert main(["logs"]) == 4


def test_errors_have_their_exit_codes() -> None:
    assert exit_code(errors.StoreError()) == exit_code(errors.StoreFull()) == STORE
    refused = (errors.FarmNotRunning(), errors.FarmExists(), errors.SecurityError(), errors.VersionMismatch())
    assert {exit_code(error) for error in refused} == {4}
    assert exit_code(errors.TaskFarmError()) == exit_code(IndexError()) == 1


def test_ids_may_stand_before_and_after_flags() -> None:
    command = _command("abort")
    command.read(["1", "--farm", "x", "2", "--no-interrupt", "3"])
    assert (command.number_arguments("task"), command.farm) == ([1, 2, 3], "x")


def test_start_reads_its_flags(farm_dirs: Dirs) -> None:
    (farm_dirs.work / "first.py").write_text("import math\n")
    start = settings_of(
        *("-n", "3", "--farm", "x", "--fresh", "--hold", "--startup", str(farm_dirs.work / "first.py")),
        *("--queue-policy", "mine.Policy", "--policy-path", str(farm_dirs.work), "--port=7", "--unmet-timeout", "2.5"),
    )
    settings = start.settings()
    assert (settings.name, settings.engines, settings.fresh, settings.hold) == ("x", 3, True, True)
    assert (settings.startup, settings.startup_name) == ("import math\n", str(farm_dirs.work / "first.py"))
    assert settings.passed["queue_policy"] == "mine:Policy"
    assert settings.passed["policy_path"] == (farm_dirs.work.resolve(),)
    assert (settings.port, settings.passed["unmet_timeout"], settings.take_over) == (7, 2.5, False)


def test_without_n_there_are_as_many_engines_as_cores() -> None:
    assert settings_of().settings().engines == usable_cores() >= 1


def test_the_config_file_is_read_and_the_command_line_wins(farm_dirs: Dirs) -> None:
    (farm_dirs.config / "ipytaskfarm_config.py").write_text(
        "c.Start.n = 7\nc.Command.farm = 'nightly'\nc.Controller.queue_policy = 'FairShare'\n"
    )
    settings = settings_of("--farm", "daily").settings()
    assert (settings.engines, settings.name) == (7, "daily")
    assert settings.passed["queue_policy"] == "ipytaskfarm.policies:FairShare"
    assert _command("status").name == "status"


@pytest.mark.parametrize("text", ["c.Start.n = 'many'\n", "1/0\n", "c.Start.n = \n"])
def test_a_wrong_config_file_is_named(text: str, farm_dirs: Dirs) -> None:
    (farm_dirs.config / "ipytaskfarm_config.py").write_text(text)
    with pytest.raises(UsageError):
        settings_of()


def test_a_named_config_file_is_read_and_none_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"Start": {"n": 5}}')
    (tmp_path / "own.py").write_text("c.Command.farm = 'nightly'\nload_subconfig('other.py')\n")
    (tmp_path / "other.py").write_text("c.Start.n = 3\n")
    read = [settings_of("--config", str(tmp_path / f"own.{kind}")).settings() for kind in ("json", "py")]
    assert [(settings.engines, settings.name) for settings in read] == [(5, "default"), (3, "nightly")]
    (tmp_path / "own.json").write_text("{")
    with pytest.raises(UsageError, match=r"own\.json raised"):
        settings_of("--config", str(tmp_path / "own.json"))


def test_a_start_up_file_in_another_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert main(["start", "--startup", str(tmp_path / "latin.py")]) == 2
    assert f"the start-up file {tmp_path / 'latin.py'} is not UTF-8" in capsys.readouterr().err


def test_the_first_flag_means_start(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-n", "many"]) == 2
    assert capsys.readouterr().err.startswith("ipytaskfarm start: ")


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_parts_become_their_own_programs(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ipytaskfarm", name, "--nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ipytaskfarm {name}: ")
    assert len(ended.stderr.splitlines()) == 2, "a sentence, and where to read on"


def test_version_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("ipytaskfarm", "protocol", "Python", "pyzmq"))


def test_what_others_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert safe("\x1b[2Jclear\nme\r") == " [2Jclear me "
    assert safe("x" * 100, 10) == "x" * 9 + "…"
    table(("a", "b"), [("\x1b[31m[bold]red", 1), ("b", 22)], right=(1,))
    assert capsys.readouterr().out == "a                b\n [31m[bold]red   1\nb               22\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "x  20 us ... \\xe9\\U0001f600"), ("latin-1", "x  20 µs ... é\\U0001f600"), ("utf-8", None)],
)
def test_a_locale_without_utf_8_gets_all_text(encoding: str, shown: str | None) -> None:
    text = "✗  20 µs ... é😀"
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="surrogateescape")
    chosen = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    print_any_text(stream, chosen, io.StringIO())
    assert chosen.errors == "replace"
    print(text, file=stream, flush=True)
    stream.seek(0)
    assert stream.read() == f"{shown or text}\n"


def test_the_end_of_input_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def end_of_file(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end_of_file)
    assert not confirm("Remove?", yes=False)
    assert confirm("Remove?", yes=True)


def test_durations_have_the_unit_that_suits_them() -> None:
    assert [span(s) for s in (0.00002, 0.25, 12.34, 130, 7500, 180000)] == [
        *("20 µs", "250 ms", "12.3 s"),
        *("2 min 10 s", "2 h 5 min", "2 d 2 h"),
    ]
    assert [span(s) for s in (0.0009994, 0.0009996, 0.9994, 0.9996)] == ["999 µs", "1 ms", "999 ms", "1 s"]
    assert [size(n) for n in (1023, 1024, 2**20 - 1, 2**40)] == ["1023 B", "1.0 KiB", "1.0 MiB", "1.0 TiB"]


def test_a_detached_farm_goes_on_while_the_disk_of_its_log_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    reporter = Reporter(os.fdopen(write_end, "w", buffering=1), "x")
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails
    monkeypatch.setattr(sys, "stdout", full)
    reporter.say("engine 1 is ready")
    reporter.failed(errors.StoreError("its disk is full"))
    reporter.say("engine 1 is gone")
    with contextlib.suppress(OSError):
        full.close()
    with os.fdopen(read_end) as reports:
        assert [json.loads(line)["what"] for line in reports] == ["say", "failed"]
