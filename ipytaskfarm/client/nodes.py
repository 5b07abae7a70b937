"""The results of `tc.snapshot` and `tc.check`: the farm's nodes, and which engines could run a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.messages import Checked
from ..core.messages.tables import FarmState
from ..core.states import state_counts
from ..display.farm_tables import node_table
from ..display.tables import Table
from ..display.text import number


class Node:
    """One node of the farm.

    Attributes:
        name, state, platform, python, cores: what it is.
        load: the load as a share of the cores; None: not known.
        memory, free_memory, free_disk: bytes; None: not known.
        capacity, used: dicts of resources, in total and reserved by running tasks.
        engines: the number of its engines.
        environments: a dict of engine ids and the environments that the engines have prepared.
        priority: nodes with a higher number get tasks first.
        slots: the largest number of engines there; None: no limit.
        guard: why the load guard starts nothing there, or "".
        fetched_blobs, fetched_bytes: large values that were copied there, because the node does not see the farm's
            folder.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        self.name: str = row["node"]
        self.state: str = row["state"]
        self.platform: str = row["platform"]
        self.python: str = row["python"]
        self.cores: int = row["cores"]
        self.load: float | None = row["load"]
        self.memory: int = row["memory"]
        self.free_memory: int | None = row["free_memory"]
        self.free_disk: int | None = row["free_disk"]
        self.capacity: dict[str, float] = row["capacity"]
        self.used: dict[str, float] = row["used"]
        self.engines: int = row["engines"]
        self.environments: dict[int, str] = {int(i): name for i, name in row["environments"].items()}
        self.priority: int = row["priority"]
        self.slots: int | None = row["slots"]
        self.guard: str = row["guard"]
        self.fetched_blobs: int = row["fetched_blobs"]
        self.fetched_bytes: int = row["fetched_bytes"]

    def __repr__(self) -> str:
        return f"<node {self.name}: {self.state}, {number(self.engines, 'engine')}>"


class Snapshot:
    """The farm at one moment.

    `nodes` are `Node` objects, `counts` the numbers of tasks by state, `slots` the wanted number of engines in total.
    """

    def __init__(self, state: FarmState) -> None:
        self.nodes = [Node(row) for row in state.agents]
        self._table = node_table(state.agents)
        self.counts = state_counts(state.counts)
        self.slots = state.wanted
        self.farm = state.name

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, position: int) -> Node:
        return self.nodes[position]

    def __repr__(self) -> str:
        return repr(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()


class CheckResult:
    """Which engines could run a task; its truth value is whether any engine could.

    Attributes:
        engines: ids of the engines that could run the task.
        why: a dict of the other engine ids, each with the reason.
        unmet: why no engine ever could, as the farm is now; or "".
    """

    def __init__(self, reply: Checked) -> None:
        self.engines = [engine_id for engine_id, _, why in reply.rows if not why]
        self.why = {engine_id: why for engine_id, _, why in reply.rows if why}
        self.unmet = reply.unmet
        self._rows = reply.rows

    def __bool__(self) -> bool:
        return bool(self.engines)

    def _table(self) -> Table:
        lines = [(engine_id, node, why or "it can") for engine_id, node, why in self._rows]
        return Table(("engine", "node", "can it run there?"), lines, nothing="the farm has no engines now")

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table().html()
