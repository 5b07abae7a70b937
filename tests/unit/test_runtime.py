"""Folders, private files, locks, and how a peer finds its farm."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.system import farm_paths, host, supervision
from ipytaskfarm.system.farm_paths import ConnectionInfo, FarmRecord, Lock
from tests.conftest import Dirs
from tests.support.polling import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def info(**changes: object) -> ConnectionInfo:
    started = farm_paths.process_started()
    assert started is not None
    it = ConnectionInfo(
        farm="default", incarnation="f1", host="127.0.0.1", port=10113, server_key="S" * 40, public_key="P" * 40,
        secret_key="X" * 40, role="client", controller_pid=os.getpid(), controller_started=started, version="1",
        protocol=1, node=os.uname().nodename,
    )  # fmt: skip
    return msgspec.structs.replace(it, **changes)


# ------------------------------------------------------------------------------------------------ private things


@pytest.mark.usefixtures("umask")
def test_files_and_folders_are_private_under_any_umask(tmp_path: Path) -> None:
    folder = farm_paths.private_folder(tmp_path / "a")
    farm_paths.write_private(folder / "f", b"x")
    assert mode(folder) == 0o700
    assert mode(folder / "f") == 0o600
    assert farm_paths.private_folder(folder) == folder


def test_a_written_file_is_whole_and_nothing_else_is_left(folder: Path) -> None:
    farm_paths.write_private(folder / "f", b"one")
    farm_paths.write_private(folder / "f", b"two")
    assert farm_paths.read_private(folder / "f") == b"two"
    assert os.listdir(folder) == ["f"]


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    farm_paths.write_private(folder / "f", b"old")

    def fail(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        farm_paths.write_private(folder / "f", b"new")
    assert (folder / "f").read_bytes() == b"old"
    assert os.listdir(folder) == ["f"]


@pytest.mark.parametrize("bits", [0o755, 0o710, 0o702])
def test_a_folder_that_others_can_use_is_refused(folder: Path, bits: int) -> None:
    folder.chmod(bits)
    with pytest.raises(errors.SecurityError, match=rf"others can use {folder}.*{bits:o}.*chmod 700 {folder}"):
        farm_paths.private_folder(folder)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(folder: Path, bits: int) -> None:
    path = folder / "f"
    farm_paths.write_private(path, b"x")
    path.chmod(bits)
    with pytest.raises(errors.SecurityError, match=rf"{path}.*{bits:o}.*chmod 600"):
        farm_paths.read_private(path)


def test_a_file_in_a_folder_where_others_may_plant_one_is_refused(folder: Path) -> None:
    farm_paths.write_private(folder / "f", b"x")
    folder.chmod(0o777)
    with pytest.raises(errors.SecurityError, match="others can write into"):
        farm_paths.read_private(folder / "f")
    folder.chmod(0o1777)
    assert farm_paths.read_private(folder / "f") == b"x"


def test_what_a_failing_disk_does_not_give_gets_another_remedy_than_permissions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm_paths.write_private(folder / "f", b"x")

    def fail(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(errors.SecurityError, match=r"\(Input/output error\): check its"):
            farm_paths.read_private(folder / "f")


def test_planted_links_are_refused(folder: Path) -> None:
    target, link = folder / "target", folder / "link"
    farm_paths.write_private(target, b"precious")
    link.symlink_to(target)
    with pytest.raises(errors.SecurityError, match="is a link"):
        farm_paths.write_private(link, b"x")
    with pytest.raises(errors.SecurityError, match="a link is not followed"):
        farm_paths.read_private(link)
    with pytest.raises(errors.SecurityError, match="a link is not followed"):
        Lock(link)
    assert target.read_bytes() == b"precious"
    place = folder / "folder"
    place.symlink_to(folder, target_is_directory=True)
    with pytest.raises(errors.SecurityError, match=f"{place} is not a folder of ours"):
        farm_paths.private_folder(place)


def test_what_is_not_a_file_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe", 0o600)
    with pytest.raises(errors.SecurityError, match="is not a file"):
        farm_paths.read_private(folder / "pipe")
    farm_paths.write_private(folder / "file", b"")
    with pytest.raises(errors.SecurityError, match="is not a folder"):
        farm_paths.private_folder(folder / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make other users' files")
def test_other_users_things_are_refused(folder: Path) -> None:
    farm_paths.write_private(folder / "f", b"x")
    os.chown(folder / "f", 12345, 12345)
    with pytest.raises(errors.SecurityError, match="belongs to user 12345"):
        farm_paths.read_private(folder / "f")
    os.chown(folder, 12345, 12345)
    with pytest.raises(errors.SecurityError, match=f"{folder} belongs to user 12345"):
        farm_paths.private_folder(folder)


# ----------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("kind", ["root_squash", "keeps no permissions"])
def test_a_file_system_that_keeps_nothing_private_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The advice was to remove the folder, which the next start made again."""
    if kind == "root_squash":
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    else:
        chmod = os.fchmod
        monkeypatch.setattr(os, "fchmod", lambda folder, mode: chmod(folder, 0o777))
    with pytest.raises(errors.SecurityError, match=f"the file system of .*{kind}.*: set JUPYTER_DATA_DIR"):
        farm_paths.private_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_where_things_are(farm_dirs: Dirs) -> None:
    assert farm_paths.farm_folder("a") == farm_dirs.data / "ipytaskfarm/a"
    assert host.runtime_folder() == farm_dirs.runtime
    assert farm_paths.connection_path("a") == farm_dirs.runtime / "ipytaskfarm-a.json"
    assert farm_paths.connection_path("a", "agent") == farm_dirs.runtime / "ipytaskfarm-a-agent.json"
    sockets = farm_paths.socket_folder("a")
    assert sockets.parent == farm_dirs.sockets / "ipytaskfarm"
    assert sockets.name.startswith("a-")
    assert mode(sockets) == mode(sockets.parent) == 0o700
    assert farm_paths.socket_folder("a") == sockets
    assert farm_paths.socket_folder("a", farm_dirs.work) != sockets
    sockets.rmdir()
    farm_paths.socket_folder("a", farm_dirs.work).rmdir()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".a", "-a", "a b", "a\n", "ä", "x" * 49, "me-agent"])
