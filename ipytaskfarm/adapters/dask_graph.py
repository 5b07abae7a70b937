"""``tc.dask_get``: run a dask graph as tasks of the farm.

Each node of the graph is a task, and each edge a `Ref`.  Values go from engine to engine, and the client reads only the
requested ones.  The interface is dask's: https://docs.dask.org/en/stable/scheduler-overview.html
"""

from __future__ import annotations

import concurrent.futures
import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from ipytaskfarm.adapters.dask_callbacks import Callback, GraphCallbacks
from ipytaskfarm.adapters.executor_ends import original_of, write_output
from ipytaskfarm.client.futures import TaskFuture
from ipytaskfarm.client.ids import Ids
from ipytaskfarm.client.tables import TaskTable
from ipytaskfarm.client.task_calls import TaskCalls
from ipytaskfarm.client.tasks import Task
from ipytaskfarm.core import errors

RETRIES = 2
"""Number of repetitions of a node after the loss of its engine; an error of the node itself is raised at once."""
CLEARED_AT_ONCE = 64
"""Intermediate values that no node needs any more are cleared in batches of this number."""


class GraphCalls(TaskCalls, Protocol):
    """The methods of `TaskClient` that a graph calls; they are documented there."""

    def submit(self, function: Task, /) -> TaskFuture[Any]:
        """Submit a task and return its future."""

    def tasks(
        self, name: str | None = None, state: str | None = None, ids: Ids | None = None, last: int = 0
    ) -> TaskTable:
        """Return a table of tasks."""


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
