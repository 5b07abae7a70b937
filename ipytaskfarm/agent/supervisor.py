"""The agent's main loop.

Every event (a message, a bell, a process that ends, a timer) causes one **turn**. A turn handles everything in a fixed
order: the controller's messages, the engines' messages, the results in their rings, due timers; then it sends. So the
results of an engine are always sent before the report of its death.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import secrets
import signal
import time
from pathlib import Path
from typing import Any

from ..core import messages as m
from ..core.errors import TaskFarmError
from ..core.messages.blob_chunks import BlobPiece, BlobWritten, ReadBlob, WriteBlob
from ..core.messages.running_task import TaskReply
from ..core.messages.task_types import Incarnation
from ..storage.blobs import Blobs
from ..system.bell import Bell
from ..system.farm_paths import ConnectionInfo, read_connection_file
from ..system.machine import own_process
from ..system.process import usable_cores
from ..transport.lane import AgentLane
from ..transport.peer import Acked, Link, Lost, NewEpoch, ReceivedMessage, Refused, Resumed
from .engine_messages import EngineMessages
from .engines import GONE, EnginePhase, EngineProcesses, ManagedEngine
from .kernel_streams import KernelStreams
from .memory import EngineMemory, MemoryWatch
from .node import NodeWatch, resources
from .own_files import OwnFiles
from .relay import Relay, UnrungResults
from .settings import EXIT_REFUSED, LOCK, AgentSettings
from .sweep import counters, remember_farm, remove_dead, remove_own, succeed, sweep
from .uploading import BlobTransfers
from .watch import CHECK_S, EngineWatch
from .zygote_process import ZygoteProcess

log = logging.getLogger(__name__)

STREAK, STREAK_S, PACE_S = 4, 0.005, 0.002
"""After STREAK rings, each within STREAK_S of the last, the bell is heard only every PACE_S: see `_muffle_bell`."""
ARMED_S = 0.05
"""How long a timer stays although a later one would do."""
COPIES, OWN = "blobs", ("lane.sock", "bell.sock", LOCK)
STACK_QUERIES_MAX = 200
"""The most queries that wait for one reading of an engine's stack; the controller does not wait for more of them."""
OWNERLESS_S = 5.0
"""The longest lease of an agent whose farm has lost its owner."""
SILENT_S = 10.0
"""The silence of the controller, at most, after which the agent tells why."""
EXIT_STOPPED, EXIT_BUG, EXIT_SPOILED = 0, 1, 5
STOP_S = 2.0
"""How long (seconds) engines may take to end when the controller does not say."""
DELIVER_S = 10.0
"""At the end: how long (seconds) to wait for an absent controller to take the last results."""
DELIVER_MAX_S = 120.0
"""The same for a controller that is connected."""


def _name_in(connection_file: Path) -> str:
    """Return the agent's name according to its key; "" if there is none.

    The agents of the controller's own machine share a key, and may be started before there is a connection file.
    """
    try:
        return read_connection_file(connection_file).agent
    except TaskFarmError:
        return ""  # `Link` reports the problem with it


