"""One agent on this machine, kept running by whichever of several processes holds a lock.

Systems that start several processes on one machine (Dask's workers) have a `Keeper` in each.  They meet in a folder of
the farm's on this machine (0700), where each says that it is there and how many engines it is good for.  One holds the
lock and has the agent as its child; when it dies, the kernel gives the lock to another and tells the agent to end, and
the other starts the next agent as soon as that has.  The last to leave removes the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ipytaskfarm.core.errors import TaskFarmError
from ipytaskfarm.doors.runtime import (
    agent_folder,
    leave_folder,
    private_folder,
    process_started,
    read_private,
    socket_folder,
    write_private,
)

from . import describe_exit
from .agents import AgentSpec, agent_words
from .local import child_environment, rotate

log = logging.getLogger(__name__)

POLL_S = 0.25
GROWN_S, SHRUNK_S = 2.0, 30.0
"""The sum of engines counts when it has been the same for so long: processes of one machine come one after the other,
and one that was killed is soon back."""
RESTARTS, RESTART_WINDOW_S = 3, 60.0
"""A crashed agent is started again so often within so long; then again when the window has passed."""
MARGIN_S = 15.0
"""Beyond the time that running tasks have: for handing over results, and the engines' ends."""
EXIT_STOPPED, EXIT_REFUSED = 0, 4
"""How agents end that are not to be started again."""

# The kernel's word that we have died reaches the agent as SIGTERM, so what runs there may still end.  That hangs on the
# thread that starts the process, and survives the exec; should we have died before, nobody else tells.
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
""".strip()


@dataclass(frozen=True)
class Plan:
    """What is to be kept: travels to where it is."""

    name: str
    """``dask-1``: the agent calls itself ``dask-1.HOST``."""
    incarnation: str
    """The farm's."""
    connection: str = field(repr=False)
    """The text of the agent's connection file: a secret."""
    spec: AgentSpec
    per_process: int | None = None
    """Engines for each process that is here; None: as `spec` says, however many processes there are."""


