"""The engines of an agent, from the fork to the report of their end."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from ..core import messages as m
from ..core.limits import properties_bytes
from ..core.messages.task_types import FrozenRun, Incarnation, RunKey, encode_runs
from ..core.requirements import Allotment, Environment, Recycle
from ..core.text import last_line, signal_text
from ..system.concurrent_runs import COMPANY
from ..system.files import tail
from ..system.flight_recorder import Recorder
from ..system.machine import boot_id
from ..system.odd_files import remove_entry
from ..system.process import StoppedWatch, require_files
from ..transport.lane import AgentLane
from .limits import Backoff, EndedRunWatch, Ladder
from .node import thread_limits
from .reaping import COOKIE, Marks, reap
from .relay import Account, Relay
from .zygote import Child, Exit, StartError, Zygote
from .zygote_process import OUTPUT, ZygoteProcess

log = logging.getLogger(__name__)

START_S = 30.0
"""Seconds from the fork to the engine's `LaneHello`."""
CLOSE_S = 5.0
"""How long the reaping of the last engines may take."""
SPARE_FILES, FILES_EACH = 8, 3
"""An engine is not started unless so many descriptors are left for the agent itself: without, all engines would suffer.
Each engine takes some: its pidfd, its lane, its flight recorder."""
LOADED_RUNS = 128
"""So many runs, of 15 µs at least, keep an engine busy while results are gathered: it does not wait for the bell."""
OUTPUT_BYTES_MAX = 10 << 20
"""An engine's own output file (what is not captured for a task) is cut down to its tail beyond this."""

REPORTED_BYTES, REPORTED_VALUES = 64 << 10, 64
"""Properties that are larger, or have more plain values, are told in a message of their own."""

OUTPUT_TAIL, DUMP_MAX = 4096, 16384
"""Characters of a dead engine's output and of faulthandler's text that are reported."""
FATAL = "Fatal Python error: "


class EnginePhase(Enum):
    """The phase of an engine's life."""

    STARTING = "forked, or about to be"
    UP = "can be given work"
    STOPPING = "told to end"
    GONE = "its process has ended; its results and its loss are being reported"


STARTING, GONE = EnginePhase.STARTING, EnginePhase.GONE
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""


class Files:
    """An engine's files: the flight recorder, and the others in the agent's folder."""

    def __init__(self, folder: Path, recorders: Path, counter: int) -> None:
        self.folder = folder
        self.counter = counter
        self.recorder = recorders / f"engine-{counter}.rec"
        self.output = folder / f"engine-{counter}.out"
        self.stdout = folder / f"engine-{counter}.stdout"
        self.stack = folder / f"engine-{counter}.stack"
        self.connection = folder / f"kernel-{counter}.json"

    def remove(self) -> None:
        """Delete the files, with the kernel's sockets and the recorder's spill files."""
        Recorder.remove(self.recorder)
        for pattern in (f"engine-{self.counter}.*", f"kernel-{self.counter}.*", f"kernel-{self.counter}-*"):
            for path in self.folder.glob(pattern):
                remove_entry(path)


