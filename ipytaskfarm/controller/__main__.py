"""``python -m ipytaskfarm.controller``: starts the one controller of a farm.

Exit codes: 0 stopped, 1 a bug in the farm, 3 the store cannot be used, 4 refused (a second controller, another host's
farm, a policy that does not load).
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import logging
import logging.handlers
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..core.errors import ConnectionError, QueuePolicyError, StoreError, StoreFull, TaskFarmError
from ..core.handlers.losses import lease_margin_s
from ..core.limits import PeerLimits
from ..core.messages import PROTOCOL, StopFarm
from ..core.saves import StoredState
from ..core.scheduler.decision import Now
from ..core.scheduler.restore import restored_farm
from ..core.scheduler.scheduler import Scheduler
from ..core.scheduler.settings import SchedulerSettings
from ..core.scheduler.state import SchedulerState
from ..core.states import State
from ..settings.declarations import add_flags, scheduler_settings
from ..settings.setting import CONTROLLER
from ..storage.backup import incarnation_of, usable_record
from ..storage.beside import STORE_NAME, identity
from ..storage.blobs import Blobs, blobs_folder
from ..storage.disk import least_room
from ..storage.event_log import EventLog, PolicyName
from ..storage.result_cache import ResultCache, cache_file
from ..storage.store import Store
from ..system import farm_paths
from ..system.farm_paths import ConnectionInfo
from ..system.machine import why_gone
from ..system.odd_files import set_aside_unless_file
from ..system.process import name_process, spare_the_collector
from ..transport.hub import Hub
from ..transport.keys import FarmKeys, farm_keys
from ..version import __version__
from .access import FarmAccess, orphans
from .blob_reading import BlobReader
from .blob_receiving import BlobReceiver
from .loop import ControllerLoop
from .policy import load_policy
from .retention import BlobSweeper, FunctionSweeper, Retention

log = logging.getLogger("ipytaskfarm.controller")

EXIT_STOPPED = 0
EXIT_BUG = 1
EXIT_STORE = 3
EXIT_REFUSED = 4
EXIT_FULL = 5
"""The store has no room for the beginning of a life: another start may find some."""
EXIT_POLICY = 6
EXIT_ADDRESS = 7
_EXITS: dict[type[TaskFarmError], int] = {QueuePolicyError: EXIT_POLICY, ConnectionError: EXIT_ADDRESS}


def main(argv: list[str] | None = None) -> int:
    """Run a controller until it is stopped, and return the exit code."""
    options = _parser().parse_args(argv)
    name_process(f"ipytaskfarm controller --farm {options.farm}")
    os.umask(0o077)
    folder = farm_paths.private_folder(options.farm_folder)
    _set_up_logs(options.log)
    try:
        code = _run(options, folder)
    except StoreError as error:
        log.error("%s", error)
        print(error, file=sys.stderr)
        code = EXIT_FULL if isinstance(error, StoreFull) else EXIT_STORE
    except TaskFarmError as error:
        log.error("%s", error)
        print(error, file=sys.stderr)
        code = _EXITS.get(type(error), EXIT_REFUSED)
    except Exception:
        log.exception("the controller has a bug: it stops, and can start again from its store")
        raise
    logging.shutdown()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipytaskfarm controller", description="The one controller of a farm.")
    parser.add_argument("--farm", default=farm_paths.DEFAULT_FARM, help="the farm's name")
    parser.add_argument("--farm-folder", type=Path, required=True, help="keys, store and logs live here")
    parser.add_argument(
        "--socket-folder",
        type=Path,
        help="all sockets live here; removed with an owned farm",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: the farm's last one, or any that is free")
    parser.add_argument("--any-port", action="store_true", help="nobody asked for that port: taken, another will do")
    add_flags(parser, CONTROLLER)
    parser.add_argument("--min-free-bytes", type=int, default=None, help="room kept for results")
    parser.add_argument("--hold", action="store_true", help="start no task until told to go on")
    parser.add_argument("--owner-fd", type=int, default=None, help="end of file here: stop, and delete the farm")
    parser.add_argument("--ready-fd", type=int, default=None, help="one line of JSON here when listening")
    parser.add_argument("--log", type=Path, default=None, help="the log file; default: stderr")
    return parser


def _set_up_logs(path: Path | None) -> None:
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        farm_paths.private_folder(path.parent)
        set_aside_unless_file(path)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=10 * 2**20, backupCount=3, encoding="utf-8")
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    faulthandler.enable()


def _run(options: argparse.Namespace, folder: Path) -> int:
    lock_file, what = folder / "controller.lock", f"a controller of farm {options.farm!r}"
    farm_paths.set_aside_lock(lock_file, what)
    lock = farm_paths.Lock(lock_file, what)
    try:
        record = _record(options, folder)
        policy = load_policy(options.queue_policy, options.policy_path)
        margin_s = lease_margin_s(options.lease)
        settings = scheduler_settings(options, lease_margin_s=margin_s, policy=policy, seed=secrets.randbits(63))
        store = Store.open(record.store, farm_incarnation=record.incarnation, former=record.former)
        for note in store.notes:
            log.warning("%s", note)
        try:
            gc.disable()  # there are a million new objects and no garbage, until `spare_the_collector`
            record = _as_the_store_is(record, store, folder)
            snapshot, now = store.load(), Now(time.monotonic(), time.time())
            event_log = _event_log(options, snapshot, settings, now) if options.record is not None else None
            farm = restored_farm(options.farm, snapshot, settings, now)
            farm.agents.awaited -= {a.session for a in snapshot.agents if store.is_another or why_gone(a.process)}
            del snapshot
            farm.lifecycle.held = farm.lifecycle.held or options.hold
            spare_the_collector()

            def restored(now: Now) -> SchedulerState:
                return restored_farm(options.farm, store.load(), settings, now)

            _serve(options, folder, record, store, farm, event_log, restored)
        finally:
            store.close()
    finally:
        lock.release()
    if options.owner_fd is not None:
        _delete(options, folder)
    return EXIT_STOPPED


def _event_log(options: argparse.Namespace, snapshot: StoredState, settings: SchedulerSettings, now: Now) -> EventLog:
    policy = PolicyName(options.queue_policy, tuple(options.policy_path))
    return EventLog.begin(options.record, options.farm, snapshot, settings, policy, options.hold, now)


def _record(options: argparse.Namespace, folder: Path) -> farm_paths.FarmRecord:
    """Return the record that stays the same over restarts; make it for a new farm, or again from the store."""
    record, remark = usable_record(folder)
    if record is not None:
        return record
    if remark:
        log.warning("%s", remark)
    store = _known_store(options)
    record = farm_paths.FarmRecord(
        name=options.farm,
        incarnation=incarnation_of(store) or uuid.uuid4().hex,
        host=options.host,
        port=0,
        store=str(store),
        node=socket.gethostname(),
    )
    farm_paths.write_farm_record(record, folder)
    return record


def _known_store(options: argparse.Namespace) -> Path:
    """Return the store of a farm without a record: the last controller's connection file tells where its blobs are."""
    folder = options.farm_folder.absolute()
    try:
        info = farm_paths.read_connection_file(farm_paths.connection_path(options.farm))
        store = Path(info.blobs).with_suffix("")
        if info.folder == str(folder) and blobs_folder(store) == Path(info.blobs):
            return store
    except (TaskFarmError, ValueError):
        pass  # it is a new farm, or its files are lost too
    return Path(folder / STORE_NAME)


