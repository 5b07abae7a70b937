"""A task's requirements of its engine: environment, resources, conditions, and when the engine is recycled.

These are only values, which travel within `core.messages.task_types.Rules`. `core.scheduler.admission` applies those
that change from moment to moment, `core.scheduler.eligibility` the others, and `core.scheduler.environments`
environments.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

CORES, MEMORY, GPU = "cores", "memory", "gpu"
"""Resources of every node: cores, bytes, and devices.  A farm's owner may declare others (licences, …)."""

THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
"""Environment variables in which libraries read how many threads they may have."""

DEVICES = "CUDA_VISIBLE_DEVICES"
"""The environment variable with the names of the GPUs that a process may use."""

LOAD, FREE_MEMORY, FREE_DISK, FREE_CORES = "load", "free_memory", "free_disk", "free_cores"
TIME_LEFT = "time_left"
CHANGING = frozenset({LOAD, FREE_MEMORY, FREE_DISK, FREE_CORES, TIME_LEFT})
"""Facts of a node that change by themselves.  Conditions on them are checked when a task is about to start."""

FACTS = CHANGING | {
    "id", "hostname", "node", "cores", MEMORY, "platform", "os", "bits", "version", "python", "started",
}  # fmt: skip
"""The names of all facts: those of an engine, which `engine.process.gather_facts` finds, and `CHANGING`."""

SIZES = frozenset({MEMORY, FREE_MEMORY, FREE_DISK})
"""Facts in bytes."""

NUMBERS = frozenset({"id", "cores", "bits", "started", LOAD, FREE_CORES, TIME_LEFT})
"""Facts that are other numbers."""

_VERSIONS = frozenset({"python", "version"})
"""Facts that are compared number by number: 3.9 is less than 3.11."""

VALUES_SHOWN, TEXT_SHOWN = 20, 200
"""How many values of a condition are shown to people, and how many characters of each: a sentence about them is made
for each task and engine."""

Value: TypeAlias = str | float | bool | tuple[str | float | bool, ...]


