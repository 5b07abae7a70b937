"""The scheduler's settings."""

from __future__ import annotations

from dataclasses import dataclass

from .queue_policy import PolicyKey, fifo_key

PLACEMENTS = ("default", "priority", "least_recent", "most_recent", "random", "nearest_environment")
"""The placements that `engine_choice` knows."""
COPY_PLACES = ("other nodes", "any engine")
"""On other nodes than the first run, or, on a farm with one node, on another engine of it too."""
COROUTINES_MAX = 1024
"""The most coroutine tasks that an engine may run at once: its flight recorder has a row for each."""
WANTED_MAX = 65_536
"""The most engines that a farm may be asked to have of its own; a larger number is a slip, or meant to do harm."""


@dataclass(frozen=True)
class SchedulerSettings:
    """The scheduler's settings.  Durations are in seconds.

    The event log keeps them by the names of their fields."""

    lease_s: float = 900.0
    """An agent ends its engines if it has not heard the controller for this time."""
    lease_margin_s: float = 30.0
    """The controller gives up an agent that was silent for the lease and this time more, see `handlers.losses`."""
    failure_penalty_s: float = 0.0
    """How long an engine gets no tasks after a task failed on it."""
    unmet_timeout_s: float | None = None
    """How long a task waits when no engine can serve it.  None: without limit."""
    max_engine_losses: int = 3
    """A task is quarantined if this many engines were lost while they ran it."""
    node_failures: int = 10
    """A node gets no more tasks after this many failed attempts in a row, of at least five tasks, if tasks of the same
    kinds succeed elsewhere."""
    prefetch_s: float = 0.050
    """How much measured work is sent ahead to an engine at least."""
    prefetch_max_s: float = 0.300
    """How much is sent ahead of tasks that take longer, so that the engine can report several together."""
    recall_after_s: float = 0.020
    """Tasks that were sent ahead may be recalled when the task before them runs longer than this."""
    recall_patience_s: float = 2.0
    """A task that may repeat goes to another engine if its recall was not answered for this time."""
    reject_again_s: float = 1.0
    """How long an engine that a task rejected is not tried again for that task."""
    max_rejections: int = 10
    """A task fails if every engine was rejected this often."""
    depend_again_s: float = 5.0
    """A depend function that raised is called again after this time."""
    grace_s: float = 1.0
    """Between the interrupt of a task and the signals that end its engine."""
    max_tasks: int = 10_000_000
    """No task is accepted while this number of tasks have not ended."""
    policy: PolicyKey = fifo_key
    """The order of the queue."""
    warm: int | None = None
    """How many free slots hold a blank engine.  None: all of them."""
    warm_s: float = 10.0
    """A blank engine beyond `warm` ends when it has been idle for this time."""
    environment_patience_s: float | None = 10.0
    """A task that has waited longer is no longer passed over by tasks of the environment that an engine has.  None:
    it is passed over without limit."""
    resource_patience_s: float = 10.0
    """For a task that has waited longer for resources, one node keeps its freed resources."""
    load_limit: float | None = None
    """The load guard: no task is started on a node that is busier than this share of its cores."""
    free_memory_limit: int | None = None
    """The load guard: no task is started on a node with less free memory than this, in bytes."""
    second_copy_after: float = 3.0
    """A run of an idempotent task is slow when it takes longer than this multiple of the 75th percentile of others."""
    second_copy_least: int = 10
    """The number of tasks of a group that must have succeeded before a run counts as slow."""
    second_copy_share: float = 0.05
    """At most this share of the engines runs second copies, and at least one may."""
    second_copies_on: str = "other nodes"
    """Where second copies may run: one of `COPY_PLACES`."""
    coroutines: int = 1000
    """How many coroutine tasks an engine runs at once."""
    frozen_engines: int = 2
    """How many engines of a node may be frozen at once."""
    frozen_s: float = 600.0
    """A frozen engine ends when nobody has used it for this time."""
    placement: str = "default"
    """Which of several free engines takes a task, see `core.scheduler.engine_choice`."""
    seed: int = 1
    """The seed of the random placement."""
