"""Starting and stopping farms that run without their starter: shared by the command and the magic."""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple, Protocol

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus, StopFarm as StopFarm
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.deployment.agent_groups import GROUPS_FILE, read_groups
from ipytaskfarm.deployment.group_manager import END_S, WAITS, end_agents
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.launchers import Placed, ProcessSpec
from ipytaskfarm.launchers.answering import hurried, telling
from ipytaskfarm.launchers.batch.commands import COMMAND_S
from ipytaskfarm.launchers.local import LocalProcess, LocalProcesses
from ipytaskfarm.system.host import working_folder
from ipytaskfarm.system.supervision import OWNER, SUPERVISOR

ANSWER_S = 15.0
"""How long a farm has for its end, in addition to the time that it was told to wait."""
KILL_S = 3.0
AGENTS_S = END_S + 2 * COMMAND_S
"""How long a supervisor has, in addition, for agents on other machines, also if their system does not answer."""


class Listener(Protocol):
    """The listener that is told about events."""

    def progress(self, text: str) -> None:
        """Show what is waited for; the next text replaces this one."""

    def say(self, line: str) -> None:
        """Show a line about an event."""


class Started(NamedTuple):
    """The result of a start."""

    code: int
    """The exit code that the command in the foreground would have had; 0 if the farm is ready."""
    text: str
    """The line that says that it is ready, or why not."""


def start_detached(home: Home, words: Sequence[str], listener: Listener) -> Started:
    """Run ``ipytaskfarm start`` with these words as a process of its own, and follow it until the farm is ready.

    The farm outlives the caller.

    Raises:
        ConnectionError: the process ended without a message.
    """
    read_end, write_end = _report_pipe(home)
    arguments = ("start", *words, f"--Start.progress_fd={write_end}")
    process = LocalProcesses().start(_supervisor_part(home, arguments, write_end))
    os.close(write_end)
    threading.Thread(target=_reap, args=(process,), name="supervisor's end", daemon=True).start()
    return _follow(process, read_end, home, listener)


def fork_detached(home: Home, supervise: Callable[[IO[str]], int], listener: Listener) -> Started:
    """Fork a supervisor from the command, which has imported all that it needs, and follow it until the farm is ready.

    The child calls `supervise` with the pipe for reports, and outlives the caller like the process of `start_detached`.

    Raises:
        ConnectionError: the child ended without a message.
        RuntimeError: this process has other threads.
    """
    read_end, write_end = _report_pipe(home)

    def run() -> int:
        return supervise(os.fdopen(write_end, "w", buffering=1))

    process = LocalProcesses().fork(_supervisor_part(home, (), write_end), run)
    os.close(write_end)
    return _follow(process, read_end, home, listener)


def _report_pipe(home: Home) -> tuple[int, int]:
    home.make_folders()
    return os.pipe()


def _supervisor_part(home: Home, arguments: tuple[str, ...], pipe: int) -> ProcessSpec:
    return ProcessSpec(SUPERVISOR, "ipytaskfarm", arguments, home.output(SUPERVISOR), working_folder(), fds=(pipe,))


def _follow(process: LocalProcess, read_end: int, home: Home, listener: Listener) -> Started:
    """Pass on what a supervisor reports, until the farm is ready or has failed."""
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
    """Wait for the end of a child, which would otherwise stay a zombie as long as this process lives."""
    fd = process.wait_fd()
    if fd is not None:
        end = select.poll()  # not `select`, which takes no number above 1023
        end.register(fd, select.POLLIN)
        end.poll()
        process.poll()
    process.close()


def stop_farm(home: Home, wait_s: float | None, listener: Listener) -> None:
    """Stop a farm of this machine, whatever process supervises it. Return when no process is left.

    If none is left, but agents whose systems did not answer at the last stop, those are ended.

    Args:
        home: the farm's files.
        wait_s: how long running tasks may go on; None: until they end.
        listener: is told about events.

    Raises:
        FarmNotRunning: the farm does not run.
        ConnectionError: the farm does not answer and belongs to a Python program. Only the program's end ends it.
    """
    with telling(listener.say):
        _stop(home, wait_s, listener)


