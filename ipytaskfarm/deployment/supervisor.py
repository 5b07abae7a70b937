"""The supervisor: one per farm. It keeps the controller and the local agent running, and sets the number of engines.

It is a loop around a few file descriptors. Its owner calls `Supervisor.run` in any thread: the main thread of the
foreground command, the detached process of ``--daemonize``, a background thread of `Farm`. It decides nothing about
tasks. When it dies, the other processes live on, and the next supervisor of the same name adopts them. Only the
controller of an owned farm watches a pipe from the supervisor, and ends everything when the pipe is closed.

The phases are entered once each, in this order (a failure leads from any phase to STOPPING):

    STARTING   processes are started or adopted; the controller has not answered yet
    FILLING    the controller knows how many engines are wanted; they come up
    RUNNING    the owner has been told that the farm is ready; crashed processes are started again
    STOPPING   the controller has been told to stop: it recalls, waits, interrupts, and says good-bye
    LEAVING    the controller has ended; the agents must follow
    ENDED      no process is left; temporary files are deleted
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus, HoldFarm, Question, Refusal, Reply, SetSticky, SetWanted, StopFarm
from ipytaskfarm.core.messages.engine_commands import ExecuteBody
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.text import last_line
from ipytaskfarm.deployment.daemon import Listener
from ipytaskfarm.deployment.group_manager import GroupManager
from ipytaskfarm.deployment.home import Home, HomeLock
from ipytaskfarm.deployment.light_client import Questioner, refusal_error
from ipytaskfarm.deployment.settings import FarmSettings, agent_flags, controller_flags
from ipytaskfarm.deployment.start_errors import (
    EXIT_FULL,
    FINAL_EXITS,
    StartWatch,
    check_loopback,
    check_threads,
    last_error,
    refusal_of,
    with_remedy,
)
from ipytaskfarm.deployment.watched_process import RESTARTS, WatchedProcess
from ipytaskfarm.display.farm_tables import changes, ready_engines
from ipytaskfarm.launchers import EXIT_UNKNOWN, Processes, ProcessSpec, describe_exit
from ipytaskfarm.launchers.local import LocalProcesses, trim
from ipytaskfarm.system.host import open_standard_descriptors, working_folder
from ipytaskfarm.system.supervision import OWNER, SUPERVISOR, own_record, with_intent

FILLING_POLL_S, RUNNING_POLL_S = 0.03, 1.0
TRIM_S = 30.0
ANSWER_S = 15.0
"""How long a controller has for stopping, in addition to the time that it was told to wait."""
LEAVE_S = 6.0
KILL_S = 3.0


class FarmPhase(IntEnum):
    """The phase of the farm's life."""

    STARTING = 1
    FILLING = 2
    RUNNING = 3
    STOPPING = 4
    LEAVING = 5
    ENDED = 6


class Audience(Listener, Protocol):
    """A listener that is also told when the farm is up."""

    def ready(self, state: FarmState) -> None:
        """Report that the farm is up, with its engines."""