def _as_the_store_is(record: farm_paths.FarmRecord, store: Store, folder: Path) -> farm_paths.FarmRecord:
    """Return the record after the store was opened: its file is known now, and perhaps the farm is another one."""
    if store.renewed:
        log.warning("the farm has a new incarnation, its clients connect again: %s", store.renewed)
    now = msgspec.structs.replace(record, incarnation=store.farm, former="", file=identity(folder, store.path))
    if now != record:
        farm_paths.write_farm_record(now, folder)
    return now


def _serve(
    options: argparse.Namespace,
    folder: Path,
    record: farm_paths.FarmRecord,
    store: Store,
    farm: SchedulerState,
    event_log: EventLog | None,
    restored: Callable[[Now], SchedulerState],
) -> None:
    keys = farm_keys(folder)
    hub = _listen(options, record, keys, farm.epoch)
    paths: list[Path] = []
    stopped = False
    try:
        if (hub.port, options.host) != (record.port, record.host):
            # A restart binds the same port, so that peers find the controller again without being told.
            record = msgspec.structs.replace(record, host=options.host, port=hub.port)
            farm_paths.write_farm_record(record, folder)
        found = _found(farm, store)
        watch = _stop_events(options.owner_fd)
        info = _connection(options, record, keys, hub)
        access = FarmAccess(hub, info, folder)
        blobs = Blobs.create(blobs_folder(Path(record.store)), record.incarnation)
        controller = ControllerLoop(
            Scheduler(farm),
            store,
            hub,
            folder,
            found=found,
            min_free_bytes=_min_free_bytes(options, Path(record.store)),
            reader=BlobReader(blobs),
            receiver=BlobReceiver(blobs, _min_free_bytes(options, Path(record.store))),
            blob_sweeper=BlobSweeper(blobs, Path(record.store)),
            function_sweeper=FunctionSweeper(Path(record.store), time.monotonic()),
            retention=Retention(store, blobs.folder, options.keep_results, options.keep_results_size),
            event_log=event_log,
            access=access,
            result_cache=_result_cache(store, blobs, options.cache_size),
            watch_fds=watch,
            restored=restored,
        )
        signal.signal(signal.SIGUSR2, lambda *_: _dump(controller, folder))
        _give_up_agents(controller, list(farm.agents.by_session), store, keys)
        paths = access.write_files(keys)
        log.info("listening on %s:%s, epoch %s; %s", options.host, hub.port, farm.epoch, found or "a new farm")
        if elsewhere := farm_paths.listening(options.host, hub.port, info.location):
            log.info("%s", elsewhere)
        _say_ready(options.ready_fd, hub.port, found)
        controller.run()
        stopped = True
        log.info("stopped")
    finally:
        # A controller that has failed is started again: until then its clients wait, because they find the files.
        for path in paths if stopped else ():
            farm_paths.remove_connection_file(path, record.incarnation)
        hub.close()
        if hub.socket_path is not None:
            farm_paths.leave_folder(hub.socket_path.parent)
        if event_log is not None:
            event_log.close()


