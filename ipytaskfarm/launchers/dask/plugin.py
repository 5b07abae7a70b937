"""The part that runs in Dask's workers: a plugin by which one worker of each machine runs the agent (`agent_owner`).

It is imported only where distributed is installed. The scheduler passes it on without unpacking it.
"""

from __future__ import annotations

import asyncio
import time

from distributed import Status, Worker, WorkerPlugin

from .agent_owner import AgentOwner, AgentPlan

CLOSE_S = 3.0
"""How long a closing worker waits for its agent. A worker with a nanny is killed after 4 s, unless configured."""


class AgentPlugin(WorkerPlugin):
    """Keeps an agent running on the worker's machine for as long as the worker lives.

    It raises nothing, because an error would prevent the worker from starting.
    """

    def __init__(self, plan: AgentPlan, name: str) -> None:
        """Create the plugin; `name` is its name, and the name of the metric that reports the agent's state to the
        scheduler.
        """
        self._plan = plan
        self._name = name
        self._owner: AgentOwner | None = None

    def setup(self, worker: Worker) -> None:
        """Start to take part. The worker calls this at its start, or when the plugin is registered."""
        self._owner = owner = AgentOwner(self._plan)
        worker.metrics[self._name] = lambda worker: list(owner.said)
        owner.start()

    async def teardown(self, worker: Worker) -> None:
        """Leave.

        The worker calls this when it closes, or when the plugin is unregistered. Then it lives on, and does not wait.
        """
        owner, self._owner = self._owner, None
        if owner is None:
            return
        worker.metrics.pop(self._name, None)
        owner.stop()
        closing = worker.status in (Status.closing, Status.closed, Status.closing_gracefully)
        deadline_s = time.monotonic() + (CLOSE_S if closing else 0.0)
        while not owner.ended.is_set() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
