"""executorlib's interface on a farm: ``submit(fn, *args, resource_dict={…})``, and futures as arguments.

executorlib itself is not needed. Of its resources, those of a process become rules of the farm's tasks. A call is made
once, in one process: for several MPI ranks or nodes executorlib starts several.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ipytaskfarm.adapters.executor import Executor
from ipytaskfarm.adapters.map_futures import values

RESOURCES = (
    "cores", "threads_per_core", "gpus_per_core", "cwd", "num_nodes", "exclusive", "run_time_max", "priority",
    "restart_limit",
)  # fmt: skip
"""The keys of a `resource_dict` that have a meaning on a farm."""
_WITHOUT_MEANING = frozenset(
    {
        "block_allocation", "hostname_localhost", "refresh_rate", "log_obj_size", "openmpi_oversubscribe",
        "disable_dependencies", "pmi_mode", "flux_executor_nesting",
    }
)  # fmt: skip
"""Arguments, and keys of a `resource_dict`, about executorlib's own processes: a farm has others, so any value is
right."""
_CACHE = (
    "a farm keeps results on disk itself; `cache=True` takes the result of an equal call, also of an earlier program"
)
_GRAPH = "calls run as soon as their arguments have values, and nothing is drawn or exported: leave it out"
_LOGS = "leave it out: what calls print appears here, and the errors of failed ones are in `executor.client.failures()`"
_REMEDIES = {
    "cache_directory": _CACHE,
    "cache_key": f"{_CACHE}; `unique=` refuses a second call of one key",
    "plot_dependency_graph": _GRAPH,
    "plot_dependency_graph_filename": _GRAPH,
    "export_workflow_filename": _GRAPH,
    "error_log_file": _LOGS,
    "flux_log_files": _LOGS,
    "flux_executor": "give a TaskClient as the first argument, of a farm with engines of a batch system",
    "pysqa_config_directory": "engines are started by the farm's agents: give a TaskClient of a farm with engines of "
    "Slurm, PBS or LSF as the first argument",
    "slurm_cmd_args": "calls run on engines that are started already: give it to the launcher of the engines",
    "wait": "`with` waits for all calls; for calls that go on give a TaskClient of a farm that goes on, and call "
    "`shutdown(wait=False)`",
}  # fmt: skip
"""What a farm does not have -> what to do instead."""


def rules_of_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the rules of a `Task` among the arguments of an executor of executorlib.

    Raises TypeError for an argument that steers what a farm does not have, with the remedy.  Its value of executorlib
    that does nothing is accepted.
    """
    rules = {name: value for name, value in given.items() if name not in _WITHOUT_MEANING and name not in _REMEDIES}
    for name in given:
        if name in _REMEDIES and not _does_nothing(name, given[name]):
            raise TypeError(f"{name}={given[name]!r} has no meaning on a farm: {_REMEDIES[name]}")
    if "restart_limit" in rules:
        rules.setdefault("retries", rules.pop("restart_limit"))
    return rules


def _does_nothing(name: str, value: Any) -> bool:
    return bool(value) if name == "wait" else not value


def rules_of(resources: dict[str, Any]) -> dict[str, Any]:
    """Translate executorlib's resources into rules of a `Task`.

    Raises ValueError for a key that has no meaning here, and for several nodes.
    """
    for name in sorted(resources.keys() - _WITHOUT_MEANING - set(RESOURCES)):
        if name not in _REMEDIES:
            raise ValueError(f"resource_dict has {name!r}, which a farm does not have; it has {', '.join(RESOURCES)}")
        if not _does_nothing(name, resources[name]):
            raise ValueError(f"resource_dict has {name!r}, which a farm does not have: {_REMEDIES[name]}")
    if (resources.get("num_nodes") or 1) != 1:
        raise ValueError("num_nodes must be 1: a task of a farm is one process")
    given = {name: value for name, value in resources.items() if value is not None}
    rules: dict[str, Any] = {}
    cores = given.get("cores", 1)
    amounts = {"cores": cores * given.get("threads_per_core", 1), "gpu": cores * given.get("gpus_per_core", 0)}
    if given.keys() & {"cores", "threads_per_core", "gpus_per_core"}:
        rules["resources"] = {name: amount for name, amount in amounts.items() if amount}
    if given.get("exclusive"):
        rules["exclusive"] = True
    for name, rule in (("run_time_max", "time_limit"), ("priority", "priority"), ("restart_limit", "retries")):
        if name in given:
            rules[rule] = given[name]
    return rules


def check_cores(resources: dict[str, Any], cores_max: int | None) -> None:
    """Raise ValueError for more cores than an executor was given (None: it was given no number)."""
    cores = resources.get("cores")
    if cores is not None and cores_max is not None and cores > cores_max:
        raise ValueError(
            f"resource_dict has {cores} cores, which is larger than the executor's number of cores, {cores_max}: "
            "give fewer, or max_cores= more"
        )


if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient

T = TypeVar("T")


