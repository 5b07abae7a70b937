"""Give each test session folders of its own, and check at its end that no process of it is left.

No test sees the user's farms, Jupyter configuration or IPython profile, and they do not see the tests.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psutil
import pytest

from tests.support.polling import DEADLINE_S, eventually

if TYPE_CHECKING:
    from ipytaskfarm import Farm, MultiEngineClient, TaskClient
    from tests.support.farms import Gate

# Other people's load on the machine is no finding: examples have no deadline of their own, tests have one.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")

# jsonschema makes a grammar of it when it is imported, which takes seconds, see `tests.support.notebooks.quickly`.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

DONT_WRITE = pytest.StashKey[bool]()
FARM_FIXTURES = frozenset({"farm", "tc", "mec"})


@dataclass(frozen=True)
class Dirs:
    """The folders of one isolated world.  `root` is short: the names of ipc sockets are limited to 107 bytes."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def data(self) -> Path:
        """Where farms keep store, keys and logs: ``data/ipytaskfarm/<name>``."""
        return self.root / "data"

    @property
    def runtime(self) -> Path:
        """Where connection files are."""
        return self.root / "runtime"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def sockets(self) -> Path:
        """Return XDG_RUNTIME_DIR: sockets and flight recorders are in ``sockets/ipytaskfarm/<name>``."""
        return self.root / "run"

    @property
    def temporary(self) -> Path:
        """Return TMPDIR, in which farms without a name live."""
        return self.root / "tmp"

    @property
    def work(self) -> Path:
        """An empty folder to start commands in."""
        return self.root / "work"

    def make(self) -> None:
        own = (self.home, self.data, self.runtime, self.config, self.sockets, self.temporary, self.work)
        for folder in (*own, self.root / "ipython"):
            folder.mkdir(mode=0o700)

    def environment(self) -> dict[str, str]:
        """The environment variables that put a process into this world."""
        return {
            "HOME": str(self.home),
            "JUPYTER_DATA_DIR": str(self.data),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "JUPYTER_CONFIG_DIR": str(self.config),
            "IPYTHONDIR": str(self.root / "ipython"),
            "XDG_RUNTIME_DIR": str(self.sockets),
            "TMPDIR": str(self.temporary),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_DATA_HOME": str(self.home / ".local/share"),
            "JUPYTER_PLATFORM_DIRS": "0",
            "GSETTINGS_BACKEND": "memory",  # Chromium's children write a file below XDG_RUNTIME_DIR after its end
        }


@contextmanager
def isolated(prefix: str) -> Iterator[Dirs]:
    """Fresh folders with the environment pointing at them; removed, and the environment restored, afterwards."""
    dirs = Dirs(Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp")))
    dirs.make()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dirs.environment().items():
            patch.setenv(name, value)
        # Python has looked at TMPDIR long ago, and remembers.
        patch.setattr(tempfile, "tempdir", str(dirs.temporary))
        try:
            yield dirs
        finally:
            shutil.rmtree(dirs.root, ignore_errors=True)


def processes_of(root: Path) -> list[psutil.Process]:
    """Return the living farm processes of the world below `root`.

    They rename themselves, which overwrites the environment in /proc.  So they are recognised by an open file, a
    mapping, a working folder or a listening socket below `root`.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if _is_farm(process.cmdline()) and _holds(process, str(root)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _is_farm(command: list[str]) -> bool:
    """Return whether this is the command of a farm process, or of one that starts: ``python -m ipytaskfarm…``,
    ``…/bin/ipytaskfarm …``.
    """
    if not command:
        return False
    started = any(flag == "-m" and module.startswith("ipytaskfarm") for flag, module in pairwise(command))
    return started or any(Path(word.split(" ")[0]).name == "ipytaskfarm" for word in command[:2])


def _holds(process: psutil.Process, root: str) -> bool:
    if root in " ".join(process.cmdline()) or process.cwd().startswith(root):
        return True
    if any(value.startswith(root) for value in process.environ().values()):
        return True
    folder = Path("/proc") / str(process.pid)
    try:
        if root in (folder / "maps").read_text():
            return True
        return any(os.readlink(link).startswith(root) for link in (folder / "fd").iterdir())
    except OSError:
        return False


def socket_folders(dirs: Dirs) -> list[Path]:
    """The farms' folders below XDG_RUNTIME_DIR: each goes with its farm."""
    folder = dirs.sockets / "ipytaskfarm"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _describe(processes: Iterable[psutil.Process]) -> str:
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.NoSuchProcess:
            continue
    return "\n".join(lines)


def assert_nothing_left(dirs: Dirs, timeout_s: float = DEADLINE_S) -> None:
    """No process, socket folder or temporary farm of this world is left, or will be gone within `timeout_s`.

    Processes that stay are ended before the complaint, by pid: they must not spoil the tests that follow.
    """

    def quiet() -> bool:
        left = processes_of(dirs.root)
        assert not left, f"processes left behind:\n{_describe(left)}"
        assert not socket_folders(dirs), f"socket folders left behind: {socket_folders(dirs)}"
        temporary = sorted(dirs.temporary.glob("ipytaskfarm*"))
        assert not temporary, f"temporary farms left behind: {temporary}"
        return True

    try:
        eventually(quiet, timeout_s, every_s=0.1)
    finally:
        for process in processes_of(dirs.root):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends with another one
                process.kill()


@pytest.fixture(scope="session", autouse=True)
def session_dirs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dirs]:
    """The session's own world; at its end nothing may be left in it."""
    tmp_path_factory.getbasetemp()  # where pytest keeps it, to be looked at afterwards: not in this world
    with isolated("itf-") as dirs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        # The only thing kept from session to session: building matplotlib's font cache takes seconds.
        patch.setenv("MPLCONFIGDIR", str(pytestconfig.rootpath / ".pytest_cache" / "matplotlib"))
        yield dirs
        assert_nothing_left(dirs)


