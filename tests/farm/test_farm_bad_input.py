"""Bad input and bad weather get a clear error, and nothing is lost: a full disk, stale files, other versions."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm import Task, TaskClient, errors
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.deployment.daemon import stop_farm
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport import peer, wire
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command, pid_of
from tests.support.polling import eventually
from tests.support.small_disk import said_on_small_disk

pytestmark = pytest.mark.farm

FULL_DISK = """
import os, subprocess, sys, time
from ipytaskfarm import Farm, Task, errors
disk = sys.argv[1]
with Farm(n=1, name="full", store_dir=disk) as farm, farm.task_client() as tc:
    before = tc.run(Task("a = 'before'", pull="a"), block=True)
    ids = []
    def until_refused(word):
        deadline = time.monotonic() + 30
        while True:
            ids.append(tc.run(Task("a = %d" % len(ids), pull="a")))
            try:
                tc.flush(timeout=10)
            except errors.StoreFull as error:
                print(word, error)
                return
            assert time.monotonic() < deadline, "nobody says so"
    def until_ended():
        deadline = time.monotonic() + 60
        while True:
            try:
                return tc.barrier(ids, timeout=30)
            except errors.StoreFull:
                assert time.monotonic() < deadline, "all is well again and nobody goes on"
                time.sleep(0.05)
    (store,) = [os.path.join(disk, name) for name in os.listdir(disk) if name.endswith(".sqlite")]
    os.rename(store, store + ".away")
    until_refused("away:")
    os.rename(store + ".away", store)
    until_ended()
    filler = os.path.join(disk, "filler")
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300 * 2**20)
    until_refused("full:")
    status = [sys.executable, "-m", "ipytaskfarm", "status", "--farm", str(farm.connection_file)]
    print(subprocess.run(status, capture_output=True, text=True, timeout=60).stdout.splitlines()[2])
    try:
        tc.barrier(ids, timeout=10)
    except errors.StoreFull:
        print("barrier too")
    assert before.ns.a == "before"
    os.unlink(filler)
    until_ended()
    print("all:", [tc.get_task_result(i).ns.a for i in ids] == list(range(len(ids))))
    def fill_and_return(filler):
        with open(filler, "wb") as file:
            while (size := os.statvfs(filler).f_bavail * 4096 - (1 << 20)) > 0:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
        return os.urandom(4 << 20)
    running = tc.run(Task(fill_and_return, args=(filler,)))
    deadline = time.monotonic() + 30
    while "waits for room" not in (text := tc.explain(running)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    print("waits:", text.splitlines()[-1])
    os.unlink(filler)
    print(len(tc.get_task_result(running, block=True).result))
    with farm.multiengine_client() as mec:
        while "waits for room" in str(mec.engines()):
            assert time.monotonic() < deadline + 60, "its engine is said to wait for ever"
            time.sleep(0.05)
"""


def test_a_full_disk_and_a_store_that_was_moved_away_are_said_and_nothing_is_lost(
    farm_dirs: Dirs, tmp_path: Path
) -> None:
    said = said_on_small_disk(FULL_DISK, tmp_path)
    assert said[0].startswith("away: ")
    assert "was removed while the farm runs" in said[0]
    assert said[1].startswith("full: ")
    assert said[2].startswith("no task is accepted: ")
    assert "make room" in said[2]
    assert said[3:5] == ["barrier too", "all: True"]
    assert said[5].startswith("waits: engine 0: its result waits for room on the disk of ")
    assert said[6:] == [str(4 << 20)]


START_WITHOUT_ROOM = """
import os, subprocess, sys, warnings
from ipytaskfarm import Farm
disk = sys.argv[1]
with open(os.path.join(disk, "filler"), "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 300 * 2**20)
with warnings.catch_warnings(record=True) as told, Farm(n=1, name="here", store_dir=disk):
    print(*(warning.message for warning in told))
command = [sys.executable, "-m", "ipytaskfarm"]
start = [*command, "start", "--farm", "there", "-n", "1", "--daemonize", "--store-dir", disk]
try:
    print(subprocess.run(start, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
finally:
    subprocess.run([*command, "stop", "--farm", "there"], capture_output=True, check=True)
"""


def test_a_farm_that_starts_without_room_says_that_it_accepts_no_task(farm_dirs: Dirs, tmp_path: Path) -> None:
    why = r"the disk that holds the farm's store has \d+ MiB left, less than the 1,024 MiB .* \(`tc.clear\(\)`\)"
    here, there = said_on_small_disk(START_WITHOUT_ROOM, tmp_path)
    assert re.fullmatch(f"no task is accepted: {why}", here)
    ready = r"farm 'there' is ready: 1 engine, controller pid \d+\."
    assert re.match(rf"{ready} No task is accepted: {why}\. Connect: ", there)


NO_COMMITS = """
import os, sys, time
from ipytaskfarm import Farm, Task, errors
from ipytaskfarm.core.messages import FarmStatus
from ipytaskfarm.deployment.light_client import connect
disk = sys.argv[1]
filling, full, gate = [os.path.join(disk, name) for name in ("filling", "full", "gate")]
LEASE_S = 5.0
AWAIT = "import os, time\\nwhile not os.path.exists(%r): time.sleep(0.02)\\n"

def fill():
    with open(filling, "wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - (1 << 20))
        file.seek(0, os.SEEK_END)
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            os.rename(filling, full)

def until_said(ask):
    deadline = time.monotonic() + 60
    while True:
        try:
            ask()
        except errors.StoreFull as error:
            if "no room for the store" in str(error):
                return "said"
        assert time.monotonic() < deadline, "nobody says so"

with Farm(n=2, name="full", store_dir=disk, lease=LEASE_S) as farm, farm.task_client() as tc:
    quiet = tc.run(Task(AWAIT % gate + "a = 'went on'", pull="a"))
    loud = [tc.run(Task(AWAIT % full + "print('x' * 60_000)")) for _ in range(100)]
    tc.flush()
    fill()
    def ask():
        with connect("full") as questioner:
            questioner.answer(FarmStatus())
    print(until_said(ask))
    late = tc.run(Task("a = 1"))
    print(until_said(lambda: tc.flush(timeout=10)))
    full_s = time.monotonic()
    while time.monotonic() < full_s + 2 * LEASE_S:
        until_said(ask)
    os.truncate(full, 0)
    open(gate, "w").close()
    deadline = time.monotonic() + 60
    while True:
        try:
            tc.barrier([quiet, *loud, late], timeout=60)
            break
        except errors.StoreFull:
            assert time.monotonic() < deadline, "all is well again and nobody goes on"
    print(tc.get_task_result(quiet).ns.a, {row.state for row in tc.tasks(ids=loud).rows})
"""


def test_while_no_commit_has_room_everybody_is_told_and_engines_keep_their_work(
    farm_dirs: Dirs, tmp_path: Path
) -> None:
    """The controller fell silent, and the agent ended its engines after its lease: it is told that it lives."""
    assert said_on_small_disk(NO_COMMITS, tmp_path) == ["said", "said", "went on {'succeeded'}"]


ENDS = (
    NO_COMMITS.split("    print(until_said(ask))", maxsplit=1)[0]
    + """
    print(until_said(ask))
    ends_s = time.monotonic()
print(time.monotonic() - ends_s < 20, flush=True)
"""
)


def test_a_farm_that_ends_with_its_block_does_not_wait_for_room(farm_dirs: Dirs, tmp_path: Path) -> None:
    assert said_on_small_disk(ENDS, tmp_path) == ["said", "True"]


def test_a_stale_connection_file_is_recognised_and_the_keys_stay(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home:
        keys = (home.folder / "keys.json").read_bytes()
        for kind in ("supervisor", "controller", "agent-0"):
            os.kill(pid_of(home, kind), signal.SIGKILL)
        path = farm_paths.connection_path("default")
        eventually(lambda: farm_paths.is_stale(farm_paths.read_connection_file(path)))
        with pytest.raises(errors.FarmNotRunning, match="ipytaskfarm start"):
            TaskClient(timeout=1.0)
        assert command("start", "--daemonize", "-n", "1").returncode == 0
        assert (home.folder / "keys.json").read_bytes() == keys
        with TaskClient() as tc:
            assert tc.queue_status()["failed"] == 0


def test_another_version_is_refused_and_both_are_named(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    with background_farm("-n", "0"):
        for module in (wire, peer):
            monkeypatch.setattr(module, "PROTOCOL", 999)
        with pytest.raises(errors.VersionMismatch, match=rf"protocol {PROTOCOL}\).*protocol 999"):
            TaskClient(timeout=60).queue_status()


def test_a_farm_of_another_version_can_be_stopped(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade the command could neither ask the farm to stop, nor start another in its place."""
    with background_farm("-n", "1") as home, TaskClient() as tc:
        task = tc.run(Task("a = 5", pull="a"))
        tc.barrier([task])
        for module in (wire, peer):
            monkeypatch.setattr(module, "PROTOCOL", 999)
        said = Said()
        with pytest.raises(errors.VersionMismatch, match=r"ipytaskfarm stop"):
            stop_farm(home, None, said)
        stop_farm(home, 5.0, said)
        assert any("another version" in line for line in said.lines)
        assert home.living_info() is None
        monkeypatch.undo()
        assert command("start", "--daemonize", "-n", "1").returncode == 0
        with TaskClient() as again:
            assert again.get_task_result(task)["a"] == 5


class Said:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def progress(self, text: str) -> None:
        self.lines.append(text)

    say = progress


def test_a_connection_file_that_others_can_read_is_refused(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0"):
        path = farm_paths.connection_path("default")
        path.chmod(0o644)
        try:
            with pytest.raises(errors.SecurityError, match=r"ipytaskfarm-default\.json"):
                TaskClient()
        finally:
            path.chmod(0o600)


def test_a_damaged_connection_file_is_named(farm_dirs: Dirs) -> None:
    path = farm_paths.connection_path("default")
    farm_paths.private_folder(path.parent)
    farm_paths.write_private(path, msgspec.json.encode({"farm": "default"}))
    with pytest.raises(errors.ConnectionError, match=r"ipytaskfarm-default\.json"):
        TaskClient(timeout=60)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("start", "-n", "-3"), "0 or more"),
        (("start", "--startup", "/absent.py"), "/absent.py"),
        (("status",), "start"),
    ],
)
def test_the_command_says_what_is_wrong_without_a_traceback(words: tuple[str, ...], part: str, farm_dirs: Dirs) -> None:
    ended = command(*words)
    assert ended.returncode != 0
    assert part in ended.stderr
    assert "Traceback" not in ended.stderr
