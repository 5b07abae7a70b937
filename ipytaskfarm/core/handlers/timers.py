"""The actions of timers: each timer's name is a key of `TIMERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..scheduler.decision import Decision, Now
from ..scheduler.events import Tick
from ..scheduler.kept_engines import end_kept
from ..scheduler.placement import recall_for_others
from ..scheduler.recycling import end_surplus, idle_too_long, recycle_at_time
from ..scheduler.state import SchedulerState
from .agents import balance
from .checkpoints import session_not_saved
from .clients import end_withholding, fail_unmet
from .depends import ask_again
from .freezing import end_unused
from .held_commands import give_up_held
from .jobs import end_orphans
from .leaving import end_leave
from .lifecycle import end_drain, look_for_the_end, reassign_unanswered
from .losses import give_up_agent
from .operate import warn_late
from .requirements import fail_if_unmet
from .result_cache import run_in_place_of_stuck
from .results import lift_rejection, rejoin, stop_avoiding
from .second_copies import look_for_slow_runs
from .view import tell_followers

TIMERS: dict[str, Callable[[SchedulerState, Any, Now, Decision], None]] = {
    "consequences": lambda farm, _, now, out: None,  # each turn goes on with them
    "avoid": lambda farm, task_id, now, out: stop_avoiding(farm, task_id),
    "balance": lambda farm, _, now, out: balance(farm, now, out),
    "changes": lambda farm, _, now, out: tell_followers(farm, now, out),
    "copies": lambda farm, _, now, out: look_for_slow_runs(farm, now, out),
    "depend": lambda farm, digest, now, out: ask_again(farm, digest, out),
    "drained": lambda farm, _, now, out: end_drain(farm, now, out),
    "equal": lambda farm, _, now, out: run_in_place_of_stuck(farm, now),
    "held": lambda farm, engine_id, now, out: give_up_held(farm, engine_id, now, out),
    "idle": lambda farm, data, now, out: idle_too_long(farm, data[0], data[1], now, out),
    "kept": lambda farm, _, now, out: end_kept(farm, out),
    "late": lambda farm, data, now, out: warn_late(farm, data[0], data[1], now, out),
    "lease": lambda farm, session, now, out: give_up_agent(farm, session, "its lease is over", now, out),
    "left": lambda farm, session, now, out: end_leave(farm, session, now, out),
    "orphans": lambda farm, _, now, out: end_orphans(farm, out),
    "recall": lambda farm, _, now, out: recall_for_others(farm, now, out),
    "recall_patience": lambda farm, data, now, out: reassign_unanswered(farm, data[0], data[1], out),
    "recycle": lambda farm, data, now, out: recycle_at_time(farm, data[0], data[1], now, out),
    "reject": lambda farm, data, now, out: lift_rejection(farm, data[0], data[1]),
    "rejoin": lambda farm, task_id, now, out: rejoin(farm, task_id, now),
    "shut": lambda farm, _, now, out: look_for_the_end(farm, now, out),
    "surplus": lambda farm, data, now, out: end_surplus(farm, data[0], data[1], now, out),
    "unsaved": lambda farm, data, now, out: session_not_saved(farm, data[0], data[1], out),
    "thaw": lambda farm, name, now, out: end_unused(farm, name, now, out),
    "unmet": lambda farm, data, now, out: fail_unmet(farm, data[0], data[1], now, out),
    "unmet_now": lambda farm, task_id, now, out: fail_if_unmet(farm, task_id, now, out),
    "wake": lambda farm, name, now, out: end_withholding(farm, name),
}


def on_tick(farm: SchedulerState, session: str, event: Tick, now: Now, out: Decision) -> None:
    """Run the timers that are due."""
    for what, data in farm.timers.due(now.mono_s):
        TIMERS[what](farm, data, now, out)
