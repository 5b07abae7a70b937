"""Starting and stopping farms that go on by themselves: what the command and the magic have in common."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus, StopFarm as StopFarm
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.deployment.agent_pools import end_agents
from ipytaskfarm.deployment.home import OWNER, SUPERVISOR, Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.launchers import Placed, ProcessSpec
from ipytaskfarm.launchers.local import LocalProcess, LocalProcesses
from ipytaskfarm.system.host import working_folder

ANSWER_S = 15.0
"""Beyond what it was told to wait for, a farm has this long to end."""
KILL_S = 3.0


class Listener(Protocol):
    """Who is told what happens."""

    def progress(self, text: str) -> None:
        """What is waited for now."""

    def say(self, line: str) -> None:
        """What has happened."""


class Started(NamedTuple):
    """What came of a start."""

    code: int
    """The exit code that the command in the foreground would have had; 0: the farm is ready."""
    text: str
    """The line that says that it is ready, or why not."""


def start_detached(home: Home, words: Sequence[str], listener: Listener) -> Started:
    """Run ``ipytaskfarm start`` with these words as a process of its own, and follow it until the farm is ready.

    The farm outlives the caller.  Raises ConnectionError when that process ends without a word.
    """
    home.make_folders()
    read_end, write_end = os.pipe()
    arguments = ("start", *words, f"--Start.progress_fd={write_end}")
    part = ProcessSpec(
        SUPERVISOR, "ipytaskfarm", arguments, home.output(SUPERVISOR), working_folder(), fds=(write_end,)
    )
    process = LocalProcesses().start(part)
    os.close(write_end)
    threading.Thread(target=_reap, args=(process,), name="supervisor's end", daemon=True).start()
    try:
        with os.fdopen(read_end) as reports:
            for line in reports:
                report = json.loads(line)
                if report["what"] == "failed":
                    return Started(int(report["code"]), report["text"])
                if report["what"] == "ready":
                    return Started(0, report["text"])
                (listener.progress if report["what"] == "progress" else listener.say)(report["text"])
    except KeyboardInterrupt:
        process.terminate()
        raise
    said = process.said() or f"see {home.output(SUPERVISOR)}"
    raise errors.ConnectionError(f"the supervisor ended before the farm was ready: {said}")


def _reap(process: LocalProcess) -> None:
    """It is our child, and would stay a zombie as long as we live."""
    fd = process.wait_fd()
    if fd is not None:
        select.select([fd], [], [])
        process.poll()
    process.close()


def stop_farm(home: Home, wait_s: float | None, listener: Listener) -> None:
    """Stop a farm of this machine, whoever looks after it; returns when no process is left.

    wait_s: how long running tasks may go on; None: until they end.  Raises FarmNotRunning, and ConnectionError for a
    farm that does not answer and belongs to a Python program, which only that one's end ends.
    """
    processes = _living(home)
    if not processes:
        # Raises FarmNotRunning, unless somebody runs it without our records.
        connect(home.name).close()
    if _ask_to_stop(home.name, wait_s, listener):
        deadline = None if wait_s is None else time.monotonic() + wait_s + ANSWER_S
        _wait(processes, deadline)
    elif OWNER in processes:
        raise errors.ConnectionError(
            f"the controller of farm {home.name!r} does not answer; process {home.owner_pid()}, a Python, looks"
            " after the farm: end that one"
        )
    else:
        listener.say("the controller does not answer: ending its processes")
        _end(processes)
    if OWNER not in processes:
        with home.lock():
            try:
                end_agents(home)
            finally:
                home.tidy(temporary=False)


def _ask_to_stop(name: str, wait_s: float | None, listener: Listener) -> bool:
    """Tell the controller.  False: there is none that answers."""
    try:
        with connect(name) as questioner:
            state = questioner.answer(FarmStatus())
            assert isinstance(state, FarmState)
            running = state.counts.get("pending", 0)
            questioner.answer(StopFarm(wait_s))
    except errors.ConnectionError:
        return False
    tasks = f": {running} task{'s' if running > 1 else ''} running" if running else ""
    listener.progress(f"stopping{tasks}")
    return True


def _living(home: Home) -> dict[str, Placed]:
    """Return what runs of this farm, by the supervisor's record of it; the supervisor itself too."""
    processes = LocalProcesses()
    found = {str(record["kind"]): processes.adopt(record) for record in home.read_processes()}
    return {kind: placed for kind, placed in found.items() if placed is not None}


def _wait(processes: dict[str, Placed], deadline: float | None) -> None:
    """Until all have ended; past the deadline they are ended.  The owner, somebody's Python, does not count."""
    ending = {kind: placed for kind, placed in processes.items() if kind != OWNER}
    while any(placed.poll() is None for placed in ending.values()):
        if deadline is not None and time.monotonic() > deadline:
            _end(ending)
        time.sleep(0.02)


def _end(processes: dict[str, Placed]) -> None:
    """End them without the controller's help.  The supervisor first: it would start again what we end."""
    supervisor = processes.get(SUPERVISOR)
    if supervisor is not None:
        supervisor.kill()
    for mercy in (True, False):
        for placed in processes.values():
            placed.terminate() if mercy else placed.kill()
        deadline = time.monotonic() + KILL_S
        while any(placed.poll() is None for placed in processes.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
