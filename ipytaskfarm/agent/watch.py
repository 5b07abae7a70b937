"""Supervision of running engines: it sends the signals that `agent.limits` decides on."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from ..core.messages import Interrupt, Recall
from ..core.messages.task_types import RunKey
from ..system.concurrent_runs import ConcurrentRun
from ..system.files import tail
from ..system.flight_recorder import ABORT, TIME_LIMIT
from ..system.process import is_stopped
from ..transport.lane import AgentLane
from .engines import GONE, OUTPUT_BYTES_MAX, STARTING, EnginePhase, ManagedEngine, users_stack
from .limits import RESEND_S, Ladder, Step
from .memory import MemoryWatch

log = logging.getLogger(__name__)

CHECK_S = 5.0
"""Seconds between two checks of the processes."""
STACK_S = 2.0
"""How long (seconds) an engine has for writing its stack: the system must only schedule it once."""
SIGNAL_STACK = signal.SIGRTMIN + 6


class EngineWatch:
    """Enforces time and memory limits, interrupts runs, finds stopped processes and ended runs that go on."""

    def __init__(self, grace_s: float, stopped_s: float, lane: AgentLane, memory: MemoryWatch) -> None:
        """Create it.

        Args:
            grace_s: the time between a time limit's interrupt and SIGTERM.
            stopped_s: how long a process may be stopped.
        """
        self._grace_s = grace_s
        self._stopped_s = stopped_s
        self._lane = lane
        self._memory = memory
        self._next_check_s = 0.0

    def interrupt(self, engine: ManagedEngine, message: Interrupt) -> None:
        """Stop an open run: at once if it runs, else when it begins, unless it is recalled before.

        The run of a chunk is stopped when one of the named items runs.
        """
        if not engine.account.is_open(message.run) or engine.account.damaged:
            return
        engine.next_look_s = 0.0
        if message.items:
            # The run may be about to begin them, or get to them later.
            known = engine.item_interrupts.get(message.run, (0.0, frozenset()))[1]
            engine.item_interrupts[message.run] = message.grace_s, known.union(message.items)
            return
        engine.interrupts[message.run] = message.grace_s
        if engine.concurrent or _running(engine) != message.run:
            self._lane.send(engine.incarnation, Recall(engine.incarnation, [message.run]))

    def look(self, engines: Iterable[ManagedEngine], now_s: float) -> float:
        """Check the engines that are due, and return when (monotonic) to check again."""
        next_s = math.inf
        busy, frozen = [], []
        for engine in engines:
            if engine.phase is GONE or engine.phase is STARTING or engine.account.damaged:
                continue
            if engine.frozen is not None:
                frozen.append(engine)
                continue
            if not engine.account.open_runs and engine.ladder is None and not engine.ladders:
                engine.next_look_s = now_s + LOOK_S  # its next run has not begun when it is handed to it
                continue
            busy.append(engine)
            if now_s >= engine.next_look_s:
                engine.next_look_s = self._look(engine, now_s)
            next_s = min(next_s, engine.next_look_s)
        if busy or frozen:
            self._limit_memory(busy, frozen, now_s)
        return next_s

    def _limit_memory(self, busy: list[ManagedEngine], frozen: list[ManagedEngine], now_s: float) -> None:
        watched = [*busy, *frozen]
        seen = [(engine.pid, bool(engine.cause)) for engine in watched]
        verdict = self._memory.look(seen, now_s, idle_from=len(busy))
        if verdict is None:
            return
        engine = watched[verdict.place]
        log.warning("engine %d: %s: killing it", engine.id, verdict.cause)
        engine.kill(verdict.cause)

    def check(self, engines: Iterable[ManagedEngine], now_s: float) -> None:
        """Look for stopped processes and large output files, at most every `CHECK_S` seconds."""
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + CHECK_S
        for engine in engines:
            if engine.phase is EnginePhase.GONE or engine.child is None:
                continue
            if engine.stopped.too_long(is_stopped(engine.pid), now_s, self._stopped_s):
                log.warning("engine %d has been stopped for too long: killing it", engine.id)
                engine.kill("stopped")
            if not engine.account.damaged and engine.ended_run.too_long(_ended_run(engine), now_s):
                log.warning("engine %d is busy with a run that has ended: killing it", engine.id)
                engine.kill("busy with a run that had ended")
            _cut(engine.files.output)

    async def stack(self, engine: ManagedEngine) -> str:
        """Return the user's part of the Python stack of the engine's main thread, also while C code holds the GIL."""
        path = engine.files.stack
        _cut(path)  # each stack that was asked for stands in it
        before = _size(path)
        if engine.phase is EnginePhase.GONE or not engine.send_signal(SIGNAL_STACK):
            return f"engine {engine.id} is gone"
        deadline_s = asyncio.get_running_loop().time() + STACK_S
        seen = before
        while asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.01)
            size = _size(path)
            if size > before and size == seen:
                # With the end of the line before: otherwise `tail` would drop the first line of this stack as
                # incomplete.
                return users_stack(tail(path, size - before + 1))
            seen = size
        why = (
            "it is stopped (SIGSTOP)" if is_stopped(engine.pid) else "it may wait for a disk, or a network file system"
        )
        return f"engine {engine.id} (pid {engine.pid}) did not write its stack within {STACK_S:g} s: {why}"

    def _look(self, engine: ManagedEngine, now_s: float) -> float:
        concurrent = engine.account.recorder.concurrent.read()
        if concurrent or engine.ladders:
            return look_at_concurrent(engine, concurrent, self._grace_s, now_s)
        current = engine.account.recorder.current()
        running = current.run if current is not None else None
        deadline_s = current.deadline_ns / 1e9 if current is not None and current.deadline_ns else math.inf
        if engine.ladder is None:
            engine.ladder = self._due(engine, running, deadline_s, now_s)
        if engine.ladder is not None:
            self._climb(engine, engine.ladder, running, now_s)
        if engine.ladder is not None:
            return engine.ladder.next_look_s(now_s)
        is_soon = engine.interrupts or engine.item_interrupts
        return min(now_s + (RESEND_S if is_soon else LOOK_S), max(deadline_s, now_s + 0.001))

    def _due(self, engine: ManagedEngine, running: RunKey | None, deadline_s: float, now_s: float) -> Ladder | None:
        for pending in (engine.interrupts, engine.item_interrupts):
            for run in [run for run in pending if not engine.account.is_open(run)]:
                del pending[run]
        if running is None:
            return None
        if running in engine.interrupts:
            return Ladder(running, "abort", engine.interrupts.pop(running), now_s)
        if running in engine.item_interrupts:
            grace_s, items = engine.item_interrupts[running]
            first, end = engine.account.recorder.items()
            if any(first <= index < end for index in items):
                del engine.item_interrupts[running]
                return Ladder(running, "abort", grace_s, now_s)
        if now_s >= deadline_s:
            return Ladder(running, "time limit", engine.graces.get(running[0], self._grace_s), now_s)
        return None

    def _climb(self, engine: ManagedEngine, ladder: Ladder, running: RunKey | None, now_s: float) -> None:
        recorder = engine.account.recorder
        if not ladder.told:
            recorder.want(ladder.run, CAUSES[ladder.cause])
        match ladder.step(running, recorder.was_delivered(), now_s):
            case Step.SIGNAL:
                engine.send_signal(SIGNAL_INTERRUPT)
            case Step.OVER:
                engine.ladder = None
            case step:
                _end(engine, ladder, step)


def _ended_run(engine: ManagedEngine) -> RunKey | None:
    """Return a run whose end was recorded, perhaps by the task itself, and which the engine has not left."""
    ended = (each.run for each in engine.account.recorder.concurrent.read() if not engine.account.is_open(each.run))
    return next(ended, None) or engine.account.recorder.lingering()


def _running(engine: ManagedEngine) -> RunKey | None:
    current = engine.account.recorder.current()
    return current.run if current is not None else None


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _cut(path: Path) -> None:
    # Output between the two calls is lost: no task asked to capture this output.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # a task has put something else there
    with open(descriptor, "w", encoding="utf-8") as file:
        if os.fstat(descriptor).st_size > OUTPUT_BYTES_MAX:
            kept = tail(path, 65536)
            os.ftruncate(descriptor, 0)
            file.write(f"[earlier output was dropped]\n{kept}\n")


log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Seconds between two checks of a busy engine, and thus the delay with which a time limit may be noticed."""
SIGNAL_INTERRUPT = signal.SIGRTMIN + 5
CAUSES = {"abort": ABORT, "time limit": TIME_LIMIT}
"""Cause in `Crash.cause` -> cause in the recorder."""


