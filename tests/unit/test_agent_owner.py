"""Test the parts that keep one agent on a machine, without a farm: the election, and the watchdog."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ipytaskfarm.launchers.dask.election import Election
from ipytaskfarm.launchers.dask.watchdog import watchdog_words
from ipytaskfarm.system.farm_paths import process_started
from tests.conftest import Dirs
from tests.support.polling import eventually

AGENT = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up', flush=True)\n"


@pytest.fixture
def folder(farm_dirs: Dirs) -> Path:
    base = farm_dirs.work / "base"
    base.mkdir(mode=0o700)
    return base / "keep-x"


def election(folder: Path) -> Election:
    return Election(folder, folder.parent / "agent-x")


# ---------------------------------------------------------------------------------------- who is there


def test_each_is_seen_with_its_engines_until_it_departs(folder: Path) -> None:
    one, other = election(folder), election(folder)
    one.attend(2)
    other.attend(3)
    other.attend(3)
    assert sorted(one.engines()) == sorted(other.engines()) == [2, 3]
    one.depart()
    assert other.engines() == [3]
    assert folder.exists()
    other.depart()
    assert not folder.parent.exists()


def test_one_has_the_lock(folder: Path) -> None:
    one, other = election(folder), election(folder)
    one.attend(0)
    other.attend(0)
    held = one.lock()
    assert held is not None
    assert other.lock() is None
    os.close(held)
    again = other.lock()
    assert again is not None
    os.close(again)
    one.depart()
    other.depart()


def test_one_that_was_killed_is_not_there(folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ipytaskfarm.launchers.dask.election import Election\n"
        "found = Election(Path(sys.argv[1]), Path('/nowhere'))\nfound.attend(5)\nfound.lock()\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(folder)]
    here = election(folder)
    here.attend(1)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        assert sorted(here.engines()) == [1, 5]
        assert here.lock() is None
        killed.kill()
    assert here.engines() == [1]
    assert len(list(folder.glob("process-*"))) == 1
    held = here.lock()
    assert held is not None
    os.close(held)
    here.depart()


def test_one_whose_folder_went_with_others_comes_again(folder: Path) -> None:
    one = election(folder)
    one.attend(1)
    shutil.rmtree(folder)
    one.attend(1)
    assert one.engines() == [1]
    one.depart()


def test_an_end_for_good_is_for_the_same_keys(folder: Path) -> None:
    one = election(folder)
    one.attend(0)
    assert one.over("a") is None
    one.note_over("a", 4)
    assert election(folder).over("a") == 4
    assert one.over("b") is None
    one.depart()


def test_a_living_agent_keeps_the_folder(folder: Path) -> None:
    one = election(folder)
    one.attend(0)
    one.note_agent(os.getpid())
    assert not one.has_agent_ended()
    one.depart()
    assert folder.exists()


# ---------------------------------------------------------------------------------------- the watchdog


@pytest.fixture
def owner(folder: Path) -> Iterator[Election]:
    found = election(folder)
    found.attend(0)
    yield found
    found.depart()


def watched(owner: Election, code: str, patience_s: float = 30.0) -> subprocess.Popen[str]:
    words = watchdog_words(os.getpid(), owner, "x", patience_s, ["-c", AGENT + code])
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)])
def test_the_agents_exit_code_is_passed_on(owner: Election, code: str, expected: int) -> None:
    with watched(owner, code) as watchdog:
        assert watchdog.wait(60) == expected
    assert owner.has_agent_ended()


def test_a_signal_is_passed_on(owner: Election) -> None:
    with watched(owner, "time.sleep(60)") as watchdog:
        assert watchdog.stdout is not None
        assert watchdog.stdout.readline() == "up\n"
        assert not owner.has_agent_ended()
        watchdog.terminate()
        assert watchdog.wait(60) == 7


def test_an_agent_that_does_not_heed_is_killed(owner: Election) -> None:
    with watched(
        owner, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)", 0.1
    ) as watchdog:
        assert watchdog.stdout is not None
        assert [watchdog.stdout.readline() for _ in range(2)] == ["up\n", "deaf\n"]
        watchdog.terminate()
        assert watchdog.wait(60) == 128 + 9


def test_an_agent_whose_watchdog_is_killed_is_told_by_the_kernel(owner: Election) -> None:
    with watched(owner, "time.sleep(60)") as watchdog:
        assert watchdog.stdout is not None
        assert watchdog.stdout.readline() == "up\n"
        watchdog.kill()
        eventually(owner.has_agent_ended)


PARENT = """
import os, subprocess, sys
from pathlib import Path
from ipytaskfarm.launchers.dask.election import Election
from ipytaskfarm.launchers.dask.watchdog import watchdog_words
folder = Path(sys.argv[1])
election = Election(folder, folder.parent / "agent-x")
election.attend(0)
words = watchdog_words(os.getpid(), election, "x", 30.0, ["-c", sys.argv[2]])
subprocess.Popen([sys.executable, *words])
sys.stdin.read()
"""


@pytest.mark.parametrize("others", [False, True])
def test_who_is_left_clears_away_after_a_killed_process(folder: Path, others: bool) -> None:
    other = election(folder)
    if others:
        other.attend(1)
    words = [sys.executable, "-c", PARENT, str(folder), AGENT + "time.sleep(60)"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (folder.parent / "agent-x").mkdir()
        (watchdog,) = psutil.Process(parent.pid).children()
        assert watchdog.cmdline()[0] == "ipytaskfarm watchdog --farm x"
        parent.kill()
    eventually(lambda: process_started(watchdog.pid) is None)
    assert election(folder).has_agent_ended()
    assert folder.parent.exists() is others
    if others:
        other.depart()
        assert not folder.parent.exists()


def test_nothing_is_started_for_one_that_has_died_before(folder: Path) -> None:
    here = election(folder)
    words = watchdog_words(1 << 22, here, "x", 30.0, ["-c", "import os; os.kill(os.getpid(), 9)"])
    here.attend(0)
    assert subprocess.run([sys.executable, *words], timeout=60, check=False).returncode == 0
    here.depart()
