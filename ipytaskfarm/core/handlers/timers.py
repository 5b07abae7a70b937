"""What happens when time has passed: each timer's name is a key of `TIMERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..events import Tick
from ..farm import Decision, Farm, Now
from ..placement import recall_for_others
from .agents import balance
from .clients import end_withholding, fail_unmet
from .depends import ask_again
from .lifecycle import drained, give_elsewhere, look_for_the_end
from .losses import give_up_agent
from .results import lift_rejection, rejoin

TIMERS: dict[str, Callable[[Farm, Any, Now, Decision], None]] = {
    "balance": lambda farm, _, now, out: balance(farm, now, out),
    "depend": lambda farm, digest, now, out: ask_again(farm, digest, out),
    "drained": lambda farm, _, now, out: drained(farm, now, out),
    "lease": lambda farm, session, now, out: give_up_agent(farm, session, "its lease is over", now, out),
    "recall": lambda farm, _, now, out: recall_for_others(farm, now, out),
    "recall_patience": lambda farm, data, now, out: give_elsewhere(farm, data[0], data[1], out),
    "reject": lambda farm, data, now, out: lift_rejection(farm, data[0], data[1]),
    "rejoin": lambda farm, task_id, now, out: rejoin(farm, task_id),
    "shut": lambda farm, _, now, out: look_for_the_end(farm, now, out),
    "unmet": lambda farm, task_id, now, out: fail_unmet(farm, task_id, now, out),
    "wake": lambda farm, name, now, out: end_withholding(farm, name),
}


def on_tick(farm: Farm, session: str, event: Tick, now: Now, out: Decision) -> None:
    """Run the timers that are due."""
    for what, data in farm.due(now.mono_s):
        TIMERS[what](farm, data, now, out)