@pytest.fixture
def farm_dirs(session_dirs: Dirs) -> Iterator[Dirs]:
    """A fresh world for one test, with the environment pointing at it: for tests that start farms of their own.

    Nothing may be left running in it when the test ends.
    """
    with isolated("itf-") as dirs:
        yield dirs
        assert_nothing_left(dirs)


@pytest.fixture
def _numpys_generator() -> Iterator[None]:
    """A hidden generator of numpy that the test may seed: of one that was seeded, tests of a process are warned."""
    import numpy as np

    module: Any = np.random
    before = module.get_bit_generator()
    module.set_bit_generator(np.random.MT19937())
    yield
    module.set_bit_generator(before)


@pytest.fixture(scope="module")
def farm(request: pytest.FixtureRequest, session_dirs: Dirs) -> Iterator[Farm]:
    """Provide a real farm with two engines in a world of its own, which the tests of a module share.

    ``pytestmark = pytest.mark.farm(n=4, grace=0.3)`` gives the module's farm other settings.
    """
    from tests.support.farms import module_farm

    with module_farm(**_farm_settings(request.node)) as farm:
        yield farm


def _farm_settings(node: pytest.Item | pytest.Collector) -> dict[str, Any]:
    settings: dict[str, Any] = {"n": 2}
    for mark in node.iter_markers("farm"):
        settings.update(mark.kwargs)
    return settings


@pytest.fixture
def tc(request: pytest.FixtureRequest, farm: Farm) -> Iterator[TaskClient]:
    """Provide a task client of the module's farm, with all engines ready and without progress bars."""
    from tests.support.farms import until_engines_of

    with farm.task_client() as tc:
        tc.progress = False
        until_engines_of(tc, _farm_settings(request.node)["n"])
        yield tc


@pytest.fixture
def mec(request: pytest.FixtureRequest, farm: Farm) -> Iterator[MultiEngineClient]:
    """Provide a multi-engine client of the module's farm, with all engines ready."""
    from tests.support.farms import until_engines_of

    with farm.multiengine_client() as mec:
        until_engines_of(mec, _farm_settings(request.node)["n"])
        yield mec


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed gate.  It is opened after the test, so that no task of the test keeps waiting."""
    from tests.support.farms import Gate

    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def pytest_configure(config: pytest.Config) -> None:
    """Compile what tests start in hundreds of processes, let pytest keep the test modules that it compiles, and hear
    Ctrl-C.

    Where PYTHONDONTWRITEBYTECODE is set, each process would compile the package anew, which is half of the CPU time of
    a farm's start.  The variable stays as it is for the tests themselves: they rewrite modules within a second.
    """
    if not hasattr(config, "workerinput"):
        for folder in ("ipytaskfarm", "tests/support"):
            compileall.compile_dir(config.rootpath / folder, quiet=2, workers=0)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell starts what runs in its background, and all processes of the tests would ignore Ctrl-C too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[DONT_WRITE] = sys.dont_write_bytecode
    sys.dont_write_bytecode = False


def pytest_collection_finish(session: pytest.Session) -> None:
    sys.dont_write_bytecode = session.config.stash[DONT_WRITE]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests with a real farm, and run them after the others, so that quick tests fail first."""
    for item in items:
        if FARM_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.farm)
    items.sort(key=lambda item: item.get_closest_marker("farm") is not None)
    if hasattr(config, "workerinput"):
        _long_files_first(items)


def _long_files_first(items: list[pytest.Item]) -> None:
    """Sort files for several workers, which take one file after the other: long files first, so that all workers end
    together.  The seconds are guesses.
    """
    guess_s: defaultdict[Path, float] = defaultdict(float)
    cases: Counter[str] = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        cases[name] += 1
        if cases[name] <= CASES_GUESSED:
            guess_s[item.path] += _guess_s(item)
    for path in guess_s:
        guess_s[path] = max(guess_s[path], MEASURED_S.get(path.name, 0.0))
    items.sort(key=lambda item: -guess_s[item.path])


MEASURED_S = {
    "test_notebooks.py": 120.0,
    "test_chaos.py": 90.0,
    "test_crowd.py": 70.0,
    "test_simulation.py": 90.0,
    "test_farm.py": 80.0,
    "test_executor_chunks.py": 25.0,
    "test_architecture.py": 16.0,
}
"""Files of which the guess is too low, with their seconds: begun late, one of them would keep a single worker busy."""
CASES_GUESSED = 6
"""Of many cases the most share what is slow."""
WORLDS = frozenset({"farm_dirs", "dirs", "world", "isolated_dirs"})
"""Fixtures of tests that start what they need themselves."""


def _guess_s(item: pytest.Item) -> float:
    if item.get_closest_marker("slow") is not None:
        return 8.0
    if WORLDS.intersection(getattr(item, "fixturenames", ())):
        return 2.0
    return 0.5 if item.get_closest_marker("farm") is not None else 0.05