def look_at_concurrent(engine: ManagedEngine, runs: list[ConcurrentRun], grace_s: float, now_s: float) -> float:
    """Interrupt those of an engine's concurrent runs that have to end, and return when (monotonic) to look again.

    They are over their time limit, or were aborted. The decisions are those of `limits`, for each run. One thing
    differs: a coroutine that was cancelled and has not ended costs its engine only when nothing else runs there. As
    long as others do, it keeps its place and nothing more.

    Args:
        runs: the rows of its flight recorder.
        grace_s: the time between a time limit's interrupt and SIGTERM.
        now_s: the monotonic time.
    """
    for run in [run for run in engine.interrupts if not engine.account.is_open(run)]:
        del engine.interrupts[run]
    open_runs = {each.run: each for each in runs if engine.account.is_open(each.run)}
    for each in open_runs.values():
        if each.run in engine.ladders:
            continue
        if each.run in engine.interrupts:
            engine.ladders[each.run] = Ladder(each.run, "abort", engine.interrupts.pop(each.run), now_s)
        elif each.deadline_ns and now_s >= each.deadline_ns / 1e9:
            engine.ladders[each.run] = Ladder(each.run, "time limit", engine.graces.get(each.run[0], grace_s), now_s)
    _climb(engine, open_runs, now_s)
    if engine.ladders:
        return min(ladder.next_look_s(now_s) for ladder in engine.ladders.values())
    deadline_s = min((each.deadline_ns / 1e9 for each in runs if each.deadline_ns), default=now_s + LOOK_S)
    return min(now_s + (RESEND_S if engine.interrupts else LOOK_S), max(deadline_s, now_s + 0.001))


def _climb(engine: ManagedEngine, runs: dict[RunKey, ConcurrentRun], now_s: float) -> None:
    signals = False
    for run, ladder in list(engine.ladders.items()):
        row = runs.get(run)
        if row is not None and not ladder.told:
            engine.account.recorder.concurrent.want(row, CAUSES[ladder.cause])
        delivered = row is not None and row.delivered
        match ladder.step(run if row is not None else None, delivered, now_s, len(runs) > 1):
            case Step.SIGNAL:
                signals = True
            case Step.OVER:
                del engine.ladders[run]
            case step:
                _end(engine, ladder, step)
    if signals:
        engine.send_signal(SIGNAL_INTERRUPT)


def _end(engine: ManagedEngine, ladder: Ladder, step: Step) -> None:
    """End an engine that has ignored its interrupts, if the ladder has come so far."""
    if step is Step.TERMINATE:
        log.warning("engine %d: %s of task %d ignored: SIGTERM", engine.id, ladder.cause, ladder.run[0])
        engine.ladder = ladder
        engine.send_signal(signal.SIGTERM)
    elif step is Step.KILL:
        log.warning("engine %d: SIGTERM ignored: SIGKILL", engine.id)
        engine.send_signal(signal.SIGKILL)
