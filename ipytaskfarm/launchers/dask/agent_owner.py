"""One agent on this machine, kept running by the one of several processes that holds a lock.

Systems that start several processes on one machine (Dask's workers) have an `AgentOwner` in each. These meet in a
folder of the farm on this machine (0700), in which each announces itself and the number of engines that it contributes.
One holds the lock and runs the agent behind a `watchdog`. When it dies, the system gives the lock to another process
and signals the agent to end; the other process starts the next agent as soon as the old one has ended. The last process
that leaves removes the folder.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipytaskfarm.core.errors import TaskFarmError
from ipytaskfarm.system.farm_paths import agent_folder, socket_folder, write_private
from ipytaskfarm.system.host import working_folder

from .. import describe_exit
from ..interface import AgentSpec, agent_words
from ..local import child_environment, rotate
from .election import Election
from .watchdog import watchdog_words

log = logging.getLogger(__name__)

POLL_S = 0.25
GROWN_S, SHRUNK_S = 2.0, 30.0
"""The sum of engines counts once it has not changed for this time: the processes of a machine start one after another,
and a killed one is soon back."""
RESTARTS, RESTART_WINDOW_S = 3, 60.0
"""How often a crashed agent is started again within this time; then again after the time."""
MARGIN_S = 15.0
"""Added to the time that running tasks have: for handing over results, and for the engines' ends."""
EXIT_STOPPED, EXIT_REFUSED = 0, 4
"""Exit codes of agents that are not started again."""


@dataclass(frozen=True)
class AgentPlan:
    """The agent to keep running. It is sent to the processes that run it."""

    name: str
    """For example ``dask-1``; the agent calls itself ``dask-1.HOST``."""
    incarnation: str
    """The farm's incarnation."""
    connection: str = field(repr=False)
    """The text of the agent's connection file: a secret."""
    spec: AgentSpec
    per_process: int | None = None
    """Engines per process on the machine; None: as `spec` says, independent of the number of processes."""


