"""dask's callbacks (``ProgressBar``, ``Profiler`` and users' own) around a graph that runs on a farm.

They are called as by dask's own local schedulers: https://docs.dask.org/en/stable/diagnostics-local.html.  A node
begins for them when its inputs have ended, although the farm may still keep it in a queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from timeit import default_timer
from typing import Any, TypeAlias, cast

Callback: TypeAlias = tuple[Callable[..., object] | None, ...]
"""The functions (start, start_state, pretask, posttask, finish) of dask's ``Callback._callback``."""


class GraphCallbacks:
    """The callbacks of one run, and the state of the graph as dask's callbacks know it."""

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

        Args:
            nodes: the graph.
            wanted: the requested keys.
            value: returns the value of a key that has ended.
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
