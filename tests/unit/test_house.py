"""The house's own instruments: waiting, isolation, and the check for what was left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import Dirs, _is_farm, assert_nothing_left, isolated, processes_of
from tests.support.polling import eventually


def test_eventually_returns_the_first_true_value() -> None:
    values = iter([0, None, 7])
    assert eventually(lambda: next(values), 5.0, every_s=0.0) == 7


def test_eventually_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.0 s: the moon \(it returned 0\)"):
        eventually(lambda: 0, 0.0, what="the moon")


def test_eventually_keeps_the_assertion_that_failed_last() -> None:
    def never() -> bool:
        assert os.getpid() == 0, "not init"
        return True

    with pytest.raises(AssertionError, match="not init"):
        eventually(never, 0.0)


def test_eventually_looks_again_when_a_folder_goes_under_the_look(tmp_path: Path) -> None:
    looks = iter([FileNotFoundError("gone"), None])

    def look() -> bool:
        error = next(looks)
        if error is not None:
            raise error
        return True

    assert eventually(look, 5.0, every_s=0.0)
    with pytest.raises(AssertionError, match="No such file"):
        eventually(lambda: (tmp_path / "none").stat(), 0.0)


def test_the_session_is_isolated(session_dirs: Dirs) -> None:
    from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

    assert jupyter_data_dir() == str(session_dirs.data)
    assert jupyter_runtime_dir() == str(session_dirs.runtime)
    assert os.path.expanduser("~") == str(session_dirs.home)


def test_a_world_goes_without_a_trace(session_dirs: Dirs) -> None:
    with isolated("itf-") as dirs:
        assert os.environ["HOME"] == str(dirs.home)
        assert len(str(dirs.sockets)) < 30
    assert not dirs.root.exists()
    assert os.environ["HOME"] == str(session_dirs.home)


def test_a_process_left_behind_is_found_and_ended(farm_dirs: Dirs) -> None:
    code = (
        "import os, sys, setproctitle; f = open(sys.argv[1], 'w'); setproctitle.setproctitle('ipytaskfarm planted');"
        "print(flush=True); sys.stdin.read()"
    )
    planted = subprocess.Popen(
        [sys.executable, "-c", code, str(farm_dirs.data / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with planted:
        assert planted.stdout is not None
        planted.stdout.readline()
        assert [p.pid for p in processes_of(farm_dirs.root)] == [planted.pid]
        with pytest.raises(AssertionError, match=f"{planted.pid} ipytaskfarm planted"):
            assert_nothing_left(farm_dirs, 0.0)
        assert planted.wait(10) == -9


@pytest.mark.parametrize(
    ("command", "farm"),
    [
        ("ipytaskfarm engine 3 --farm default", True),
        ("python -P -m ipytaskfarm.controller --farm x", True),
        ("/x/bin/python /x/bin/ipytaskfarm start", True),
        ("/x/ipytaskfarm/.venv/bin/python -m pytest tests", False),
        ("vim ipytaskfarm.py", False),
        ("", False),
    ],
)
def test_farm_processes_are_told_from_others(command: str, farm: bool) -> None:
    assert _is_farm(command.split()) is farm


def test_a_temporary_farm_left_behind_is_found(farm_dirs: Dirs) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-temporary-"))
    with pytest.raises(AssertionError, match="temporary farms left behind"):
        assert_nothing_left(farm_dirs, 0.0)
    folder.rmdir()


def test_a_socket_folder_left_behind_is_found(farm_dirs: Dirs) -> None:
    folder = farm_dirs.sockets / "ipytaskfarm" / "default"
    folder.mkdir(parents=True)
    with pytest.raises(AssertionError, match="socket folders left behind"):
        assert_nothing_left(farm_dirs, 0.0)
    folder.rmdir()


def test_the_tests_that_the_guarantees_name_are_there() -> None:
    named = set(re.findall(r"\btest_\w+", (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()))
    assert len(named) > 30
    assert [name for name in sorted(named) if not list(Path(__file__).parents[1].rglob(f"{name}.py"))] == []


def test_nobody_draws_from_the_users_chance() -> None:
    """Clients and engines share a process with user code, and ``random.seed(1)`` in that code must have its usual
    effect.
    """
    drawing = re.compile(r"\brandom\.(?!(System)?Random\b)[a-z]\w*\(|^from random import", re.MULTILINE)
    found = [
        str(path)
        for path in (Path(__file__).parents[2] / "ipytaskfarm").rglob("*.py")
        if drawing.search(path.read_text())
    ]
    assert not found, f"use a random.SystemRandom() of your own in {found}"
