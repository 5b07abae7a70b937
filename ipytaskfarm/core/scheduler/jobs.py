"""Jobs as the scheduler knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from ..messages.task_types import JobSpec, Rules
from ..saves import SaveJob
from .task import NewRules


@dataclass(slots=True)
class JobEntry:
    """One job: its progress, and the consequences of its end."""

    spec: JobSpec
    session: str
    arrived: int = 0
    """The number of its tasks that were submitted."""
    unfinished: int = 0
    """How many of those have not ended."""
    ended: bool = False
    environments: set[str] = field(default_factory=set)
    """Identities of environments that are kept until the job has ended."""
    tasks: dict[int, None] = field(default_factory=dict)
    """The unfinished tasks, if the end of one may end the others."""
    failed: str = ""
    """The reason why all its tasks are aborted; "" if they are not."""
    paused: bool = False
    priority: int | None = None
    """The priority that was set for all its tasks.  None: each has its own."""

    @property
    def complete(self) -> bool:
        """Return whether all the job's tasks were submitted and have ended."""
        return self.unfinished == 0 and self.arrived >= self.spec.total

    def save(self) -> SaveJob:
        """Return the job in the form for the store."""
        return SaveJob(self.spec, self.session, self.arrived, self.failed, self.paused, self.priority)


@dataclass(slots=True)
class JobRegistry:
    """The jobs, and the records about them."""

    by_id: dict[str, JobEntry] = field(default_factory=dict)
    to_abort: dict[str, None] = field(default_factory=dict)
    """Jobs that have failed, with tasks that have not ended; they are aborted in this turn."""
    perhaps_ended: dict[str, None] = field(default_factory=dict)
    """Jobs that are examined at the end of this turn."""
    refused: dict[str, str] = field(default_factory=dict)
    """Job with a unique key that another job has -> that job's id."""
    arrived_before: dict[str, int] = field(default_factory=dict)
    """Forgotten job -> the number of its tasks that were submitted: its client may have more."""
    ended: dict[str, None] = field(default_factory=dict)
    """Jobs that have ended, in the order in which they are looked at: their tasks may have been cleared."""
    paused: set[str] = field(default_factory=set)
    """Jobs of which no task is started."""
    priorities: dict[str, NewRules] = field(default_factory=dict)
    """Job of which the priority was set -> how its tasks get it that are submitted from now on."""
    of_session: dict[str, dict[str, JobEntry]] = field(default_factory=dict)
    """Client's session -> its jobs by id."""
    of_unique: dict[str, dict[str, JobEntry]] = field(default_factory=dict)
    """Unique key -> the jobs with this key."""

    def add(self, job: JobEntry) -> None:
        """Register a job. The other tables are made from `by_id`."""
        self.by_id[job.spec.id] = job
        self.of_session.setdefault(job.session, {})[job.spec.id] = job
        if job.spec.unique is not None:
            self.of_unique.setdefault(job.spec.unique, {})[job.spec.id] = job

    def set_priority(self, job: JobEntry, priority: int) -> None:
        """Set the priority of the job's tasks that are submitted from now on."""
        job.priority = priority
        self.priorities[job.spec.id] = NewRules(priority)

    def rules_of(self, rules: Rules) -> Rules:
        """Return the rules of a new task with the priority that was set for its job."""
        new = self.priorities.get(rules.job or "")
        return rules if new is None else new.of(rules)

    def next_ended(self, count: int) -> list[tuple[str, int]]:
        """Return the ended jobs to look at next, each with the number of its tasks."""
        found = []
        for job_id in list(islice(self.ended, count)):
            del self.ended[job_id]
            job = self.by_id.get(job_id)
            if job is not None and job.ended:
                self.ended[job_id] = None
                found.append((job_id, job.arrived))
        return found

    def forget(self, job: JobEntry) -> None:
        """Forget a job of which no task was submitted, or all were cleared."""
        del self.by_id[job.spec.id]
        self.ended.pop(job.spec.id, None)
        self.paused.discard(job.spec.id)
        self.priorities.pop(job.spec.id, None)
        for table, key in ((self.of_session, job.session), (self.of_unique, job.spec.unique)):
            if key is not None and (jobs := table.get(key)) is not None:
                jobs.pop(job.spec.id, None)
                if not jobs:
                    del table[key]

    def unended(self, unique: str) -> JobEntry | None:
        """Return the job of this unique key that has not ended, or of which tasks run again."""
        jobs = self.of_unique.get(unique, {})
        return next((job for job in reversed(jobs.values()) if not job.ended or job.unfinished), None)
