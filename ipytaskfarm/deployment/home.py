"""A farm's files, as its supervisor and the command see them: made ready before a start, tidied after an end.

`system.farm_paths` knows the folders; this file knows which store a farm has, whether this host may use it, who
supervises, and what may be removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.settings import DEFAULT_PORT, FarmSettings
from ipytaskfarm.storage.blobs import blobs_folder
from ipytaskfarm.storage.disk import network_file_system
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import ConnectionInfo, FarmRecord
from ipytaskfarm.transport.keys import AGENTS_FOLDER, KEYS_FILE

STORE_NAME = "store.sqlite"
PROCESSES_NAME = "processes.json"
STARTER_NAME = "started-by.json"
LOCK_NAME = "supervisor.lock"
TEMPORARY_NAME = "temporary"
"""What names of farms that go with their owners begin with."""
TEMPORARY_PREFIX = f"ipytaskfarm-{TEMPORARY_NAME}-"
SUPERVISOR = "supervisor"
OWNER = "owner"
"""A supervisor's own record among the processes: a command that may be told to end, or the Python of a `Farm`."""
SETTLE_S = 60.0
"""A temporary farm younger than this may be about to start its first process."""

_TEMPORARY = re.compile(TEMPORARY_NAME + r"-\d+-[0-9a-f]{6}")
_locked_here: set[Path] = set()


class FarmRun(NamedTuple):
    """One run of a farm: the pid and the start (seconds since 1970) of the process that looks after it."""

    farm: str
    pid: int
    started_s: float


