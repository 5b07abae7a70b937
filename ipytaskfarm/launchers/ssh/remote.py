"""The ssh launcher's part on the other machine: ``python -m ipytaskfarm.launchers.ssh.remote VERB``, data by stdin.

Each agent has a folder (0700) there:

====================  ==================================================================================
``connection.json``   its connection file (0600): the only place of the secret on that machine
``pid``, ``agent.json``  the agent's process; the latter with the time of its start
``exit``              its exit code, once it has ended
``cancelled``         exists if the agent was told to end; then the folder is removed with it
``agent.log``, ``agent.out``  its log; its output when it crashes
====================  ==================================================================================

Each verb prints one line of JSON and ends. The agent remains, with a shell that waits for its exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipytaskfarm.core.errors import TaskFarmError
from ipytaskfarm.system.farm_paths import (
    agent_folder,
    leave_folder,
    private_folder,
    process_started,
    read_connection_file,
    read_private,
    write_private,
)

from ..local import rotate
from .command_lines import MARK

APPEAR_S = 10.0
"""The time within which a process must have written its pid."""
POLL_S = 0.05
SETTLE_S = 2.0
"""The time after an agent's end within which its exit code is written."""

# The inner shell becomes the agent, in the foreground of the outer one: a shell makes background processes ignore
# Ctrl-C, and the engines would inherit that.
_WATCH = """sh -c 'echo $$ >pid && exec "$@"' sh "$@"; echo $? >exit.new; mv exit.new exit"""


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Start the agent: {"folder", "connection", "words"} -> {"pid", "started"}. An agent that runs already is kept."""
    folder = private_folder(Path(data["folder"]))
    if (folder / "cancelled").exists():
        return {"error": f"an agent that is about to end has {folder}: try again when it is gone"}
    write_private(folder / "connection.json", str(data["connection"]).encode())
    record = _record(folder)
    if record is None or not _lives(record):
        record = _spawn(folder, list(data["words"]))
    return record


def update(data: dict[str, Any]) -> dict[str, Any]:
    """Replace the agent's connection file: {"folder", "connection"}. The agent reads it when it connects next."""
    write_private(Path(data["folder"]) / "connection.json", str(data["connection"]).encode())
    return {}


def look(data: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the agent of {"folder"}.

    The keys are "state" (``running``, ``ended``, ``cancelled``, ``gone``), "code" and "said".
    """
    folder = Path(data["folder"])
    if not folder.is_dir():
        return {"state": "gone"}
    record = _record(folder)
    if record is not None and _lives(record):
        return {"state": "running", **record}
    if record is not None:
        _until((folder / "exit").exists, SETTLE_S)
    state = "cancelled" if (folder / "cancelled").exists() else "ended"
    return {"state": state, "code": _code(folder), "said": _said(folder)}


def end(data: dict[str, Any]) -> dict[str, Any]:
    """End the agent of {"folder", "name", "patience_s"}: SIGTERM now, SIGKILL after that time. Its folders are removed.

    "state" is ``ending``, or ``gone`` if nothing is left.
    """
    folder = Path(data["folder"])
    if not folder.is_dir():
        return {"state": "gone"}
    (folder / "cancelled").touch(mode=0o600)
    record = _record(folder)
    if record is None or not _lives(record):
        _remove(folder, data["name"])
        return {"state": "gone"}
    _signal(record, signal.SIGTERM)
    words = [sys.executable, "-P", "-m", __spec__.name, "finish", str(folder), data["name"], f"{data['patience_s']:g}"]
    subprocess.Popen(
        words, cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return {"state": "ending"}


def finish(folder: Path, name: str, patience_s: float) -> None:
    """Wait for the end of an agent that was told to end, and enforce it; then remove its folders."""
    record = _record(folder)
    if record is not None and not _until(lambda: not _lives(record), patience_s):
        _signal(record, signal.SIGKILL)
        _until(lambda: not _lives(record), APPEAR_S)
    _until((folder / "exit").exists, SETTLE_S)
    _remove(folder, name)


def _spawn(folder: Path, words: list[str]) -> dict[str, Any]:
    for name in ("exit", "pid", "agent.json"):
        (folder / name).unlink(missing_ok=True)
    rotate(folder / "agent.out", limit_bytes=1)  # each run has a file of its own
    output = os.open(folder / "agent.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(output)
    # If the process ended before its pid was read, there is an exit code.
    _until(lambda: _pid(folder) is not None or shell.poll() is not None, APPEAR_S)
    pid = _pid(folder)
    if pid is None:
        return {"error": f"the agent did not start: {_said(folder) or 'it said nothing'}"}
    record = {"pid": pid, "started": process_started(pid)}
    write_private(folder / "agent.json", json.dumps(record).encode())
    return record


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_private(folder / "agent.json"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lives(record: dict[str, Any]) -> bool:
    # A pid alone may belong to another process by now.
    return record["started"] is not None and process_started(int(record["pid"])) == record["started"]


def _signal(record: dict[str, Any], number: signal.Signals) -> None:
    if _lives(record):
        try:
            os.kill(int(record["pid"]), number)
        except ProcessLookupError:
            pass


def _pid(folder: Path) -> int | None:
    return _number(folder / "pid")


def _code(folder: Path) -> int | None:
    return _number(folder / "exit")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _said(folder: Path, limit_bytes: int = 1000) -> str:
    for name in ("agent.out", "agent.log"):
        try:
            text = (folder / name).read_bytes()[-limit_bytes:].decode(errors="replace").strip()
        except OSError:
            continue
        if text:
            return text
    return ""


def _remove(folder: Path, name: str) -> None:
    try:
        info = read_connection_file(folder / "connection.json")
        # Files of its engines that a killed agent has left.
        own = agent_folder(info.farm, info.incarnation, name)
        shutil.rmtree(own, ignore_errors=True)
        leave_folder(own.parent)
    except TaskFarmError:
        pass  # the folder of engines is not known
    shutil.rmtree(folder, ignore_errors=True)
    leave_folder(folder.parent)


def _until(predicate: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


VERBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "start": start, "update": update, "look": look, "end": end,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the verb in the first argument."""
    os.umask(0o077)
    if argv[0] == "finish":
        finish(Path(argv[1]), argv[2], float(argv[3]))
        return 0
    try:
        answer = VERBS[argv[0]](json.load(sys.stdin))
    except (TaskFarmError, OSError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(MARK + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