class Environment(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """User code that prepares an engine once for many tasks.

    `identity` is a digest, and the name under which the code travels as a `Function`.  Two tasks of one identity share
    engines, whichever clients submitted them."""

    identity: str
    name: str
    """The name that people see."""
    unique: str | None = None
    """The user's own id of the environment, with the additional id.  Another identity under the same id is an edit."""
    variant: str = ""
    """A digest of the attributes outside the identity. Of two variants, the first one is used."""
    teardown_s: float = 5.0
    """How long `teardown` may take before the engine is killed."""


class Recycle(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """When an engine is ended and replaced by a new one: between tasks, never within one."""

    after_tasks: int | None = None
    idle_s: float | None = None
    interval_s: float | None = None
    """Counted from the engine's start."""
    at_times_s: tuple[int, ...] = ()
    """Seconds after midnight, in the node's local time."""
    memory_bytes: int | None = None
    """The private memory at which the engine is recycled."""
    on_job_end: bool = False
    when_unreferenced: bool = False
    """Whether the engine is recycled when no unfinished task and no job uses the environment any more."""
    on_failure: bool = False
    keep_session: bool = False
    """Whether the new engine begins with the names of the old one."""


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """``name op value``, on an engine's facts, its properties, or its node's state."""

    name: str
    op: str
    """One of < <= > >= == != in, "not in"."""
    value: Value

    def __str__(self) -> str:
        start = f"{_cut(self.name)} {self.op}"
        if not isinstance(self.value, tuple):
            return f"{start} {_shown(self.name, self.value)}"
        shown = [_shown(self.name, value) for value in self.value[:VALUES_SHOWN]]
        if (more := len(self.value) - len(shown)) > 0:
            shown.append(f"… {more} more")
        return f"{start} {shown}"


class ResourceAmount(msgspec.Struct, frozen=True, array_like=True):
    """The least and the largest amount of a resource. What is free between the two is allotted."""

    name: str
    least: float
    most: float


class Asks(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A task's requirements of its engine and its node. Tasks with the same requirements wait in one class."""

    environment: Environment | None = None
    recycle: Recycle | None = None
    """When the engine is recycled.  With `environment` None this holds for engines that ran only tasks of the job."""
    requires: tuple[Condition, ...] = ()
    resources: tuple[ResourceAmount, ...] = ()
    exclusive: bool = False
    """Whether nothing else runs on the node at the same time."""
    group: str | None = None
    max_parallel: int | None = None
    """The number of tasks of the group that may run on the farm; `max_parallel_per_node`: on one node."""
    max_parallel_per_node: int | None = None
    force: bool = False
    """Whether the task starts although the load guard forbids it."""
    fail_if_unmet: bool = False
    """Whether the task fails at once when no engine can serve it."""
    placement: str | None = None
    """Which of the free engines takes the task, see `core.scheduler.engine_choice`.  None: as the farm's settings
    say."""
    locality: str | None = None
    """Digest of a function of an engine's properties: -1 never there, 0 indifferent, more is better."""

    @property
    def identity(self) -> str | None:
        return self.environment.identity if self.environment is not None else None

    @property
    def by_job(self) -> bool:
        """Return whether the job matters to the engine that runs the task."""
        return self.recycle is not None and (self.environment is None or self.recycle.on_job_end)

    @property
    def gated(self) -> bool:
        """Return whether the task may have to wait although an engine that could serve it is free."""
        return bool(
            self.resources
            or self.exclusive
            or (self.group is not None and (self.max_parallel is not None or self.max_parallel_per_node is not None))
            or any(condition.name in CHANGING for condition in self.requires)
        )

    @property
    def alone(self) -> bool:
        """Return whether nothing is sent ahead with the task, because each start or each end is checked."""
        return self.gated or (self.recycle is not None and self.recycle.memory_bytes is not None)


class Allotment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The resources of its node that a task has as long as it runs."""

    amounts: dict[str, float] = {}
    gpus: tuple[str, ...] = ()
    """The devices, as CUDA_VISIBLE_DEVICES names them."""
    exclusive: bool = False
    """Whether the task has the node to itself."""


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
OPERATORS = (*_OPERATORS, "in", "not in")

_NUMBERS = re.compile(r"\d+")


def unmet(condition: Condition, known: Mapping[str, Any]) -> str:
    """Return why a condition does not hold of the known facts.  "" means it holds."""
    if condition.name not in known:
        return f"{condition}: this engine has no {_cut(condition.name)}"
    found = known[condition.name]
    try:
        holds = _holds(condition, found)
    except TypeError:
        return f"{condition}: it is {_cut(found)!r}, which cannot be compared with that"
    if holds:
        return ""
    at_least = condition.name in SIZES and condition.op == "=="
    meant = f" ('>= {_shown(condition.name, condition.value)}' asks for as much at least)" if at_least else ""
    return f"{condition}: it is {_shown(condition.name, found)}{meant}"


def _shown(name: str, value: Any) -> str:
    """Format a value for people."""
    if name in SIZES and isinstance(value, (int, float)):
        unit = next((unit for unit in ("TiB", "GiB") if value >= _BYTES[unit]), "MiB")
        return f"{value / _BYTES[unit]:.{0 if unit == 'MiB' else 1}f} {unit}"
    return f"{value:.0%}" if name == LOAD and isinstance(value, (int, float)) else str(_cut(value))


_BYTES = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _cut(value: Any) -> Any:
    return f"{value[:TEXT_SHOWN]}…" if isinstance(value, str) and len(value) > TEXT_SHOWN else value


def _holds(condition: Condition, found: Any) -> bool:
    wanted: Any = condition.value
    if isinstance(wanted, tuple):
        return any(_same(condition.name, found, each) for each in wanted) is (condition.op == "in")
    if condition.name in _VERSIONS:
        found, wanted = _version(found), _version(wanted)
        if condition.op in ("==", "!="):
            found = found[: len(wanted)]  # 3.11 is any 3.11.x
    return bool(_OPERATORS[condition.op](found, wanted))


def _same(name: str, found: Any, wanted: Any) -> bool:
    if name in _VERSIONS:
        version = _version(wanted)
        return _version(found)[: len(version)] == version
    return bool(found == wanted)


def _version(text: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBERS.findall(str(text)[:100]))


def amount(name: str, value: float) -> str:
    """Format an amount of a resource for people."""
    if name == MEMORY:
        return f"{value / 2**20:,.0f} MiB of memory"
    return f"{value:g} {'core' if name == CORES and value == 1 else name}"


SIZE_MAX = 2.0**60
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*\Z", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """Return a size, given as people write it: ``"300 MiB"``; k, M, G and T are powers of 1024.

    ValueError: the text is no size."""
    found = _SIZE.match(text)
    if found is None:
        raise ValueError(f"a size like '300 MiB' or '2G' is expected, not {text!r:.80}")
    size = float(found[1]) * _UNITS[found[2].lower()]
    if size > SIZE_MAX:
        raise ValueError(f"a size of at most 2**60 bytes is expected, not {text!r:.80}")
    return int(size)
