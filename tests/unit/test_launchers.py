"""Test a launcher and the supervisor without a farm: processes, logs, cores, and reports of changes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import ipytaskfarm
from ipytaskfarm.core.messages.tables import EngineRow, FarmState
from ipytaskfarm.deployment.home import Home, sweep_temporary
from ipytaskfarm.deployment.settings import FarmSettings
from ipytaskfarm.display.farm_tables import changes, ready_engines
from ipytaskfarm.launchers import EXIT_UNKNOWN, ProcessSpec, describe_exit
from ipytaskfarm.launchers.local import LocalProcesses, child_environment, rotate, trim
from ipytaskfarm.system.farm_paths import FarmRecord, process_started, read_farm_record, write_farm_record
from tests.conftest import Dirs
from tests.support.polling import eventually


def engine(number: int, incarnation: str, state: str = "idle", note: str = "") -> EngineRow:
    return EngineRow(number, incarnation, "vm", 100 + number, state, None, 0, 0.0, {}, note=note)


def state(*engines: EngineRow, losses: tuple[str, ...] = ()) -> FarmState:
    return FarmState(
        name="x", incarnation="i", epoch=1, pid=1, started_s=0.0, wanted=2, held=False, stopping=False, counts={},
        engines=list(engines), agents=[], clients=1, store_bytes=0, losses=list(losses),
    )  # fmt: skip


def part(folder: Path, *code: str) -> ProcessSpec:
    """A program that is not ours: `code` runs in the module ``timeit``, which prints how long it took."""
    return ProcessSpec("controller", "timeit", ("-n1", "-r1", *code), folder / "out", folder)


# ---------------------------------------------------------------------------------------- processes


def test_a_process_is_started_detached_and_watched(tmp_path: Path) -> None:
    process = LocalProcesses().start(part(tmp_path, "import os; print(os.getsid(0) == os.getpid()); os._exit(7)"))
    assert eventually(lambda: process.poll() is not None)
    assert process.poll() == 7
    process.close()


def test_what_a_process_said_begins_with_its_own_start(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("from an earlier one\n")
    process = LocalProcesses().start(part(tmp_path, "import os; print(os.getsid(0) == os.getpid())"))
    eventually(lambda: process.poll() is not None)
    assert process.said().startswith("True")
    process.close()


def test_a_living_process_is_adopted_and_a_dead_one_is_not(tmp_path: Path) -> None:
    first = LocalProcesses().start(part(tmp_path, "import time; time.sleep(60)"))
    adopted = LocalProcesses().adopt(first.record())
    assert adopted is not None
    assert adopted.poll() is None
    adopted.terminate()
    eventually(lambda: first.poll() is not None)
    assert first.poll() == -signal.SIGTERM
    assert adopted.poll() == EXIT_UNKNOWN
    adopted.kill()  # nothing happens
    assert LocalProcesses().adopt(first.record()) is None
    assert LocalProcesses().adopt({**first.record(), "pid": os.getpid()}) is None
    for process in (first, adopted):
        process.close()


def test_children_find_this_package_when_it_is_not_installed() -> None:
    root = str(Path(ipytaskfarm.__file__).parent.parent)
    if root in sys.path and "site-packages" not in root:
        assert root in child_environment({})["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with exit code 0"),
        (-9, "was killed by SIGKILL"),
        (-60, "was killed by signal 60"),
        (EXIT_UNKNOWN, "is gone"),
    ],
)
def test_exits_in_words(status: int, text: str) -> None:
    assert describe_exit(status) == text


# ---------------------------------------------------------------------------------------- logs


def test_logs_rotate_before_a_start(tmp_path: Path) -> None:
    log = tmp_path / "a.out"
    for text in ("first", "second", "third", "fourth"):
        rotate(log, limit_bytes=3)
        log.write_text(text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.out": "fourth",
        "a.out.1": "third",
        "a.out.2": "second",
    }


def test_a_log_in_use_is_trimmed_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "a.out"
    with open(log, "a") as writer:
        print("much", file=writer, flush=True)
        trim(log, limit_bytes=3)
        print("more", file=writer, flush=True)
    assert (log.read_text(), log.with_name("a.out.1").read_text()) == ("more\n", "much\n")
    trim(tmp_path / "not there", 3)


def test_a_log_without_room_for_its_copy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "a.out").write_text("much")
    trim(tmp_path / "a.out", limit_bytes=3)
    assert (tmp_path / "a.out").read_text() == "much"


# ---------------------------------------------------------------------------------------- changes


def test_one_line_for_each_engine_that_comes_goes_or_is_lost() -> None:
    assert changes(None, state(engine(0, "s.1", "starting"))) == []
    before = state(engine(0, "s.1"), engine(1, "s.2"), losses=("old",))
    assert changes(state(engine(0, "s.1", "starting")), before)[-2:] == [
        "engine 0 is ready (pid 100 on vm)",
        "engine 1 is ready (pid 101 on vm)",
    ]
    lost = "engine 0 on vm was ended by signal 9 (SIGKILL)"
    after = state(engine(0, "s.3"), losses=("old", lost))
    assert changes(before, after) == [lost, "engine 1 ended (pid 101)", "engine 0 is ready (pid 100 on vm)"]
    assert changes(after, after) == []
    assert changes(after, state(engine(0, "s.3", note="start-up code raised"), losses=(lost,))) == [
        "engine 0: start-up code raised"
    ]
    assert ready_engines(before) == 2


# ---------------------------------------------------------------------------------------- homes


def test_port_0_forgets_the_farms_own_port(farm_dirs: Dirs) -> None:
    home = Home.of("x")
    settings = FarmSettings(name="x", engines=0, port=None)
    home.prepare(settings)
    record = read_farm_record(home.folder)
    assert record is not None
    write_farm_record(msgspec.structs.replace(record, port=12345), home.folder)
    home.prepare(settings)
    assert home.port == 12345
    home.prepare(replace(settings, port=0))
    record = read_farm_record(home.folder)
    assert record is not None
    assert (home.port, record.port) == (0, 0)


def test_dead_temporary_farms_are_swept(farm_dirs: Dirs) -> None:
    alive, dead = Home.temporary("temporary-1-a"), Home.temporary("temporary-1-b")
    for home, pid in ((alive, os.getpid()), (dead, 2**22 + 1)):
        write_farm_record(
            FarmRecord(name=home.name, incarnation="i", host="", port=0, store=str(home.folder / "s"), node=""),
            home.folder,
        )
        home.write_processes([{"kind": "owner", "pid": pid, "started": process_started(pid) or 1.0}])
        os.utime(home.folder, (1, 1))
    sweep_temporary()
    assert alive.folder.exists()
    assert not dead.folder.exists()
    alive.remove()


@pytest.mark.parametrize(
    ("name", "node", "stays"),
    [
        ("temporary-1-abc123", socket.gethostname(), False),
        ("temporary-1-abc123", "another-host", True),
        ("temporary-mine", socket.gethostname(), True),
    ],
)
def test_dead_temporary_farms_with_agents_are_swept_by_their_own_host(
    farm_dirs: Dirs, name: str, node: str, stays: bool
) -> None:
    """These farms are in the user's home, which other hosts see, beside permanent farms."""
    home = Home.temporary(name, with_agents=True)
    assert home.folder == Home.of(name).folder
    home.make_folders()
    write_farm_record(
        FarmRecord(name=name, incarnation="i", host="", port=0, store=str(home.folder / "s"), node=node), home.folder
    )
    os.utime(home.folder, (1, 1))
    sweep_temporary()
    assert home.folder.exists() == stays
    home.remove()