class Supervisor:
    """Runs one farm: call `start`, then `run` until it has ended. Any thread may call `request_stop`."""

    def __init__(
        self,
        settings: FarmSettings,
        home: Home,
        audience: Audience,
        processes: Processes | None = None,
        *,
        in_python: bool = False,
    ) -> None:
        """Create it; `in_python` says that this is a guest in a Python process that must not end with the farm."""
        self.settings = settings
        self.home = home
        self.phase = FarmPhase.STARTING
        self.state: FarmState | None = None
        """What the controller last said of itself; at most `RUNNING_POLL_S` old while RUNNING."""
        self.listening = ""
        """Where other machines find the farm; "": nowhere, it listens on loopback alone."""
        self.error: Exception | None = None
        """Why the farm ended, if it was not asked to."""
        self._audience = audience
        self._processes: Processes = processes or LocalProcesses()
        self._controller = WatchedProcess("controller", self._controller_part)
        self._agents = [WatchedProcess("agent-0", self._agent_part)]
        self._questioner: Questioner | None = None
        # If a standard descriptor is closed, one of our pipes would get its number and be inherited as such.
        open_standard_descriptors()
        # Sockets, not a pipe: `_wake` may be called after the end, when the number of a pipe would mean another file.
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._owner_pipe = os.pipe() if settings.owned else None
        self._ready_read: int | None = None
        self._ready_write = -1
        self._stop_requests: deque[float | None] = deque()
        self._stops = 0
        self._kill_at: float | None = None
        self._killed = 0
        self._status_at = 0.0
        self._status_asked = False
        self._trim_at = 0.0
        self._filling_since = 0.0
        self._wanted: int | None = None
        self._stopped_well = False
        self._ours: set[str] = set()
        self._reports: deque[str | Exception] = deque()
        self.starts = StartWatch()
        """What became of the first engines."""
        self._groups = GroupManager(settings, home, self._report, self._report, self._wake)
        self._own_record = own_record(OWNER if in_python else SUPERVISOR, str(home.output(SUPERVISOR)))
        self._lock: HomeLock | None = None

    # ------------------------------------------------------------------ called by the owner

    def start(self) -> None:
        """Take the farm's lock, then start or adopt its processes. FarmExists: another process supervises the farm."""
        try:
            check_threads()
            check_loopback(self.settings.host)
            self._lock = self.home.lock()
            if remark := self.home.settle(self.settings.fresh):
                self._audience.say(remark)
            living = self._adopt()
            if self.settings.fresh and living:
                raise errors.FarmExists(
                    f"the controller of farm {self.home.name!r} still runs: `ipytaskfarm stop` it before a fresh start"
                )
            if living:
                self._audience.say("it keeps the settings that it was started with")
            for remark in [] if living else self.home.prepare(self.settings):
                self._audience.say(remark)
            # Both at the same time: the agent's zygote imports IPython while the controller opens its store.
            for watched in (self._controller, *self._agents):
                if not watched.lives:
                    self._place(watched)
            self._record()  # this process supervises the adopted ones
        except OSError as error:
            self._abandon()
            raise errors.StoreError(with_remedy(f"farm {self.home.name!r} cannot be started: {error}")) from error
        except BaseException:
            self._abandon()
            raise
        if self._ready_read is None:
            self._connect()

    def run(self) -> None:
        """Supervise the farm until it has ended. Raise the reason if its end was not requested."""
        while self.phase is not FarmPhase.ENDED:
            self.turn()
        if self.error is not None:
            raise self.error

    def turn(self, limit_s: float = 5.0) -> None:
        """Wait at most `limit_s` until something happens, and handle it."""
        self._wait(limit_s)
        now = time.monotonic()
        self._take_reports()
        self._take_stop_requests(now)
        for watched in (self._controller, *self._agents):
            self._look_after(watched, now)
        if self._questioner is not None:
            self._questioner.step()
            if self._questioner.refused is not None and self.phase < FarmPhase.STOPPING:
                self._fail(self._questioner.refused)
        self._advance(now)

    def request_stop(self, drain_s: float | None = None, *, default: bool = True) -> None:
        """Stop the farm. A second call stops it without waiting, a third call kills it."""
        self._stop_requests.append(self.settings.drain_s if default else drain_s)
        self._wake()

    def _report(self, what: str | Exception) -> None:
        """Pass on a line to show, or an error that ends the farm. Called in the thread of `group_manager`."""
        self._reports.append(what)
        self._wake()

    def _take_reports(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            if isinstance(report, Exception):
                self._fail(report)
            else:
                self._audience.say(report)

    def in_child_process(self) -> None:
        """Close inherited descriptors in a forked child, which must not keep an owned farm alive."""
        if self._owner_pipe is not None:
            os.close(self._owner_pipe[1])
            self._owner_pipe = None

    # ------------------------------------------------------------------ processes

    def _adopt(self) -> bool:
        """Adopt running processes of an earlier supervisor. Return whether the controller is one of them."""
        # A supervisor that was killed amid a start may have recorded less than it had started.
        for record in [*self.home.read_processes(), *self.home.unrecorded_processes()]:
            for watched in (self._controller, *self._agents):
                if record.get("kind") == watched.kind and not watched.lives:
                    watched.placed = self._processes.adopt(record)
                    if watched.placed is not None:
                        self._audience.say(f"adopted the {watched.kind} that was running (pid {record.get('pid')})")
        return self._controller.lives

    def _place(self, watched: WatchedProcess) -> None:
        try:
            watched.placed = self._processes.start(watched.make())
        finally:
            if watched is self._controller and self._ready_write >= 0:
                os.close(self._ready_write)
                self._ready_write = -1
        watched.placed_s = time.monotonic()
        self._ours.add(watched.kind)
        self._record()

    def _place_again(self, watched: WatchedProcess, now: float) -> None:
        """Start a process again; what prevents it (a full disk, a spoiled folder) may be over the next time."""
        try:
            self.home.mend_logs()
            self._place(watched)
        except (OSError, errors.TaskFarmError) as error:
            if watched.placed is not None:
                watched.placed.kill()  # its end is noticed like any other one
                return
            watched.placed_s = now
            self._start_again(watched, f"cannot be started ({error})", str(error), now)

    def _record(self) -> None:
        """Record the processes for the next supervisor, and for clients what this one is about to do."""
        placed = [watched.placed for watched in (self._controller, *self._agents)]
        own = with_intent(self._own_record, self._controller.restart_at, self.phase >= FarmPhase.STOPPING)
        try:
            self.home.write_processes([own, *(process.record() for process in placed if process is not None)])
        except OSError:
            if self.phase is FarmPhase.STARTING:  # later the farm goes on without
                raise

    def _controller_part(self) -> ProcessSpec:
        settings, home = self.settings, self.home
        if self._ready_read is not None:
            os.close(self._ready_read)
        self._ready_read, self._ready_write = os.pipe()
        os.set_blocking(self._ready_read, False)
        arguments = [
            *("--farm", home.name, "--farm-folder", str(home.folder), "--socket-folder", str(home.sockets)),
            *("--host", settings.host, "--port", str(home.port)),
            *(("--any-port",) if settings.port is None else ()),
            *("--log", str(home.log("controller")), "--ready-fd", str(self._ready_write)),
        ]
        fds = [self._ready_write]
        arguments += controller_flags(settings)
        # A controller that is restarted after a crash remembers whether the farm is held.
        if settings.hold and not self._controller.restarts.in_a_row:
            arguments += ["--hold"]
        if self._owner_pipe is not None:
            arguments += ["--owner-fd", str(self._owner_pipe[0])]
            fds.append(self._owner_pipe[0])
        return ProcessSpec(
            "controller", "ipytaskfarm.controller", tuple(arguments), home.output("controller"), home.folder, tuple(fds)
        )

    def _agent_part(self) -> ProcessSpec:
        home = self.home
        folder = home.agent_folder(0)
        arguments = (
            *("--connection-file", str(home.agent_file), "--folder", str(folder)),
            *("--farm", home.name, "--startup-cwd", str(working_folder()), "--log", str(home.log("agent-0"))),
            *(() if self.settings.owned else ("--recorders", str(home.recorders(0)))),
            *(() if self._owner_pipe is None else ("--owner-fd", str(self._owner_pipe[0]))),
            *agent_flags(self.settings),
        )
        fds = () if self._owner_pipe is None else (self._owner_pipe[0],)
        return ProcessSpec("agent-0", "ipytaskfarm.agent", arguments, home.output("agent-0"), folder, fds)

    def _look_after(self, watched: WatchedProcess, now: float) -> None:
        if watched.restart_at is not None and now >= watched.restart_at:
            watched.restart_at = None
            others_stop_it = self.state is not None and self.state.stopping
            if self.phase < FarmPhase.STOPPING and (watched is self._controller or not others_stop_it):
                self._place_again(watched, now)
        if watched.placed is None:
            return
        if watched.was_stopped(now):
            self._audience.say(f"the {watched.kind} was stopped, by SIGSTOP or ^Z: killing it")
            watched.placed.kill()
        status = watched.placed.poll()
        if status is None:
            return
        placed, watched.placed = watched.placed, None
        said = placed.said()
        placed.close()
        if watched is self._controller:
            self._stopped_well = self._was_told_to_stop(status)
        if self.phase >= FarmPhase.STOPPING:
            return
        if watched is self._controller and self._stopped_well:
            self._audience.say("the farm was stopped")
            self._leave(now)
        elif watched is self._controller and self._is_final(status):
            self._fail(refusal_of(status, said))
        elif watched is not self._controller and status == 0:
            # It was told to end: with the farm, in which case the controller follows, or by someone who meant only this
            # process.
            watched.restart_at = now + LEAVE_S
        else:
            self._start_again(watched, describe_exit(status), said, now)

    def _was_told_to_stop(self, status: int) -> bool:
        # The exit code of an adopted process is unknown, and Python reports 0 for a child that was reaped elsewhere.
        # Only a controller that stopped in good order removes its connection file.
        return status in (0, EXIT_UNKNOWN) and not self.home.client_file.exists()

    def _is_final(self, status: int) -> bool:  # a farm that has worked waits for room
        return status in FINAL_EXITS or (status == EXIT_FULL and self.phase is FarmPhase.STARTING)

    def _start_again(self, watched: WatchedProcess, how: str, said: str, now: float) -> None:
        pause_s = watched.restarts.pause_s(now - watched.placed_s)
        # A farm that has worked and has work goes on when the storm is over.
        if not watched.restarts.too_many or (self.phase is not FarmPhase.STARTING and self.home.has_work()):
            watched.restart_at = now + pause_s
            after = f" in {pause_s:.0f} s" if pause_s > 1.0 else ""
            self._audience.say(f"the {watched.kind} {how}: starting it again{after}")
            self._record()
            return
        last = last_line(said) or last_error(self.home.log(watched.kind))
        text = f"the {watched.kind} {how}, after {RESTARTS} restarts in a row"
        if not self.settings.owned:  # an owned farm's logs disappear with it
            text += f" (see {self.home.output(watched.kind)})"
        self._fail(errors.ConnectionError(with_remedy(f"{text}; it ended with: {last}" if last else text)))

    # ------------------------------------------------------------------ questions

    def _connect(self) -> None:
        if self._questioner is None:
            self._questioner = Questioner(self.home.read_info)
            self._ask(FarmStatus(), self._set_up)

    def _ask(self, question: Question, then: Callable[[Reply], None]) -> None:
        assert self._questioner is not None
        self._questioner.ask(question, then)

    def _set_up(self, reply: Reply) -> None:
        """Send the settings to the controller when it answers for the first time."""
        if not isinstance(reply, FarmState) or self.phase is not FarmPhase.STARTING:
            return
        self.state = reply
        settings = self.settings
        if reply.found and not settings.owned:
            self._audience.say(f"farm {reply.name!r} resumes: {reply.found}; --fresh starts with an empty store")
        self.listening = self.home.listening()
        if self.listening:
            self._audience.say(self.listening)
        if settings.hold:
            self._ask(HoldFarm(True), self._expect_no_refusal)
        if settings.startup is not None:
            body = self._encoded_startup(settings.startup)
            self._ask(SetSticky("startup", "execute", body, settings.startup_name), self._expect_no_refusal)
        self._ask(SetWanted(settings.engines), self._expect_no_refusal)
        self._wanted = settings.engines
        self.phase = FarmPhase.FILLING
        self._filling_since = time.monotonic()
        self._groups.begin()

    def _encoded_startup(self, code: str) -> bytes:
        import msgspec

        return msgspec.msgpack.encode(ExecuteBody(code, sticky=True))

    def _expect_no_refusal(self, reply: Reply) -> None:
        if isinstance(reply, Refusal):
            self._fail(refusal_error(reply))

    def _take_status(self, reply: Reply) -> None:
        self._status_asked = False
        if not isinstance(reply, FarmState):
            return
        if self.phase is FarmPhase.STOPPING and self._stops < 2:
            running = reply.counts.get("pending", 0)
            tasks = "1 running task" if running == 1 else f"{running} running tasks"
            self._audience.progress(f"stopping: waiting for {tasks}" if running else "stopping")
        if self.phase not in (FarmPhase.FILLING, FarmPhase.RUNNING):
            return
        before, self.state = self.state, reply
        now = time.monotonic()
        lines = changes(before, reply)
        for line in lines:
            self._audience.say(line)
        ready = ready_engines(reply)
        if self.phase is FarmPhase.FILLING:
            wanted = self.settings.engines_at_start
            self.starts.look(lines, now)
            waited_s = now - self._filling_since
            # Agents on other machines may still bring engines.
            hopeless = not self.settings.agents and self.starts.is_hopeless(reply)
            if ready >= wanted or waited_s > self.settings.start_timeout_s or hopeless:
                if ready < wanted:
                    why = f" ({self.starts.cause})" if self.starts.cause else ""
                    self._audience.say(
                        f"only {ready} of {wanted} engines came up within {waited_s:.0f} s{why};"
                        f" see {self.home.log('agent-0')}"
                    )
                self.phase = FarmPhase.RUNNING
                self._audience.ready(reply)
            else:
                self._audience.progress(f"starting engines: {ready} of {wanted} ready")

    # ------------------------------------------------------------------ phases

    def _advance(self, now: float) -> None:
        if self.phase is FarmPhase.STARTING:
            self._audience.progress("starting the controller")
        elif self.phase is FarmPhase.STOPPING and not self._controller.lives:
            self._leave(now)
        elif self._questioner is not None and now >= self._status_at and self._controller.lives:
            self._ask_status(now)
        if now >= self._trim_at:
            self._trim_at = now + TRIM_S
            for kind in ("controller", "agent-0", SUPERVISOR):
                trim(self.home.output(kind))
        if self.phase is FarmPhase.LEAVING and not any(agent.lives for agent in self._agents):
            self._groups.end()
            self._kill_at = None
            if self._groups.ended.is_set():
                self._take_reports()
                self._end()
            elif self._groups.has_agents:
                self._audience.progress("waiting for the agents on other machines to end")
        elif self._kill_at is not None and now >= self._kill_at - self._needless_s():
            self._kill(now)

    def _ask_status(self, now: float) -> None:
        if not self._status_asked:
            self._status_asked = True
            self._status_at = now + (FILLING_POLL_S if self.phase is FarmPhase.FILLING else RUNNING_POLL_S)
            self._ask(FarmStatus(), self._take_status)

    def _take_stop_requests(self, now: float) -> None:
        while self._stop_requests:
            drain_s = self._stop_requests.popleft()
            self._stops += 1
            if self._stops == 1 and self.phase < FarmPhase.STOPPING:
                self._stop(drain_s, now)
            elif self._stops == 2:
                self._audience.say("not waiting any more")
                self._stop(0.0, now)
                self._kill_at = now + KILL_S
            else:
                self._killed = 1
                self._kill(now)

    def _stop(self, drain_s: float | None, now: float) -> None:
        leaving = self.phase is FarmPhase.LEAVING
        answering = (FarmPhase.FILLING, FarmPhase.RUNNING, FarmPhase.STOPPING)
        answered = self.phase in answering and self._questioner is not None
        self.phase = FarmPhase.LEAVING if leaving else FarmPhase.STOPPING
        self._record()
        self._kill_at = None if drain_s is None else now + drain_s + ANSWER_S
        if answered and self._controller.lives:
            self._audience.progress("stopping")
            self._ask(StopFarm(drain_s), lambda reply: None)
            return
        for watched in (self._controller, *self._agents):
            if watched.placed is not None:
                watched.placed.terminate()

    def _fail(self, error: Exception) -> None:
        """Stop the farm because it cannot go on; `run` raises the error."""
        self.error = self.error or error
        if self.phase < FarmPhase.STOPPING:
            self._stop(0.0, time.monotonic())

    def _leave(self, now: float) -> None:
        """Wait for the agents after the controller's end. They have been told to end, unless it crashed."""
        self.phase = FarmPhase.LEAVING
        self._record()
        self._kill_at = now + LEAVE_S
        for agent in self._agents:
            if agent.placed is not None and not self._stopped_well:
                agent.placed.terminate()

    def _kill(self, now: float) -> None:
        """End processes that are too slow: SIGTERM, then SIGKILL; the controller first, because agents hold results."""
        self._kill_at, self._killed = now + KILL_S, self._killed + 1
        targets = [self._controller] if self._controller.lives else self._agents
        lack = self._questioner.lack_of_room if self._questioner is not None else ""
        how = f"{lack and f' ({lack})'}: {'killing' if self._killed > 1 else 'asking'} it"
        for watched in targets:
            if watched.placed is not None:
                self._audience.say(f"the {watched.kind} does not end{how}")
                if self._killed > 1:
                    watched.placed.kill()
                else:
                    watched.placed.terminate()

    def _needless_s(self) -> float:
        """Return how much earlier a controller may be ended that can commit nothing, nor hear that it must stop."""
        is_full = self._questioner is not None and self._questioner.lack_of_room and self.phase is FarmPhase.STOPPING
        return (float("inf") if self.settings.owned else ANSWER_S) if is_full and not self._killed else 0.0

    def _end(self) -> None:
        self.phase = FarmPhase.ENDED
        self._kill_at = None
        self.home.tidy(temporary=self.settings.owned)
        self._let_go()

    def _abandon(self) -> None:
        """Give up a failed start: end the started processes, and leave the adopted ones."""
        for watched in (self._controller, *self._agents):
            if watched.placed is not None and watched.kind in self._ours:
                watched.placed.kill()
                deadline = time.monotonic() + KILL_S
                while watched.placed.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.005)
        self.phase = FarmPhase.ENDED
        if self.settings.owned:
            self.home.tidy(temporary=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._questioner is not None:
            self._questioner.close()
            self._questioner = None
        for fd in (self._ready_read, *(self._owner_pipe or ())):
            if fd is not None:
                os.close(fd)
        self._ready_read = self._owner_pipe = None
        for watched in (self._controller, *self._agents):
            if watched.placed is not None:
                watched.placed.close()
                watched.placed = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._wake_read.close()
        self._wake_write.close()

    # ------------------------------------------------------------------ waiting

    def _wait(self, limit_s: float) -> None:
        if self._stop_requests:
            return
        poll = select.poll()
        poll.register(self._wake_read.fileno(), select.POLLIN)
        if self._ready_read is not None and self._questioner is None:
            poll.register(self._ready_read, select.POLLIN)
        watched = (self._controller, *self._agents)
        for fd in (process.placed.wait_fd() for process in watched if process.placed is not None):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        for fd in self._questioner.fds() if self._questioner is not None else ():
            poll.register(fd, select.POLLIN)
        wait_s = max(0.0, min(limit_s, self._next_deadline() - time.monotonic()))
        for fd, _ in poll.poll(wait_s * 1000):
            if fd == self._wake_read.fileno():
                self._wake_read.recv(512)
            elif fd == self._ready_read:
                self._controller_is_ready()

    def _next_deadline(self) -> float:
        deadlines = [*(process.restart_at for process in (self._controller, *self._agents)), self._kill_at]
        if self._questioner is not None:
            deadlines.append(self._questioner.next_deadline())
        if FarmPhase.FILLING <= self.phase <= FarmPhase.STOPPING and not self._status_asked:
            deadlines.append(self._status_at)
        return min(deadline for deadline in [*deadlines, float("inf")] if deadline is not None)

    def _controller_is_ready(self) -> None:
        """Connect when the controller listens. If it has ended and so closed the pipe, `_look_after` handles that."""
        assert self._ready_read is not None
        line = os.read(self._ready_read, 65536)
        os.close(self._ready_read)
        self._ready_read = None
        if line:
            self._connect()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # its buffer is full of wake-ups already, or the supervisor has ended
            self._wake_write.send(b".")
