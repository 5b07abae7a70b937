"""Tasks that put something else in the place of their farm's files, or stop its processes: nothing is wedged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system import process
from ipytaskfarm.system.farm_paths import is_stale, read_connection_file
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command, pid_of
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually
from tests.support.thorough import some_of

pytestmark = pytest.mark.farm

PLACES = """
import glob, os, shutil, stat, time
rec = next(line.split()[-1] for line in open('/proc/self/maps') if line.rstrip().endswith('.rec'))
recorders = os.path.dirname(rec)
(folder,) = glob.glob(os.environ['XDG_RUNTIME_DIR'] + '/ipytaskfarm/spoiled-*/agent-0')
agent = int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])
place = PLACE
if os.path.lexists(place):
    shutil.rmtree(place) if stat.S_ISDIR(os.lstat(place).st_mode) else os.unlink(place)
"""
THINGS = {
    "folder": "os.mkdir(place)",
    "pipe": "os.mkfifo(place)",
    "file": "open(place, 'w').write('x')",
    "link": "os.symlink('/nonexistent/file', place)",
}
ENDS = {"goes on": "time.sleep(60)", "exits": "os._exit(3)", "kills": "os.kill(agent, 9); time.sleep(60)"}
CASES = [
    ("rec", "folder", "goes on"),
    ("recorders", "file", "goes on"),
    ("folder + '/zygote.out'", "pipe", "kills"),
    ("rec + '.spill-0'", "folder", "exits"),
    ("folder", "file", "goes on"),
    ("recorders + '/sessions'", "folder", "kills"),
    ("glob.glob(folder + '/engine-*.out')[0]", "pipe", "exits"),
    ("folder + '/agent.lock'", "folder", "kills"),
    ("os.path.dirname(folder)", "file", "goes on"),
    ("recorders + '/engine-99.rec'", "folder", "kills"),
    ("folder + '/bell.sock'", "folder", "goes on"),
    ("os.path.dirname(recorders)", "pipe", "kills"),
    ("folder + '/lane.sock'", "link", "goes on"),
    ("recorders + '/farm'", "pipe", "kills"),
]
"""(place, what is put there, how the task goes on)."""


@pytest.fixture(scope="module")
def spoiled_farm(session_dirs: Dirs) -> Iterator[TaskClient]:
    """Provide the client of a farm with a name: its recorders are beside its store."""
    with background_farm("-n", "1", farm="spoiled"), TaskClient("spoiled") as tc:
        yield tc


def spoiler(place: str, thing: str, end: str) -> Task:
    return Task(f"{PLACES.replace('PLACE', place)}{THINGS[thing]}\n{ENDS[end]}\n")


@pytest.mark.parametrize(("place", "thing", "end"), some_of(CASES, 5))
def test_something_else_in_the_place_of_its_agents_file(
    spoiled_farm: TaskClient, place: str, thing: str, end: str
) -> None:
    """The task fails, what comes after it runs, and the farm is not given up."""
    tc = spoiled_farm
    task = tc.run(spoiler(place, thing, end))
    after = [tc.run(Task("a = 1", pull="a", retries=3)) for _ in range(5)]
    tc.barrier([task, *after], timeout=DEADLINE_S)
    assert tc.tasks(ids=[task]).rows[0].state == "failed", str(tc.explain(task))
    assert {row.state for row in tc.tasks(ids=after).rows} == {"succeeded"}


@pytest.mark.parametrize("part", ["agent-0", "controller"])
def test_a_process_of_the_farm_that_is_stopped(part: str, farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends it, and nobody hears of it: the supervisor kills it, and starts it again."""
    monkeypatch.setattr(process, "STOPPED_S", 2.0)
    with Farm(n=1, name="stopped") as farm, farm.task_client() as tc:
        tc.run(Task("a = 1"), block=True)
        pid = pid_of(Home.of("stopped"), part)
        os.kill(pid, signal.SIGSTOP)
        tasks = [tc.run(Task("a = 1", retries=3)) for _ in range(5)]
        tc.barrier(tasks, timeout=DEADLINE_S)
        assert {row.state for row in tc.tasks(ids=tasks).rows} == {"succeeded"}
        assert pid_of(Home.of("stopped"), part) != pid


SPOILED_FILES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: None,
    "garbled": lambda path: path.write_text("x"),
    "folders now": lambda path: path.mkdir(),
    "links now": lambda path: path.symlink_to("/nonexistent/file"),
}
CONNECT = "from ipytaskfarm import TaskClient; TaskClient().queue_status()"


def is_whole(path: Path) -> bool:
    try:
        return not is_stale(read_connection_file(path))
    except (errors.TaskFarmError, OSError):
        return False


def test_connection_files_that_are_spoiled_while_the_farm_runs(farm_dirs: Dirs) -> None:
    """The controller writes them again: new clients come in, and all commands agree that the farm runs."""
    with background_farm("-n", "0") as home:
        files = (home.client_file, home.agent_file)
        for what, spoil in SPOILED_FILES.items():
            for path in files:
                path.unlink()
                spoil(path)
            if what == "removed":  # amid the gap
                subprocess.run([sys.executable, "-c", CONNECT], check=True, timeout=DEADLINE_S)
            eventually(lambda: all(map(is_whole, files)), what=f"the files are there again that were {what}")
        assert command("status").returncode == 0