def _give_up_agents(controller: ControllerLoop, sessions: list[str], store: Store, keys: FarmKeys) -> None:
    """Give up the agents that may not come back, without waiting for their leases."""
    controller.give_up(orphans(sessions, keys))
    if store.is_another:
        controller.give_up(sessions, "it works for the farm of which this one is a copy or an earlier state")


def _result_cache(store: Store, blobs: Blobs, limit_bytes: int) -> ResultCache:
    cache = ResultCache.open(cache_file(store.path), blobs, limit_bytes)
    for note in cache.notes:
        log.warning("%s", note)
    return cache


def _listen(options: argparse.Namespace, record: farm_paths.FarmRecord, keys: FarmKeys, epoch: int) -> Hub:
    """Listen on the requested port, or on the farm's last one. Peers find a new port in the connection file."""
    port = options.port or record.port
    path, limits = _socket_path(options), _limits(options)
    try:
        return Hub(options.host, port, keys, record.incarnation, options.farm, epoch, socket_path=path, limits=limits)
    except ConnectionError as error:
        if not options.any_port or not port:
            raise
        log.warning("%s: taking another port", error)
        return Hub(options.host, 0, keys, record.incarnation, options.farm, epoch, socket_path=path, limits=limits)


def _limits(options: argparse.Namespace) -> PeerLimits:
    """Return the limits of what peers may hold, and let this process have as many connections as it may."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = PeerLimits.sessions_kept
    in_all = max(PeerLimits.sessions_in_all, options.max_sessions + kept)
    return PeerLimits(options.max_sessions, in_all, kept, options.incoming_limit, options.outgoing_limit)


def _socket_path(options: argparse.Namespace) -> Path:
    """Return the path of the unix socket for peers of this machine. Its folder is made."""
    if options.socket_folder is not None:
        folder = farm_paths.private_folder(options.socket_folder)
    else:
        folder = farm_paths.socket_folder(options.farm, options.farm_folder)
    return folder / farm_paths.CONTROLLER_SOCKET


def _found(farm: SchedulerState, store: Store) -> str:
    """Return a text for people about the tasks that were there before."""
    unfinished = farm.tasks.counts[State.SCHEDULED] + farm.tasks.counts[State.PENDING]
    kept = len(farm.tasks.finals)
    found = f"{unfinished} unfinished, {kept} results kept" if unfinished or kept or store.renewed else ""
    return f"{found} ({store.renewed})" if store.renewed else found


def _min_free_bytes(options: argparse.Namespace, store: Path) -> int:
    if options.min_free_bytes is not None:
        return int(options.min_free_bytes)
    return least_room(store.parent)


def _connection(options: argparse.Namespace, record: farm_paths.FarmRecord, keys: FarmKeys, hub: Hub) -> ConnectionInfo:
    """Return the clients' connection file, from which the others are made."""
    host, location = farm_paths.addresses(options.host, options.location)
    return ConnectionInfo(
        farm=options.farm,
        incarnation=record.incarnation,
        host=host,
        port=hub.port,
        server_key=keys.server.public,
        public_key=keys.client.public,
        secret_key=keys.client.secret,
        role="client",
        controller_pid=os.getpid(),
        controller_started=farm_paths.process_started() or 0.0,
        version=__version__,
        protocol=PROTOCOL,
        node=socket.gethostname(),
        blobs=str(blobs_folder(Path(record.store))),
        location=location,
        socket=str(hub.socket_path or ""),
        folder=str(options.farm_folder.absolute()),
    )


