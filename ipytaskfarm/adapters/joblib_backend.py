"""joblib's parallel backend ``ipytaskfarm``: the batches of a ``Parallel`` call become tasks of a farm.

The interface is joblib's `ParallelBackendBase`.  Two classes implement it, because a script and a running task reach
the farm in different ways: `FarmBackend` submits with a `TaskClient`, `NestedFarmBackend` with `current_task()`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import joblib
from joblib._parallel_backends import FallbackToBackend, ParallelBackendBase, ThreadingBackend
from joblib.externals.loky.process_executor import PicklingError, TerminatedWorkerError

from ipytaskfarm.adapters.executor_calls import check_rules, client_of, environment_of
from ipytaskfarm.adapters.executor_ends import original_of, write_output
from ipytaskfarm.core import errors
from ipytaskfarm.core.requirements import THREADS
from ipytaskfarm.core.states import ABORTS
from ipytaskfarm.engine import current_task, is_engine
from ipytaskfarm.system.process import usable_cores
from ipytaskfarm.system.user_code import with_cells

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient, TaskFuture
    from ipytaskfarm.deployment.farm import Farm

NAME = "ipytaskfarm"
TASK_NAME = "joblib"
"""The name of the tasks, unless `parallel_config` gives one."""
RETRIES = 2
"""Number of repetitions of a batch after the loss of its engine; an error of the batch itself is raised at once."""
BATCH_S = 0.05
"""How long a batch should take: a task costs below a hundredth of that, and the last batches end at about one time."""
GROWTH = 32
"""The largest factor by which a batch grows beyond the ones before it."""
OF_JOBLIB = ("max_nbytes", "temp_folder", "mmap_mode", "verbose", "context")
"""Arguments that each `Parallel` call gives its backend, about memory maps and processes that this backend has not."""
NOT_SENT = "Could not pickle the task to send it to the workers"
"""joblib's own words, which programs look for."""
OVER = "the joblib.Parallel call of this batch is over"

_own_farm: Farm | None = None
"""The farm that this process starts for `Parallel` calls without a client if no farm runs; it ends with the process."""
_own_farm_lock = threading.Lock()


def register() -> None:
    """Make the backend known to joblib under the name ``ipytaskfarm``, in this process."""
    joblib.register_parallel_backend(NAME, NestedFarmBackend if is_engine() else FarmBackend)


def count_of_jobs(n_jobs: int | None, slots: int) -> int:
    """Return the number of batches that may run at once, by joblib's rule for negative numbers.

    Args:
        n_jobs: the argument of `Parallel`; -1 is all slots, -2 all but one, None is one.
        slots: the number of the farm's engines.

    Raises ValueError for 0.
    """
    if n_jobs == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, slots + 1 + n_jobs)


def run_batch(nested: ParallelBackendBase, n_jobs: int | None, items: list[Any], threads: int | None) -> list[Any]:
    """Call each (function, args, kwargs) of a batch on an engine, and return the list of their values.

    nested, n_jobs: the backend of `Parallel` calls inside the functions, and their default number of jobs. threads: the
    largest number of threads of numeric libraries; None: as many as the engine's.
    """
    register()
    if threads is not None:
        import threadpoolctl

        os.environ.update(dict.fromkeys(THREADS, str(threads)))  # the engine restores the variables after the task
        with threadpoolctl.threadpool_limits(threads):
            return run_batch(nested, n_jobs, items, None)
    with joblib.parallel_config(backend=nested, n_jobs=n_jobs):
        return [function(*args, **kwargs) for function, args, kwargs in items]


class BatchNotPicklable(errors.UnpickleableException, PicklingError):
    """A batch cannot be pickled.  joblib's own backends raise a PicklingError."""


class BatchLost(errors.EngineLost, TerminatedWorkerError):
    """The engine that ran a batch was lost.  joblib's own backends raise a TerminatedWorkerError."""


class EngineTraceback(Exception):
    """The text of an error's traceback on its engine: the cause of a batch's error, because joblib removes the frames
    of the error itself.  The errors of joblib's own backends have such a cause too.
    """

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


def keep_traceback(error: BaseException) -> None:
    """Add an `EngineTraceback` at the end of an error's chain of causes, so that the error keeps its own cause."""
    text = getattr(error, "remote_traceback", "")
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and not any(cause is each for each in chain):
        chain.append(cause)
    if text and not isinstance(chain[-1], EngineTraceback):  # a result may be read twice
        chain[-1].__cause__ = EngineTraceback(with_cells(text.rstrip("\n")))


class BatchSizes:
    """Chooses how many calls form a batch, by the seconds that the engines took for the ones before.

    joblib's own choice looks at the time until a batch's result has come.  That grows with the load of a farm, and
    needs a dozen rounds of doubling for quick calls.
    """

    def __init__(self) -> None:
        self.size = 1

    def ended(self, calls: int, run_s: float) -> None:
        """Note how long a batch took on its engine."""
        wanted = int(BATCH_S * calls / max(run_s, 1e-6))
        if wanted < self.size or calls >= self.size:  # an earlier, smaller batch says nothing new
            self.size = max(1, min(wanted, calls * GROWTH))


