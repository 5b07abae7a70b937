"""The doctor's checks, each with something wrong on purpose: it is found, and the remedy is named."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm import __version__
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.doctor import Finding, Level, files, machine, network, rounds
from ipytaskfarm.doctor.systems import systems
from ipytaskfarm.storage import disk
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.control_groups import MemoryRoom
from ipytaskfarm.system.farm_paths import ConnectionInfo, FarmRecord, write_connection_file
from ipytaskfarm.transport.keys import FarmKeys, farm_keys, info_for, make_farm_keys, make_keypair, rotated, save_keys
from tests.conftest import Dirs
from tests.support.wire_world import World

PROJECT = Path(__file__).parents[2]
REQUIRED = ["pyzmq>=27", "msgspec >=0.20", "rich", 'distributed>=2026; extra == "dask"']


def told(finding: Finding, level: Level, *parts: str) -> None:
    """Assert that a finding has this level, contains these words, and has a remedy if one is needed."""
    assert finding.level is level, finding
    text = f"{finding.found} | {finding.remedy}"
    assert all(part in text for part in parts), text
    assert bool(finding.remedy) == (level is not Level.OK)


def wrongs(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings if finding.level is not Level.OK}


# ------------------------------------------------------------------------------------------------ the machine


def test_an_old_python() -> None:
    told(machine.python("3.9.18"), Level.WRONG, "3.9.18", "use Python 3.11 or newer")
    told(machine.python("3.11.0"), Level.OK, "3.11.0", sys.executable)
    told(machine.python("3.100.1"), Level.OK)


def test_the_oldest_python_is_the_projects() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    assert f'requires-python = ">={machine.OLDEST_PYTHON}"' in text


def test_packages_that_are_old_or_missing() -> None:
    there = {"pyzmq": "26.4", "msgspec": "0.20.0", "rich": "14.0rc1"}
    found = machine.packages(REQUIRED, there.get, "3.51.3")
    told(found, Level.WRONG, "pyzmq 26.4 is older than 27", "-m pip install 'pyzmq>=27'")
    assert "msgspec" not in found.remedy
    told(machine.packages(REQUIRED, {**there, "pyzmq": "27.0.1"}.get, "3.51.3"), Level.OK, "all 3")
    told(machine.packages(REQUIRED, {"pyzmq": "27", "rich": "1"}.get, "3.51.3"), Level.WRONG, "msgspec is missing")
    told(machine.packages(["rich"], {"rich": "1"}.get, "3.31.0"), Level.WRONG, "SQLite 3.31.0 is older than 3.38")
    told(machine.packages([], there.get, "3.51.3"), Level.WARNING, "not installed", f"ipytaskfarm=={__version__}")


def test_the_packages_of_these_tests() -> None:
    assert any(text.startswith("pyzmq") for text in machine.requirements())
    assert machine.installed_version("pyzmq") is not None
    assert machine.installed_version("no-such-package") is None


def test_engines_run_on_linux_alone() -> None:
    told(machine.forking("darwin"), Level.WRONG, "darwin", "Linux")
    told(machine.forking("linux"), Level.OK)


def test_limits_on_files() -> None:
    told(machine.open_files(500, 1024, 4096), Level.WRONG, "1,024", "1,528", "ulimit -n 3056")
    told(machine.open_files(500, 1024, 2000), Level.WRONG, "limits.conf")
    told(machine.open_files(300, 1024, 2000), Level.OK, "1,024")
    told(machine.open_files(500, -1, -1), Level.OK, "no limit")


def test_limits_on_processes() -> None:
    told(machine.processes(100, 1000, 500, "this control group"), Level.WRONG, "1,000 for this control group", "-n")
    told(machine.processes(10, 1000, 500, "me"), Level.OK, "1,000 for me")
    told(machine.processes(10, -1, 0, "anybody"), Level.OK, "no limit")


def test_the_limits_of_a_process_are_its_own(farm_dirs: Dirs) -> None:
    soft, hard = machine.file_limits()
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        found = wrongs(rounds.of_farm(Home.of("none-yet"), 100))["open files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    told(found, Level.WRONG, "a process may have 200", "100 engines", "ulimit -n")
    limit, running, whose = machine.process_limit()
    assert limit == -1 or 0 < running < limit
    assert whose


def test_memory_that_is_not_enough() -> None:
    told(machine.memory(64, [MemoryRoom(800 << 20, 1 << 30)]), Level.WRONG, "64 more engines", "-n")
    told(machine.memory(0, [MemoryRoom(10 << 20, 1 << 30)]), Level.WRONG, "less than 5%")
    told(machine.memory(4, [MemoryRoom(800 << 20, 1 << 30)]), Level.OK, "800.0 MiB of 1.0 GiB")
    told(machine.memory(4, [MemoryRoom(2 << 40, 4 << 40)]), Level.OK, "2.0 TiB of 4.0 TiB")
    roomier = MemoryRoom(8 << 30, 16 << 30)
    told(machine.memory(64, [roomier, MemoryRoom(800 << 20, 1 << 30)]), Level.WRONG, "800.0 MiB of 1.0 GiB")


def test_a_clock_that_is_behind_or_was_set() -> None:
    told(machine.clock(1.0, 1e9), Level.WARNING, "1970", "chrony")
    told(machine.clock(1e9 + 1, 1e9), Level.OK)
    told(machine.jumps(500.0, 10_500.0, 100.0, 10_101.0), Level.OK, "not set since")
    told(machine.jumps(500.0, 14_100.0, 100.0, 10_101.0), Level.WARNING, "+3599 s", "chrony")
    told(machine.jumps(500.0, 6_900.0, 100.0, 10_101.0), Level.WARNING, "-3601 s")
    own = farm_paths.process_started()
    assert own is not None
    assert 0 < machine.since_boot_s() - own < 86_400


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_that_others_can_use(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    folder.chmod(0o755)
    found = files.private("data folder", folder, "JUPYTER_DATA_DIR")
    told(found, Level.WRONG, f"others can use {folder}", "755")
    assert found.remedy == f"chmod 700 {folder}"
    folder.chmod(0o700)
    told(files.private("data folder", folder, "JUPYTER_DATA_DIR"), Level.OK, str(folder), "free")
    assert "not made yet" in files.private("data folder", folder / "y" / "z", "X").found
    assert not (folder / "y").exists()
    assert list(folder.iterdir()) == []


def test_a_link_or_a_file_in_a_folders_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    told(files.private("data folder", tmp_path / "link", "X"), Level.WRONG, "a link is not followed", "remove it")
    (tmp_path / "file").touch()
    told(files.private("data folder", tmp_path / "file" / "below", "X"), Level.WRONG, "not a folder", "set X to")


def test_a_folder_that_nobody_can_write_into() -> None:
    told(files.private("data folder", Path("/proc/nothing"), "X"), Level.WRONG, "nothing can be written", "set X to")


def test_too_little_room(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).total + (1 << 30)
    found = files.private("socket folder", tmp_path / "x", "X", needed)
    told(found, Level.WRONG, "are needed", "make room")


def test_a_network_file_system_is_said(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    monkeypatch.setattr(disk, "NETWORK_FILE_SYSTEMS", {disk._kind_of_mount(str(farm_dirs.root), mounts)})
    told(files.sockets("f", farm_dirs.data, 2), Level.WRONG, "network file system", "XDG_RUNTIME_DIR")
    home = Home.of("f")
    told(files.store(home, record(home)), Level.WRONG, "SQLite's locks", "--fresh")
    told(files.store(home, None), Level.OK, "/var/tmp")


SHAPES = """
import sys, pathlib, tempfile
from ipytaskfarm.doctor import files
for folder in sys.argv[1:]:
    tempfile.tempdir = folder
    found = files.temporary()
    print(found.level, "|", found.found, "|", found.remedy)