class FarmClusterExecutor(Executor):
    """An `Executor` with the interface of executorlib: resources for each call, and futures among its arguments.

    Args:
        max_workers: the number of engines of a farm that the executor starts, or a `TaskClient`, see `Executor`.
        max_cores: the same number, under executorlib's name.
        resource_dict: the resources of each call, unless `submit` gives others.
        init_function: called once on each engine; the dictionary that it returns presets arguments of all calls.
        rules: rules of a `Task` for each call. Executorlib's other arguments are accepted if they are about its own
            processes, and ``restart_limit`` is the rule ``retries``.

    A call that no engine of a farm that the executor started can ever take fails at once.  ``len(executor)`` is the
    number of calls that have not ended.

    Raises ValueError for resources that a farm does not have, TypeError for arguments that have no meaning on one.
    """

    def __init__(
        self,
        max_workers: int | TaskClient | None = None,
        *,
        max_cores: int | None = None,
        resource_dict: dict[str, Any] | None = None,
        init_function: Callable[[], dict[str, Any]] | None = None,
        **rules: Any,
    ) -> None:
        self._resources = dict(resource_dict or {})
        rules_of(self._resources)
        rules = rules_of_arguments(rules)
        self._init_function = init_function
        self._dependent: weakref.WeakSet[_Dependent[Any]] = weakref.WeakSet()
        """Calls that wait for the futures among their arguments."""
        self._cores_max = max_cores
        check_cores(self._resources, max_cores)
        super().__init__(max_cores if max_workers is None else max_workers, **rules)
        if self._farm is not None:  # nobody else adds engines to it
            self._rules.setdefault("fail_if_unmet", True)

    def __len__(self) -> int:
        return len(self._unfinished) + sum(not future.done() for future in list(self._dependent))

    def __bool__(self) -> bool:
        return True

    @property
    def max_workers(self) -> int | None:
        """Return the number of engines; None after `shutdown`.  A farm that the executor has started can get more.

        Raises NotImplementedError where it cannot be set.
        """
        return None if self._is_shut_down else self._max_workers

    @max_workers.setter
    def max_workers(self, number: int) -> None:
        more = number - self._max_workers
        if self._farm is None or more < 0:
            raise NotImplementedError(
                f"max_workers is {self._max_workers}, and can only be raised, of an executor that has started its farm "
                "itself: `ipytaskfarm engines` adds and removes engines of any farm"
            )
        with self._farm.multiengine_client() as engines:
            engines.add_engines(more)
        self._max_workers = number

    @property
    def info(self) -> dict[str, Any] | None:
        """Return the number of workers, and the resources of each call; None after `shutdown`."""
        if self._is_shut_down:
            return None
        return {"cores": 1, **self._resources, "max_workers": self._max_workers, "max_cores": self._cores_max}

    def submit(  # type: ignore[override]
        self, fn: Callable[..., T], /, *args: Any, resource_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Submit ``fn(*args, **kwargs)``; return its future.

        Futures among the arguments, also in lists, tuples and dictionaries, are waited for, and replaced by their
        values. If one of them fails, the call fails with the same error and is not made.

        Args:
            fn: any callable.
            args, kwargs: the arguments of the call.
            resource_dict: ``cores`` × ``threads_per_core`` cores, ``gpus_per_core``, ``cwd``, ``exclusive``,
                ``run_time_max`` (seconds), ``priority``, ``restart_limit``.

        A parameter ``executorlib_worker_id`` of the function gets the engine's id.

        Raises ValueError for resources that a farm does not have, and for more cores than ``max_cores``.
        """
        resources = {**self._resources, **(resource_dict or {})}
        rules = rules_of(resources)
        check_cores(resources, self._cores_max)
        function: Callable[..., T] = fn
        if self._init_function is not None or _takes_worker_id(fn):
            function = partial(with_presets, self._init_function, function)
        if resources.get("cwd") is not None:
            function = partial(in_folder, os.fspath(resources["cwd"]), function)
        self._must_take()
        waits = list(_futures_in((args, kwargs)))
        if not waits:
            return self.submit_with(rules, function, args, kwargs)
        dependent = _Dependent(self, rules, function, args, kwargs, waits)
        self._dependent.add(dependent)
        return dependent

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results of `submit` for the items of the iterables, in order.

        Futures among the items, and the presets of the executor, count as for `submit`.  `chunksize` has no meaning:
        each call is a task.
        """
        end_s = None if timeout is None else time.monotonic() + timeout
        calls = (self.submit(fn, *items) for items in zip(*iterables, strict=False))
        return values(calls, end_s, buffersize, _cancel_each)

    def batched(
        self, iterable: Iterable[concurrent.futures.Future[T]], n: int
    ) -> list[concurrent.futures.Future[list[T]]]:
        """Return futures of the values of other futures, `n` values in each, in the order in which they come.

        The last one may have fewer values.  Errors come last: a future without a value has one of them.
        """
        return _Batches(list(iterable), n).batches

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new calls, and end the executor when all calls have ended, also those that wait for other futures.

        Args:
            wait: return when all calls have ended; False: return at once, and let a thread wait.
            cancel_futures: cancel the calls that have not begun.
        """
        if self._is_forked:
            return
        dependent = [future for future in list(self._dependent) if not future.done()]
        if cancel_futures:
            _cancel_each(dependent)
        elif dependent and (not wait or self._is_in_callback()):
            threading.Thread(target=self.shutdown, name="ipytaskfarm executor").start()
            return
        else:
            with self.ended_by_ctrl_c():
                concurrent.futures.wait(dependent)
        super().shutdown(wait, cancel_futures=cancel_futures)


class _Dependent(concurrent.futures.Future[T]):
    """The future of a call that is submitted when the futures among its arguments have their values."""

    def __init__(
        self,
        executor: FarmClusterExecutor,
        rules: dict[str, Any],
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        waits: list[concurrent.futures.Future[Any]],
    ) -> None:
        super().__init__()
        self._submit = partial(executor.submit_with, rules, function)
        self._call = args, kwargs
        self._left = len(waits)
        self._counting = threading.Lock()
        for future in waits:
            future.add_done_callback(self._note_value)

    def _note_value(self, future: concurrent.futures.Future[Any]) -> None:
        with self._counting:
            self._left -= 1
            if self._left:
                return
        if not self.set_running_or_notify_cancel():
            return
        try:
            args, kwargs = _resolved(self._call)
            self._submit(args, kwargs).add_done_callback(self._take)
        except BaseException as error:  # of an argument; or the executor was shut down
            self.set_exception(error)

    def _take(self, future: concurrent.futures.Future[T]) -> None:
        if future.cancelled():
            self.set_exception(concurrent.futures.CancelledError())
        elif (error := future.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(future.result())


class _Batches(Generic[T]):
    """Resolves futures with the values of others, some values in each."""

    def __init__(self, futures: list[concurrent.futures.Future[T]], size: int) -> None:
        if size < 1:
            raise ValueError(f"n must be at least 1, not {size}")
        self.batches: list[concurrent.futures.Future[list[T]]] = [
            concurrent.futures.Future() for _ in range(-(-len(futures) // size))
        ]
        self._size = size
        self._open = deque(self.batches)
        self._values: list[T] = []
        self._errors: list[BaseException] = []
        self._left = len(futures)
        self._lock = threading.Lock()
        for future in futures:
            future.add_done_callback(self._note_end)

    def end_inherited(self, error: BaseException) -> None:
        """Let the batches raise the error in a forked child."""
        from ipytaskfarm.client.futures import end_inherited

        end_inherited(self.batches, error)

    def _note_end(self, future: concurrent.futures.Future[T]) -> None:
        full: list[T] = []
        with self._lock:
            self._left -= 1
            try:
                self._values.append(future.result())
            except BaseException as error:
                self._errors.append(error)
            is_last = not self._left
            if len(self._values) == self._size or (self._values and is_last):
                full, self._values = self._values, []
                batch = self._open.popleft()
        if full:
            batch.set_result(full)
        if is_last:
            for unfilled, failure in zip(self._open, self._errors, strict=False):
                unfilled.set_exception(failure)


def _cancel_each(futures: Iterable[concurrent.futures.Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _futures_in(value: Any) -> Iterator[concurrent.futures.Future[Any]]:
    if isinstance(value, concurrent.futures.Future):
        yield value
    elif type(value) in (list, tuple):
        for each in value:
            yield from _futures_in(each)
    elif type(value) is dict:
        yield from _futures_in(list(value.values()))


def _resolved(value: Any) -> Any:
    """Return a value in which each future is replaced by its value; raise the error of the first one that failed."""
    if isinstance(value, concurrent.futures.Future):
        return value.result()
    if type(value) in (list, tuple):
        return type(value)(_resolved(each) for each in value)
    if type(value) is dict:
        return {key: _resolved(each) for key, each in value.items()}
    return value


# -- functions that engines call

_presets: dict[Callable[[], dict[str, Any]] | None, dict[str, Any]] = {}
_WORKER_ID = "executorlib_worker_id"


def with_presets(init: Callable[[], dict[str, Any]] | None, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function with arguments that `init` has preset on this engine, unless the call gives them."""
    if init not in _presets:
        _presets[init] = init() if init is not None else {}
    return function(*args, **{**_accepted(function, _presets[init]), **kwargs})


def _accepted(function: Callable[..., Any], presets: dict[str, Any]) -> dict[str, Any]:
    import inspect

    from ipytaskfarm.engine import user_namespace

    from ..core.signatures import signature_of

    parameters = signature_of(function).parameters
    if _WORKER_ID in parameters:
        presets = {_WORKER_ID: user_namespace()["id"], **presets}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return presets
    return {name: value for name, value in presets.items() if name in parameters}


def _takes_worker_id(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and _WORKER_ID in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def in_folder(folder: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function in a folder, which is made if it does not exist."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)  # the engine goes back after the task
    return function(*args, **kwargs)