class Agent:
    """The supervisor of one machine's engines.  `run` returns the process's exit code."""

    def __init__(self, settings: AgentSettings, zygote: ZygoteProcess) -> None:
        """Make an agent inside the running event loop; `zygote` is its first, which imports already."""
        self._settings = settings
        self._first_zygote: ZygoteProcess | None = zygote
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._name = settings.name or _name_in(settings.connection_file)
        session = f"{self._name or 'agent'}:{secrets.token_hex(8)}"
        self._recorders = settings.recorders or settings.folder
        dead = sweep(settings.folder, self._recorders)
        self._former = succeed(session, [settings.folder, self._recorders], dead)
        self._lane = AgentLane(settings.folder / "lane.sock")
        self._bell = Bell.listen(settings.folder / "bell.sock")
        self._files = OwnFiles([settings.folder, self._recorders, *map(settings.folder.joinpath, OWN)])
        self._files_s = 0.0
        self._info: ConnectionInfo | None = None
        self._link = Link(self._read_info, "agent", session, settings.node)
        self._relay = Relay(self._link)
        self._kernels = KernelStreams(self._relay.say, self._wake)
        self._blobs = BlobTransfers(self._say_of_blob, self._lane.send)
        self._messages = EngineMessages(self._relay, self._lane, self._blobs.want)
        first = max(counters(settings.folder, self._recorders), default=0)
        memory = MemoryWatch(limit_bytes := settings.memory_limit_bytes)
        self._engines = EngineProcesses(
            session, settings.farm, settings.folder, self._recorders, settings.node, settings.startup_cwd,
            self._lane, self._relay, first, self._spawn_zygote, self._wake, self._of_farm,
            memory.oom_cause, settings.umask,
        )  # fmt: skip
        for engine in dead:
            self._engines.adopt_dead(engine)
        self._resources, self._gpus = resources(settings.resources)
        self._node = NodeWatch(settings.folder, EngineMemory(limit_bytes))
        self._watch = EngineWatch(settings.grace_s, settings.stopped_s, self._lane, memory)
        self._stack_queries: dict[Incarnation, list[int]] = {}
        """Engine -> the numbers of the queries that wait for the next reading of its stack."""
        self._woken = False
        self._over = False
        """Whether the farm has stopped: nobody needs what dead agents have left."""
        self._closed = False
        """Whether the agent is closed: a turn that was scheduled before does nothing."""
        self._called = False
        """Whether the controller's link is readable."""
        self._rung = self._held_up = False
        self._unrung = UnrungResults()
        self._bell_s = self._turn_by_s = self._armed_s = 0.0
        self._streak = 0
        self._timer: asyncio.TimerHandle | None = None
        self._link_fds: list[int] = []
        self._heard_s = time.monotonic()
        self._told_s = -math.inf  # the `_heard_s` of the last silence that was told
        self._lease_s = settings.lease_s
        self._lease_max_s = self._end_by_s = math.inf
        self._exit_code = EXIT_STOPPED
        self._leave_by_s: float | None = None
        """When (monotonic) a leaving agent ends at the latest.  It ends earlier with its last engine.  None: it
        stays."""
        # The wall clock may be set while the agent runs, so it is read only once.
        ends_at_s = settings.ends_at_s
        self._due_s = math.inf if ends_at_s is None else self._heard_s + ends_at_s - time.time() - settings.leave_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, told: list[int]) -> int:
        """Run until the farm stops, a signal arrives, or the lease ends; return the exit code.

        told: signals that came while the agent started."""
        self._loop.set_exception_handler(self._broken)
        self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup` has started it
            self._loop.add_signal_handler(signal.SIGHUP, self._on_sigterm)
        # Ctrl-C in a foreground farm's terminal reaches the agent too. Not SIG_IGN, which engines would inherit.
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)
        self._loop.add_reader(self._lane.fileno(), self._on_lane)
        if (owner := self._settings.owner_fd) is not None:
            self._loop.add_reader(owner, self._on_owner, owner)
        self._hear_bell()
        self._engines.zygote()
        self._wake()
        if told:
            self._on_sigterm()
        try:
            return await self._finished
        finally:
            await self._close()

    def _on_owner(self, owner: int) -> None:
        """Handle the owner's end: its controller says good-bye at once, or has ended too, or was never started."""
        self._loop.remove_reader(owner)
        log.info("the farm's owner has ended")
        self._lease_max_s = OWNERLESS_S
        self._lease_s = min(self._lease_s, OWNERLESS_S)
        self._wake()

    def _read_info(self) -> ConnectionInfo:
        self._info = read_connection_file(self._settings.connection_file)
        return self._info

    def _of_farm(self) -> dict[str, str]:
        """Return an engine's settings that depend on the farm: its incarnation, and the folder of blobs.

        That is the farm's own if this machine sees it, else a folder of copies."""
        if self._info is None:
            return {}
        incarnation = self._info.incarnation
        found = Blobs.find(self._info.blobs, incarnation)
        if found is not None:
            return {"incarnation": incarnation, "blobs": str(found.folder)}
        return {"incarnation": incarnation, "copies": self._blobs.folder(self._settings.folder / COPIES, incarnation)}

    def _say_of_blob(self, message: ReadBlob | WriteBlob) -> bool:
        self._relay.say(message)
        self._wake()
        return self._relay.is_up

    # -- the turn

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._turn)

    def _on_bell(self) -> None:
        self._bell.take()
        self._rung = True
        now_s = time.monotonic()
        self._streak = self._streak + 1 if now_s - self._bell_s < STREAK_S else 0
        self._bell_s = now_s
        self._turn_now()

    def _muffle_bell(self) -> None:
        # Engines at full speed ring every 0.1 ms. A turn costs as much as relaying fifty results: let results gather.
        self._loop.remove_reader(self._bell.fileno())
        self._loop.call_later(PACE_S, self._hear_bell)

    def _hear_bell(self) -> None:
        if not self._finished.done():
            self._loop.add_reader(self._bell.fileno(), self._on_bell)

    def _on_lane(self) -> None:
        self._rung = True
        self._turn_now()

    def _on_link(self) -> None:
        self._called = True
        self._turn_now()

    def _turn_now(self) -> None:
        # At once: by the loop's next round the descriptor, which is not read yet, would have asked for another turn.
        if not self._woken:
            self._turn()

    def _turn(self) -> None:
        if self._closed:
            return
        self._woken = False
        now_s = time.monotonic()
        self._look_at_files(now_s)
        if self._called:
            # Hand-outs must be sent before anything else is handled.
            self._called = False
            self._hear_controller(now_s, readable=True)
        said = self._lane.receive()
        # Rings are read after the lane, and results sent before the lane's messages: an engine writes results first.
        if self._rung or said or self._held_up:
            self._read_rings()
        for incarnation, message in said:
            engine = self._engines.get(incarnation)
            if engine is not None:
                self._messages.handle(engine, message)
        self._engines.report_losses()
        look_s = self._watch.look(self._engines, now_s)
        self._watch.check(self._engines, now_s)
        state = self._node.look(now_s, self._engines.pids(), self._blobs.fetches.count, self._blobs.fetches.bytes)
        if state is not None:
            self._relay.say(state)
        if self._link.is_due(now_s) and self._hear_controller(now_s):  # and send the queued messages
            self._wake()
        self._engines.forget_reported()
        self._lane.hold(self._relay.full_engines)
        self._judge_lease(now_s)
        self._judge_leave(now_s)
        self._judge_end(now_s)
        self._rearm(now_s, look_s)

    def _look_at_files(self, now_s: float) -> None:
        """End engines, or this agent with all of them, whose files a task has spoiled: successors have new ones."""
        self._files.condemn(self._engines, now_s)
        if now_s - self._files_s < CHECK_S / 5 or self._engines.ending:
            return
        self._files_s = now_s
        if why := self._files.lost():
            log.error("this agent ends, and is started again: %s", why)
            self._engines.kill_all(why)
            self._end(EXIT_SPOILED, 0.0)

    def _read_rings(self) -> None:
        # Not in every turn: each acknowledgement causes one. If results were sent as soon as the last ones are
        # acknowledged, each would be a message of its own.
        self._held_up = False
        self._unrung.read()
        for engine in self._engines:
            if not self._relay.collect(engine.account):
                self._held_up = True  # the controller is slow or absent: try again as soon as it takes more
        if self._rung and self._streak >= STREAK and self._engines.are_loaded():
            self._muffle_bell()
        self._rung = False

    def _rearm(self, now_s: float, look_s: float) -> None:
        if self._finished.done():
            return
        if self._lane.pending():
            self._wake()
        fds = self._link.fds()
        if fds != self._link_fds:
            for fd in self._link_fds:
                self._loop.remove_reader(fd)
            for fd in fds:
                self._loop.add_reader(fd, self._on_link)
            self._link_fds = list(fds)
        self._turn_by_s = min(self._link.next_deadline(), now_s + CHECK_S)
        if self._leave_by_s is None:
            self._turn_by_s = min(self._turn_by_s, self._due_s)
        if not self._engines.ending:
            self._turn_by_s = min(self._turn_by_s, self._heard_s + self._lease_s)
        self._arm(now_s, look_s)

    def _arm(self, now_s: float, look_s: float) -> None:
        due_s = max(0.0, min(self._turn_by_s, look_s))
        if self._timer is not None:
            # An earlier one stays if it is new, and is set again when it is over: a timer for each turn costs more.
            if self._timer.when() <= due_s and now_s - self._armed_s < ARMED_S:
                return
            self._timer.cancel()
        self._timer, self._armed_s = self._loop.call_at(due_s, self._on_timer), now_s

    def _on_timer(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        self._look_at_files(now_s)
        if now_s < self._turn_by_s:
            # Twenty times a second while anything runs: a check, and a turn only if the check finds something.
            look_s = self._watch.look(self._engines, now_s)
            if not self._unrung.are_due(self._relay.is_up and self._engines.have_results(), now_s):
                self._arm(now_s, look_s)
                return
            self._rung = True
        self._wake()

    # -- the controller

    def _hear_controller(self, now_s: float, readable: bool = False) -> bool:
        """Send and receive. Return whether anything except acknowledgements was received."""
        events = self._link.step(now_s, readable)
        for event in events:
            match event:
                case ReceivedMessage():
                    self._on_message(event.message)
                case Acked():
                    self._relay.acked(event.token)
                case NewEpoch():
                    self._on_new_epoch(event.welcome.farm)
                case Resumed():
                    log.info("the controller is back")
                case Lost():
                    log.warning("the controller is not there (%s); engines go on, results are kept", event.why)
                    self._blobs.lost()
                case Refused():
                    self._on_refused(event.refuse.etype, event.refuse.text)
        if self._link.is_up or self._link.waits_for_room:  # in both cases it gives nobody our engines' work
            self._heard_s = self._link.heard_s
        return any(not isinstance(event, Acked) for event in events)

    def _on_new_epoch(self, farm: str) -> None:
        if not remember_farm(self._recorders, farm):
            log.warning("what stands in %s is another farm's: dropped", self._recorders)
            self._engines.drop_dead()
        log.info("the controller answered; %d engines", len(self._engines.living))
        self._engines.restate()
        self._relay.restate(self._state(), [engine.account for engine in self._engines])
        for engine in self._engines.living:
            if (properties := engine.unreported) is not None:
                self._relay.forward(engine.incarnation, properties)
        self._node.restate()
        self._blobs.restate()
        if self._leave_by_s is not None:
            self._relay.say(m.Leaving(max(0.0, self._leave_by_s - time.monotonic())))

    def _state(self) -> m.AgentState:
        return m.AgentState(
            self._settings.node,
            os.getpid(),
            usable_cores(),
            int(self._resources["memory"]),
            platform.platform(),
            platform.python_version(),
            [engine.report() for engine in self._engines.living],
            self._settings.slots,
            self._former,
            self._resources,
            self._gpus,
            self._settings.priority,
            time.localtime().tm_gmtoff,
            self._name,
            self._settings.brings,
            None if math.isinf(self._due_s) else max(0.0, self._due_s - time.monotonic()),
            time.time(),
            own_process(),
            self._engines.left,
        )

    def _on_message(self, message: Any) -> None:
        match message:
            case m.HandOut():  # the most frequent message by far
                self._pass_on(message)
            case m.StartEngine():
                self._engines.start(message.id, message.beside)
            case m.StackQuery():
                self._ask_for_stack(message)
            case BlobPiece() | BlobWritten():
                self._blobs.came(message)
            case m.KernelQuery():
                self._kernels.ask(message, self._engines.frozen_kernel(message.question.engine))
            case m.Lease():
                self._lease_s = min(message.lease_s, self._lease_max_s)
            case m.Leave():
                log.info("the farm sends us away")
                self._leave_by_s = math.inf if message.within_s is None else time.monotonic() + message.within_s
                self._engines.leaving = True
            case m.Shutdown():
                log.info("the farm stops")
                self._over = True
                self._end(EXIT_STOPPED, message.grace_s)
            case _:
                self._pass_on(message)

    def _pass_on(self, message: Any) -> None:
        engine = self._engines.get(message.engine)
        # A dead engine's loss report is under way, and answers all messages that are sent to it.
        if engine is not None and engine.phase is not GONE:
            self._on_engine_message(engine, message)

    def _on_engine_message(
        self,
        engine: ManagedEngine,
        message: m.HandOut | m.Recall | m.Interrupt | m.EngineCommand | m.OutputQuery | m.StopEngine
        | m.EnginePrepared | m.Granted | TaskReply,
    ) -> None:  # fmt: skip
        match message:
            case m.HandOut():
                engine.is_handed(message)
                connected = self._lane.forward(engine.incarnation, self._relay.hand_out(engine.account, message))
            case m.Recall() | m.EngineCommand() | m.OutputQuery() | TaskReply():
                connected = self._lane.send(engine.incarnation, message)
            case m.Granted():
                engine.holding = message.run, message.allotment
                connected = self._lane.send(engine.incarnation, message)
            case m.Interrupt():
                self._watch.interrupt(engine, message)
                return
            case m.StopEngine():
                self._engines.stop(engine, message.grace_s)
                return
            case m.EnginePrepared():
                engine.prepared = True
                return
        if not connected and engine.phase is not EnginePhase.STARTING:
            # Unix sockets do not break by themselves: the engine is dying, or is no engine any more.
            log.error("engine %d has hung up", engine.id)
            engine.kill("it closed its lane")

    def _on_refused(self, etype: str, text: str) -> None:
        log.error("the controller refuses this agent: %s: %s", etype, text)
        self._engines.kill_all("the controller refuses this agent")
        if etype == "FarmReplaced":
            self._engines.drop_dead()
        self._end(EXIT_REFUSED, 0.0)
        self._end_by_s = 0.0

    def _ask_for_stack(self, query: m.StackQuery) -> None:
        asked = self._stack_queries.get(query.engine)
        if asked is None:
            self._stack_queries[query.engine] = [query.n]
            self._spawn(self._answer_stacks(query.engine))
        elif len(asked) < STACK_QUERIES_MAX:
            asked.append(query.n)

    async def _answer_stacks(self, incarnation: Incarnation) -> None:
        """Read an engine's stack until nobody asks: the queries that come meanwhile share the next one."""
        while asked := self._stack_queries[incarnation]:
            self._stack_queries[incarnation] = []
            engine = self._engines.get(incarnation)
            text = await self._watch.stack(engine) if engine is not None else "this engine is gone"
            for number in asked:
                self._relay.say(m.StackText(number, text))
            self._wake()
        del self._stack_queries[incarnation]

    # -- the engines

    def _spawn_zygote(self) -> ZygoteProcess:
        """Return the process of a zygote: at first the one that was started before this agent was made."""
        first, self._first_zygote = self._first_zygote, None
        return first or self._settings.spawn_zygote()

    # -- the end

    def _judge_lease(self, now_s: float) -> None:
        silent_s = now_s - self._heard_s
        if silent_s > min(SILENT_S, self._lease_s / 2) and self._told_s != self._heard_s and not self._relay.is_up:
            self._told_s = self._heard_s
            text = "the controller does not answer (%s): trying again; this agent ends after %g s without it"
            log.warning(text, self._link.problem, self._lease_s)
        if silent_s < self._lease_s or self._engines.ending:
            return
        log.error("no controller for %g s: the lease is over", self._lease_s)
        # The controller gives the engines' work to others from now on.
        self._engines.kill_all("its lease was over")
        self._end(EXIT_STOPPED, 0.0)
        self._end_by_s = 0.0

    def _on_sigterm(self) -> None:
        if self._engines.ending:
            self._engines.kill_all("")
            self._end_by_s = 0.0
        elif self._settings.leave_s > 0 and self._leave_by_s is None and self._relay.is_up:
            log.info("told to end by a signal: what runs has %g s", self._settings.leave_s)
            self._leave()
        else:
            log.info("told to end by a signal")
            self._end(EXIT_STOPPED, STOP_S)
        self._wake()

    def _leave(self) -> None:
        self._leave_by_s = time.monotonic() + self._settings.leave_s
        self._engines.leaving = True
        self._relay.say(m.Leaving(self._settings.leave_s))

    def _judge_leave(self, now_s: float) -> None:
        if self._engines.ending:
            return
        if now_s >= self._due_s and self._leave_by_s is None:
            log.info("the time that was given to us is over in %g s", self._settings.leave_s)
            self._leave()
        # Engines end within moments when told to; the controller may be absent.
        if self._leave_by_s is not None and (now_s > self._leave_by_s + STOP_S or not self._engines.any_left):
            self._end(EXIT_STOPPED, STOP_S)

    def _end(self, code: int, grace_s: float) -> None:
        if not self._engines.ending:
            self._exit_code = code
            self._end_by_s = time.monotonic() + grace_s + DELIVER_S
            self._engines.stop_all(grace_s)
            self._loop.call_later(grace_s + DELIVER_S, self._wake)

    def _judge_end(self, now_s: float) -> None:
        if not self._engines.ending or self._engines.living or self._finished.done():
            return
        patience_s = DELIVER_MAX_S - DELIVER_S if self._link.is_up and self._end_by_s else 0.0
        if self._all_delivered() or now_s > self._end_by_s + patience_s:
            self._finished.set_result(self._exit_code)

    def _all_delivered(self) -> bool:
        return not self._engines.any_left and self._relay.delivered and not self._link.unacked_bytes

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # After a bug in the agent nothing can be trusted: end, with the engines, and let the next agent read the
        # recorders.
        error = context.get("exception")
        log.critical("bug: %s", context.get("message"), exc_info=error)
        if not self._finished.done():
            self._finished.set_result(EXIT_BUG)

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for fd in [*self._link_fds, self._lane.fileno(), self._bell.fileno()]:
            self._loop.remove_reader(fd)
        await self._engines.close()
        await self._blobs.close()
        self._kernels.close()
        # Nobody needs what is left of a farm that ended with its owner.
        clean = self._all_delivered() or not math.isinf(self._lease_max_s)
        self._closed = True
        self._link.close()
        self._lane.close()
        self._bell.close()
        if clean:
            remove_own(self._settings.folder, self._recorders)
        if self._over and self._settings.places_itself:
            remove_dead(self._settings.folder.parent)

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(self._loop, {"message": "an answer", "exception": error})
