"""Type checkers: what they tell a user about a script, and that they find an editable install."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.thorough import by_hand

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "data" / "typing" / "script.py"


class Said(NamedTuple):
    errors: dict[int, str]
    """Line -> message."""
    types: dict[int, str]
    """Line -> the revealed type, without the modules of its names."""


def expected() -> Said:
    lines = dict(enumerate(SCRIPT.read_text().splitlines(), 1))
    errors = {n: line.partition("  # error: ")[2] for n, line in lines.items() if "  # error: " in line}
    types = {n: line.partition("  # type: ")[2] for n, line in lines.items() if "  # type: " in line}
    return Said(errors, types)


def run(*words: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False, cwd=cwd, env=environment)
    assert not done.stderr, done.stderr
    return done.stdout


def bare(text: str) -> str:
    """A type without the modules of its names."""
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def mypy(tmp_path: Path) -> Said:
    # With the project's settings and cache: half a minute otherwise.
    said = Said({}, {})
    for line in run(sys.executable, "-m", "mypy", str(SCRIPT), "--no-error-summary", cwd=ROOT).splitlines():
        found = re.match(r"[^:]*script\.py:(\d+): (error|note): (.*)", line)
        if found and found[3].startswith("Revealed type is "):
            said.types[int(found[1])] = bare(found[3].removeprefix("Revealed type is ").strip('"'))
        elif found and found[2] == "error":
            said.errors[int(found[1])] = found[3]
    return said


def pyright(tmp_path: Path) -> Said:
    settings = {"include": [str(SCRIPT)], "typeCheckingMode": "standard", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    words = ("basedpyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path))
    report = json.loads(run(sys.executable, "-m", *words, cwd=tmp_path))
    said = Said({}, {})
    for each in report["generalDiagnostics"]:
        number = each["range"]["start"]["line"] + 1
        if each["severity"] == "information":
            said.types[number] = bare(each["message"].partition(" is ")[2].strip('"'))
        else:
            said.errors[number] = each["message"]
    return said


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_script_is_checked(checker: Callable[[Path], Said], tmp_path: Path) -> None:
    wanted, said = expected(), checker(tmp_path)
    assert said.errors.keys() == wanted.errors.keys(), said.errors
    for number, word in wanted.errors.items():
        assert word in said.errors[number], said.errors[number]
    assert said.types == wanted.types


@by_hand
def test_mypy_finds_an_editable_install_and_its_types(tmp_path: Path) -> None:
    """Elsewhere than in the project, where it would be found anyway."""
    words = ("--follow-imports=skip", "--no-incremental", "--python-executable", sys.executable, "-c")
    assert "Success" in run(sys.executable, "-m", "mypy", *words, "import ipytaskfarm", cwd=tmp_path)
    assert "import-not-found" in run(sys.executable, "-m", "mypy", *words, "import ipytaskform", cwd=tmp_path)


def test_the_keywords_of_a_job_are_those_that_it_takes() -> None:
    from ipytaskfarm.client.jobs import _RENAMED, _SETTABLE
    from ipytaskfarm.client.rules import JobRules

    assert JobRules.__annotations__.keys() == _SETTABLE | _RENAMED.keys() - {"task_environment"}


def test_signatures_show_every_rule() -> None:
    import inspect

    from ipytaskfarm import MapTask, StringTask, Task, TaskClient
    from ipytaskfarm.client.rules import DEFAULTS

    for kind in (Task, StringTask, MapTask):
        assert inspect.signature(kind).parameters.keys() >= DEFAULTS.keys(), kind
    assert {"args", "kwargs", "pull", "push"} <= inspect.signature(Task).parameters.keys()
    assert "retries" in inspect.signature(TaskClient.create_job).parameters