def _say_ready(fd: int | None, port: int, found: str) -> None:
    if fd is None:
        return
    line = json.dumps({"port": port, "pid": os.getpid(), "found": found}) + "\n"
    try:
        os.write(fd, line.encode())
    except BrokenPipeError:
        log.warning("whoever started this controller is gone already")
    os.close(fd)


def _stop_events(owner_fd: int | None) -> dict[int, Callable[[], StopFarm | None]]:
    """Return what stops the farm: signals, and the end of its owner."""
    watch = _signals()
    if owner_fd is not None:
        watch[owner_fd] = lambda: _owner_is_gone(owner_fd, watch)
    return watch


def _signals() -> dict[int, Callable[[], StopFarm | None]]:
    """Make SIGINT and SIGTERM stop the farm. A second signal stops it without waiting."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def told() -> StopFarm | None:
        numbers = os.read(read, 4096)
        stopping = any(number in (signal.SIGINT, signal.SIGTERM) for number in numbers)
        return StopFarm(drain_s=2.0) if stopping else None

    return {read: told}


def _owner_is_gone(fd: int, watch: dict[int, Callable[[], StopFarm | None]]) -> StopFarm | None:
    """Handle a readable pipe of the owner. The owner never writes, so it has closed its end, or died."""
    if os.read(fd, 1):
        return None
    del watch[fd]
    os.close(fd)
    return StopFarm(drain_s=0.0)


def _delete(options: argparse.Namespace, folder: Path) -> None:
    """Delete the files of an owned farm."""
    shutil.rmtree(folder, ignore_errors=True)
    if options.socket_folder is not None:
        shutil.rmtree(options.socket_folder, ignore_errors=True)
        try:
            options.socket_folder.parent.rmdir()  # the folder of all farms' sockets, if this was the last farm
        except OSError:
            pass


def _dump(controller: ControllerLoop, folder: Path) -> None:
    """Write the last events, without payloads, for debugging. Called on SIGUSR2.

    It raises nothing: a signal's handler runs between any two lines of a turn, which an error would end.
    """
    path = folder / f"events-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    lines = [f"{mono:.6f} {session} {what}\n" for mono, session, what in list(controller.recent)]
    try:
        farm_paths.write_private(path, "".join(lines).encode())
    except (OSError, TaskFarmError) as error:
        log.error("the last events were not written: %s", error)


if __name__ == "__main__":
    sys.exit(main())
