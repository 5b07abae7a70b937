"""Farms started where something is missing: each works, or says the true cause at once, in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipytaskfarm.core.text import last_line
from ipytaskfarm.deployment.start_errors import failed_starts, last_error, with_remedy
from ipytaskfarm.system import host
from tests.conftest import Dirs, processes_of
from tests.support import namespaces
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually
from tests.support.thorough import some_of

pytestmark = pytest.mark.farm

SOON_S = 45.0
"""Less than the minute for which engines are waited for: whatever fails is to say so before that."""

PROGRAM = """
def square(x):
    return x * x

def main():
    from ipytaskfarm import Farm, StringTask
    with Farm(n=1) as farm:
        tc, mec = farm.task_client(), farm.multiengine_client()
        mec.push({"a": 5})
        mec.execute("b = a + 1")
        found = [
            tc.map(square, range(4)), tc.run(StringTask("c = 3", pull="c"), block=True)["c"],
            mec.pull("b"), list(tc.imap(square, range(3))),
        ]
    with open(1, "w", closefd=False) as out:
        print("found", found, file=out)

if __name__ == "__main__":
    main()
"""
FOUND = "found [[0, 1, 4, 9], 3, [6], [0, 1, 4]]"


@dataclass
class Start:
    """One start: the environment is this world's with `environment`, and nothing of it where `bare`."""

    environment: dict[str, str] = field(default_factory=dict)
    bare: bool = False
    flags: tuple[str, ...] = ()
    shell: str = ""
    """Run by bash before the program, in the same process."""
    namespaces: str = ""
    """Letters of `unshare`; "user": as a user without a name."""
    says: str = FOUND
    """What it prints, or the cause that it names."""

    def command(self, dirs: Dirs) -> list[str]:
        python = [sys.executable, *self.flags, "-c", PROGRAM]
        if self.shell:
            python = ["bash", "-c", f'{self.shell.format(**vars(Places(dirs)))}; exec "$@"', "bash", *python]
        if self.namespaces == "user":
            keep = dirs.work / "keep"
            keep.mkdir()
            return namespaces.nameless(keep, *python)
        return ["unshare", f"-{self.namespaces}", *python] if self.namespaces else python


class Places:
    """Folders that the table's commands may name in braces."""

    def __init__(self, dirs: Dirs) -> None:
        self.work = dirs.work
        self.temporary = dirs.temporary
        self.runtime = dirs.runtime


