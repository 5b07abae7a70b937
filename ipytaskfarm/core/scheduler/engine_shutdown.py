"""How an engine is ended: its runs are recalled, it gets no more tasks, and its agent is told."""

from __future__ import annotations

from ..messages import EngineCommand, Recall, StopEngine
from ..messages.engine_commands import CHECKPOINT
from ..messages.task_types import RunKey
from .decision import Decision, Now
from .eligibility import refresh_classes
from .entries import EngineEntry, EngineState
from .state import SchedulerState

EXIT_S = 2.0
"""How long an engine may take to end, in addition to its environment's teardown."""
SAVE_S = 60.0
"""How long a recycled engine may take to save its names."""


def recall(farm: SchedulerState, engine: EngineEntry, runs: list[RunKey], now: Now, out: Decision) -> None:
    """Ask an engine to give back runs that it has not begun."""
    asked = []
    for run in runs:
        assigned = engine.assigned.get(run)
        if assigned is not None and assigned.recalled_s is None:
            assigned.recalled_s = now.mono_s
            asked.append(run)
    if asked:
        out.sends.append((engine.agent, Recall(engine.name, asked)))
        farm.timers.set(now.mono_s + farm.settings.recall_patience_s, "recall_patience", (engine.name, asked))


def retire(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Give an engine no more tasks, and end it when it is empty; its slot goes too."""
    _retire(farm, engine, "", out)


def recycle(farm: SchedulerState, engine: EngineEntry, why: str, now: Now, out: Decision) -> None:
    """Retire an engine, and fill its slot with a new engine as soon as it is gone.

    With `Recycle.keep_session` the engine saves its names before it ends."""
    if engine.kept:
        _retire(farm, engine, "", out)  # nobody waits for it: no other one takes its place
        return
    if engine.retiring or engine.state == EngineState.STOPPING:
        return
    out.notes.append(f"engine {engine.id} is recycled: {why}")
    recall(farm, engine, engine.runs_ahead(), now, out)
    _retire(farm, engine, why, out)


def _retire(farm: SchedulerState, engine: EngineEntry, recycled: str, out: Decision) -> None:
    engine.retiring = True
    engine.kept = engine.surplus = False
    engine.recycled = recycled
    engine.saving = 0
    farm.readiness.withdraw(engine)
    if engine.assigned:
        refresh_classes(farm, [])  # tasks that prefer it to engines where they have failed
    end_if_empty(farm, engine, out)


def end_if_empty(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """End an engine that is retiring, if it holds no runs; let it save its names first if they are to be kept."""
    if not engine.retiring or engine.kept or engine.assigned or engine.saving:
        return
    if engine.recycled and any(settings.keep_session for _, settings in engine.recycling):
        _save_session(farm, engine, out)
    else:
        end_engine(farm, engine, out)


def _save_session(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    """Ask an engine for its names; it is ended when it has answered, or after `SAVE_S`."""
    if engine.state == EngineState.STOPPING:
        return
    engine.saving = farm.kept_number()
    out.sends.append((engine.agent, EngineCommand(engine.name, "", -engine.saving, CHECKPOINT, b"")))
    farm.timers.set(farm.mono_s + SAVE_S, "unsaved", (engine.name, engine.saving))


def end_engine(farm: SchedulerState, engine: EngineEntry, out: Decision, grace_s: float | None = None) -> None:
    """Tell an engine's agent to end it.

    `grace_s` is the time after which the engine is killed; None for the time of its environment's teardown.
    """
    if engine.state == EngineState.STOPPING:
        return
    engine.state = EngineState.STOPPING
    farm.readiness.withdraw(engine)
    refresh_classes(farm, [engine])
    out.sends.append((engine.agent, StopEngine(engine.name, patience_s(engine) if grace_s is None else grace_s)))


def patience_s(engine: EngineEntry) -> float:
    """Return how long an engine that was told to end may take."""
    return EXIT_S + (engine.environment.teardown_s if engine.environment is not None else 0.0)
