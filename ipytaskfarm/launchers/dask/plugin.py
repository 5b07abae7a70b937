"""What Dask's workers run of us: a plugin by which one worker of each machine keeps the agent there (`keeper`).

Imported where distributed is; the scheduler passes it on unopened.
"""

from __future__ import annotations

import asyncio
import time

from distributed import Status, Worker, WorkerPlugin

from .agent_owner import AgentOwner, AgentPlan

CLOSE_S = 3.0
"""A worker that closes waits so long for its agent; one with a nanny is killed after 4 s, unless told otherwise."""


class AgentPlugin(WorkerPlugin):
    """Keeps an agent on the worker's machine for as long as the worker lives.

    It raises nothing: a worker that could not start for our sake would be an ill turn.
    """

    def __init__(self, plan: AgentPlan, name: str) -> None:
        """name: the plugin's, and of the metric by which the scheduler is told how the agent does."""
        self._plan = plan
        self._name = name
        self._keeper: AgentOwner | None = None

    def setup(self, worker: Worker) -> None:
        """By the worker, as it starts or as the plugin is registered."""
        self._keeper = keeper = AgentOwner(self._plan)
        worker.metrics[self._name] = lambda worker: list(keeper.said)
        keeper.start()

    async def teardown(self, worker: Worker) -> None:
        """By the worker, as it closes or as the plugin is unregistered; then it lives on, and nobody waits here."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        worker.metrics.pop(self._name, None)
        keeper.stop()
        closing = worker.status in (Status.closing, Status.closed, Status.closing_gracefully)
        deadline_s = time.monotonic() + (CLOSE_S if closing else 0.0)
        while not keeper.ended.is_set() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