class FarmBackend(ParallelBackendBase):
    """Runs the batches of `Parallel` calls as tasks: ``with parallel_config("ipytaskfarm", n_jobs=-1): …``.

    Short calls share a batch, as with joblib's own backends.  Results are cleared from the farm when their `Parallel`
    call has ended; failed tasks stay there for inspection.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1

    def __init__(
        self,
        client: TaskClient | Farm | None = None,
        nesting_level: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **rules: Any,
    ) -> None:
        """Create the backend.

        Args:
            client: a `TaskClient`, or a `Farm`.  None: the farm "default"; if it does not run, a farm of this process,
                which has an engine per core and ends with the process.
            nesting_level: set by joblib.
            initializer, initargs: a function, and its arguments, that each engine calls before its first batch.
            rules: rules of a `Task` for each batch: retries, time_limit, resources, environment, priority …

        A `Parallel` call takes the same arguments for itself: ``Parallel(backend="ipytaskfarm", retries=0)``.
        Raises TypeError and ValueError for arguments that no rule of a task has.
        """
        super().__init__(nesting_level=nesting_level)
        self._given = {"client": client, "initializer": initializer, "initargs": initargs, **rules}
        self._client: TaskClient | None = None
        self._rules: dict[str, Any] = {}
        self._configure(self._given)
        self._sizes = BatchSizes()
        self._ids: set[int] = set()
        """The batches of the present `Parallel` call."""
        self._succeeded: set[int] = set()
        self._lock = threading.Lock()
        self.parallel = None
        self._slots = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the backend for calls inside a task."""
        return NestedFarmBackend, (self.nesting_level, self._slots, self.inner_max_num_threads)

    def _configure(self, given: dict[str, Any]) -> None:
        """Take the client and the rules of batches from the arguments of the backend or of a `Parallel` call."""
        rules = {"name": TASK_NAME, "retries": RETRIES, "retry_on": errors.EngineLost, **given}
        given_client = rules.pop("client")
        if given_client is not None:
            self._client = client_of(given_client)
            if self._client is None:
                kind = type(given_client).__name__
                raise TypeError(f"client must be a TaskClient or a Farm, not a {kind}: {given_client!r:.80}")
        initializer, initargs = rules.pop("initializer"), rules.pop("initargs")
        rules["environment"] = environment_of(initializer, tuple(initargs), None, rules.get("environment"))
        check_rules(rules, "joblib's backend", ("client", "n_jobs", "initializer", "initargs"))
        self._rules = rules

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **arguments: Any,
    ) -> int:
        """Prepare for a `Parallel` call, whose own arguments precede those of the backend; return the number of jobs.

        joblib checks `prefer` and `require` itself.  It gives all `Parallel` objects of a `parallel_config` the same
        backend, and tells the backend of no call that it is over.  So each of them that is in use has its own.
        """
        with self._lock:
            is_taken = self.parallel not in (None, parallel)
            if not is_taken:
                self.parallel = parallel
        if is_taken:
            raise FallbackToBackend(self._another())
        self._configure({**self._given, **{name: arguments[name] for name in arguments if name not in OF_JOBLIB}})
        return self.effective_n_jobs(n_jobs)

    def _another(self) -> FarmBackend:
        given = {**self._given, "client": self.client}
        made = FarmBackend(nesting_level=self.nesting_level, **given)
        made.inner_max_num_threads = self.inner_max_num_threads
        return made

    def compute_batch_size(self) -> int:
        """Return how many calls form the next batch."""
        return self._sizes.size

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of batches that may run at once; see `count_of_jobs`."""
        if n_jobs == 0:
            return count_of_jobs(0, 0)
        self._slots = max(1, self.client.snapshot().slots)
        return count_of_jobs(n_jobs, self._slots)

    @property
    def client(self) -> TaskClient:
        """Return the client with which this backend submits."""
        if self._client is None:
            self._client = default_client()
        return self._client

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> concurrent.futures.Future[Any]:
        """Submit a batch (`joblib.parallel.BatchedCalls`); return its future.

        The calls of the batch are the task's arguments, so a large array that many batches share is sent once.  For a
        batch that cannot be pickled the future fails, and joblib raises the error when it reads the result.
        """
        from ipytaskfarm.client import Task

        future: concurrent.futures.Future[Any]
        try:
            task = Task(
                run_batch, args=(func._backend, func._n_jobs, func.items, self.inner_max_num_threads), **self._rules
            )
            future = self.client.submit(task)
        except errors.UnpickleableException as error:
            refusal = BatchNotPicklable(f"{NOT_SENT}: {error}")
            refusal.__cause__ = error
            future = concurrent.futures.Future()
            future.set_exception(refusal)
        except Exception as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
        else:
            with self._lock:
                self._ids.add(future.id)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """Return the values of a batch that has ended, or raise its error; write what its calls have printed.

        A KeyboardInterrupt that a call has raised is raised as one, as by joblib's own backends.
        """
        try:
            values = self._values_of(out)
        except Exception as error:
            with contextlib.suppress(Exception):  # the exception's class may do anything when it is asked
                keep_traceback(error)
            if hasattr(out, "id"):  # else it was refused here
                self._write_output_of(out.id)
            raise
        ended = self.client.get_task_result(out.id, raw=False)
        write_output(ended)
        self._sizes.ended(len(values), ended.duration)
        with self._lock:
            self._succeeded.add(out.id)
        return values

    def _write_output_of(self, batch: int) -> None:
        with contextlib.suppress(KeyError, ConnectionError, errors.TaskAborted):  # cleared meanwhile, the farm is gone
            write_output(self.client.get_task_result(batch, raw=False))

    def _values_of(self, out: TaskFuture[Any]) -> list[Any]:
        try:
            found: list[Any] = out.result()
        except errors.RemoteError as error:
            if error.etype == "KeyboardInterrupt":
                raise KeyboardInterrupt from error
            raise
        except BatchNotPicklable:
            raise
        except errors.UnpickleableException as error:  # a value: joblib's own backends raise what pickle raised
            raise original_of(error)  # noqa: B904 - its cause is our report
        except errors.EngineLost as error:
            raise BatchLost(str(error)) from error
        return found

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Abort the unfinished batches."""
        with self._lock:
            ids = sorted(self._ids)
        self.client.abort(ids, reason=OVER)

    def terminate(self) -> None:
        """Abort the unfinished batches, and clear the batches except those that failed with an error of their own."""
        self._sizes = BatchSizes()
        with self._lock:
            self.parallel = None
            ids, self._ids = self._ids, set()
            succeeded, self._succeeded = sorted(self._succeeded), set()
        others = sorted(ids.difference(succeeded))
        if others:
            self.client.abort(others, reason=OVER)
            rows = self.client.tasks(ids=others, state="finished").rows
            unread = [row.id for row in rows if row.state == "succeeded" or row.reason in ABORTS]
            for each in sorted(unread):  # joblib reads nothing more after an error, but these calls may have printed
                self._write_output_of(each)
            succeeded += unread
        if succeeded:
            self.client.clear(succeeded)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the backend and the number of jobs for `Parallel` calls inside a batch."""
        nested = NestedFarmBackend((self.nesting_level or 0) + 1, self._slots, self.inner_max_num_threads)
        return nested, None


class NestedFarmBackend(ParallelBackendBase):
    """Runs the batches of a `Parallel` call inside a task as child tasks.

    A task that waits for a child lends its slot, so nested calls need no additional slots.  Every call is a batch of
    its own: a repeated attempt must submit the same children in the same order.

    A call that prefers threads gets threads of its engine, as with joblib's own backends: the trees of a forest inside
    a grid search are quick, and an engine that is started for them would first import scikit-learn.  So does one that
    generates its values, because children cannot be submitted by callbacks.
    """

    supports_retrieve_callback = False
    supports_return_generator = True
    supports_timeout = True

    supports_inner_max_num_threads = True

    def __init__(self, nesting_level: int | None = None, slots: int = 0, threads: int | None = None) -> None:
        """Create the backend.

        Args:
            nesting_level: the number of enclosing `Parallel` calls.
            slots: the number of the farm's engines; 0: use the number of this machine's cores.
            threads: see `run_batch`.
        """
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=threads)
        self._slots = slots or usable_cores()

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **arguments: Any,
    ) -> int:
        """Prepare for a `Parallel` call; return the number of jobs."""
        if prefer == "threads" or (parallel is not None and parallel.return_generator):
            raise FallbackToBackend(ThreadingBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of batches that may run at once; see `count_of_jobs`."""
        return count_of_jobs(n_jobs, self._slots)

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> tuple[int, Any]:
        """Submit a batch as a child of the running task; return (its id, the callback)."""
        threads = self.inner_max_num_threads
        return current_task().submit(run_batch, func._backend, func._n_jobs, func.items, threads), callback

    def retrieve_result(self, out: tuple[int, Any], timeout: float | None = None) -> Any:
        """Wait for a child; return its values, or raise its error.  The callback submits the next child."""
        task_id, callback = out
        current_task().wait([task_id], timeout)
        (values,) = current_task().results([task_id])
        if callback is not None:
            callback(values)
        return values

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the backend and the number of jobs for `Parallel` calls inside a batch."""
        nested = NestedFarmBackend((self.nesting_level or 0) + 1, self._slots, self.inner_max_num_threads)
        return nested, None


def default_client() -> TaskClient:
    """Return a client of the farm "default", or of a farm that this process starts if that one does not run."""
    from ipytaskfarm.client import TaskClient

    global _own_farm
    with _own_farm_lock:
        if _own_farm is None:
            try:
                return TaskClient()
            except errors.FarmNotRunning:
                from ipytaskfarm.deployment.farm import Farm

                _own_farm = Farm()
        # A forked child may use the parent's farm, but must not own it.
        return TaskClient(str(_own_farm.connection_file))
