"""The worst on real farms: reboots, kill storms, tasks that spoil their agent's files, folders that were copied."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.client import io as client_io
from ipytaskfarm.core import errors
from ipytaskfarm.deployment import watched_process
from ipytaskfarm.deployment.home import Home, sweep_temporary
from ipytaskfarm.storage.beside import recorders_folder
from ipytaskfarm.transport import peer
from tests.conftest import Dirs, processes_of
from tests.farm.test_farm import COMMAND, background_farm, command, pid_of
from tests.support.farms import DEADLINE_S, module_farm, until_engines
from tests.support.polling import eventually
from tests.support.reboot import booted, cut_power
from tests.support.thorough import THOROUGH, by_hand, some_of

pytestmark = pytest.mark.farm

COUNT = 400
TASK_S = 0.01
ALL_DONE_S = 30.0 if THOROUGH else 60.0  # beside other tests the machine is busy


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file to which each run of a task appends its number: what really ran, whatever the farm says."""
    return tmp_path / "ledger"


def appending(ledger: Path, number: int, then: str = f"time.sleep({TASK_S})", **rules: Any) -> Task:
    code = (
        "import os, time\n"
        f"fd = os.open({str(ledger)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
        f"os.write(fd, b'{number}\\n')\n"
        "os.close(fd)\n"
        f"{then}\n"
    )
    return Task(code, **rules)


def ran(ledger: Path) -> Counter[int]:
    return Counter(int(line) for line in ledger.read_text().split()) if ledger.exists() else Counter()