class Home:
    """The files of one farm."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port = 0
        """Where the controller is to listen, once `prepare` has chosen; 0: anywhere."""

    @classmethod
    def of(cls, name: str) -> Home:
        """Return the files of a named farm, in Jupyter's data folder."""
        return cls(name, farm_paths.farm_folder(name))

    @classmethod
    def temporary(cls, name: str, *, with_agents: bool = False) -> Home:
        """Return a folder of its own for a farm that goes with its owner.  with_agents: among the others' in Jupyter's
        data folder, in the user's home, which agents on other machines see more likely than this one's /tmp."""
        sweep_temporary()
        if with_agents:
            return cls(name, farm_paths.farm_folder(name))
        try:
            return cls(name, Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)))
        except OSError as error:
            raise errors.StoreError(
                f"no folder for temporary files can be written to ({error.strerror}): make room there, or set TMPDIR to"
                " a folder that has some"
            ) from error

    @classmethod
    def all(cls) -> list[Home]:
        """Return the farms that have a folder or a connection file here."""
        return [cls(farm.name, farm.folder or farm_paths.farm_folder(farm.name)) for farm in farm_paths.list_farms()]

    # ------------------------------------------------------------------ where

    @property
    def client_file(self) -> Path:
        """Return the connection file of clients."""
        return farm_paths.connection_path(self.name)

    @property
    def agent_file(self) -> Path:
        """Return the connection file of agents."""
        return farm_paths.connection_path(self.name, "agent")

    @cached_property
    def sockets(self) -> Path:
        """Return the folder of sockets and flight recorders, made now."""
        return farm_paths.socket_folder(self.name, self.folder)

    def _sockets_place(self) -> Path | None:
        """Return the same, whether it is there or not; None: it cannot be anywhere."""
        try:
            return farm_paths.socket_place(self.name, self.folder)
        except errors.SecurityError:
            return None

    @property
    def logs(self) -> Path:
        """Return the folder of logs."""
        return self.folder / "logs"

    def log(self, kind: str) -> Path:
        """Return what a process logs, by its own hand."""
        return self.logs / f"{kind}.log"

    def output(self, kind: str) -> Path:
        """Return what a process prints: nothing, unless it crashes."""
        return self.logs / f"{kind}.out"

    def agent_folder(self, number: int) -> Path:
        """Return an agent's folder, made now."""
        return farm_paths.private_folder(self.sockets / f"agent-{number}")

    def make_folders(self) -> None:
        """What has to be there before anything is started.  StoreError: it cannot be made."""
        try:
            farm_paths.private_folder(self.folder)
            farm_paths.private_folder(self.logs)
            farm_paths.private_folder(self.client_file.parent)
        except OSError as error:
            raise errors.StoreError(
                f"farm {self.name!r} keeps its files in {self.folder}, which cannot be made ({error.strerror}): set"
                " JUPYTER_DATA_DIR to a folder that you can write to, or make a Farm without a name, which needs none"
            ) from error

    # ------------------------------------------------------------------ who

    def lock(self) -> HomeLock:
        """Return the supervisor's lock. FarmExists, naming the process, when somebody has it."""
        self.make_folders()
        return HomeLock(self.folder / LOCK_NAME, self.name)

    def read_processes(self) -> list[dict[str, Any]]:
        """Return the records that the last supervisor left of what it started, and of itself."""
        try:
            records = json.loads(farm_paths.read_private(self.folder / PROCESSES_NAME))
        except (FileNotFoundError, ValueError):
            return []
        return [record for record in records if isinstance(record, dict) and "pid" in record]

    def write_processes(self, records: list[dict[str, Any]]) -> None:
        """Leave them for the next supervisor, which adopts what lives."""
        farm_paths.write_private(self.folder / PROCESSES_NAME, json.dumps(records, indent=1).encode())

    def present_run(self) -> FarmRun | None:
        """Return the present run of the farm, from a start to a stop: the process that looks after it, as far as is
        known.

        The farm's incarnation is no run: it stays when somebody else stops the farm and starts it again."""
        for record in self.read_processes():
            if record["kind"] in (SUPERVISOR, OWNER):
                return FarmRun(self.name, int(record["pid"]), float(record["started"]))
        return None

    def remember_notebook(self, notebook: str) -> None:
        """Write down which notebook has started the present run: its kernel may be started again."""
        run = self.present_run()
        if run is not None and notebook:
            record = {"notebook": notebook, "pid": run.pid, "started": run.started_s}
            farm_paths.write_private(self.folder / STARTER_NAME, json.dumps(record).encode())

    def is_of_notebook(self, notebook: str) -> bool:
        """Return whether this notebook has started the present run of the farm."""
        run = self.present_run()
        try:
            record = json.loads(farm_paths.read_private(self.folder / STARTER_NAME))
        except (FileNotFoundError, ValueError):
            return False
        if run is None or not notebook or not isinstance(record, dict):
            return False
        return record == {"notebook": notebook, "pid": run.pid, "started": run.started_s}

    def is_supervised(self) -> bool:
        """Return whether somebody looks after the farm, and starts again what crashes."""
        return any(record["kind"] in (SUPERVISOR, OWNER) and _is_alive(record) for record in self.read_processes())

    def owner_pid(self) -> int | None:
        """Return the Python process of the `Farm` that looks after this farm, if it is one."""
        return next((int(r["pid"]) for r in self.read_processes() if r["kind"] == OWNER and _is_alive(r)), None)

    def read_info(self) -> ConnectionInfo:
        """Return the clients' connection file."""
        return farm_paths.read_connection_file(self.client_file)

    def living_info(self) -> ConnectionInfo | None:
        """Return the same, if the controller that wrote it lives, as far as can be told from here."""
        try:
            info = self.read_info()
        except errors.ConnectionError:
            return None
        return None if farm_paths.is_stale(info) else info

    def listening(self) -> str:
        """Return what the running controller listens on and where others find it, for people; "": on loopback alone."""
        record, info = farm_paths.read_farm_record(self.folder), self.living_info()
        return farm_paths.listening(record.host, info.port, info.location) if record and info else ""

    # ------------------------------------------------------------------ before a start

    def prepare(self, settings: FarmSettings) -> list[str]:
        """Make the files fit for a controller, and choose its port.  Returns what people should be told.

        FarmExists: the store is another host's.  StoreError: what was asked for does not fit what is there.
        """
        self.make_folders()
        remarks: list[str] = []
        record = self._record(settings)
        if record is not None:
            self._refuse_other_host(record, settings)
        if record is not None and (settings.fresh or settings.take_over):
            remarks += self._begin_anew(record)
            record = None
        if record is None:
            record = self._new_record(settings, remarks)
        elif settings.store_dir is not None and Path(record.store).parent != settings.store_dir.absolute():
            raise errors.StoreError(
                f"the store of farm {self.name!r} is {record.store}: move it to {settings.store_dir} and correct"
                f" {self.folder / farm_paths.FARM_FILE}, or begin anew with --fresh"
            )
        if settings.port == 0 and record.port:
            # To the controller 0 means the farm's last port: forget that one.
            record = msgspec.structs.replace(record, port=0)
            farm_paths.write_farm_record(record, self.folder)
        self.port = record.port if settings.port is None else settings.port
        return remarks

    def _record(self, settings: FarmSettings) -> FarmRecord | None:
        try:
            return farm_paths.read_farm_record(self.folder)
        except errors.StoreError:
            if not settings.fresh:
                raise
            damaged = self.folder / farm_paths.FARM_FILE
            os.replace(damaged, damaged.with_name(f"farm-{_stamp()}.json"))
            store = str(self.folder / STORE_NAME)
            return FarmRecord(
                name=self.name, incarnation="", host=settings.host, port=0, store=store, node=socket.gethostname()
            )

    def _refuse_other_host(self, record: FarmRecord, settings: FarmSettings) -> None:
        here = socket.gethostname()
        if record.node == here or settings.take_over:
            return
        # A store on a local disk in the farm's own folder is here, whatever this host is called today.
        if Path(record.store).parent == self.folder and network_file_system(self.folder) is None:
            return
        raise errors.FarmExists(
            f"the store of farm {self.name!r} is on host {record.node} ({record.store}), and this is {here}: start it"
            " there, or begin anew here with --take-over (what waits there and its results stay there)"
        )

    def _begin_anew(self, record: FarmRecord) -> list[str]:
        """Other keys, another port, another incarnation; the old store stays, under a dated name."""
        remarks = []
        store, stamp = Path(record.store), _stamp()
        aside = store.with_name(f"{store.stem}-{stamp}{store.suffix}")
        if record.node == socket.gethostname() or store.parent == self.folder:
            for suffix in ("-wal", "-shm", ""):
                old = store.with_name(store.name + suffix)
                if old.exists():
                    os.replace(old, aside.with_name(aside.name + suffix))
            if blobs_folder(store).exists():
                os.replace(blobs_folder(store), blobs_folder(aside))
            if aside.exists():
                remarks.append(f"the old store is set aside: {aside}")
        for name in (farm_paths.FARM_FILE, KEYS_FILE, AGENTS_FOLDER):
            remove_path(self.folder / name)
        return remarks

    def _new_record(self, settings: FarmSettings, remarks: list[str]) -> FarmRecord:
        store = self._new_store(settings, remarks)
        record = FarmRecord(
            name=self.name,
            incarnation=uuid.uuid4().hex,
            host=settings.host,
            port=0 if settings.owned else _free_port(settings.host),
            store=str(store),
            node=socket.gethostname(),
        )
        farm_paths.write_farm_record(record, self.folder)
        return record

    def _new_store(self, settings: FarmSettings, remarks: list[str]) -> Path:
        if settings.store_dir is not None:
            return settings.store_dir.absolute() / f"ipytaskfarm-{self.name}.sqlite"
        kind = network_file_system(self.folder)
        if kind is None:
            return self.folder / STORE_NAME
        base = farm_paths.private_folder(Path(f"/var/tmp/ipytaskfarm-{os.geteuid()}"))
        store = farm_paths.private_folder(base / self.sockets.name) / STORE_NAME
        remarks.append(
            f"{self.folder} is on a network file system ({kind}), where a store is not safe:"
            f" it is {store}, on this host"
        )
        return store

    # ------------------------------------------------------------------ after an end

    def tidy(self, *, temporary: bool) -> None:
        """No process is left: remove what only mattered while there were some; a temporary farm altogether."""
        (self.folder / PROCESSES_NAME).unlink(missing_ok=True)
        (self.folder / STARTER_NAME).unlink(missing_ok=True)
        if temporary:
            self.remove()
            return
        for path in (self.client_file, self.agent_file):
            path.unlink(missing_ok=True)
        farm_paths.leave_runtime_folder()
        # A killed agent's flight recorders hold results that its successor will deliver.
        if not any(self.sockets.glob("agent-*/*.rec")):
            remove_path(self.sockets)

    def set_aside(self) -> list[Path]:
        """Return the stores that --fresh has set aside."""
        record = farm_paths.read_farm_record(self.folder)
        store = self.folder / STORE_NAME if record is None else Path(record.store)
        return sorted(store.parent.glob(f"{store.stem}-[0-9]*{store.suffix}*"))

    def stale_files(self) -> list[Path]:
        """Return what a crash left of a farm that is stopped, and logs that were rotated away."""
        records = (self.folder / PROCESSES_NAME, self.folder / STARTER_NAME)
        left = [path for path in (self.client_file, self.agent_file, *records) if path.exists()]
        return [*left, *sorted(self.sockets.glob("agent-*")), *sorted(self.logs.glob("*.[1-9]"))]

    def store_path(self) -> Path | None:
        """Return where the store is; None: the farm has none."""
        try:
            record = farm_paths.read_farm_record(self.folder)
        except errors.TaskFarmError:
            return None
        path = Path(record.store) if record is not None else self.folder / STORE_NAME
        return path if path.exists() else None

    def store_bytes(self) -> int:
        """Return the size of the store, with its write-ahead log."""
        store = self.store_path()
        if store is None:
            return 0
        return sum(path.stat().st_size for path in (store, store.with_name(store.name + "-wal")) if path.exists())

    def remove(self) -> None:
        """The farm and all that belongs to it."""
        record = None
        try:
            record = farm_paths.read_farm_record(self.folder)
        except errors.TaskFarmError:
            pass
        if record is not None and Path(record.store).parent != self.folder:
            store = Path(record.store)
            for path in (blobs_folder(store), *(store.with_name(store.name + end) for end in ("-wal", "-shm", ""))):
                remove_path(path)
        sockets = self._sockets_place()
        for path in (*([sockets] if sockets is not None else []), self.folder, self.client_file, self.agent_file):
            remove_path(path)
        farm_paths.leave_runtime_folder()


