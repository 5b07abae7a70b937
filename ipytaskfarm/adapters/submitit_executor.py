"""submitit's executor on a farm: ``submitit.AutoExecutor(folder, cluster="ipytaskfarm")``.

submitit finds the classes of this module by entry points. Its parameters become rules of the farm's tasks: minutes
become a time limit; gigabytes, cores and GPUs become reserved resources. Rules of a `Task` that submitit does not know
have the executor's prefix: ``executor.update_parameters(timeout_min=5, ipytaskfarm_retries=2)``.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from submitit.core.core import Executor, InfoWatcher, Job
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, UncompletedJobError

from ipytaskfarm.core.states import ABORTS, Reason
from ipytaskfarm.engine import current_task, is_engine

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.client.results import TaskResult

log = logging.getLogger(__name__)

R = TypeVar("R", covariant=True)

NAME = "ipytaskfarm"
RULES = (
    "environment", "group", "lost_retries", "max_parallel", "priority", "requires", "resources", "retries", "targets"
)  # fmt: skip
"""The rules of a task that are given with the executor's prefix."""

_STATES = {"scheduled": "PENDING", "running": "RUNNING", "succeeded": "COMPLETED", "failed": "FAILED"}
_REASONS = {
    Reason.TIME_LIMIT: "TIMEOUT", Reason.ENGINE_LOST: "NODE_FAIL", Reason.QUARANTINED: "NODE_FAIL",
    Reason.MEMORY: "OUT_OF_MEMORY",
}  # fmt: skip
"""Reason of a failure -> the word of Slurm for it, which programs of submitit know."""

_clients: dict[str | None, TaskClient] = {}
_lock = threading.Lock()


def client_of(farm: str | None) -> TaskClient:
    """Return this process's client of a farm: a name, the path of a connection file; None: the default farm."""
    from ipytaskfarm.client import TaskClient

    with _lock:
        if farm not in _clients:
            _clients[farm] = TaskClient() if farm is None else TaskClient(farm)
        return _clients[farm]


class FarmWatcher(InfoWatcher):
    """Knows nothing: each job asks its farm itself."""

    def register_job(self, job_id: str) -> None:
        """Note nothing."""