"""


def test_a_temporary_folder_that_is_full_or_noexec(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    full, noexec = tmp_path / "full", tmp_path / "noexec"
    for folder in (full, noexec):
        folder.mkdir()
    mounts = (
        f"mount -t tmpfs -o size=1m none {full} && mount -t tmpfs -o noexec none {noexec} && "
        f'head -c 1048576 /dev/zero >{full}/x && exec {sys.executable} -c "$1" {full} {noexec}'
    )
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", mounts, "sh", SHAPES], capture_output=True, text=True, cwd=PROJECT, timeout=60
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("wrong | "), done.stderr
    assert first.endswith("| make room on its disk")
    assert second.startswith("warning | ")
    assert "noexec" in second
    assert "TMPDIR" in second


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    told(files.temporary(), Level.WRONG, "No usable", "TMPDIR")


# ------------------------------------------------------------------------------------------------ keys and files


def record(home: Home, incarnation: str = "one") -> FarmRecord:
    store = str(home.folder / "store.sqlite")
    return FarmRecord(
        name=home.name, incarnation=incarnation, host="127.0.0.1", port=0, store=store, node=socket.gethostname()
    )


def info(keys: FarmKeys, home: Home, **changes: object) -> ConnectionInfo:
    """The clients' connection file of a controller that is this very process."""
    made = ConnectionInfo(
        farm=home.name, incarnation="one", host="127.0.0.1", port=1, server_key=keys.server.public,
        public_key=keys.client.public, secret_key=keys.client.secret, role="client", controller_pid=os.getpid(),
        controller_started=farm_paths.process_started() or 0.0, version=__version__, protocol=PROTOCOL,
        node=socket.gethostname(),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def home(farm_dirs: Dirs) -> Home:
    """A farm that looks as if it ran, with keys and connection files."""
    home = Home.of("f")
    keys = farm_keys(home.folder)
    farm_paths.write_farm_record(record(home), home.folder)
    whole = info(keys, home)
    write_connection_file(whole, home.client_file)
    write_connection_file(info_for(whole, keys, "agent"), home.agent_file)
    return home


def of_files(home: Home) -> list[Finding]:
    _, held = files.keys(home.folder)
    return list(files.connection_files(home, farm_paths.read_farm_record(home.folder), held))


def test_keys_that_others_can_read_or_that_are_damaged(home: Home) -> None:
    path = home.folder / "keys.json"
    found, held = files.keys(home.folder)
    assert found is not None
    told(found, Level.OK, str(path))
    assert held is not None
    assert not any(pair.secret in str(found) for pair in held.peers().values())
    path.chmod(0o644)
    found, held = files.keys(home.folder)
    assert found is not None
    told(found, Level.WRONG, f"others can use {path}", f"chmod 600 {path}")
    path.chmod(0o600)
    os.truncate(path, 10)
    found, held = files.keys(home.folder)
    assert found is not None
    told(found, Level.WRONG, "is damaged", "backup")
    assert held is None


def test_connection_files_that_are_whole(home: Home) -> None:
    (found,) = of_files(home)
    told(found, Level.OK, str(home.client_file), str(home.agent_file))


def test_a_connection_file_that_others_can_read(home: Home) -> None:
    home.agent_file.chmod(0o640)
    first, second = of_files(home)
    told(first, Level.WRONG, f"others can use {home.agent_file}", f"chmod 600 {home.agent_file}")
    told(second, Level.OK, str(home.client_file))
    home.agent_file.chmod(0o600)
    home.client_file.chmod(0o644)
    found = wrongs(rounds.of_farm(home, 1))
    told(found["connection file"], Level.WRONG, f"others can use {home.client_file}", f"chmod 600 {home.client_file}")
    assert "farm" not in found, "nothing is said of a farm that cannot be asked"


def test_a_damaged_connection_file(home: Home) -> None:
    home.client_file.write_text("{")
    told(of_files(home)[0], Level.WRONG, "is not a farm's connection file", "ipytaskfarm stop --farm f")


def test_another_farms_connection_file(home: Home) -> None:
    keys = farm_keys(home.folder)
    write_connection_file(info(keys, home, incarnation="another"), home.client_file)
    told(of_files(home)[0], Level.WRONG, f"{home.client_file} is another farm's", "written again")


def test_another_key_in_a_connection_file(home: Home) -> None:
    write_connection_file(info(make_farm_keys(), home), home.client_file)
    told(of_files(home)[0], Level.WRONG, "has another key than the farm's own for client", "written again")


def test_a_server_key_that_waits_for_the_next_start(home: Home) -> None:
    save_keys(rotated(farm_keys(home.folder), ["server"]), home.folder)
    told(of_files(home)[0], Level.WARNING, "key of the server was rotated", "copies have to be made again")


def test_a_controller_that_has_died(home: Home) -> None:
    keys = farm_keys(home.folder)
    write_connection_file(info(keys, home, controller_started=1.0), home.client_file)
    found = wrongs(rounds.of_farm(home, 1))["farm"]
    told(found, Level.WARNING, "without a good-bye", "ipytaskfarm start --farm f", "ipytaskfarm clean --farm f")


def test_a_damaged_record(home: Home) -> None:
    home.client_file.unlink()
    (home.folder / "farm.json").write_text("{}")
    told(wrongs(rounds.of_farm(home, 1))["farm"], Level.WRONG, "farm.json is damaged", "--fresh")
    (home.folder / "farm.json").chmod(0o644)
    told(wrongs(rounds.of_farm(home, 1))["farm"], Level.WRONG, "others can use", "chmod 600")


def test_a_farm_that_is_not_there_is_no_trouble_and_none_is_made(farm_dirs: Dirs) -> None:
    found = {finding.check: finding for finding in rounds.of_farm(Home.of("new"), 1)}
    told(found["farm"], Level.OK, "none called 'new' yet")
    assert not list(farm_dirs.data.iterdir())
    assert not list(farm_dirs.runtime.iterdir())
    assert not list(farm_dirs.sockets.iterdir())


# ------------------------------------------------------------------------------------------------ the network


@contextmanager
def listener(backlog: int = 5) -> Iterator[int]:
    """A port on which a program listens that never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as taken:
        yield int(taken.getsockname()[1])


def test_a_port_that_is_taken() -> None:
    with listener() as number:
        found = network.port("127.0.0.1", number, fixed=True)
        told(found, Level.WRONG, f"{number} is taken by process {os.getpid()}", "--port 0")
        told(network.port("127.0.0.1", number, fixed=False), Level.OK, "a new farm takes any")
    told(network.port("127.0.0.1", number, fixed=True), Level.OK, "free")


def test_an_address_that_is_not_this_machines() -> None:
    told(network.port("192.0.2.1", 10113, fixed=True), Level.WRONG, "192.0.2.1", "another --host")


def test_a_stopped_farm_whose_port_is_taken(home: Home) -> None:
    home.client_file.unlink()
    with listener() as number:
        farm_paths.write_farm_record(msgspec.structs.replace(record(home), port=number), home.folder)
        told(wrongs(rounds.of_farm(home, 1))["port"], Level.WRONG, str(os.getpid()), "this farm's own")


def test_names_by_which_nobody_finds_it() -> None:
    told(network.name("nowhere.invalid", connected=False), Level.WRONG, "not known here", "--location")
    told(network.name("a" * 64, connected=False), Level.WRONG, "not known here", "--location")
    told(network.name("localhost", connected=False), Level.WARNING, "127.0.0.1", "getent hosts", "--location")
    told(network.name("localhost", connected=True), Level.OK)
    told(network.name("192.0.2.1", connected=False), Level.OK, "192.0.2.1")


def test_connections_that_are_not_made(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = farm_keys(home.folder)
    with listener() as number:
        pass
    told(network.connection(info(keys, home, port=number)), Level.WRONG, "refused", "ipytaskfarm list")
    away = info(keys, home, port=number, node="elsewhere")
    told(network.connection(away), Level.WRONG, "refused", "listen on elsewhere alone", "--host")
    unknown = info(keys, home, host="nowhere.invalid")
    told(network.connection(unknown), Level.WRONG, "nowhere.invalid is not known here", "--location")
    unknown = msgspec.structs.replace(unknown, host="a" * 64, location="a" * 64)
    told(network.connection(unknown), Level.WRONG, "aaa is not known here", "--location")
    monkeypatch.setattr(network, "CONNECT_S", 0.3)
    with listener(backlog=0) as number, socket.create_connection(("127.0.0.1", number)):
        # Its queue is full: what else comes is dropped, as by a firewall.
        told(network.connection(info(keys, home, port=number)), Level.WRONG, "does not answer", "firewall", "ssh")


def test_another_program_on_the_port(home: Home) -> None:
    with listener() as number:
        other = info(farm_keys(home.folder), home, port=number)
        told(network.connection(other), Level.OK)
        found = network.handshake(other, network.greet(other, limit_s=0.5))
    told(found, Level.WRONG, "does not answer as this farm", "another program")


@contextmanager
def turning(world: World) -> Iterator[None]:
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            world.hub.poll(0.01)
            world.hub.receive()
            world.hub.flush(time.monotonic())

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def hub(farm_dirs: Dirs) -> Iterator[World]:
    """A controller's end of the wire, which lets in who has its keys."""
    world = World()
    try:
        with turning(world):
            yield world
    finally:
        world.close()


def test_the_handshake_under_a_key(hub: World) -> None:
    mine = hub.info(direct=True)
    found = network.handshake(mine, network.greet(mine))
    told(found, Level.OK, f"ipytaskfarm {__version__} lets us in as client")


def test_a_wrong_key_gets_no_handshake(hub: World) -> None:
    theirs = hub.info(direct=True, pair=make_keypair())
    told(network.handshake(theirs, network.greet(theirs)), Level.WRONG, "does not know the key", "keys add")


def test_a_key_of_another_role(hub: World) -> None:
    theirs = msgspec.structs.replace(hub.info(direct=True), role="agent", agent="node7")
    told(network.handshake(theirs, network.greet(theirs)), Level.WRONG, "does not allow to be 'agent'", "keys list")


def test_another_version(hub: World) -> None:
    theirs = msgspec.structs.replace(hub.info(direct=True), protocol=PROTOCOL + 1, version="9.9")
    refused = network.greet(theirs)
    told(network.handshake(theirs, refused), Level.WRONG, "9.9", "install ipytaskfarm==9.9")
    same = msgspec.structs.replace(theirs, version=__version__)
    told(network.handshake(same, refused), Level.WRONG, "9.9", "same copy of ipytaskfarm on both sides")


# ------------------------------------------------------------------------------------------------ an agent's file


def test_agent_files_that_do_not_do(farm_dirs: Dirs) -> None:
    path = farm_dirs.work / "node7.json"
    found = wrongs(rounds.of_agent(path, 1))["agent file"]
    told(found, Level.WRONG, f"there is no {path} here", "keys add NAME --output")
    path.write_text("nonsense")
    path.chmod(0o600)
    told(wrongs(rounds.of_agent(path, 1))["agent file"], Level.WRONG, "not a farm's connection file", "copy it again")
    path.chmod(0o644)
    told(wrongs(rounds.of_agent(path, 1))["agent file"], Level.WRONG, "others can use", f"chmod 600 {path}")
    home = Home.of("f")
    path.unlink()
    write_connection_file(info(farm_keys(home.folder), home), path)
    told(wrongs(rounds.of_agent(path, 1))["agent file"], Level.WRONG, "a file of role client", "keys add")


# ------------------------------------------------------------------------------------------------ systems


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_commands_that_are_missing(commands: Path) -> None:
    found = {finding.check: finding for finding in systems(("slurm", "ssh"))}
    told(found["slurm"], Level.WRONG, "its command is not here", "load the module")
    told(found["ssh"], Level.WRONG, "openssh-client")
    told(found["launchers"], Level.OK, "not on this machine: pbs, lsf")


def test_a_slurm_that_does_not_answer(commands: Path) -> None:
    command(commands, "sbatch", "exit 0")
    command(commands, "squeue", "echo 'squeue: error: Invalid user' >&2; exit 1")
    found = {finding.check: finding for finding in systems(("slurm",))}
    told(found["slurm"], Level.WRONG, "squeue: error: Invalid user", "administrators")
    told(next(systems(())), Level.WARNING, "Invalid user")


@pytest.mark.parametrize(
    ("name", "submit", "ask", "words"),
    [
        ("slurm", "sbatch", "squeue", "slurm_load_jobs error: Invalid job id specified"),
        ("pbs", "qsub", "qstat", "qstat: Unknown Job Id 1.server"),
        ("lsf", "bsub", "bjobs", "Job <1> is not found"),
    ],
)
def test_a_system_that_answers(commands: Path, name: str, submit: str, ask: str, words: str) -> None:
    command(commands, submit, "exit 0")
    command(commands, ask, f"echo '{words}' >&2; exit 1")
    found = {finding.check: finding for finding in systems((name,))}
    told(found[name], Level.OK, str(commands / submit), "it answers")
