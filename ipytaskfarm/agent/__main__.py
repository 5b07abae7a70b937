"""``python -m ipytaskfarm.agent --connection-file F --farm NAME …``: one agent per machine, started by a launcher."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import socket
import sys
from pathlib import Path

from ..core.errors import TaskFarmError
from ..core.failure_values import FAILURE_VALUES
from ..settings.declarations import add_flags
from ..settings.setting import AGENT
from ..system.farm_paths import Lock, agent_folder, leave_folder, private_folder, read_connection_file
from ..system.host import home_folder, working_folder
from ..system.odd_files import remove_unless_file, remove_unless_folder
from ..system.process import STOPPED_S, UMASK_BEFORE, name_process, usable_cores
from .settings import EXIT_REFUSED, LOCK, AgentSettings
from .zygote_process import ZygoteProcess


def main(argv: list[str] | None = None) -> int:
    """Run an agent, and return its exit code.

    0: ended as told. 1: a bug. 4: refused by the controller, or another agent has the folder.
    """
    given = _parser().parse_args(argv)
    umask = os.umask(0o077)
    name_process(f"ipytaskfarm agent --farm {given.farm}")
    _log_to(given.log, given.verbose)
    try:
        folder = given.folder or _own_folder(given)
    except TaskFarmError as error:
        logging.critical("%s", error)
        return EXIT_REFUSED
    settings = AgentSettings(
        connection_file=given.connection_file.absolute(),
        folder=folder.absolute(),
        recorders=given.recorders and given.recorders.absolute(),
        owner_fd=given.owner_fd,
        name=given.name,
        brings=given.engines,
        ends_at_s=given.ends_at,
        leave_s=given.leave,
        places_itself=given.folder is None,
        farm=given.farm,
        node=given.node or socket.gethostname(),
        startup_cwd=_start_folder(given.startup_cwd),
        slots=given.slots,
        lease_s=given.lease,
        grace_s=given.grace,
        stopped_s=given.stopped,
        memory_limit_bytes=given.memory_limit,
        preload=tuple(given.preload),
        failure_values=given.failure_values or FAILURE_VALUES[0],
        resources=dict(given.resources),
        priority=given.priority,
        umask=int(os.environ.pop(UMASK_BEFORE, "") or oct(umask), 8),
    )
    told: list[int] = []
    # Heard as soon as the agent runs: an agent that is ended while it starts removes its folders, too.
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        _make_folders(settings)
        lock = Lock(settings.folder / LOCK, f"another agent of farm {settings.farm!r}")
    except (TaskFarmError, OSError) as error:
        logging.critical("%s", error)
        return EXIT_REFUSED
    os.chdir(settings.folder)
    try:
        return _run(settings, settings.spawn_zygote(), told)
    finally:
        lock.release()
        if given.folder is None or given.owner_fd is not None:
            leave_folder(settings.folder.parent)
        if given.owner_fd is not None:
            leave_folder(settings.folder.parent.parent)


def _run(settings: AgentSettings, zygote: ZygoteProcess, told: list[int]) -> int:
    # Imported here, while the zygote imports IPython: both take a third of a second.
    import asyncio

    from .polling_selector import polling_loop
    from .supervisor import Agent

    async def run() -> int:
        return await Agent(settings, zygote).run(told)

    with asyncio.Runner(loop_factory=polling_loop) as runner:
        return runner.run(run())


def _make_folders(settings: AgentSettings) -> None:
    """Make the agent's folders, also where a task of an earlier agent has put something else."""
    remove_unless_folder(settings.folder)
    private_folder(settings.folder)
    remove_unless_file(settings.folder / LOCK)
    if settings.recorders is not None:
        remove_unless_folder(settings.recorders.parent)
        remove_unless_folder(settings.recorders)
        private_folder(settings.recorders)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ipytaskfarm agent", description="Supervise the engines of this machine.")
    parser.add_argument("--connection-file", type=Path, required=True, help="the agents' connection file of the farm")
    parser.add_argument(
        "--folder", type=Path, help="for sockets and flight recorders, on a local disk (default: one of its own)"
    )
    parser.add_argument(
        "--recorders",
        type=Path,
        help="for flight recorders, on a local disk that a reboot leaves (default: the folder)",
    )
    parser.add_argument("--farm", default="default", help="the farm's name")
    parser.add_argument("--node", help="this machine's name, for people (default: its host name)")
    parser.add_argument("--name", default="", help="the agent's name, or KEY.anything (default: the name of its key)")
    parser.add_argument(
        "--engines",
        type=_engines,
        metavar="N",
        help="engines beside those that the farm wants here; cores: one per core",
    )
    parser.add_argument("--ends-at", type=float, metavar="TIME", help="when the agent must have ended, in unix time")
    parser.add_argument(
        "--leave",
        type=float,
        default=0.0,
        metavar="S",
        help="how long running tasks may continue at its end (default: 0)",
    )
    parser.add_argument("--owner-fd", type=int, help="a descriptor at whose end the farm's owner has ended")
    parser.add_argument("--slots", type=int, help="the greatest number of engines on this machine")
    parser.add_argument("--startup-cwd", type=Path, help="the folder that engines start in (default: this one)")
    add_flags(parser, AGENT)
    parser.add_argument(
        "--stopped", type=float, default=STOPPED_S, help="seconds after which an engine that was stopped is killed"
    )
    parser.add_argument("--preload", action="append", default=[], help="a module that is imported once for all engines")
    parser.add_argument(
        "--priority", type=int, default=0, help="agents with a higher one are given tasks first (default: 0)"
    )
    parser.add_argument("--log", type=Path, help="write the log here instead of to stderr")
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser


def _own_folder(given: argparse.Namespace) -> Path:
    info = read_connection_file(given.connection_file)
    return agent_folder(given.farm, info.incarnation, given.name or info.agent)


def _start_folder(asked: Path | None) -> Path:
    """Return the folder in which engines start. The given folder may exist only on the controller's machine."""
    folder = (asked or working_folder()).absolute()
    if folder.is_dir() and os.access(folder, os.X_OK):
        return folder
    instead = home_folder()
    logging.warning("there is no folder %s here: engines start in %s", folder, instead)
    return instead


def _engines(text: str) -> int:
    return usable_cores() if text == "cores" else int(text)


def _log_to(path: Path | None, verbose: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        remove_unless_file(path)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=10 << 20, backupCount=3, delay=True)
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format=form, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