class FarmJob(Job[R]):
    """A job of submitit that is a task of a farm; `job_id` is the task's id."""

    watcher = FarmWatcher()

    def __init__(self, folder: Path, job_id: str, farm: str | None, submission: DelayedSubmission) -> None:
        super().__init__(folder, job_id)
        self._farm = farm
        self._submission = submission
        self._is_written = False

    @property
    def paths(self) -> JobPaths:
        """Return submitit's paths. Once the task has ended, ``stdout`` and ``stderr`` are files."""
        if not self._is_written and self.done():
            self._ended()
        return self._paths

    def _write_output(self, ended: TaskResult) -> None:
        """Write what the task has printed into submitit's files, once; a disk without room costs only them."""
        self._is_written = True
        try:
            self._paths.folder.mkdir(parents=True, exist_ok=True)
            self._paths.stdout.write_text(ended.stdout, encoding="utf-8", errors="surrogateescape")
            self._paths.stderr.write_text(_errors_of(ended), encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            log.warning("the output of job %s is not in submitit's files: %s", self.job_id, error)

    @property
    def _id(self) -> int:
        return int(self.job_id)

    def submission(self) -> DelayedSubmission:
        """Return the submitted call, with ``function``, ``args`` and ``kwargs``."""
        return self._submission

    def done(self, force_check: bool = False) -> bool:
        """Return whether the task has ended."""
        return client_of(self._farm).status(self._id).state in ("succeeded", "failed")

    def wait(self) -> None:
        """Wait until the task has ended."""
        client_of(self._farm).barrier(self._id)

    def results(self) -> list[R]:
        """Wait for the value; return a list of it.

        Raises:
            FailedJobError: the call has raised an error, which is the cause.
            UncompletedJobError: the task was aborted, or its engine was lost.
        """
        error = self.exception()
        if error is not None:
            raise error
        return [self._ended().result]

    def exception(self) -> UncompletedJobError | FailedJobError | None:
        """Wait, and return the error; None: there is none."""
        self.wait()
        found = self._ended()
        if found.failure is None:
            return None
        trace = found.failure.getTraceback()  # as in submitit's own text, which programs log
        text = f"Job {self.job_id} on farm {self._farm or 'default'} failed ({found.reason}):\n{trace}"
        kind = FailedJobError if found.reason in (Reason.ERROR, Reason.TIME_LIMIT) else UncompletedJobError
        error: UncompletedJobError | FailedJobError = kind(text)
        error.__cause__ = found.failure.value
        return error

    def _ended(self) -> TaskResult:
        found: TaskResult = client_of(self._farm).get_task_result(self._id, block=True, raw=False)
        if not self._is_written:
            self._write_output(found)
        return found

    @property
    def state(self) -> str:
        """Return the task's state, in Slurm's words."""
        status = client_of(self._farm).status(self._id)
        if status.state == "failed":
            return "CANCELLED" if status.reason in ABORTS else _REASONS.get(Reason(status.reason), "FAILED")
        return _STATES[status.state]

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """Return the state, and what ``explain`` says of the task."""
        return {"JobID": self.job_id, "State": self.state, "Explanation": client_of(self._farm).explain(self._id)}

    def cancel(self, check: bool = True) -> None:
        """Abort the task; a task that has ended stays as it is."""
        client_of(self._farm).abort([self._id])

    def stdout(self) -> str | None:
        """Return what the task has printed; None as long as it has not ended."""
        return self._ended().stdout if self.done() else None

    def stderr(self) -> str | None:
        """Return what the task has written to its error stream, and the traceback of its error behind it, as submitit
        logs it; None as long as it has not ended.
        """
        return _errors_of(self._ended()) if self.done() else None

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the interpreter's end the connection is closed, and this module's globals may be gone.
        if getattr(self, "_cancel_at_deletion", False) and not is_finalizing() and not self.done():
            self.cancel()


def _errors_of(ended: TaskResult) -> str:
    return ended.stderr if ended.failure is None else f"{ended.stderr}{ended.failure.getTraceback().rstrip()}\n"


class FarmExecutor(Executor):
    """submitit's executor whose jobs are tasks of a farm.

    Args:
        folder: submitit's folder for files; the output of jobs is written there, when they have ended.
        farm: the name of a farm, or the path of its connection file; None: the default farm, which
            ``ipytaskfarm start`` starts.
    """

    job_class = FarmJob

    def __init__(self, folder: str | Path, farm: str | None = None) -> None:
        super().__init__(folder)
        self._farm = farm

    @classmethod
    def name(cls) -> str:
        """Return the name for ``cluster=``, which is also the prefix of parameters."""
        return NAME

    @classmethod
    def affinity(cls) -> int:
        """Return 0: the executor is used where it is named, and never chosen by itself."""
        return 0

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return set(RULES)

    def _convert_parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        """Translate submitit's parameters into rules of tasks.

        Raises ValueError for several tasks or nodes: a task of the farm is one process.
        """
        params = dict(params)
        for name in ("nodes", "tasks_per_node"):
            if params.pop(name, 1) != 1:
                raise ValueError(f"{name} must be 1: a task of a farm is one process. Submit several jobs")
        params.pop("stderr_to_stdout", None)
        rules: dict[str, Any] = {}
        if "name" in params:
            rules["name"] = params["name"]
        if "timeout_min" in params:
            rules["time_limit"] = 60 * params["timeout_min"]
        amounts = {
            "cores": params.get("cpus_per_task"),
            "memory": None if "mem_gb" not in params else f"{params['mem_gb']} GiB",
            "gpu": params.get("gpus_per_node"),
        }
        reserved = {name: amount for name, amount in amounts.items() if amount}
        if reserved:
            rules["resources"] = reserved
        return rules

    def _internal_process_submissions(self, delayed_submissions: Sequence[DelayedSubmission]) -> list[Job[Any]]:
        from ipytaskfarm.client.tasks import CallTask

        client = client_of(self._farm)
        jobs: list[Job[Any]] = []
        for made in delayed_submissions:
            task = CallTask(made.function, args=made.args, kwargs=made.kwargs, **self.parameters)
            jobs.append(FarmJob(self.folder, str(client.run(task)), self._farm, made))
        client.flush()  # a job is on disk when submit returns, as with a batch system
        return jobs


class FarmJobEnvironment(JobEnvironment):
    """What `submitit.JobEnvironment()` finds within a task of a farm."""

    _env = dict.fromkeys(("num_tasks", "num_nodes", "node", "global_rank", "local_rank"), "IPYTASKFARM_NEVER_SET")
    """Variables that do not exist, so that submitit's defaults hold: one task on one node."""

    @classmethod
    def name(cls) -> str:
        """Return the executor's name."""
        return NAME

    def activated(self) -> bool:
        """Return whether this code runs in a task of a farm."""
        if not is_engine():
            return False
        try:
            current_task()
        except RuntimeError:
            return False
        return True

    @property
    def job_id(self) -> str:
        """Return the task's id."""
        return str(current_task().id)

    @property
    def raw_job_id(self) -> str:
        """Return the task's id."""
        return self.job_id

    def _requeue(self, countdown: int) -> None:
        """Do nothing: a task with `retries` is run again by the farm."""
