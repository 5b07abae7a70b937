"""Whether all engines are on this machine, and see its files."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from ..core.errors import TaskFarmError
from ..core.messages import FarmStatus, Question, Reply
from ..core.messages.tables import FarmState

KEPT_S = 1.0
"""How long an answer is kept: a graph or a map may have thousands of arguments."""


class EnginesHere:
    """Answers for the session of a client that sees the farm's folder."""

    def __init__(self, ask: Callable[[Question], Reply], receiver: Callable[[], threading.Thread]) -> None:
        """Create it.

        Args:
            ask: asks the controller and waits for the answer.
            receiver: returns the thread that receives the answer, which cannot wait for it.
        """
        self._ask = ask
        self._receiver = receiver
        self._until_s = 0.0
        self._all_here = False

    def see(self, path: str) -> bool:
        """Return whether all engines are on this machine, so that they see the file of this path."""
        if time.monotonic() < self._until_s or threading.current_thread() is self._receiver():
            return self._all_here
        try:
            state = self._ask(FarmStatus())
        except (TaskFarmError, TimeoutError):
            return False  # whoever packs the value is told when it is sent
        if isinstance(state, FarmState):
            self._all_here = {agent["node"] for agent in state.agents} <= {socket.gethostname()}
            self._until_s = time.monotonic() + KEPT_S
        return self._all_here