class ManagedEngine:
    """One engine. `child` is its process, and `account` lists the runs that it was handed."""

    def __init__(self, engine_id: int, incarnation: Incarnation, files: Files, account: Account) -> None:
        self.id = engine_id
        self.incarnation = incarnation
        self.files = files
        self.account = account
        self.phase = EnginePhase.STARTING
        self.child: Child | None = None
        self.hello: asyncio.Future[m.LaneHello] = asyncio.get_running_loop().create_future()
        self.exit = Exit(None)
        self.started_s = time.time()
        self.facts: dict[str, Any] = {}
        self.properties: m.PropertiesChanged | None = None
        self.connection_file = ""
        self.prepared = False
        self.environment: Environment | None = None
        """The environment that the engine was told to prepare."""
        self.set_up = False
        self.beside = 0
        """How many engines, this one included, share the machine."""
        self.holding: tuple[RunKey, Allotment] | None = None
        """The last run that was allotted resources, and its allotment."""
        self.recycling: tuple[tuple[str, Recycle], ...] = ()
        self.frozen: FrozenRun | None = None
        """The failed run of which it keeps the frames; it runs nothing more."""
        self.concurrent = False
        """Whether the runs that it was handed last are coroutines, which it runs at once."""
        self.graces: dict[int, float] = {}
        """Task -> seconds between its time limit's interrupt and SIGTERM, where the task sets them."""
        self.expected = False
        """Whether the engine was told to end."""
        self.cause = ""
        """Why the agent killed the engine.  "": it did not, or it did for one run (see `ladder`)."""
        self.ladder: Ladder | None = None
        """The interrupt of its run, or of the concurrent run for which it was told to end."""
        self.ladders: dict[RunKey, Ladder] = {}
        """The interrupts of concurrent runs."""
        self.interrupts: dict[RunKey, float] = {}
        """Run that is interrupted when it begins -> grace in seconds."""
        self.item_interrupts: dict[RunKey, tuple[float, frozenset[int]]] = {}
        """Run of a chunk -> grace in seconds, and the items that are interrupted when they run."""
        self.next_look_s = 0.0
        self.stopped = StoppedWatch()
        self.ended_run = EndedRunWatch()
        self.loss_told = False

    @property
    def pid(self) -> int:
        """Return the pid.  0: the engine was not forked yet."""
        return self.child.pid if self.child is not None else 0

    def send_signal(self, signum: int) -> bool:
        """Send a signal, and return whether the process was still there."""
        return self.child is not None and self.child.send_signal(signum)

    def is_handed(self, message: m.HandOut) -> None:
        """Take the parts of a hand-out that concern the engine itself."""
        self.environment = message.environment or self.environment
        self.recycling = message.recycling or self.recycling
        self.concurrent = message.concurrent
        if message.graces or self.graces:
            held = {task for task, _ in self.account.unacknowledged()}
            self.graces = {task: s for task, s in self.graces.items() if task in held} | (message.graces or {})
        if message.allotment is not None:
            self.holding = message.runs[0], message.allotment

    def kill(self, cause: str = "") -> None:
        """Send SIGKILL.  The first cause given is reported."""
        self.cause = self.cause or cause
        self.send_signal(signal.SIGKILL)

    def report(self) -> m.EngineReport:
        """Return the engine's state for the controller."""
        return m.EngineReport(
            self.incarnation,
            self.id,
            self.pid,
            self.phase is EnginePhase.UP,
            self.started_s,
            self.facts,
            encode_runs(self.account.unacknowledged()),
            self.properties if self.unreported is None else None,
            self.connection_file,
            self.prepared,
            self.account.ended_runs,
            self.environment,
            self.set_up,
            self.holding,
            self.recycling,
            self.concurrent,
            self.frozen,
        )

    @property
    def unreported(self) -> m.PropertiesChanged | None:
        """Return the properties if they are too large for `report`. All reports of a node are one message."""
        properties = self.properties
        if properties is None or len(properties.plain) > REPORTED_VALUES:
            return properties
        return properties if properties_bytes(properties.packed, properties.plain) > REPORTED_BYTES else None

    def loss(self) -> m.EngineDown:
        """Return how the engine ended.  Its ring must have been read to the end before."""
        running = self.account.running()
        ladder = self.ladder
        begun = self.account.concurrent_runs() if running is None else []
        if begun:
            running = ladder.run if ladder is not None and ladder.run in begun else begun[0]
        for_run = ladder is not None and ladder.terminated and ladder.run == running
        output, dump = last_words(self.files.output)
        if not self.account.damaged and (running is not None or self.account.recorder.runs_command):
            # And nothing else: the log has the output of earlier tasks too.
            output = self._last_output(COMPANY if begun else running)
        crash = m.Crash(
            signal=self.exit.signal,
            exit_code=self.exit.exit_code,
            cause=ladder.cause if for_run and ladder is not None else self.cause,
            peak_bytes=self.exit.peak_bytes,
            output=output,
            dump=dump,
        )
        recorder = self.account.recorder
        if recorder.boot != boot_id():
            # The disk has the recorder as of some earlier moment: the engine has come further.
            upto = recorder.begun_upto()
            return m.EngineDown(self.incarnation, self.id, None, False, crash, self.expected, begun_upto=upto)
        items = recorder.items() if running is not None else None
        beside = tuple(run for run in begun if run != running)
        known = not self.account.damaged
        return m.EngineDown(self.incarnation, self.id, running, known, crash, self.expected, items, beside)

    def _last_output(self, running: RunKey | None) -> str:
        """Return the end of what a dead engine's run, or (None) its command, has written. "": nothing."""
        words = self.account.recorder.words
        rest = tail(self.files.stdout, OUTPUT_TAIL, words.marked(1))
        error = tail(self.files.output, 2 * DUMP_MAX, words.marked(2)).partition(FATAL)[0]
        lines = [part.strip("\n") for part in (words.read(running), rest, error)]
        return "\n".join(part for part in lines if part.strip())[-OUTPUT_TAIL:]


