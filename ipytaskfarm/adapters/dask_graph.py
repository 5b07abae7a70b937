"""``tc.dask_get``: run a dask graph as tasks of the farm.

Each node of the graph is a task, and each edge a `Ref`.  Values go from engine to engine, and the client reads only the
requested ones.  The interface is dask's: https://docs.dask.org/en/stable/scheduler-overview.html
"""

from __future__ import annotations

import concurrent.futures
import operator
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from timeit import default_timer
from typing import Any, Protocol, TypeAlias, cast

from ipytaskfarm.adapters.executor_ends import original_of, write_output
from ipytaskfarm.client.futures import TaskFuture
from ipytaskfarm.client.ids import Ids
from ipytaskfarm.client.tables import TaskCalls, TaskTable
from ipytaskfarm.client.tasks import Task
from ipytaskfarm.core import errors

Callback: TypeAlias = tuple[Callable[..., object] | None, ...]
"""The functions (start, start_state, pretask, posttask, finish) of dask's ``Callback._callback``."""


class GraphCallbacks:
    """The callbacks of one run, and the state of the graph as dask's callbacks know it.

    They are called as by dask's own local schedulers: https://docs.dask.org/en/stable/diagnostics-local.html. A node
    begins for them when its inputs have ended, although the farm may still keep it in a queue.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._begun: list[Callback] = []
        """Callbacks whose `start` was called: their `finish` follows, whatever happens."""
        self._nodes: dict[Hashable, Any] = {}
        self._state: dict[str, Any] = {}
        self._wanted: set[Hashable] = set()
        self._order: Callable[[Any], Any] = hash
        self._value: Callable[[Hashable], Any] = hash
        self._early: dict[Hashable, tuple[float, float, int | None]] = {}
        """Nodes that were reported before one of their inputs."""

    @property
    def active(self) -> bool:
        """Return whether there are any callbacks."""
        return bool(self._callbacks)

    def start(self, nodes: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """Call `start` with a graph, and return the graph, in which a callback may have replaced nodes by values."""
        if not self._callbacks:
            return nodes
        from dask._task_spec import convert_legacy_graph

        for callback in self._callbacks:
            if callback[0] is not None:
                callback[0](nodes)
            self._begun.append(callback)
        converted: dict[Hashable, Any] = convert_legacy_graph(nodes)
        return converted

    def submitted(self, nodes: dict[Hashable, Any], wanted: set[Hashable], value: Callable[[Hashable], Any]) -> None:
        """Call `start_state`, and `pretask` for the nodes that need no others.

        wanted: the requested keys. value: returns the value of a key that has ended.
        """
        if not self._callbacks:
            return
        from dask.local import start_state_from_dask
        from dask.order import order

        self._nodes, self._wanted, self._value = nodes, wanted, value
        positions: dict[Any, Any] = order(cast("Any", nodes))
        self._order = positions.__getitem__
        self._state = start_state_from_dask(nodes, keys=wanted, cache={}, sortkey=self._order)
        for callback in self._callbacks:
            if callback[1] is not None:
                callback[1](nodes, self._state)
        self._begin_ready()

    def ended(self, key: Hashable, started_s: float, run_s: float, engine_id: int | None) -> None:
        """Call `posttask` for a node, and `pretask` for those that waited for it alone.

        Args:
            key: the node.
            started_s: when it began on its engine (wall clock).
            run_s: how long it ran.
            engine_id: its engine; None for a node without a task.
        """
        if key in self._state["running"]:
            self._end(key, started_s, run_s, engine_id)
            self._begin_ready()
        else:
            self._early[key] = started_s, run_s, engine_id

    def finish(self, failed: bool) -> None:
        """Call `finish`."""
        for callback in self._begun:
            if callback[4] is not None:
                callback[4](self._nodes, self._state, failed)

    def _begin_ready(self) -> None:
        from dask._task_spec import Alias

        ready: list[Hashable] = self._state["ready"]
        while ready:
            key = ready.pop()
            self._state["running"].add(key)
            for callback in self._callbacks:
                if callback[2] is not None:
                    callback[2](key, self._nodes, self._state)
            if key in self._early:
                self._end(key, *self._early.pop(key))
            elif isinstance(self._nodes[key], Alias):
                self._end(key, time.time(), 0.0, None)

    def _end(self, key: Hashable, started_s: float, run_s: float, engine_id: int | None) -> None:
        from dask.local import finish_task

        value = self._value(key) if any(_takes_value(callback) for callback in self._callbacks) else None
        self._state["cache"][key] = value
        finish_task(self._nodes, key, self._state, self._wanted, self._order)
        for callback in self._callbacks:
            if callback[3] is not None:
                callback[3](key, value, self._nodes, self._state, engine_id)
                _set_times(callback[3], key, started_s, run_s)


def _takes_value(callback: Callback) -> bool:
    """Return whether a callback's `posttask` may look at the value, which then comes from the engine to the client."""
    from dask.diagnostics.profile import Profiler

    posttask = callback[3]
    return posttask is not None and not isinstance(getattr(posttask, "__self__", None), Profiler)


