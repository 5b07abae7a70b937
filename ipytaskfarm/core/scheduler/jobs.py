"""Jobs as the scheduler knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..messages.task_types import JobSpec
from ..saves import SaveJob


@dataclass(slots=True)
class JobEntry:
    """One job: how far it has come, and what follows when it ends."""

    spec: JobSpec
    session: str
    arrived: int = 0
    """How many of its tasks were handed in."""
    unfinished: int = 0
    """How many of those have not ended."""
    ended: bool = False
    environments: set[str] = field(default_factory=set)
    """Identities of environments that are kept as long as the job has not ended."""
    tasks: dict[int, None] = field(default_factory=dict)
    """The tasks that have not ended, where the end of one may end the others."""
    failed: str = ""
    """Why all its tasks are aborted.  "": they are not."""
    paused: bool = False

    @property
    def complete(self) -> bool:
        """Return whether all the job's tasks were handed in and have ended."""
        return self.unfinished == 0 and self.arrived >= self.spec.total

    def save(self) -> SaveJob:
        """Return the job as the store keeps it."""
        return SaveJob(self.spec, self.session, self.arrived, self.failed, self.paused)


@dataclass(slots=True)
class JobRegistry:
    """The jobs, and what is kept about them."""

    by_id: dict[str, JobEntry] = field(default_factory=dict)
    to_abort: dict[str, None] = field(default_factory=dict)
    """Jobs that have failed, with tasks that have not ended; they are aborted in this turn."""
    perhaps_ended: dict[str, None] = field(default_factory=dict)
    """Jobs that are looked at at the end of this turn."""
    refused: dict[str, str] = field(default_factory=dict)
    """Jobs whose unique key another job has -> that job's id."""
    paused: set[str] = field(default_factory=set)
    """Jobs of which no task is started."""