def has_run(ledger: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(ran(ledger).values()) >= count


@pytest.mark.parametrize("recorders", some_of(["kept", "lost"], 1))
def test_a_reboot(recorders: str, farm_dirs: Dirs, ledger: Path, tmp_path: Path) -> None:
    """Power cut, start, all work done within half a minute; what had not begun is not failed as if it had."""
    with booted("before", tmp_path), background_farm("-n", "2") as home:
        with TaskClient() as tc:
            ids = [tc.run(appending(ledger, n)) for n in range(COUNT)]
            tc.flush()
            eventually(has_run(ledger, COUNT // 8))
            cut_power(farm_dirs)
        before = ran(ledger)
        assert sum(before.values()) < COUNT, "nothing is left to do after the reboot"
        if recorders == "lost":
            for recorder in recorders_folder(home.folder / "store.sqlite").rglob("*.rec"):
                recorder.unlink()
        with booted("after", tmp_path):
            began_s = time.monotonic()
            started = command("start", "--daemonize", "-n", "2")
            assert started.returncode == 0, started.stdout + started.stderr
            with TaskClient() as tc:
                tc.barrier(ids, timeout=ALL_DONE_S)
                assert time.monotonic() - began_s < ALL_DONE_S
                failed = [row for row in tc.tasks(ids=ids).rows if row.state == "failed"]
                for row in failed:
                    text = str(tc.explain(row.id))
                    assert "its machine was started again" in text, text
                    assert "the task may have run" in text, text
    after = ran(ledger)
    assert max(after.values()) == 1, "a task without retries was begun twice"
    numbers = {id: n for n, id in enumerate(ids)}
    never = [row.id for row in failed if numbers[row.id] not in after]
    assert len(after) + len(never) == COUNT
    if recorders == "kept":
        assert len(never) <= 2 * (1 + 0.05 / TASK_S), f"{len(never)} tasks had not begun, and failed"


# -- storms of kills, and owners that are killed amid the start


STORM_S = 6.0 if THOROUGH else 3.0
RECOVERS_S = 90.0
"""The longest pause between two starts, and the start."""


def test_a_storm_of_kills_delays_the_work_and_ends_nothing(farm_dirs: Dirs, ledger: Path) -> None:
    """Controller, agent and zygote are killed every 0.7 s: the farm goes on when the storm is over."""
    with background_farm("-n", "2") as home, TaskClient() as tc:
        supervisor = pid_of(home, "supervisor")
        ids = [tc.run(appending(ledger, n, retries=50)) for n in range(COUNT // 4)]
        tc.flush()
        ends_s = time.monotonic() + STORM_S
        while time.monotonic() < ends_s:
            for process in processes_of(farm_dirs.root):
                with contextlib.suppress(psutil.NoSuchProcess):
                    title = " ".join(process.cmdline())
                    if any(word in title for word in ("controller", "agent", "zygote")):
                        process.kill()
            time.sleep(0.7)
        with TaskClient() as newcomer:  # which waits too, however long the pause is
            newcomer.barrier(ids, timeout=RECOVERS_S)
        tc.barrier(ids, timeout=RECOVERS_S)
        assert tc.queue_status()["succeeded"] == len(ids)
        assert ran(ledger).keys() == set(range(len(ids)))
        assert pid_of(home, "supervisor") == supervisor
        assert "in a row" not in home.output("supervisor").read_text()


NEWCOMER = """
from ipytaskfarm import TaskClient, errors
from ipytaskfarm.client import sessions
from ipytaskfarm.transport import peer

sessions.CONNECT_TIMEOUT_S = 2.0
peer.RETRY_LONGEST_S = 0.2
try:
    with TaskClient("paused", {arguments}) as tc:
        print(tc.queue_status()["succeeded"], "result")
except errors.FarmNotRunning:
    print("not running")
"""


def newcomer(arguments: str) -> subprocess.Popen[str]:
    """Start a process whose client connects to the farm "paused"."""
    code = NEWCOMER.format(arguments=arguments)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("file", some_of(["gone", "there"], 1))
def test_clients_wait_as_long_as_the_supervisor_does(
    file: str, farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pause before the next start is longer than all that a client waits for: it says why, and goes on."""
    monkeypatch.setattr(watched_process, "PAUSE_MIN_S", 4.0)
    for limit in ("GONE_S", "NOTICE_S"):
        monkeypatch.setattr(client_io, limit, 0.5)
    monkeypatch.setattr(peer, "RETRY_LONGEST_S", 0.2)
    with Farm(n=1, name="paused") as farm, farm.task_client() as tc:
        before = tc.run(Task("a = 1", pull="a"))
        tc.barrier(before)
        assert farm.state is not None
        psutil.Process(farm.state.pid).kill()
        home = Home.of("paused")
        eventually(lambda: home.read_processes()[0]["again_s"] is not None, what="the supervisor says when it starts")
        if file == "gone":
            home.client_file.unlink()
        with newcomer("timeout=0.2") as hasty, newcomer("") as patient:
            assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2
            assert hasty.communicate(timeout=DEADLINE_S)[0] == "not running\n", "a time limit is one"
            assert "result" in patient.communicate(timeout=DEADLINE_S)[0]
        assert tc.get_task_result(before).ns.a == 1
    said = capsys.readouterr().err
    assert "starts its controller again" in said


OWNER = """
from ipytaskfarm import Farm

print("starting", flush=True)
with Farm(n=1) as farm:
    print("ready", flush=True)
    input()
"""
MOMENTS_S = (0.0, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6) if THOROUGH else (0.1, 0.6)


def test_an_owner_that_is_killed_amid_the_start_leaves_nothing(farm_dirs: Dirs) -> None:
    """No agent and no zygote waits out a lease: at whatever moment the owner is killed."""
    for moment_s in MOMENTS_S:
        owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"starting\n"
        time.sleep(moment_s)
        owner.kill()
        owner.communicate()
    eventually(lambda: not processes_of(farm_dirs.root), what="nothing is left of the farms")
    for folder in farm_dirs.temporary.glob("ipytaskfarm-*"):  # of an owner without a process yet that could remove it
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder, (0.0, 0.0))
    sweep_temporary()  # as the next temporary farm does


@pytest.mark.parametrize("moment_s", [0.3, 0.45, 0.6, 0.8, 1.2] if THOROUGH else [0.5])
def test_a_start_after_a_supervisor_that_was_killed_amid_its_start(farm_dirs: Dirs, moment_s: float) -> None:
    killed = subprocess.Popen([*COMMAND, "start", "-n", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment_s)
    killed.kill()
    killed.wait()
    with background_farm("-n", "1"), TaskClient() as tc:
        assert tc.run(Task("a = 1", pull="a"), block=True).ns.a == 1
    eventually(lambda: not processes_of(farm_dirs.root), what="nothing is left of the farm")


# -- backups that are put back, folders that are copied and moved


def test_a_backup_that_is_put_back_and_a_client_that_lives_through_it(farm_dirs: Dirs, tmp_path: Path) -> None:
    """The client knows tasks that the farm has not any more: it is told, and reads no others' results under its ids."""
    saved = tmp_path / "saved.sqlite"
    with background_farm("-n", "1") as home, TaskClient() as tc:
        before = tc.run(Task("a = 'before'", pull="a"))
        tc.barrier(before)
        assert command("backup", str(saved)).returncode == 0
        after = tc.run(Task("a = 'after'", pull="a"))
        tc.barrier(after)
        assert command("stop", "--wait", "0").returncode == 0
        shutil.copyfile(saved, home.folder / "store.sqlite")
        started = command("start", "--daemonize", "-n", "1")
        assert started.returncode == 0, started.stderr
        assert "a backup was put in the place of its store" in started.stdout
        with TaskClient() as other:
            assert other.run(Task("a = 'another'", pull="a"), block=True).ns.a == "another"
            assert other.get_task_result(before).ns.a == "before"
            with pytest.raises(errors.FarmReplaced):
                tc.run(Task("a = 1"), block=True)
            assert tc.get_task_result(after).ns.a == "after", "what it has fetched is its own"
        checked = command("check")
        assert checked.returncode == 0, checked.stdout


def test_a_damaged_log_and_what_start_and_check_say(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home, TaskClient() as tc:
        ids = [tc.run(Task("a = 1", pull="a")) for _ in range(200)]
        tc.barrier(ids)
        tc.queue_status()  # the count of results is written after their answers have left, and before the next turn
        for process in processes_of(farm_dirs.root):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends with another one
                process.kill()
        eventually(lambda: not processes_of(farm_dirs.root))
        log = home.folder / "store.sqlite-wal"
        with open(log, "r+b") as file:
            file.seek(32 + 24 + 100)
            file.write(b"?")
        checked = command("check")
        assert checked.returncode == 1
        assert "acknowledged" in checked.stdout
        started = command("start", "--daemonize", "-n", "1")
        assert started.returncode == 0, started.stderr
        assert "200 results" in started.stdout
        assert "had been acknowledged" in started.stdout
        with pytest.raises(errors.FarmReplaced):
            tc.run(Task("a = 1"), block=True)


@by_hand
def test_a_farm_folder_under_another_name(farm_dirs: Dirs) -> None:
    """It is copied while its farm runs, and is moved after its farm has stopped."""
    with background_farm("-n", "1", farm="first") as home:
        with TaskClient("first") as tc:
            done = tc.run(Task("a = 'first'", pull="a"))
            tc.barrier(done)
        shutil.copytree(home.folder, home.folder.with_name("copied"))
        with runs_what_first_has_done("copied", done), TaskClient("first") as tc:
            assert tc.run(Task("a = 'on'", pull="a"), block=True).ns.a == "on", "the first goes on"
        assert command("stop", "--wait", "0", "--farm", "first").returncode == 0
        shutil.move(home.folder, home.folder.with_name("moved"))
        with runs_what_first_has_done("moved", done):
            pass


@contextlib.contextmanager
def runs_what_first_has_done(farm: str, done: int) -> Iterator[None]:
    """Provide a running farm that has the first one's result, and works."""
    began_s = time.monotonic()
    with background_farm("-n", "1", farm=farm):
        assert time.monotonic() - began_s < DEADLINE_S
        with TaskClient(farm) as tc:
            assert tc.get_task_result(done).ns.a == "first"
            assert tc.run(Task(f"a = {farm!r}", pull="a"), block=True).ns.a == farm
        yield


@by_hand
def test_a_farm_without_a_store_of_its_own(farm_dirs: Dirs, tmp_path: Path) -> None:
    """Start says why it does not, in a sentence with the remedy, and leaves the other farm's store alone."""
    store_dir = tmp_path / "store"
    store_dir.mkdir(mode=0o700)
    with background_farm("-n", "0", "--store-dir", str(store_dir), farm="first") as home:
        pass
    (store,) = store_dir.glob("*.sqlite")
    shutil.copytree(home.folder, home.folder.with_name("second"))
    begins_only_anew("second", "both would use one store")
    assert store.exists()
    store.unlink()
    begins_only_anew("first", f"there is no {store}")
    assert not store.exists()


def begins_only_anew(farm: str, why: str) -> None:
    refused = command("start", "--daemonize", "--farm", farm, "-n", "0")
    assert refused.returncode != 0
    assert why in refused.stderr
    assert "--fresh" in refused.stderr
    with background_farm("-n", "0", "--fresh", farm=farm):
        pass


# -- tasks that spoil their own agent's files

FIND = (
    "import glob, os, shutil, time\n"
    "rec = next(line.split()[-1] for line in open('/proc/self/maps') if line.rstrip().endswith('.rec'))\n"
    "folder = os.path.dirname(rec)\n"
)
SPOIL = {
    "cut": ("os.truncate(rec, 0)", "cut to 0 bytes"),
    "cut in the middle": ("os.truncate(rec, 8192)", "cut to 8,192 bytes"),
    "overwritten": ("open(rec, 'r+b').write(bytes(4096))", "overwritten"),
    "its head overwritten": ("f = open(rec, 'r+b'); f.seek(256); f.write(b'x' * 8); f.close()", "overwritten"),
    "its tail overwritten": ("f = open(rec, 'r+b'); f.seek(320); f.write(b'x' * 8); f.close()", "overwritten"),
    "deleted": ("os.unlink(rec)", "deleted"),
    "replaced": ("shutil.copy(rec, rec + '2'); os.replace(rec + '2', rec)", "replaced"),
    "its folder removed": ("shutil.rmtree(folder)", "deleted"),
    "a socket removed": ("os.unlink(folder + '/lane.sock')", "removed"),
}


@pytest.fixture(scope="module")
def spoiled_farm() -> Iterator[Farm]:
    with module_farm(2) as farm:
        yield farm


@pytest.mark.parametrize("how", some_of(list(SPOIL), 3))
def test_a_task_that_spoils_its_agents_files(spoiled_farm: Farm, how: str) -> None:
    """The engine is replaced, the task fails with that reason, and the farm goes on: nothing runs for ever."""
    spoil, reason = SPOIL[how]
    with spoiled_farm.task_client() as tc:
        task = tc.run(Task(f"{FIND}{spoil}\ntime.sleep(60)\n"))
        tc.barrier(task, timeout=60)
        row = tc.tasks(ids=[task]).rows[0]
        text = str(tc.explain(task))
        assert row.state == "failed"
        if not how.startswith("cut"):  # the agent may look at the file just when it is cut, and then dies of it
            assert reason in text, text
        after = [tc.run(Task("a = 1", pull="a", retries=3)) for _ in range(20)]
        tc.barrier(after, timeout=60)
        assert {row.state for row in tc.tasks(ids=after).rows} == {"succeeded"}
    until_engines(spoiled_farm, 2)


@by_hand
def test_a_damaged_blob_is_named_when_it_is_read_and_by_check(farm_dirs: Dirs) -> None:
    """One that was cut says so when it is read; one with another bit is found by check."""
    with background_farm("-n", "1") as home, TaskClient() as tc:
        task = tc.run(
            Task("import array\na = array.array('d', range(100_000))\nb = bytes(range(256)) * 4000", pull="b")
        )
        tc.barrier(task)
        (blob,) = (path for path in (home.folder / "store.sqlite.blobs").glob("??/*"))
        assert command("check").returncode == 0
        data = bytearray(blob.read_bytes())
        data[1000] ^= 1
        blob.write_bytes(data)
        checked = command("check")
        assert checked.returncode == 1
        assert "another content than was written" in checked.stdout
        os.truncate(blob, 5000)
        with TaskClient() as other:
            result = other.get_task_result(task)
            with pytest.raises(errors.BlobMissing, match="its file is damaged: it has 5,000 bytes"):
                _ = result.ns.b


# -- disks that are full, or read-only, at the start

ON_A_BAD_DISK = """
mount -t tmpfs -o size={size} none "$JUPYTER_DATA_DIR" && {spoil}
exec {python} -m ipytaskfarm start --daemonize -n 0
"""


@pytest.mark.parametrize(
    ("size", "spoil", "why"),
    [
        ("1m", 'head -c 2000000 /dev/zero >"$JUPYTER_DATA_DIR/full"', "No space left on device"),
        ("9m", 'mkdir -p "$JUPYTER_DATA_DIR/ipytaskfarm/default/logs" && chmod -R 700 "$JUPYTER_DATA_DIR/ipytaskfarm" '
         '&& mount -o remount,ro "$JUPYTER_DATA_DIR"', "Read-only file system"),
    ],
)  # fmt: skip
def test_a_start_on_a_bad_disk_says_why_in_one_sentence(farm_dirs: Dirs, size: str, spoil: str, why: str) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    script = ON_A_BAD_DISK.format(size=size, spoil=spoil, python=sys.executable)
    done = subprocess.run([unshare, "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert why in said, done.stderr
    assert "make room on that disk, or set JUPYTER_DATA_DIR" in said or "set JUPYTER_DATA_DIR to a folder" in said
    assert "Traceback" not in done.stderr
