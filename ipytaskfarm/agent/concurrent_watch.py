"""Interrupts of concurrent runs: of the coroutine tasks that share an engine, those that are over their time limit or
were aborted.

The decisions are those of `limits`, for each run. One thing differs: a coroutine that was cancelled and has not ended
costs its engine only when nothing else runs there. As long as others do, it keeps its place and nothing more.
"""

from __future__ import annotations

import logging
import signal

from ..core.messages.task_types import RunKey
from ..system.concurrent_runs import ConcurrentRun
from ..system.flight_recorder import ABORT, TIME_LIMIT
from .engines import ManagedEngine
from .limits import RESEND_S, Ladder, Step

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Seconds between two checks of a busy engine, and thus the delay with which a time limit may be noticed."""
SIGNAL_INTERRUPT = signal.SIGRTMIN + 5
CAUSES = {"abort": ABORT, "time limit": TIME_LIMIT}
"""Cause in `Crash.cause` -> cause in the recorder."""


def look_at_concurrent(engine: ManagedEngine, runs: list[ConcurrentRun], grace_s: float, now_s: float) -> float:
    """Interrupt those of an engine's concurrent runs that have to end, and return when (monotonic) to look again.

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
            case Step.TERMINATE:
                log.warning("engine %d: %s of task %d ignored: SIGTERM", engine.id, ladder.cause, run[0])
                engine.ladder = ladder
                engine.send_signal(signal.SIGTERM)
            case Step.KILL:
                log.warning("engine %d: SIGTERM ignored: SIGKILL", engine.id)
                engine.send_signal(signal.SIGKILL)
            case Step.OVER:
                del engine.ladders[run]
            case Step.WAIT:
                pass
    if signals:
        engine.send_signal(SIGNAL_INTERRUPT)
