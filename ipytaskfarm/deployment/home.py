"""A farm's files from the point of view of its supervisor and of commands: prepared before a start, tidied after an
end.

`system.farm_paths` knows the folders. This module knows which store a farm has, whether this host may use it, which
process supervises, and which files may be removed.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.copies import find, forget_processes, settled
from ipytaskfarm.deployment.settings import DEFAULT_PORT, FarmSettings
from ipytaskfarm.storage.backup import has_unfinished, incarnation_of, usable_record
from ipytaskfarm.storage.beside import STORE_NAME as STORE_NAME, beside, recorders_folder
from ipytaskfarm.storage.disk import network_file_system
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import TEMPORARY, ConnectionInfo, FarmRecord
from ipytaskfarm.system.odd_files import (
    remove_entry,
    remove_unless_folder,
    set_aside_unless_file,
    set_aside_unless_folder,
)
from ipytaskfarm.system.private_files import set_aside_lock
from ipytaskfarm.system.supervision import OWNER, PROCESSES_FILE, SUPERVISOR, is_alive, lock_holders, read_processes
from ipytaskfarm.transport.keys import AGENTS_FOLDER, KEYS_FILE

STARTER_NAME = "started-by.json"
LOCK_NAME = "supervisor.lock"
TEMPORARY_NAME = "temporary"
"""The beginning of the names of farms that end with their owners."""
TEMPORARY_PREFIX = f"ipytaskfarm-{TEMPORARY_NAME}-"
ROOM_BYTES = 256 * 1024
"""Room that a start needs for the farm's record, locks and logs."""
SETTLE_S = 60.0
"""A temporary farm that is younger than this may be about to start its first process."""

_locked_here: set[Path] = set()


class FarmRun(NamedTuple):
    """One run of a farm, from a start to a stop: pid and start time (seconds since 1970) of the process that supervises
    it.
    """

    farm: str
    pid: int
    started_s: float