def _set_times(posttask: Callable[..., object], key: Hashable, started_s: float, run_s: float) -> None:
    """Let a Profiler have the times of the engine in place of those of the calls of its methods."""
    from dask.diagnostics.profile import Profiler

    profiler = getattr(posttask, "__self__", None)
    if not isinstance(profiler, Profiler):
        return
    key, node, _, end_s, worker = profiler._results[key]
    start_s = min(started_s - time.time() + default_timer(), end_s - run_s)
    profiler._results[key] = key, node, start_s, start_s + run_s, worker


RETRIES = 2
"""Number of repetitions of a node after the loss of its engine; an error of the node itself is raised at once."""
CLEARED_AT_ONCE = 64
"""Intermediate values that no node needs any more are cleared in batches of this number."""


class GraphCalls(TaskCalls, Protocol):
    """The methods of `TaskClient` that a graph calls; they are documented there."""

    def submit(self, function: Task, /) -> TaskFuture[Any]: ...
    def tasks(
        self, name: str | None = None, state: str | None = None, ids: Ids | None = None, last: int = 0
    ) -> TaskTable: ...


def dask_get(client: GraphCalls, graph: Any, keys: Any, callbacks: Iterable[Callback] | None = None) -> Any:
    """Compute keys of a dask graph on the farm.

    Args:
        client: the farm's client.
        graph: a mapping from keys to dask's nodes, or an object with ``__dask_graph__``.
        keys: a key, or nested lists of keys.
        callbacks: as for dask's local schedulers; None: those that are active, such as a ``ProgressBar``.

    Returns the values in lists that are nested like `keys`.  Raises the exception of a failed node, or pickle's
    error for a value that cannot travel, as dask's own schedulers do; the other nodes are aborted.
    """
    from dask.callbacks import local_callbacks

    with local_callbacks(callbacks) as active:
        watching = GraphCallbacks(active)
        failed = True
        try:
            run = _GraphRun(client, watching.start(_nodes(graph)), set(_flat(keys)), watching)
            values = _computed(run, keys)
            failed = False
        finally:
            watching.finish(failed)
    return values


def _computed(run: _GraphRun, keys: Any) -> Any:
    try:
        run.submit()
        run.wait()
        return _nested(keys, run.value)
    except errors.UnpickleableException as error:
        raise original_of(error)  # noqa: B904 - its cause is our report
    finally:
        run.clear()


def _nodes(graph: Any) -> dict[Hashable, Any]:
    from dask._task_spec import convert_legacy_graph

    mapping: Mapping[Hashable, Any] = graph if isinstance(graph, Mapping) else graph.__dask_graph__()
    converted: dict[Hashable, Any] = convert_legacy_graph(mapping)
    return converted


def _flat(keys: Any) -> Iterator[Hashable]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key)
    else:
        yield keys


def _nested(keys: Any, value: Any) -> Any:
    return [_nested(key, value) for key in keys] if isinstance(keys, list) else value(keys)


