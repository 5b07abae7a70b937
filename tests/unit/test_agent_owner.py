"""What keeps one agent on a machine, without a farm: who is there, and what stands between keeper and agent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ipytaskfarm.launchers.dask.election import Meeting
from ipytaskfarm.launchers.dask.watchdog import tether_words
from ipytaskfarm.system.farm_paths import process_started
from tests.conftest import Dirs
from tests.support.polling import eventually

AGENT = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up', flush=True)\n"


@pytest.fixture
def folder(farm_dirs: Dirs) -> Path:
    base = farm_dirs.work / "base"
    base.mkdir(mode=0o700)
    return base / "keep-x"


def meeting(folder: Path) -> Meeting:
    return Meeting(folder, folder.parent / "agent-x")


# ---------------------------------------------------------------------------------------- who is there


def test_each_is_seen_with_its_engines_until_it_departs(folder: Path) -> None:
    one, other = meeting(folder), meeting(folder)
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
    one, other = meeting(folder), meeting(folder)
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
        "import sys\nfrom pathlib import Path\nfrom ipytaskfarm.launchers.dask.election import Meeting\n"
        "found = Meeting(Path(sys.argv[1]), Path('/nowhere'))\nfound.attend(5)\nfound.lock()\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(folder)]
    here = meeting(folder)
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
    one = meeting(folder)
    one.attend(1)
    shutil.rmtree(folder)
    one.attend(1)
    assert one.engines() == [1]
    one.depart()


def test_an_end_for_good_is_for_the_same_keys(folder: Path) -> None:
    one = meeting(folder)
    one.attend(0)
    assert one.over("a") is None
    one.note_over("a", 4)
    assert meeting(folder).over("a") == 4
    assert one.over("b") is None
    one.depart()


def test_a_living_agent_keeps_the_folder(folder: Path) -> None:
    one = meeting(folder)
    one.attend(0)
    one.note_agent(os.getpid())
    assert not one.has_agent_ended()
    one.depart()
    assert folder.exists()


# ---------------------------------------------------------------------------------------- the tether


@pytest.fixture
def keeper(folder: Path) -> Iterator[Meeting]:
    found = meeting(folder)
    found.attend(0)
    yield found
    found.depart()


def tethered(keeper: Meeting, code: str, patience_s: float = 30.0) -> subprocess.Popen[str]:
    words = tether_words(os.getpid(), keeper, "x", patience_s, ["-c", AGENT + code])
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)])
def test_the_agents_exit_code_is_passed_on(keeper: Meeting, code: str, expected: int) -> None:
    with tethered(keeper, code) as tether:
        assert tether.wait(20) == expected
    assert keeper.has_agent_ended()


def test_a_signal_is_passed_on(keeper: Meeting) -> None:
    with tethered(keeper, "time.sleep(60)") as tether:
        assert tether.stdout is not None
        assert tether.stdout.readline() == "up\n"
        assert not keeper.has_agent_ended()
        tether.terminate()
        assert tether.wait(20) == 7


def test_an_agent_that_does_not_heed_is_killed(keeper: Meeting) -> None:
    with tethered(
        keeper, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)", 0.1
    ) as tether:
        assert tether.stdout is not None
        assert [tether.stdout.readline() for _ in range(2)] == ["up\n", "deaf\n"]
        tether.terminate()
        assert tether.wait(20) == 128 + 9


def test_an_agent_whose_tether_is_killed_is_told_by_the_kernel(keeper: Meeting) -> None:
    with tethered(keeper, "time.sleep(60)") as tether:
        assert tether.stdout is not None
        assert tether.stdout.readline() == "up\n"
        tether.kill()
        eventually(keeper.has_agent_ended, 20)


PARENT = """
import os, subprocess, sys
from pathlib import Path
from ipytaskfarm.launchers.dask.election import Meeting
from ipytaskfarm.launchers.dask.watchdog import tether_words
folder = Path(sys.argv[1])
meeting = Meeting(folder, folder.parent / "agent-x")
meeting.attend(0)
words = tether_words(os.getpid(), meeting, "x", 30.0, ["-c", sys.argv[2]])
subprocess.Popen([sys.executable, *words])
sys.stdin.read()
"""


@pytest.mark.parametrize("others", [False, True])
def test_who_is_left_clears_away_after_a_killed_process(folder: Path, others: bool) -> None:
    other = meeting(folder)
    if others:
        other.attend(1)
    words = [sys.executable, "-c", PARENT, str(folder), AGENT + "time.sleep(60)"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (folder.parent / "agent-x").mkdir()
        (tether,) = psutil.Process(parent.pid).children()
        assert tether.cmdline()[0] == "ipytaskfarm tether --farm x"
        parent.kill()
    eventually(lambda: process_started(tether.pid) is None, 20)
    assert meeting(folder).has_agent_ended()
    assert folder.parent.exists() is others
    if others:
        other.depart()
        assert not folder.parent.exists()


def test_nothing_is_started_for_one_that_has_died_before(folder: Path) -> None:
    here = meeting(folder)
    words = tether_words(1 << 22, here, "x", 30.0, ["-c", "import os; os.kill(os.getpid(), 9)"])
    here.attend(0)
    assert subprocess.run([sys.executable, *words], timeout=30, check=False).returncode == 0
    here.depart()