class Home:
    """The files of one farm."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port = 0
        """The port for the controller, once `prepare` has chosen it; 0 for any port."""

    @classmethod
    def of(cls, name: str) -> Home:
        """Return the files of a named farm, in Jupyter's data folder."""
        return cls(name, farm_paths.farm_folder(name))

    @classmethod
    def temporary(cls, name: str, *, with_agents: bool = False) -> Home:
        """Return the files of a farm that ends with its owner, in a folder of its own.

        With agents, the folder is in Jupyter's data folder, in the user's home: agents on other machines more likely
        see that than this machine's /tmp.
        """
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
        """Return the files of all farms that have a folder or a connection file here."""
        return [cls(farm.name, farm.folder or farm_paths.farm_folder(farm.name)) for farm in farm_paths.list_farms()]

    # ------------------------------------------------------------------ paths

    @property
    def client_file(self) -> Path:
        return farm_paths.connection_path(self.name)

    @property
    def agent_file(self) -> Path:
        return farm_paths.connection_path(self.name, "agent")

    @cached_property
    def sockets(self) -> Path:
        """Create and return the folder of sockets and flight recorders."""
        return farm_paths.socket_folder(self.name, self.folder)

    def _sockets_place(self) -> Path | None:
        """Return the path of that folder, whether it exists or not; None if no path is possible."""
        try:
            return farm_paths.socket_place(self.name, self.folder)
        except errors.SecurityError:
            return None

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def log(self, kind: str) -> Path:
        """Return the path of a process's own log."""
        return self.logs / f"{kind}.log"

    def output(self, kind: str) -> Path:
        """Return the path of a process's output, which is empty unless the process crashes."""
        return self.logs / f"{kind}.out"

    def agent_folder(self, number: int) -> Path:
        """Create and return the folder of an agent, also where something else is in its place or its log's."""
        set_aside_unless_file(self.log(f"agent-{number}"))
        folder = farm_paths.socket_folder(self.name, self.folder) / f"agent-{number}"
        remove_unless_folder(folder)
        return farm_paths.private_folder(folder)

    def recorders(self, number: int) -> Path:
        """Return the folder of an agent's flight recorders: beside the store, where a reboot leaves them.

        It is not created here. What is no folder in the place of its parent is set aside.
        """
        folder = recorders_folder(self._store)
        set_aside_unless_folder(folder)
        return folder / f"agent-{number}"

    @property
    def _store(self) -> Path:
        """Return the path of the store, in the farm's folder if the farm's record is lost."""
        try:
            record = farm_paths.read_farm_record(self.folder)
        except errors.TaskFarmError:
            record = None
        return self.folder / STORE_NAME if record is None else Path(record.store)

    def make_folders(self) -> None:
        """Create the folders that must exist before any process is started.

        Raises:
            StoreError: a folder cannot be created, or there is no room in it.
        """
        try:
            farm_paths.private_folder(self.folder)
            self.mend_logs()
            farm_paths.private_folder(self.client_file.parent)
        except OSError as error:
            raise errors.StoreError(
                f"farm {self.name!r} keeps its files in {self.folder}, which cannot be made ({error.strerror}): set"
                " JUPYTER_DATA_DIR to a folder that you can write to, or make a Farm without a name, which needs none"
            ) from error
        try:
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                os.posix_fallocate(probe.fileno(), 0, ROOM_BYTES)
        except OSError as error:
            raise errors.StoreError(
                f"farm {self.name!r} cannot write into its folder {self.folder} ({error.strerror}): make room on that"
                " disk, or set JUPYTER_DATA_DIR to a folder that can be written to"
            ) from error

    def mend_logs(self) -> None:
        """Create the folder of logs if the farm's folder is there, also where a task has put something else."""
        if self.folder.is_dir():
            remove_unless_folder(self.logs)
            farm_paths.private_folder(self.logs)

    # ------------------------------------------------------------------ processes

    def lock(self) -> HomeLock:
        """Take and return the supervisor's lock.

        Raises:
            FarmExists: another process has it. The message names the process.
        """
        self.make_folders()
        return HomeLock(self.folder / LOCK_NAME, self.name)

    def read_processes(self) -> list[dict[str, Any]]:
        """Return the last supervisor's records of itself and of the processes that it started."""
        return read_processes(self.folder)

    def settle(self, fresh: bool) -> str:
        """Make the farm's record true again after its folder was copied, moved or restored.

        Args:
            fresh: whether the farm starts again, so that it may leave the store of another farm alone.

        Returns:
            A message for people; "" if nothing has changed.

        Raises:
            StoreError: the farm cannot be started like this. The message has the remedy.
        """
        try:
            record, remark = usable_record(self.folder)
        except errors.StoreError:
            return ""  # `prepare` raises it, or starts again
        if record is None:
            return remark
        try:
            found = settled(record, find(record, self.name, self.folder))
        except errors.StoreError:
            if not fresh:
                raise
            for name in (farm_paths.FARM_FILE, PROCESSES_FILE, STARTER_NAME):
                remove_entry(self.folder / name)
            return ""
        if found.is_new:
            forget_processes(found.record, [self.folder / PROCESSES_FILE, self.folder / STARTER_NAME])
        if found.record != record:
            farm_paths.write_farm_record(found.record, self.folder)
        return found.remark

    def unrecorded_processes(self) -> list[dict[str, Any]]:
        """Return records of the processes that hold the farm's locks, whether they were recorded or not."""
        sockets = self._sockets_place()
        locks = {"controller": self.folder / "controller.lock"}
        if sockets is not None:
            locks["agent-0"] = sockets / "agent-0" / "agent.lock"
        if self.folder / LOCK_NAME not in _locked_here:
            locks[SUPERVISOR] = self.folder / LOCK_NAME
        return lock_holders(locks, self.logs)

    def has_work(self) -> bool:
        """Return whether the store has tasks that have not ended; False if it cannot be read."""
        store = self.store_path()
        return store is not None and has_unfinished(store)

    def write_processes(self, records: list[dict[str, Any]]) -> None:
        """Write the records for the next supervisor, which adopts the processes that live."""
        set_aside_unless_file(self.folder / PROCESSES_FILE)
        farm_paths.write_private(self.folder / PROCESSES_FILE, json.dumps(records, indent=1).encode())

    def present_run(self) -> FarmRun | None:
        """Return the present run of the farm; None: no supervising process is known.

        The farm's incarnation does not identify a run: it stays the same when another user stops the farm and starts it
        again.
        """
        for record in self.read_processes():
            if record["kind"] in (SUPERVISOR, OWNER):
                return FarmRun(self.name, int(record["pid"]), float(record["started"]))
        return None

    def remember_notebook(self, notebook: str) -> None:
        """Record which notebook has started the present run, because the notebook's kernel may be restarted."""
        run = self.present_run()
        if run is not None and notebook:
            record = {"notebook": notebook, "pid": run.pid, "started": run.started_s}
            set_aside_unless_file(self.folder / STARTER_NAME)
            farm_paths.write_private(self.folder / STARTER_NAME, json.dumps(record).encode())

    def is_of_notebook(self, notebook: str) -> bool:
        """Return whether this notebook has started the present run of the farm."""
        run = self.present_run()
        try:
            record = json.loads(farm_paths.read_private(self.folder / STARTER_NAME))
        except (FileNotFoundError, ValueError, errors.SecurityError):
            return False
        if run is None or not notebook or not isinstance(record, dict):
            return False
        return record == {"notebook": notebook, "pid": run.pid, "started": run.started_s}

    def is_supervised(self) -> bool:
        """Return whether a process supervises the farm and restarts crashed processes."""
        return any(record["kind"] in (SUPERVISOR, OWNER) and is_alive(record) for record in self.read_processes())

    def owner_pid(self) -> int | None:
        """Return the Python process of the `Farm` that supervises this farm; None if another kind of process does."""
        return next((int(r["pid"]) for r in self.read_processes() if r["kind"] == OWNER and is_alive(r)), None)

    def read_info(self) -> ConnectionInfo:
        return farm_paths.read_connection_file(self.client_file)

    def living_info(self) -> ConnectionInfo | None:
        """Return the clients' connection file if the controller that wrote it lives, as far as this host can tell; else
        None.
        """
        try:
            info = self.read_info()
        except errors.ConnectionError:
            return None
        return None if farm_paths.is_stale(info) else info

    def listening(self) -> str:
        """Return a text about the addresses of the running controller; "" if it listens only on loopback."""
        record, info = farm_paths.read_farm_record(self.folder), self.living_info()
        return farm_paths.listening(record.host, info.port, info.location) if record and info else ""

    # ------------------------------------------------------------------ before a start

    def prepare(self, settings: FarmSettings) -> list[str]:
        """Prepare the files for a controller, and choose its port. Return messages for people.

        Raises:
            FarmExists: the store belongs to another host.
            StoreError: the settings do not fit the existing files.
        """
        self.make_folders()
        self._remove_others_connections()
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
                f" {self.folder / farm_paths.FARM_FILE}, or start with an empty store by --fresh"
            )
        if settings.port == 0 and record.port:
            # For the controller, 0 means the farm's last port: forget that one.
            record = msgspec.structs.replace(record, port=0)
            farm_paths.write_farm_record(record, self.folder)
        self.port = record.port if settings.port is None else settings.port
        return remarks

    def _record(self, settings: FarmSettings) -> FarmRecord | None:
        try:
            record = farm_paths.read_farm_record(self.folder)
        except errors.StoreError:
            if not settings.fresh:
                raise
            damaged = self.folder / farm_paths.FARM_FILE
            os.replace(damaged, damaged.with_name(f"farm-{_stamp()}.json"))
            record = None
        if record is not None or not settings.fresh:
            return record
        store = str(self.folder / STORE_NAME)
        return FarmRecord(
            name=self.name, incarnation="", host=settings.host, port=0, store=store, node=socket.gethostname()
        )

    def _remove_others_connections(self) -> None:
        """Remove connection files of another farm, which were copied with its files: they may lead to its controller.

        The agent reads its file before this farm's controller has written it.
        """
        for path in (self.client_file, self.agent_file):
            try:
                info = farm_paths.read_connection_file(path)
            except errors.TaskFarmError:
                continue  # there is none, or the controller replaces it, or says why not
            if info.farm != self.name or (info.folder and Path(info.folder) != self.folder.absolute()):
                path.unlink(missing_ok=True)

    def _refuse_other_host(self, record: FarmRecord, settings: FarmSettings) -> None:
        here = socket.gethostname()
        if record.node == here or settings.take_over:
            return
        # A store on a local disk in the farm's own folder belongs to this host, even if the host's name has changed.
        if Path(record.store).parent == self.folder and network_file_system(self.folder) is None:
            return
        raise errors.FarmExists(
            f"the store of farm {self.name!r} is on host {record.node} ({record.store}), and this is {here}: start it"
            " there, or start with an empty store here by --take-over (its waiting tasks and results stay there)"
        )

    def _begin_anew(self, record: FarmRecord) -> list[str]:
        """Set the old store aside under a dated name; the farm gets new keys, another port and another incarnation."""
        remarks = []
        store, stamp = Path(record.store), _stamp()
        aside = store.with_name(f"{store.stem}-{stamp}{store.suffix}")
        if record.node == socket.gethostname() or store.parent == self.folder:
            for old, new in zip(beside(store), beside(aside), strict=True):
                if os.path.lexists(old):
                    os.replace(old, new)
            remove_entry(recorders_folder(aside))  # the new farm has no part in those runs
            if aside.exists():
                remarks.append(f"the old store is set aside: {aside}")
        for name in (farm_paths.FARM_FILE, KEYS_FILE, AGENTS_FOLDER):
            remove_entry(self.folder / name)
        return remarks

    def _new_record(self, settings: FarmSettings, remarks: list[str]) -> FarmRecord:
        store = self._new_store(settings, remarks)
        # In a given folder it may be the store of another farm of this name.
        known = incarnation_of(store) if settings.store_dir is None else ""
        if known:
            remarks.append(
                f"the farm's record is made again from its store {store}, which has what waited and the results"
            )
        record = FarmRecord(
            name=self.name,
            incarnation=known or uuid.uuid4().hex,
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
        """Remove files that only matter to running processes, after the last one has ended; remove a temporary farm
        completely.
        """
        for name in (PROCESSES_FILE, STARTER_NAME):
            remove_entry(self.folder / name)
        if temporary:
            self.remove()
            return
        for path in (self.client_file, self.agent_file):
            remove_entry(path)
        farm_paths.leave_runtime_folder()
        # Flight recorders of a killed agent hold results that its successor will deliver.
        farm_paths.leave_folder(recorders_folder(self._store))
        if not any(self.sockets.glob("agent-*/*.rec")):
            remove_entry(self.sockets)

    def set_aside(self) -> list[Path]:
        """Return the stores that --fresh has set aside."""
        store = self._store
        return sorted(store.parent.glob(f"{store.stem}-[0-9]*{store.suffix}*"))

    def stale_files(self) -> list[Path]:
        """Return files that a crash of a now stopped farm has left, and rotated logs."""
        records = (self.folder / PROCESSES_FILE, self.folder / STARTER_NAME)
        recorders = recorders_folder(self._store)
        left = [path for path in (self.client_file, self.agent_file, *records, recorders) if path.exists()]
        left += [*self.folder.glob("*.spoiled-*"), *self.logs.glob("*.spoiled-*")]
        return [*left, *sorted(self.sockets.glob("agent-*")), *sorted(self.logs.glob("*.[1-9]"))]

    def store_path(self) -> Path | None:
        """Return the path of the store; None if the farm has none."""
        path = self._store
        return path if os.path.lexists(path) else None

    def store_bytes(self) -> int:
        """Return the size of the store, including its write-ahead log."""
        store = self.store_path()
        if store is None:
            return 0
        return sum(path.stat().st_size for path in (store, store.with_name(store.name + "-wal")) if path.exists())

    def remove(self) -> None:
        """Remove the farm with all its files."""
        store = self._store
        if store.parent != self.folder:
            for path in beside(store):
                remove_entry(path)
        sockets = self._sockets_place()
        for path in (*([sockets] if sockets is not None else []), self.folder, self.client_file, self.agent_file):
            remove_entry(path)
        farm_paths.leave_runtime_folder()


class HomeLock:
    """The supervisor's lock. It also excludes this very process, which POSIX locks do not."""

    def __init__(self, path: Path, name: str) -> None:
        remedy = (
            f"TaskClient({name!r}) connects to the farm, `ipytaskfarm stop --farm {name}` stops it, and another name"
            " starts another farm"
        )
        if path in _locked_here:
            raise errors.FarmExists(
                f"farm {name!r} runs already: this very process ({os.getpid()}) supervises it. {remedy}"
            )
        what = f"the supervisor of farm {name!r}"
        try:
            lived = any(path.with_name(file).exists() for file in (farm_paths.FARM_FILE, STORE_NAME))
            set_aside_lock(path, what, may_be_lost=lived)
            self._lock = farm_paths.Lock(path, what)
        except errors.FarmExists as error:
            raise errors.FarmExists(f"{error}. {remedy}") from None
        self._path = path
        _locked_here.add(path)

    def release(self) -> None:
        _locked_here.discard(self._path)
        self._lock.release()

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def sweep_temporary() -> None:
    """Remove temporary farms of which all processes died without cleaning up (power loss, kill -9 of all of them)."""
    for folder in _temporary_folders():
        try:
            if folder.stat().st_uid != os.geteuid() or time.time() - folder.stat().st_mtime < SETTLE_S:
                continue
            record = farm_paths.read_farm_record(folder)
            if TEMPORARY.fullmatch(folder.name) and (record is None or record.node != socket.gethostname()):
                continue
            home = Home(record.name if record is not None else TEMPORARY_NAME, folder)
            if not any(is_alive(process) for process in home.read_processes()):
                home.remove()
        except (OSError, errors.TaskFarmError, msgspec.MsgspecError):
            continue  # another process removes it, or it is not a farm's folder


def _temporary_folders() -> list[Path]:
    """Return the folders of temporary farms: this machine's, and in the user's home also those of other hosts."""
    try:
        here = list(Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"))
        beside = list(farm_paths.farm_folder(TEMPORARY_NAME).parent.glob("*"))
    except OSError:
        return []  # a home that this user may not read, or a full disk: the code that needs it reports that
    return [*here, *(path for path in beside if TEMPORARY.fullmatch(path.name))]


def _free_port(host: str) -> int:
    """Return the default port if nothing listens on it, else 0."""
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