class _GraphRun:
    """The run of one graph: the futures of its nodes, and how often each value is still needed."""

    def __init__(
        self, client: GraphCalls, nodes: dict[Hashable, Any], wanted: set[Hashable], watching: GraphCallbacks
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._watching = watching
        self._wanted = wanted
        self._found: dict[Hashable, Any] = {}
        """Key -> its future, or its value if the graph contains the value."""
        self._takes: Counter[int] = Counter()
        """Task id -> how many nodes, and the caller, still need its value."""
        self._inputs: dict[int, list[int]] = {}
        """Task id -> ids of the tasks whose values it takes."""
        self._uncleared: set[int] = set()
        self._keys: dict[int, Hashable] = {}
        """Task id -> the key of its node."""

    def submit(self) -> None:
        """Submit all nodes that the wanted keys need, inputs first."""
        for key in self._ordered():
            self._found[key] = self._submitted(key, self._nodes[key])
        for key in self._wanted:
            if isinstance(self._found[key], TaskFuture):
                self._takes[self._found[key].id] += 1
        self._watching.submitted(self._nodes, self._wanted, self.value)

    def _ordered(self) -> list[Hashable]:
        """Return the needed keys, each after its dependencies.

        Raises KeyError for a key that is not in the graph, and RuntimeError for a key that needs itself.
        """
        ordered: dict[Hashable, None] = {}
        entered: set[Hashable] = set()
        waiting: list[tuple[Hashable, bool]] = [(key, False) for key in self._wanted]
        while waiting:
            key, seen = waiting.pop()
            if key in ordered:
                continue
            if seen:
                ordered[key] = None
            else:
                if key in entered:  # only what it needs itself can come before it is ordered
                    raise RuntimeError(f"Cycle detected in the dask graph: {key!r} needs itself")
                entered.add(key)
                waiting.append((key, True))
                waiting += [(each, False) for each in self._nodes[key].dependencies if each not in ordered]
        return list(ordered)

    def _submitted(self, key: Hashable, node: Any) -> Any:
        from dask._task_spec import Alias, DataNode

        if isinstance(node, Alias):
            return self._found[node.target]
        if isinstance(node, DataNode):
            return node.value
        values = {each: self._found[each] for each in node.dependencies}
        name, lost = _name(node.key), errors.EngineLost
        task = Task(operator.call, args=(node, values), name=name, retries=RETRIES, retry_on=lost)
        future = self._client.submit(task)
        inputs = [value.id for value in values.values() if isinstance(value, TaskFuture)]
        self._inputs[future.id] = inputs
        self._takes.update(inputs)
        self._uncleared.add(future.id)
        self._keys[future.id] = key
        return future

    def wait(self) -> None:
        """Wait for all nodes, write what they print, and clear intermediate values as soon as no node needs them.

        Raises the error of the first node that failed.
        """
        free: list[int] = []
        futures = {future.id: future for future in self._found.values() if isinstance(future, TaskFuture)}
        for task_id in self._client.as_completed(list(futures)):
            ended = self._client.get_task_result(task_id, raw=False)
            write_output(ended)
            # This method does not read the value; `exception` of the future's own class would.
            if concurrent.futures.Future.exception(futures[task_id]) is not None:
                futures[task_id].result()
            if self._watching.active:
                self._watching.ended(self._keys[task_id], ended.started_at.timestamp(), ended.duration, ended.engineid)
            for taken in self._inputs[task_id]:
                self._takes[taken] -= 1
                if not self._takes[taken]:
                    free.append(taken)
            if len(free) >= CLEARED_AT_ONCE:
                self._forget(free)
                free = []

    def value(self, key: Hashable) -> Any:
        """Return the value of a wanted key."""
        found = self._found[key]
        return found.result() if isinstance(found, TaskFuture) else found

    def clear(self) -> None:
        """Abort the unfinished nodes, and clear the values of all nodes that have succeeded."""
        ids = sorted(self._uncleared)
        if not ids:
            return
        _, running = self._client.wait(ids, timeout=0)
        if running:
            self._client.abort(running, reason="the dask graph of this node is over")
        ended = self._client.tasks(ids=ids, state="succeeded").ids
        self._forget(ended)

    def _forget(self, ids: Iterable[int]) -> None:
        cleared = list(ids)
        if cleared:
            self._client.clear(cleared)
            self._uncleared.difference_update(cleared)


def _name(key: Hashable) -> str:
    """Return the name of a node's task: the first part of a key such as ``("sum-3f…", 0, 1)``."""
    return str(key[0] if isinstance(key, tuple) and key else key)