def _stop(home: Home, wait_s: float | None, listener: Listener) -> None:
    processes = _living(home)
    if not processes and not home.client_file.exists() and read_groups(home):
        with home.lock():
            return end_agents(home)
    if not processes:
        # Raises FarmNotRunning, unless the farm runs without a record in its folder.
        connect(home.name).close()
    tried = False
    if _ask_to_stop(home.name, wait_s, processes, listener):
        deadline = None if wait_s is None else time.monotonic() + wait_s + ANSWER_S
        tried = _wait(processes, deadline, home, listener)
    elif OWNER in processes:
        raise errors.ConnectionError(
            f"the controller of farm {home.name!r} does not answer; process {processes[OWNER].record()['pid']}, a"
            " Python, looks after the farm: end that one"
        )
    else:
        listener.say("the controller does not answer: ending its processes")
        _end(processes)
    if OWNER not in processes:
        with home.lock(), hurried() if tried else contextlib.nullcontext():
            try:
                end_agents(home)
            finally:
                home.tidy(temporary=False)


def _ask_to_stop(name: str, wait_s: float | None, processes: dict[str, Placed], listener: Listener) -> bool:
    """Ask the controller to stop, or its supervisor if it is of another version. Return False if none answers.

    Raises:
        VersionMismatch: the controller is of another version, so it cannot be told to wait until all tasks have ended;
            or a Python program looks after it.
    """
    try:
        with connect(name) as questioner:
            state = questioner.answer_for(FarmStatus(), FarmState)
            running = state.counts.get("pending", 0)
            questioner.answer(StopFarm(wait_s))
    except (errors.ConnectionError, errors.StoreFull):
        return False
    except errors.VersionMismatch:
        supervisor = processes.get(SUPERVISOR)
        if OWNER in processes or (supervisor is not None and wait_s is None):
            raise  # a signal says nothing of the time for running tasks
        if supervisor is None:
            return False
        # A farm stops with this signal in all versions.
        supervisor.terminate()
        listener.progress(
            "stopping: the farm is of another version, and running tasks have the time of its own --drain"
        )
        return True
    tasks = f": {running} task{'s' if running > 1 else ''} running" if running else ""
    listener.progress(f"stopping{tasks}")
    return True


def _living(home: Home) -> dict[str, Placed]:
    """Return the farm's running processes, including the supervisor: as it recorded them, or as their locks tell."""
    processes = LocalProcesses()
    records = home.read_processes() or home.unrecorded_processes()
    found = {str(record["kind"]): processes.adopt(record) for record in records}
    return {kind: placed for kind, placed in found.items() if placed is not None}


def _wait(processes: dict[str, Placed], deadline: float | None, home: Home, listener: Listener) -> bool:
    """Wait until all processes have ended; end them after the deadline. The owner, a user's Python, does not count.

    Returns:
        Whether the supervisor has ended by itself, and so has tried to end all agents.
    """
    ending = {kind: placed for kind, placed in processes.items() if kind != OWNER}
    supervisor = ending.get(SUPERVISOR)
    is_in_time, told = supervisor is not None, 0
    while any(placed.poll() is None for placed in ending.values()):
        if supervisor is not None:
            told = _pass_on(supervisor, told, listener)
        if deadline is not None and time.monotonic() > deadline + _for_agents_s(ending, home):
            is_in_time = False
            _end(ending)
        time.sleep(0.02)
    return is_in_time


def _pass_on(supervisor: Placed, told: int, listener: Listener) -> int:
    """Pass on what a supervisor says that it waits for, without the first `told` lines. Return their number."""
    lines = [line for line in supervisor.said().splitlines() if line.startswith(WAITS)]
    for line in lines[told:]:
        listener.say(line)
    return len(lines)


def _for_agents_s(ending: dict[str, Placed], home: Home) -> float:
    """Return the additional time of a supervisor whose own processes have ended, and which ends agents elsewhere."""
    others = [placed for kind, placed in ending.items() if kind != SUPERVISOR]
    if any(placed.poll() is None for placed in others) or not (home.folder / GROUPS_FILE).exists():
        return 0.0
    return AGENTS_S


def _end(processes: dict[str, Placed]) -> None:
    """End the processes without the controller's help. The supervisor is first, since it would restart the others."""
    supervisor = processes.get(SUPERVISOR)
    if supervisor is not None:
        supervisor.kill()
    for mercy in (True, False):
        for placed in processes.values():
            placed.terminate() if mercy else placed.kill()
        deadline = time.monotonic() + KILL_S
        while any(placed.poll() is None for placed in processes.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
