"""Reports engines of an earlier agent that was killed, or that could not deliver its results.

Its engines died with it; remaining processes are killed here. Their flight recorders hold finished results, and the run
that each engine executed. The new agent reports both as if its own engines had just died.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from ..core.errors import TaskFarmError
from ..system.farm_paths import Lock
from ..system.flight_recorder import Recorder, RecorderDamaged
from ..system.machine import REBOOTED, boot_id
from ..system.odd_files import read_note, remove_entry, remove_unless_file, write_note
from .engines import Files, ManagedEngine
from .reaping import Marks, reap
from .relay import Account
from .settings import LOCK

log = logging.getLogger(__name__)

_FILE = re.compile(r"(?:engine|kernel)-(\d+)[.-]")
_SESSION = re.compile(r"[^\s\0\uFFFD]{1,200}")
_FARM, _SESSIONS = "farm", "sessions"
_SESSIONS_KEPT = 8
"""The number of agents in a row that may end without the controller hearing of the one before."""


def counters(*folders: Path) -> list[int]:
    """Return the counters of all engines that have files in these folders."""
    paths = [path for folder in set(folders) for path in folder.iterdir()]
    found = {int(match[1]) for path in paths if (match := _FILE.match(path.name))}
    return sorted(found)


def sweep(folder: Path, recorders: Path) -> list[ManagedEngine]:
    """Return the dead engines to report, once their processes are gone. Unreadable files are removed."""
    dead: list[ManagedEngine] = []
    for counter in counters(folder, recorders):
        files = Files(folder, recorders, counter)
        remove_unless_file(files.recorder)
        engine = _dead_engine(files) if files.recorder.exists() else None
        if engine is None:
            files.remove()
        else:
            dead.append(engine)
    if dead:
        log.warning("an agent before this one left %d engines behind: reporting them", len(dead))
    return dead


def _dead_engine(files: Files) -> ManagedEngine | None:
    try:
        recorder = Recorder.open(files.recorder)
    except (OSError, RecorderDamaged) as error:
        log.error("flight recorder %s cannot be read, its engine's fate is not known: %s", files.recorder, error)
        return None
    rebooted = recorder.boot != boot_id()
    if not rebooted:
        # Before anything is read: running processes may still write.
        reap(Marks(recorder.engine, files.recorder))
    engine = ManagedEngine(recorder.engine_id, recorder.engine, files, Account(recorder.engine, recorder, former=True))
    engine.cause = REBOOTED if rebooted else "its agent ended"
    return engine


def remove_dead(base: Path) -> None:
    """Remove the folders of agents that were killed and have no successor: their locks are free."""
    for folder in base.glob("agent-*"):
        try:
            lock = Lock(folder / LOCK)
        except (TaskFarmError, OSError):
            continue  # the agent lives, or has just ended
        remove_entry(folder)
        lock.release()


def remove_own(folder: Path, recorders: Path) -> None:
    """Remove an agent's own folders: files that the controller has seen need not stay."""
    try:
        # The lock is removed last: another agent that starts now finds it held, or a folder without our files.
        for path in folder.iterdir():
            if path.name != LOCK:
                remove_entry(path)
        remove_entry(folder / LOCK)
        folder.rmdir()
    except OSError as error:
        log.info("%s stays: %s", folder, error)
    if recorders != folder:
        remove_entry(recorders)


def succeed(session: str, folders: Iterable[Path], dead: Iterable[ManagedEngine] = ()) -> list[str]:
    """Record the session that owns the folders now, and return the sessions of their former, dead owners.

    Each folder has the record, and the engines that were left behind name their agent too: a task may have removed one.
    """
    paths = [folder / _SESSIONS for folder in dict.fromkeys(folders)]
    found = [each for path in paths for each in read_note(path).split() if _SESSION.fullmatch(each)]
    found += [engine.incarnation.rpartition(".")[0] for engine in dead]
    former = list(dict.fromkeys(found))[-_SESSIONS_KEPT:]
    for path in paths:
        write_note(path, "\n".join([*former, session]))
    return former


def remember_farm(folder: Path, incarnation: str) -> bool:
    """Record the farm to which the files belong, and return whether it is the same as before.

    Files of another farm are meaningless, because their task ids are not this farm's.
    """
    path = folder / _FARM
    before = read_note(path)
    if before != incarnation:
        write_note(path, incarnation)
    return before in ("", incarnation)
