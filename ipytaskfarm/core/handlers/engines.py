"""The preparation of engines."""

from __future__ import annotations

from ..messages import EngineCommand, EnginePrepared
from ..scheduler.clock import Now
from ..scheduler.decision import Decision
from ..scheduler.eligibility import refresh_classes
from ..scheduler.engine_shutdown import end_if_empty
from ..scheduler.entries import EngineEntry, EngineState
from ..scheduler.placement import begin_oldest
from ..scheduler.state import SchedulerState
from .depends import ask_about_engine
from .held_commands import send_held


def prepare(farm: SchedulerState, engine: EngineEntry, command: EngineCommand, text: str, out: Decision) -> None:
    """Make an engine run one of the farm's own commands before its first task. `text` is for people."""
    if not engine.preparing:
        engine.step_since_s = farm.mono_s
    engine.preparing[command.n] = text
    out.sends.append((engine.agent, command))


def engine_is_ready(farm: SchedulerState, engine: EngineEntry, now: Now, out: Decision) -> None:
    """Allow an engine to run tasks from now on."""
    engine.state = EngineState.UP
    out.sends.append((engine.agent, EnginePrepared(engine.name)))
    send_held(farm, engine, out)
    refresh_classes(farm, [engine])
    ask_about_engine(farm, engine, out)
    farm.readiness.wake(engine)
    begin_oldest(farm, engine, now)
    end_if_empty(farm, engine, out)
    # There may be more engines than wanted now. Thousands that come up in one turn are counted once.
    if not farm.lifecycle.balance_due:
        farm.lifecycle.balance_due = True
        farm.timers.set(now.mono_s, "balance")