STARTS: dict[str, Start] = {
    "docstrings and asserts taken out": Start({"PYTHONOPTIMIZE": "2"}),
    "warnings are errors": Start({"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}),
    "an isolated interpreter": Start(flags=("-I",)),
    "no bytecode, no buffers, a fixed seed": Start(
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    ),
    "a locale of ASCII": Start({"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONSTARTUP": "/nonexistent"}),
    "proxies": Start({"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}),
    "standard descriptors closed": Start(shell="exec 3>&1 <&- >&- 2>&-; set -- \"${{@/open(1,/open(3,}}\""),
    "a working folder that was removed": Start(shell="mkdir {work}/gone; cd {work}/gone; rmdir {work}/gone"),
    "relative folders": Start({"JUPYTER_RUNTIME_DIR": "rt", "JUPYTER_DATA_DIR": "dt"}, shell="cd {work}"),
    "a runtime folder that others may list": Start(shell="chmod 755 {runtime}", says="chmod 700 "),
    "no folder for temporary files where TMPDIR says": Start({"TMPDIR": "/nonexistent"}),
    "a long TMPDIR": Start(shell="export TMPDIR={temporary}/$(printf 'x%.0s' {{1..120}}); mkdir $TMPDIR"),
    "few descriptors": Start(shell="ulimit -n 64"),
    "hardly a descriptor": Start(shell="ulimit -n 20", says="raise the limit of open files, `ulimit -n`"),
    "too few descriptors": Start(shell="ulimit -n 32", says="raise the limit of open files, `ulimit -n`"),
    "a runtime folder of somebody else": Start(
        shell="mkdir -m 700 {work}/theirs; chown 777 {work}/theirs; export JUPYTER_RUNTIME_DIR={work}/theirs",
        namespaces="m",
    ),
    "no loopback": Start(namespaces="n", says="bring the loopback interface up, `ip link set lo up`"),
    "a host name that does not resolve": Start(
        namespaces="u", shell="echo nowhere.invalid > /proc/sys/kernel/hostname"
    ),
    "a full disk": Start(
        namespaces="m",
        shell="mount -t tmpfs -o size=16k tmpfs {temporary}",
        says="No space left on device",
    ),
    "too few threads": Start(
        {"HOME": "/"}, bare=True, namespaces="user", shell="ulimit -u 5", says="the limit of processes and threads"
    ),
    "shared memory missing": Start(namespaces="m", shell="mount -t tmpfs -o ro,size=4k tmpfs /dev/shm"),
    "no name and no home": Start(bare=True, namespaces="user"),
    "no name and a home that cannot be written": Start({"HOME": "/"}, bare=True, namespaces="user"),
    "no name and a home that is not there": Start({"HOME": "/nonexistent/x"}, bare=True, namespaces="user"),
    "no name and somebody else's folders": Start(
        {"HOME": "/root", "XDG_RUNTIME_DIR": "/run", "JUPYTER_RUNTIME_DIR": "/usr", "TMPDIR": "/usr"},
        bare=True, namespaces="user",
    ),
}  # fmt: skip


@pytest.fixture
def _nothing_of_the_nameless() -> Iterator[None]:
    before = _theirs()
    yield
    assert _theirs() == before


def _theirs() -> set[Path]:
    return {path for path in Path("/tmp").glob("*") if _owner(path) == namespaces.NAMELESS}


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return -1


@pytest.mark.parametrize("name", some_of(list(STARTS), 12))
@pytest.mark.usefixtures("_nothing_of_the_nameless")
def test_a_start_works_or_names_the_cause(farm_dirs: Dirs, name: str) -> None:
    start = STARTS[name]
    if start.namespaces and (why := namespaces.why_not()):
        pytest.skip(why)
    path = os.environ["PATH"]
    environment = {"PATH": path, **start.environment} if start.bare else {**os.environ, **start.environment}
    ended = subprocess.run(
        start.command(farm_dirs), env=environment, cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SOON_S, check=False,
    )  # fmt: skip
    if start.says == FOUND:
        assert FOUND in ended.stdout, ended.stderr
        assert not ended.stderr
    else:
        assert ended.returncode
        cause = last_line(ended.stderr)
        assert start.says in cause
        assert str(farm_dirs.temporary) not in cause.partition(start.says)[2], "a log that is gone is named"
    eventually(lambda: not processes_of(farm_dirs.root), DEADLINE_S)
    assert not list(farm_dirs.temporary.glob("ipytaskfarm-*"))


def test_a_named_farm_says_that_it_needs_a_home(farm_dirs: Dirs) -> None:
    code = "from ipytaskfarm import Farm; Farm(1, name='x')"
    environment = {**os.environ, "JUPYTER_DATA_DIR": "/proc/no/such"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=SOON_S, check=False
    )
    assert "farm 'x' keeps its files in /proc/no/such/ipytaskfarm/x, which cannot be made" in last_line(ended.stderr)
    assert "set JUPYTER_DATA_DIR to a folder that you can write to" in ended.stderr


# -- the parts


def test_a_user_without_a_name_has_one_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert host.user_name() == f"uid{os.getuid()}"


def test_folders_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert host.is_usable(tmp_path)
    assert host.is_usable(tmp_path / "to" / "be" / "made")
    assert not host.is_usable(tmp_path / "file" / "below")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert not host.is_usable(tmp_path), "it is somebody else's"


def test_relative_folders_are_made_absolute_for_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_DATA_DIR", "data")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/absolute")
    assert host.absolute_folders() == {"JUPYTER_DATA_DIR": str(tmp_path / "data")}


FAILED_STARTS: dict[str, tuple[str, str]] = {
    "a traceback": (
        "engine 0 did not start: engine 0 (pid 7) ended before it was ready: exit code 1: E: why\nTraceback\nE: why",
        "engine 0 (pid 7) ended before it was ready: exit code 1: E: why",
    ),
    "a cause further up": (
        "engine 3 did not start: it ended: SIGABRT: Extension modules: zmq\nOSError: Too many open files\nmore",
        "it ended: SIGABRT: Extension modules: zmq: OSError: Too many open files: " + with_remedy("Too many open files")
        .partition(": ")[2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED_STARTS)
def test_why_engines_did_not_start(name: str) -> None:
    said, cause = FAILED_STARTS[name]
    assert failed_starts(["engine 1 ended (pid 3)", said]) == [cause]


def test_a_remedy_is_said_once() -> None:
    once = with_remedy("can't start new thread")
    assert with_remedy(f"farm 'x' cannot be started: {once}").count("ulimit -u") == 1
    assert "ulimit -f" in with_remedy("no flight recorder for it: [Errno 27] File too large")


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    assert last_error(log) == ""
    log.write_text(
        "2026-01-02 03:04:05,678 WARNING ipytaskfarm.agent: it went wrong\nTraceback (most recent call last):\n"
        "OSError: no room\n"
    )
    assert last_error(log) == "it went wrong: OSError: no room"
    with open(log, "a") as file:
        file.write("2026-01-02 03:04:06,678 INFO ipytaskfarm.agent: it goes on\n")
    assert last_error(log) == "it went wrong"


def test_closed_descriptors_are_opened_and_open_ones_left(farm_dirs: Dirs) -> None:
    code = (
        "import os\nfrom ipytaskfarm.system.host import open_standard_descriptors\nopen_standard_descriptors()\n"
        "print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)], file=open(1, 'w'))\n"
    )
    ended = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- 2>&-', "bash", sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=SOON_S,
    )  # fmt: skip
    assert ended.stdout == "['/dev/null', '/dev/null']\n"


# -- the doctor


@dataclass
class Seen:
    """A finding of the doctor and its text."""

    level: str
    text: str


DOCTOR: dict[str, tuple[Start, Seen]] = {
    "no loopback": (Start(namespaces="n"), Seen("wrong    loopback", "`ip link set lo up`")),
    "no home": (Start(bare=True, namespaces="user"), Seen("warning  data folder", "there is no home")),
    "a home that cannot be written": (
        Start({"HOME": "/"}, bare=True, namespaces="user"), Seen("wrong    data folder", "Permission denied")
    ),
    "somebody else's runtime folder": (
        Start({"HOME": "/", "JUPYTER_RUNTIME_DIR": "/usr"}, bare=True, namespaces="user"),
        Seen("warning  runtime folder", "set JUPYTER_RUNTIME_DIR to a folder of yours"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCTOR)
@pytest.mark.usefixtures("_nothing_of_the_nameless")
def test_the_doctor_finds_it(farm_dirs: Dirs, name: str) -> None:
    start, seen = DOCTOR[name]
    if why := namespaces.why_not():
        pytest.skip(why)
    python = [sys.executable, "-m", "ipytaskfarm", "doctor"]
    keep = farm_dirs.work / "keep"
    keep.mkdir()
    command = namespaces.nameless(keep, *python) if start.bare else ["unshare", "-n", *python]
    environment = {"PATH": os.environ["PATH"], **start.environment} if start.bare else dict(os.environ)
    ended = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=SOON_S, check=False
    )
    (at,) = [i for i, line in enumerate(ended.stdout.splitlines()) if line.startswith(seen.level)]
    assert seen.text in "\n".join(ended.stdout.splitlines()[at : at + 2])


# -- processes of multiprocessing


def test_a_child_that_imports_the_main_module_makes_no_farm(farm_dirs: Dirs) -> None:
    program = farm_dirs.work / "unguarded.py"
    program.write_text(
        "import multiprocessing\nfrom ipytaskfarm import Farm\nfarm = Farm(n=1)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start()\n    child.join()\n    farm.stop()\n    print(child.exitcode)\n"
    )
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=SOON_S, check=False)
    assert ended.stdout == "1\n"
    assert 'put that below `if __name__ == "__main__":`' in last_line(ended.stderr)


def test_a_daemon_starts_with_closed_descriptors(farm_dirs: Dirs) -> None:
    command = [sys.executable, "-m", "ipytaskfarm"]
    started = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command, "start", "-n", "1", "--daemonize"],
        timeout=SOON_S, check=False,
    )  # fmt: skip
    assert started.returncode == 0
    subprocess.run([*command, "stop"], capture_output=True, timeout=SOON_S, check=True)
    eventually(lambda: not processes_of(farm_dirs.root), DEADLINE_S)


def test_folders_with_names_of_another_locale(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "f\u00f6lder"
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=SOON_S, check=False
    )
    assert FOUND in ended.stdout, ended.stderr


def test_a_file_with_the_name_of_a_standard_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "platform.py").write_text("X = 1")
    (tmp_path / "script.py").write_text("from ipytaskfarm import Farm")
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=DEADLINE_S)
    hides = f"{tmp_path / 'platform.py'} hides Python's own platform: rename it"
    said = last_line(ended.stderr)  # which attribute is missed first depends on the Python
    assert "module 'platform' has no attribute '" in said, ended.stderr
    assert said.endswith(f". {hides}"), ended.stderr