class EngineProcesses:
    """All engines of this agent, including dead ones of which the controller does not know yet that they ended."""

    def __init__(
        self, session: str, farm: str, folder: Path, recorders: Path, node: str, startup_cwd: Path,
        lane: AgentLane, relay: Relay, first_counter: int, spawn: Callable[[], ZygoteProcess],
        changed: Callable[[], None], of_farm: Callable[[], dict[str, str]],
        oom_cause: Callable[[float], str], umask: int | None = None,
    ) -> None:  # fmt: skip
        """Create the table.

        Args:
            spawn: returns the process of a zygote that nobody uses yet.
            changed: called when there is something to report to the controller.
            of_farm: returns those of an engine's settings that depend on the farm: `incarnation`, `blobs`, `copies`.
            oom_cause: `MemoryWatch.oom_cause`.
        """
        self._oom_cause = oom_cause
        self._spawn = spawn
        self._umask = umask
        self._session = session
        self._farm = farm
        self._folder = folder
        self._recorders = recorders
        self._node = node
        self._startup_cwd = startup_cwd
        self._lane = lane
        self._relay = relay
        self._counter = first_counter
        self._changed = changed
        self._of_farm = of_farm
        self._backoff = Backoff()
        self._zygote_backoff = Backoff()
        self._chance = random.Random()
        self._zygotes: list[Zygote] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_incarnation: dict[Incarnation, ManagedEngine] = {}
        self.by_counter: dict[int, ManagedEngine] = {}
        self.ending = False
        """Whether the agent ends: no more engines are started."""
        self.leaving = False
        """Whether the agent leaves: no more engines are started, and the present ones finish their runs."""

    def __iter__(self) -> Iterator[ManagedEngine]:
        return iter(list(self._by_incarnation.values()))

    def pids(self) -> Iterator[tuple[Incarnation, int]]:
        """Yield the names and pids of the engines whose process exists."""
        for engine in self.living:
            if engine.child is not None:
                yield engine.incarnation, engine.pid

    def get(self, incarnation: Incarnation) -> ManagedEngine | None:
        """Return the engine of that incarnation, living or dead."""
        return self._by_incarnation.get(incarnation)

    def frozen_kernel(self, incarnation: Incarnation) -> str:
        """Return the connection file of a frozen engine's kernel. "": there is no such engine.

        The controller knows which engines are frozen, perhaps from a result that was read before the engine's message.
        """
        engine = self._by_incarnation.get(incarnation)
        return engine.connection_file if engine is not None and engine.phase is not EnginePhase.GONE else ""

    @property
    def any_left(self) -> bool:
        """Return whether an engine lives, or has died without the controller knowing it."""
        return bool(self._by_incarnation)

    @property
    def living(self) -> list[ManagedEngine]:
        """Return the engines whose process exists or is being forked."""
        return [engine for engine in self._by_incarnation.values() if engine.phase is not GONE]

    @property
    def left(self) -> list[Incarnation]:
        """Return the dead engines of earlier agents on which reports are still to follow."""
        return [engine.incarnation for engine in self._by_incarnation.values() if engine.account.former]

    def are_loaded(self) -> bool:
        """Return whether an engine holds enough runs for its results to be gathered."""
        return any(engine.account.open_runs >= LOADED_RUNS for engine in self._by_incarnation.values())

    def have_results(self) -> bool:
        """Return whether a ring holds results that were not read."""
        return any(
            engine.account.recorder.unread for engine in self._by_incarnation.values() if not engine.account.damaged
        )

    # -- a life

    def start(self, engine_id: int, beside: int = 0) -> None:
        """Start an engine; `EngineUp` or a failed-start `EngineNote` follows.  beside: see `StartEngine`."""
        if self.ending or self.leaving:
            self._relay.say(m.EngineNote(engine_id, "the agent is ending", failed_start=True))
            return
        self._counter += 1
        files = Files(self._folder, self._recorders, self._counter)
        incarnation = f"{self._session}.{self._counter}"
        starting = sum(engine.phase is STARTING for engine in self._by_incarnation.values())
        try:
            require_files(SPARE_FILES + FILES_EACH * (starting + 1))
            files.remove()  # nothing of that name is an engine's: a task has made it
            recorder = Recorder.create(
                files.recorder, incarnation, engine_id, boot=boot_id(), is_marked=self._recorders != self._folder
            )
        except OSError as error:
            self._backoff.failed()
            self._relay.say(m.EngineNote(engine_id, f"no flight recorder for it: {error}", failed_start=True))
            return
        engine = ManagedEngine(engine_id, incarnation, files, Account(incarnation, recorder))
        engine.beside = beside or len(self.living) + 1
        self._by_incarnation[incarnation] = self.by_counter[self._counter] = engine
        self._run(self._life(engine))

    async def _life(self, engine: ManagedEngine) -> None:
        try:
            await self._begin(engine)
        except StartError as error:
            log.warning("engine %d did not start: %s", engine.id, error)
            self._backoff.failed()
            await self._reap(engine)
            self._remove(engine)
            self._relay.say(m.EngineNote(engine.id, str(error), engine.incarnation, failed_start=True))
            self._changed()
            return
        assert engine.child is not None
        self._backoff.succeeded()
        if engine.phase is EnginePhase.STARTING:
            engine.phase = EnginePhase.UP
        log.info("engine %d is up: pid %d, %s", engine.id, engine.pid, engine.incarnation)
        self._relay.say(m.EngineUp(engine.report()))
        self._changed()
        engine.exit = await engine.child.exit
        engine.phase = EnginePhase.GONE
        if engine.exit.signal == signal.SIGKILL and not (engine.cause or engine.expected or engine.ladder):
            engine.cause = self._oom_cause(time.monotonic())
        log.log(
            logging.INFO if engine.expected else logging.WARNING,
            "engine %d is gone: pid %d, status %s %s", engine.id, engine.pid, engine.exit.status, engine.cause,
        )  # fmt: skip
        self._changed()
        await self._reap(engine)

    async def _begin(self, engine: ManagedEngine) -> None:
        await asyncio.sleep(self._backoff.delay_s(self._chance.random()))
        child = engine.child = await self.zygote().fork(self._request(engine))
        if engine.expected:
            engine.kill("stopped before it was ready")
        waiting: set[asyncio.Future[Any]] = {engine.hello, child.exit}
        await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if engine.hello.done():
            hello = engine.hello.result()
            engine.facts, engine.connection_file = hello.facts, hello.connection_file
            return
        if not child.exit.done():
            engine.kill(f"it did not say hello within {START_S:g} s")
        how = await child.exit
        printed = tail(engine.files.output)
        # The error comes first, because the end of a long text may be cut off on its way.
        last = f": {last_line(printed)}" if printed else ""
        raise StartError(
            f"engine {engine.id} (pid {child.pid}) ended before it was ready: "
            f"{engine.cause or _how(how)}{last}\n{printed}".rstrip()
        )

    def _request(self, engine: ManagedEngine) -> dict[str, Any]:
        files = engine.files
        return {
            "engine": engine.incarnation,
            "id": engine.id,
            "folder": str(self._folder),
            "connection_file": str(files.connection),
            "recorder": str(files.recorder),
            "output": str(files.output),
            "stdout": str(files.stdout),
            "stack": str(files.stack),
            "env": {COOKIE: engine.incarnation, **thread_limits(engine.beside)},
            "umask": self._umask,
            "cwd": str(self._startup_cwd),
            "node": self._node,
            "farm": self._farm,
            **self._of_farm(),
        }

    def stop(self, engine: ManagedEngine, grace_s: float) -> None:
        """Tell an engine to end, and kill it after `grace_s` seconds."""
        engine.expected = True
        if engine.phase is EnginePhase.UP and self._lane.send(engine.incarnation, m.LaneExit()):
            engine.phase = EnginePhase.STOPPING
            asyncio.get_running_loop().call_later(grace_s, engine.kill, f"it did not end within {grace_s:g} s")
        elif engine.phase is not EnginePhase.STOPPING:
            engine.kill("stopped before it was ready")

    def stop_all(self, grace_s: float) -> None:
        """End all engines and start no more."""
        self.ending = True
        for engine in self.living:
            self.stop(engine, grace_s)

    def kill_all(self, cause: str) -> None:
        for engine in self.living:
            engine.kill(cause)

    def adopt_dead(self, engine: ManagedEngine) -> None:
        """Take over a dead engine of an earlier agent, to report its end."""
        engine.phase = EnginePhase.GONE
        self._by_incarnation[engine.incarnation] = engine

    # -- an end

    def report_losses(self) -> None:
        """Report dead engines, each after all results in its ring."""
        for engine in self._by_incarnation.values():
            if engine.phase is GONE and not engine.loss_told and self._relay.collect(engine.account, True):
                engine.loss_told = True
                self._relay.keep(engine.loss(), engine.account)

    def restate(self) -> None:
        """Report all losses again: the controller was restarted."""
        for engine in self._by_incarnation.values():
            engine.loss_told = False

    def forget_reported(self) -> None:
        """Forget the engines whose loss the controller has on disk."""
        while self._relay.lost_acked:
            engine = self._by_incarnation.get(self._relay.lost_acked.pop())
            if engine is not None:
                self._remove(engine)

    def drop_dead(self) -> None:
        """Forget dead engines without a report: they belonged to another farm."""
        for engine in self:
            if engine.phase is EnginePhase.GONE:
                self._remove(engine)

    def _remove(self, engine: ManagedEngine) -> None:
        self._by_incarnation.pop(engine.incarnation, None)
        self.by_counter.pop(engine.files.counter, None)
        engine.account.recorder.close()
        engine.files.remove()

    async def _reap(self, engine: ManagedEngine) -> None:
        marks = Marks(engine.incarnation, engine.files.recorder, engine.pid or None)
        left = await asyncio.to_thread(reap, marks)
        if left:
            log.info("engine %d left %d processes behind; they were killed", engine.id, left)

    # -- the zygote

    def zygote(self) -> Zygote:
        """Return a zygote that forks; start one if there is none.

        A stuck zygote is not killed, because its engines would die with it."""
        for zygote in self._zygotes:
            if not zygote.stuck:
                return zygote
        zygote = Zygote(self._spawn(), self._folder / OUTPUT, self._zygote_died)
        self._zygotes.append(zygote)
        return zygote

    def _zygote_died(self) -> None:
        if self.ending or self.leaving:
            return
        log.error("the zygote died, and its engines with it; starting another: %s", tail(self._folder / OUTPUT))
        if any(zygote.was_ready for zygote in self._zygotes if not zygote.alive):
            self._zygote_backoff.succeeded()
        self._zygotes = [zygote for zygote in self._zygotes if zygote.alive]
        self._zygote_backoff.failed()
        # Before the next engine needs it, so that the replacements do not wait for its imports.
        delay_s = self._zygote_backoff.delay_s(self._chance.random())
        asyncio.get_running_loop().call_later(delay_s, lambda: None if self.ending else self.zygote())

    async def close(self) -> None:
        """End the zygotes and the engines that are left, and reap their descendants."""
        self.ending = True
        await asyncio.gather(*(zygote.close() for zygote in self._zygotes))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not left to the garbage collector: an engine without a report of its end would never be replaced.
            context = {"message": "an engine's life", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _how(how: Exit) -> str:
    if how.signal is not None:
        return signal_text(how.signal)
    return "it is not known how" if how.exit_code is None else f"exit code {how.exit_code}"


def last_words(path: Path) -> tuple[str, str]:
    """Return the engine's last output, and faulthandler's text: the error and the user's part of its thread's stack."""
    before, fatal, after = tail(path, 65536).rpartition(FATAL)
    if not fatal:
        return after[-OUTPUT_TAIL:], ""
    error, _, threads = after.partition("\n")
    _, current, stack = threads.partition("Current thread ")
    dump = users_stack(f"{FATAL}{error}\n\n{current}" + stack.partition("\n\n")[0])
    return before.rstrip()[-OUTPUT_TAIL:], dump[:DUMP_MAX].rstrip()


_FRAME = re.compile(r'  File "(?P<file>.*)", line \d+ in ')
_PACKAGE = str(Path(__file__).parents[1]) + "/"
_RUNNERS = (f"{_PACKAGE}engine/runner.py", f"{_PACKAGE}engine/commands.py")
"""Files that call the user's code."""
_NUMBER = re.compile(r"<(task|cell) [0-9a-f-]+>")
_MACHINERY = re.compile(r"/(IPython|ipykernel)/")


def users_stack(text: str) -> str:
    """Return a stack as faulthandler writes it, the innermost frame first, without the frames of the farm and IPython.

    A stack without a frame of the user's stays whole: the engine is between two tasks, or in the farm's code."""
    kept, is_users = [], False
    for line in text.splitlines():
        match = _FRAME.match(line)
        if match is None:
            kept.append(line)
            continue
        file = match["file"]
        if file in _RUNNERS:
            break
        if not file.startswith(_PACKAGE) and not _MACHINERY.search(file):
            kept.append(_NUMBER.sub(r"<\1>", line))
            is_users = True
    return "\n".join(kept) + "\n" if is_users else text