class AgentOwner:
    """One process's part in running the agent of its machine. Its thread lives until the agent has ended."""

    def __init__(self, plan: AgentPlan) -> None:
        self._plan = plan
        self._digest = hashlib.sha256(plan.connection.encode()).hexdigest()
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])
        self.agent_name = f"{plan.name}.{host}"
        self._stopping = threading.Event()
        self.ended = threading.Event()
        self.said: tuple[str, str] = ("", "")
        """(state, why) of the agent as `AgentStatus` has them; empty: it is another's, or not looked at yet."""
        # The kernel watches the thread that started the agent, so one thread does everything.
        self._thread = threading.Thread(target=self._run, name=f"agent of {plan.spec.farm}", daemon=True)

    def start(self) -> None:
        """Take part from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Leave. If this process runs the agent, the agent is told to end. `ended` is set once it has."""
        self._stopping.set()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            election = self._election()
            while not self._stopping.is_set():
                self._attend(election)
                held = election.lock()
                if held is None:
                    self._stopping.wait(POLL_S)
                    continue
                try:
                    self._hold(election)
                finally:
                    os.close(held)
            election.depart()
        except (OSError, TaskFarmError) as error:
            self.said = "ended", str(error)
            log.error("no agent of farm %s here: %s", self._plan.spec.farm, error)
        finally:
            self.ended.set()

    def _election(self) -> Election:
        farm, incarnation = self._plan.spec.farm, self._plan.incarnation
        folder = socket_folder(farm, Path("/", incarnation)) / f"keep-{self._plan.name}"
        return Election(folder, agent_folder(farm, incarnation, self.agent_name))

    def _attend(self, election: Election) -> None:
        election.attend(self._plan.per_process or 0)

    def _hold(self, election: Election) -> None:
        """Keep the agent running while this process holds the lock, until it is to leave."""
        restarts: list[float] = []
        self.said = "waiting", "it is being started"
        write_private(election.folder / "connection.json", self._plan.connection.encode())
        # The former holder may have left an agent, which was told to end when the holder died.
        while self._until(election, lambda: election.has_agent_ended() and not self._is_over(election)):
            code = self._run_agent(election, self._settled(election))
            if code in (EXIT_STOPPED, EXIT_REFUSED):
                # The farm has sent it away, or refuses it. This applies to its successors on this machine too.
                election.note_over(self._digest, code)
            elif code is not None:
                self.said = "waiting", f"it {describe_exit(code)}; it is to be started again"
                log.error("the agent of farm %s %s: starting it again", self._plan.spec.farm, describe_exit(code))
                now_s = time.monotonic()
                restarts = [at for at in restarts if now_s - at < RESTART_WINDOW_S]
                if len(restarts) >= RESTARTS:
                    self._stopping.wait(RESTART_WINDOW_S - (now_s - restarts[0]))
                restarts.append(time.monotonic())

    def _run_agent(self, election: Election, engines: int | None) -> int | None:
        """Run one agent from start to end, and return its exit code; None if this process ended it, or left before."""
        if self._stopping.is_set():
            return None
        watchdog = self._spawn(election, engines)
        self.said = "running", ""
        changed_s = math.inf
        while watchdog.poll() is None:
            if self._stopping.wait(POLL_S):
                self._end(watchdog)
                return None
            self._attend(election)
            now_s, there = time.monotonic(), self._engines(election)
            changed_s = math.inf if there == engines else min(changed_s, now_s)
            if now_s - changed_s >= (GROWN_S if (there or 0) > (engines or 0) else SHRUNK_S):
                log.info("%s engines instead of %s: another agent", there, engines)
                self._end(watchdog)
                return None
        return 128 - watchdog.returncode if watchdog.returncode > 128 else watchdog.returncode

    def _is_over(self, election: Election) -> bool:
        code = election.over(self._digest)
        if code is None:
            return False
        self.said = "ended", "ended as told" if code == EXIT_STOPPED else "the controller refuses it"
        return True

    def _engines(self, election: Election) -> int | None:
        return self._plan.spec.engines if self._plan.per_process is None else sum(election.engines())

    def _settled(self, election: Election) -> int | None:
        """Return the number of engines once it has not changed for a while."""
        engines = self._engines(election)
        while self._plan.per_process is not None and not self._stopping.wait(GROWN_S):
            before, engines = engines, self._engines(election)
            if engines == before:
                break
        return engines

    def _spawn(self, election: Election, engines: int | None) -> subprocess.Popen[bytes]:
        spec, folder = self._plan.spec, election.folder
        spec = replace(spec, engines=engines, cwd=spec.cwd if spec.cwd.is_dir() else working_folder())
        agent = agent_words(spec, self.agent_name, str(folder / "connection.json"))
        logs = spec.logs if os.access(spec.logs, os.W_OK) else folder
        agent += ["--log", str(logs / f"{self.agent_name}.log")]
        words = watchdog_words(os.getpid(), election, spec.farm, self._patience_s, agent)
        rotate(folder / "agent.out", limit_bytes=1)  # each run has a file of its own
        output = os.open(folder / "agent.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=child_environment({}),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)

    @property
    def _patience_s(self) -> float:
        return self._plan.spec.leave_s + MARGIN_S

    def _end(self, watchdog: subprocess.Popen[bytes]) -> None:
        watchdog.terminate()
        try:
            watchdog.wait(self._patience_s + MARGIN_S)
        except subprocess.TimeoutExpired:
            watchdog.kill()  # something is very wrong; the kernel signals the agent
            watchdog.wait()

    def _until(self, election: Election, predicate: Callable[[], bool]) -> bool:
        """Wait until the predicate holds. Return False if this process is to leave."""
        while not self._stopping.is_set():
            self._attend(election)
            if predicate():
                return True
            self._stopping.wait(POLL_S)
        return False
