"""Sending agents away: the controller calls their work back, they end, and their launchers and keys follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from ipytaskfarm import groups as grouped
from ipytaskfarm.core.messages import FarmStatus, RemoveAgents
from ipytaskfarm.core.tables import FarmState
from ipytaskfarm.home import Home
from ipytaskfarm.questions import Questioner

POLL_S = 0.2
END_S = 15.0
"""Beyond what runs is allowed, agents have this long to end; then their launchers end them."""


def send_away(home: Home, words: Sequence[str], within_s: float | None) -> list[str]:
    """Remove agents, by their names or their groups'; the names of those that were.  Returns when they are gone.

    within_s: how long what runs may go on; None: to its end.  ValueError: there is none of that name.
    """
    names = grouped.chosen(grouped.read_groups(home), words)
    with Questioner(home.read_info) as questioner:
        questioner.answer(RemoveAgents(names, within_s))
        deadline_s = None if within_s is None else time.monotonic() + within_s + END_S
        delay = threading.Event()
        while _are_there(questioner, names) and (deadline_s is None or time.monotonic() < deadline_s):
            delay.wait(POLL_S)
    grouped.cancel(home, names)
    return names


def _are_there(questioner: Questioner, names: Sequence[str]) -> bool:
    state = questioner.answer(FarmStatus())
    assert isinstance(state, FarmState)
    # One that is away keeps its lease: nothing is to be waited for there.
    return any(
        row["name"] == name or row["name"].startswith(f"{name}.")
        for row in state.agents
        if row["state"] != "unreachable"
        for name in names
    )