class HomeLock:
    """The supervisor's lock, against other processes and against this one: POSIX locks do not see the latter."""

    def __init__(self, path: Path, name: str) -> None:
        if path in _locked_here:
            raise errors.FarmExists(f"farm {name!r} runs already: this very process ({os.getpid()}) supervises it")
        self._lock = farm_paths.Lock(path, f"the supervisor of farm {name!r}")
        self._path = path
        _locked_here.add(path)

    def release(self) -> None:
        """Give it up."""
        _locked_here.discard(self._path)
        self._lock.release()

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def remove_path(path: Path) -> None:
    """A file or a whole folder; nothing happens if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def sweep_temporary() -> None:
    """Remove temporary farms whose processes have all died without a chance to (power loss, kill -9 of all of them)."""
    for folder in _temporary_folders():
        try:
            if folder.stat().st_uid != os.geteuid() or time.time() - folder.stat().st_mtime < SETTLE_S:
                continue
            record = farm_paths.read_farm_record(folder)
            if _TEMPORARY.fullmatch(folder.name) and (record is None or record.node != socket.gethostname()):
                continue
            home = Home(record.name if record is not None else TEMPORARY_NAME, folder)
            if not any(_is_alive(process) for process in home.read_processes()):
                home.remove()
        except (OSError, errors.TaskFarmError, msgspec.MsgspecError):
            continue  # somebody else sweeps, or it is not what we think


def _temporary_folders() -> list[Path]:
    """Those of temporary farms: this machine's, and in the user's home those of other hosts too."""
    try:
        here = list(Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"))
        beside = list(farm_paths.farm_folder(TEMPORARY_NAME).parent.glob("*"))
    except OSError:
        return []  # a home that is not ours, or a disk that is full: whoever needs it says so
    return [*here, *(path for path in beside if _TEMPORARY.fullmatch(path.name))]


def _is_alive(record: dict[str, Any]) -> bool:
    return farm_paths.process_started(int(record["pid"])) == record.get("started")


def _free_port(host: str) -> int:
    """Return the default port if nothing listens there, else 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, DEFAULT_PORT))
        except OSError:
            return 0
    return DEFAULT_PORT


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
