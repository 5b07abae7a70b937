"""Replays an event log: the scheduler makes its decisions again, and the caller sees each turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..core.scheduler.decision import Decision, Now
from ..core.scheduler.events import Event
from ..core.scheduler.restore import restored_farm
from ..core.scheduler.scheduler import Scheduler
from ..core.scheduler.settings import SchedulerSettings
from ..storage import event_log
from .direct_answers import is_direct
from .policy import load_policy


class Played(NamedTuple):
    """One replayed turn."""

    number: int
    now: Now
    events: list[tuple[str, Event]]
    out: Decision
    same: bool
    """Whether the saves are the same as in the log."""
    scheduler: Scheduler


def play(path: Path) -> Iterator[Played]:
    """Yield the turns of an event log, each with the scheduler's decision.

    `Scheduler.check` is called after each turn, and raises AssertionError at the first broken invariant."""
    head, turns = event_log.read(path)
    settings = SchedulerSettings(**head.settings, policy=load_policy(head.policy.name, list(head.policy.paths)))
    farm = restored_farm(head.farm, head.snapshot, settings, Now(head.mono_s, head.wall_s))
    farm.lifecycle.held = farm.lifecycle.held or head.hold
    scheduler = Scheduler(farm)
    for number, turn in enumerate(turns):
        now = Now(turn.mono_s, turn.wall_s)
        events = [(session, event_log.event_of(kind, data)) for session, kind, data in turn.heard]
        # Logs of earlier versions contain the questions that the loop answers itself.
        out = scheduler.turn([(session, event) for session, event in events if not is_direct(event)], now)
        scheduler.check()
        yield Played(number, now, events, out, event_log.mark_of(out.saves) == turn.mark, scheduler)