class Keeper:
    """One process's share in keeping the agent of its machine.  Its thread lives until the agent has ended."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._digest = hashlib.sha256(plan.connection.encode()).hexdigest()
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])
        self.agent_name = f"{plan.name}.{host}"
        self._folder = Path()
        """Where the keepers of this machine meet; found by the thread: it may be refused."""
        self._member = f"process-{os.getpid()}-{secrets.token_hex(4)}"
        self._presence: int | None = None
        self._stopping = threading.Event()
        self.ended = threading.Event()
        self.said: tuple[str, str] = ("", "")
        """(state, why) of the agent as `AgentStatus` has them; empty: it is another's, or not looked at yet."""
        # The kernel looks at the thread that started the agent, so one thread does all.
        self._thread = threading.Thread(target=self._run, name=f"agent of {plan.spec.farm}", daemon=True)

    def start(self) -> None:
        """Take part from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Leave: if we have the agent, it is told to end.  `ended` is set when it has."""
        self._stopping.set()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            base = socket_folder(self._plan.spec.farm, Path("/", self._plan.incarnation))
            self._folder = base / f"keep-{self._plan.name}"
            while not self._stopping.is_set():
                self._attend()
                held = self._lock()
                if held is None:
                    self._stopping.wait(POLL_S)
                    continue
                try:
                    self._hold()
                finally:
                    os.close(held)
            self._depart()
        except (OSError, TaskFarmError) as error:
            self.said = "ended", str(error)
            log.error("no agent of farm %s here: %s", self._plan.spec.farm, error)
        finally:
            if self._presence is not None:
                os.close(self._presence)
            self.ended.set()

    def _hold(self) -> None:
        """We have the lock: see that the agent runs, until we are to leave."""
        restarts: list[float] = []
        self.said = "waiting", "it is being started"
        write_private(self._folder / "connection.json", self._plan.connection.encode())
        if not self._until(self._former_ended):
            return
        while self._until(lambda: not self._is_over()):
            code = self._run_agent(self._settled())
            if code in (EXIT_STOPPED, EXIT_REFUSED):
                # The farm has sent it away, or refuses it: that is meant for its successors on this machine too.
                write_private(self._folder / "over", f"{self._digest} {code}".encode())
            elif code is not None:
                self.said = "waiting", f"it {describe_exit(code)}; it is to be started again"
                log.error("the agent of farm %s %s: starting it again", self._plan.spec.farm, describe_exit(code))
                now_s = time.monotonic()
                restarts = [at for at in restarts if now_s - at < RESTART_WINDOW_S]
                if len(restarts) >= RESTARTS:
                    self._stopping.wait(RESTART_WINDOW_S - (now_s - restarts[0]))
                restarts.append(time.monotonic())

    def _run_agent(self, engines: int | None) -> int | None:
        """The agent's whole life: its exit code; None: we ended it, or were to leave before."""
        if self._stopping.is_set():
            return None
        agent = self._spawn(engines)
        self.said = "running", ""
        changed_s = math.inf
        while agent.poll() is None:
            if self._stopping.wait(POLL_S):
                self._end(agent)
                return None
            self._attend()
            now_s, there = time.monotonic(), self._engines()
            changed_s = math.inf if there == engines else min(changed_s, now_s)
            if now_s - changed_s >= (GROWN_S if (there or 0) > (engines or 0) else SHRUNK_S):
                log.info("%s engines instead of %s: another agent", there, engines)
                self._end(agent)
                return None
        return agent.returncode

    def _is_over(self) -> bool:
        """Whether an agent of the same keys has been sent away from here, or was refused."""
        try:
            digest, code = read_private(self._folder / "over").decode().split()
        except FileNotFoundError:
            return False
        if digest != self._digest:
            return False
        self.said = "ended", "ended as told" if int(code) == EXIT_STOPPED else "the controller refuses it"
        return True

    def _spawn(self, engines: int | None) -> subprocess.Popen[bytes]:
        spec, folder = self._plan.spec, self._folder
        spec = replace(spec, engines=engines, cwd=spec.cwd if spec.cwd.is_dir() else Path.cwd())
        words = agent_words(spec, self.agent_name, str(folder / "connection.json"))
        logs = spec.logs if os.access(spec.logs, os.W_OK) else folder
        words += ["--log", str(logs / f"{self.agent_name}.log")]
        rotate(folder / "agent.out", limit_bytes=1)  # each run has its own
        output = os.open(folder / "agent.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            agent = subprocess.Popen(
                [sys.executable, "-P", "-c", _TETHER, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=child_environment({}),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)
        record = {"pid": agent.pid, "started": process_started(agent.pid)}
        write_private(folder / "agent.json", json.dumps(record).encode())
        return agent

    def _end(self, agent: subprocess.Popen[bytes]) -> None:
        agent.send_signal(signal.SIGTERM)
        try:
            agent.wait(self._plan.spec.leave_s + MARGIN_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()

    def _until(self, predicate: Callable[[], bool]) -> bool:
        """Wait until that holds; False: we are to leave."""
        while not self._stopping.is_set():
            self._attend()
            if predicate():
                return True
            self._stopping.wait(POLL_S)
        return False

    def _former_ended(self) -> bool:
        """Whether the agent of a holder before us has ended: it was told when that died."""
        try:
            record: dict[str, Any] = json.loads(read_private(self._folder / "agent.json"))
        except (FileNotFoundError, ValueError):
            return True
        return record["started"] is None or process_started(int(record["pid"])) != record["started"]

    # ------------------------------------------------------------------ who is here

    def _attend(self) -> None:
        """Be there for the others to see: a file that is locked for as long as we live."""
        path = private_folder(self._folder) / self._member
        if self._presence is not None:
            if path.exists():
                return
            os.close(self._presence)  # the last of those before us took the folder with it
        new = path.with_name(f".{self._member}")
        self._presence = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._presence, str(self._plan.per_process or 0).encode())
        fcntl.flock(self._presence, fcntl.LOCK_EX)
        # Only now is it seen: who is seen without a lock is taken for dead.
        os.rename(new, path)

    def _members(self) -> list[int]:
        """For each process that is here, its engines."""
        found = []
        for path in self._folder.glob("process-*"):
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if _try_lock(file):
                    path.unlink(missing_ok=True)  # it was killed
                else:
                    found.append(int(os.pread(file, 16, 0)))
            finally:
                os.close(file)
        return found

    def _engines(self) -> int | None:
        return self._plan.spec.engines if self._plan.per_process is None else sum(self._members())

    def _settled(self) -> int | None:
        """How many engines there are to be, when that has not changed for a while."""
        engines = self._engines()
        while self._plan.per_process is not None and not self._stopping.wait(GROWN_S):
            before, engines = engines, self._engines()
            if engines == before:
                break
        return engines

    def _lock(self) -> int | None:
        """The lock of this machine's keepers, if nobody has it."""
        path = self._folder / "lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # the folder has gone with the last of those before us
        try:
            if _try_lock(file) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)
        return None

    def _depart(self) -> None:
        """Be gone for the others; the last takes the folder."""
        if self._presence is None:
            return
        (self._folder / self._member).unlink(missing_ok=True)
        for _ in range(10):
            held = self._lock()
            if held is not None:
                try:
                    if not self._members() and self._former_ended():
                        self._remove()
                finally:
                    os.close(held)
                return
            time.sleep(0.02)  # another may be leaving, too

    def _remove(self) -> None:
        # What an agent that crashed has left of its engines.
        shutil.rmtree(agent_folder(self._plan.spec.farm, self._plan.incarnation, self.agent_name), ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        leave_folder(self._folder.parent)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