def test_names_that_cannot_be_file_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a farm's name"):
        farm_paths.farm_folder(name)


def test_socket_paths_stay_short(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x" * 48
    deep = farm_dirs.sockets / ("d" * 80)
    deep.mkdir()
    made = [farm_paths.socket_folder(name)]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    made.append(farm_paths.socket_folder(name))
    for folder in made:
        assert len(os.fsencode(folder)) + farm_paths.IPC_ROOM <= 107
        folder.rmdir()
    assert made[0].parent == farm_dirs.sockets / "ipytaskfarm"
    assert made[1].parent == Path(f"/tmp/ipytaskfarm-{os.geteuid()}")


def test_a_runtime_folder_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch, farm_dirs: Dirs) -> None:
    for other in ("/proc/self", "relative", "", str(farm_dirs.work / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        if other != "/proc/self" or os.stat(other).st_uid != os.geteuid():
            assert [str(base) for base in host.socket_bases()] == [f"/tmp/ipytaskfarm-{os.geteuid()}"]


# ------------------------------------------------------------------------------------------------------- locks

HOLD = (
    "import sys; from pathlib import Path; from ipytaskfarm.system.farm_paths import Lock; l = Lock(Path(sys.argv[1]));"
)


def test_a_second_process_is_refused_by_the_name_of_the_first(folder: Path) -> None:
    path = folder / "lock"
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        text = f"the controller of farm 'x' runs already: process {holder.pid} holds {path}"
        with pytest.raises(errors.FarmExists, match=text):
            Lock(path, "the controller of farm 'x'")
        holder.kill()
    lock = Lock(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert mode(path) == 0o600
    lock.release()
    lock.release()
    assert subprocess.run([*command[:2], HOLD, str(path)], check=False).returncode == 0


# -------------------------------------------------------------------------------------------- connection files


def test_a_connection_file_comes_back_as_it_was_written(farm_dirs: Dirs) -> None:
    path = farm_paths.connection_path("default")
    farm_paths.write_connection_file(info(), path)
    assert farm_paths.read_connection_file(path) == info()
    assert mode(path) == 0o600
    assert path.read_text().count("\n") > 10  # for people


def test_no_secret_is_shown() -> None:
    shown = f"{info()!r} {info()} {info().__rich_repr__()}"
    assert "X" * 40 not in shown
    assert "10113" in shown


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"farm": 3}', b"\xff"])
def test_another_file_is_named_as_such(folder: Path, text: bytes) -> None:
    farm_paths.write_private(folder / "x.json", text)
    with pytest.raises(errors.ConnectionError, match=r"x\.json is not a farm's connection file"):
        farm_paths.read_connection_file(folder / "x.json")


def test_a_connection_file_is_removed_only_by_its_own_farm(farm_dirs: Dirs) -> None:
    path = farm_paths.connection_path("default")
    farm_paths.write_connection_file(info(), path)
    farm_paths.remove_connection_file(path, "another")
    assert path.exists()
    farm_paths.remove_connection_file(path, "f1")
    assert not path.exists()
    farm_paths.remove_connection_file(path, "f1")


def test_a_stale_file_is_recognised() -> None:
    assert not farm_paths.is_stale(info())
    assert farm_paths.is_stale(info(controller_started=1.0))
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        started = farm_paths.process_started(child.pid) or 0.0
        assert not farm_paths.is_stale(info(controller_pid=child.pid, controller_started=started))
        # Ended, and not yet reaped: it serves nobody any more.
        eventually(lambda: farm_paths.is_stale(info(controller_pid=child.pid, controller_started=started)))
    assert farm_paths.process_started(child.pid) is None
    assert not farm_paths.is_stale(info(controller_pid=child.pid, node="elsewhere"))


def test_when_a_process_started_does_not_depend_on_the_wall_clock() -> None:
    started = farm_paths.process_started()
    assert started is not None
    assert 0 < started < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_finding_a_farm(farm_dirs: Dirs) -> None:
    default, other = farm_paths.connection_path("default"), farm_paths.connection_path("other")
    copy = farm_dirs.home / "copied.json"
    for path in (default, other):
        farm_paths.write_connection_file(info(farm=path.stem, port=10113 if path == default else 7), path)
    farm_paths.write_private(copy, msgspec.json.encode(info(host="far.example", port=9)))
    assert farm_paths.find_connection() == farm_paths.find_connection("default") == default
    assert farm_paths.find_connection("other") == other
    assert farm_paths.find_connection(str(copy)) == farm_paths.find_connection(copy) == copy
    assert farm_paths.find_connection("~/copied.json") == copy
    found = farm_paths.find_connection(("localhost", 7))
    assert isinstance(found, ConnectionInfo)
    assert (found.farm, found.host, found.port) == ("ipytaskfarm-other", "localhost", 7)
    found = farm_paths.find_connection(("near.example", 11), key_file=copy)
    assert isinstance(found, ConnectionInfo)
    assert (found.host, found.port, found.secret_key) == ("near.example", 11, "X" * 40)


def test_a_reader_finds_afresh_each_time(farm_dirs: Dirs) -> None:
    read = farm_paths.connection_reader("default")
    with pytest.raises(errors.FarmNotRunning):
        read()
    for port in (1, 2):
        farm_paths.write_connection_file(info(port=port), farm_paths.connection_path("default"))
        assert read().port == port
    assert farm_paths.connection_reader(("127.0.0.1", 2))().port == 2


@pytest.mark.usefixtures("farm_dirs")
@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        (None, errors.FarmNotRunning, "farm 'default' is not running.*ipytaskfarm start --farm default"),
        ("mine", errors.FarmNotRunning, "farm 'mine' is not running.*`ipytaskfarm start --farm mine`"),
        ("temporary-15-0ab1cd", errors.FarmNotRunning, r"has ended: start another one, Farm\(n=…\)"),
        ("/no/such.json", errors.FarmNotRunning, "no connection file /no/such.json.*ipytaskfarm start"),
        ("such.json", errors.FarmNotRunning, r"no connection file such\.json"),
        (("localhost", 5), errors.SecurityError, "no keys for localhost:5.*key_file"),
        (("localhost",), ValueError, "an address is"),
        (("localhost", "x"), ValueError, "an address is"),
        (("localhost", 5, 6), ValueError, "an address is"),
        ("a b", ValueError, "farm's name"),
        (7, TypeError, "not int"),
    ],
)
def test_what_is_not_found_is_named_with_the_remedy(where: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        farm_paths.find_connection(where)  # type: ignore[arg-type]


def test_a_key_file_goes_with_an_address(farm_dirs: Dirs) -> None:
    with pytest.raises(ValueError, match="goes with an address"):
        farm_paths.find_connection("default", key_file="x.json")
    with pytest.raises(errors.FarmNotRunning, match=r"no connection file .*x\.json"):
        farm_paths.find_connection(("localhost", 5), key_file=farm_dirs.work / "x.json")


def test_files_that_cannot_be_trusted_are_passed_over_when_looking_for_an_address(farm_dirs: Dirs) -> None:
    for name in ("default", "other"):
        farm_paths.write_connection_file(info(farm=name), farm_paths.connection_path(name))
    farm_paths.connection_path("default").chmod(0o644)
    found = farm_paths.find_connection(("127.0.0.1", 10113))
    assert isinstance(found, ConnectionInfo)
    assert found.farm == "other"


# ------------------------------------------------------------------------------------------------------- farms


def record(name: str) -> FarmRecord:
    return FarmRecord(name=name, incarnation="f1", host="127.0.0.1", port=1, store="/x", node="here")


def test_a_farms_record(farm_dirs: Dirs) -> None:
    folder = farm_paths.farm_folder("a")
    assert farm_paths.read_farm_record(folder) is None
    farm_paths.write_farm_record(record("a"), folder)
    assert farm_paths.read_farm_record(folder) == record("a")
    farm_paths.write_private(folder / farm_paths.FARM_FILE, b"{")
    with pytest.raises(errors.StoreError, match=r"farm\.json is damaged.*--fresh"):
        farm_paths.read_farm_record(folder)


def test_listing_farms(farm_dirs: Dirs) -> None:
    assert farm_paths.list_farms() == []
    farm_paths.write_farm_record(record("asleep"), farm_paths.farm_folder("asleep"))
    farm_paths.write_farm_record(record("awake"), farm_paths.farm_folder("awake"))
    farm_paths.write_connection_file(info(), farm_paths.connection_path("awake"))
    farm_paths.write_connection_file(info(), farm_paths.connection_path("awake", "agent"))
    farm_paths.write_connection_file(info(controller_started=1.0), farm_paths.connection_path("crashed"))
    farms = [(farm.name, farm.running, farm.folder is not None) for farm in farm_paths.list_farms()]
    assert farms == [("asleep", False, True), ("awake", True, True), ("crashed", False, False)]
    with pytest.raises(errors.FarmNotRunning, match=r"farm 'default' is not running.*\. Running here: 'awake'$"):
        farm_paths.find_connection()


# ------------------------------------------------------------------------------------------- where others find us


@pytest.mark.parametrize(
    ("host", "location", "here", "elsewhere"),
    [
        ("127.0.0.1", None, "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", None, "127.0.0.1", os.uname().nodename),
        ("::", None, "::1", os.uname().nodename),
        ("0.0.0.0", "login.example", "127.0.0.1", "login.example"),
        ("10.0.0.7", None, "10.0.0.7", "10.0.0.7"),
        ("10.0.0.7", "login.example", "10.0.0.7", "login.example"),
    ],
)
def test_where_a_farm_is_found(host: str, location: str | None, here: str, elsewhere: str) -> None:
    assert farm_paths.addresses(host, location) == (here, elsewhere)


def test_a_reader_on_another_host_dials_the_location() -> None:
    assert farm_paths.dialled(info(location="login.example")) == "127.0.0.1"
    assert farm_paths.dialled(info(location="login.example", node="elsewhere")) == "login.example"
    assert farm_paths.dialled(info(node="elsewhere")) == "127.0.0.1"


def test_an_address_of_ipv6_is_in_brackets() -> None:
    assert farm_paths.listening("::", 10113, "fd77::1").endswith("at [fd77::1]:10113")
    assert farm_paths.endpoint("10.0.0.7", 10113) == "10.0.0.7:10113"


def test_what_to_do_about_a_controller_that_does_not_answer() -> None:
    assert farm_paths.remedy(info()) == f"start it: ipytaskfarm start --farm {info().farm}"
    told = farm_paths.remedy(info(node="elsewhere"))
    assert "see on elsewhere" in told
    assert f"firewall lets TCP port {info().port} through" in told


def test_an_address_that_was_given_is_dialled(farm_dirs: Dirs) -> None:
    path = farm_paths.connection_path("default")
    farm_paths.write_connection_file(info(location="login.example", node="elsewhere"), path)
    for found in (
        farm_paths.find_connection(("127.0.0.1", 10113)),
        farm_paths.find_connection(("10.9.9.9", 7), key_file=path),
    ):
        assert isinstance(found, ConnectionInfo)
        assert farm_paths.dialled(found) == found.host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.3.4", "::1", "localhost"])
def test_of_loopback_nothing_is_said(host: str) -> None:
    assert farm_paths.listening(host, 10113, "x") == ""


def test_what_others_can_reach_is_said() -> None:
    text = "listening on all addresses of this machine, port 7; other machines find it at login.example:7"
    assert farm_paths.listening("0.0.0.0", 7, "login.example") == text
    assert "listening on 10.0.0.7, port 7" in farm_paths.listening("10.0.0.7", 7, "10.0.0.7")


def test_a_supervisor_that_ended_in_a_living_process_brings_no_controller_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its folder was moved while the farm ran, and was put back: the record says that the supervisor runs.
    record = {"kind": supervision.OWNER, "pid": os.getpid(), "started": farm_paths.process_started(os.getpid())}
    farm_paths.write_private(tmp_path / supervision.PROCESSES_FILE, json.dumps([record]).encode())

    def no_file() -> farm_paths.ConnectionInfo:
        raise FileNotFoundError

    assert "starts its controller again now" in supervision.comes_back(tmp_path, no_file)
    supervision.note_supervised(tmp_path, False)
    assert supervision.comes_back(tmp_path, no_file) == ""
    supervision.note_supervised(tmp_path, True)
    assert supervision.comes_back(tmp_path, no_file)
    real_open = os.open

    def open_file(path: Path, flags: int, mode: int = 0o777, **options: int | None) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_file)
    assert "again (Read-only file system)" in supervision.comes_back(tmp_path, no_file)


def test_a_file_that_cannot_be_read_now_is_not_called_insecure(tmp_path: Path) -> None:
    """A peer whose connection file is refused ends; one whose process has too many files open tries again."""
    path = tmp_path / "file"
    farm_paths.write_private(path, b"text")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            farm_paths.read_private(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert farm_paths.read_private(path) == b"text"
