"""How a farm is to be: the arguments of `Farm`, which are also flags of ``ipytaskfarm start`` and traits, checked."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypedDict

from ..core.arguments import check_bytes, check_count, check_seconds
from ..core.parsing import parse_span
from ..core.requirements import bytes_of
from ..core.scheduler.autoscaling import IDLE_S, Limits
from ..core.scheduler.engine_choice import PLACEMENTS

DEFAULT_NAME = "default"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 10113
"""Taken if it is free and the farm has no port of its own yet."""

OWNED_LEASE_S = 60.0
"""An owned farm's agent ends by itself this long after its controller, should owner and controller die together."""
LEASE_LEAST_S = 5.0
"""Before that nobody is taken for unreachable."""

_POLICY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_OWN_POLICIES = ("FIFO", "LIFO", "FairShare", "FairShareJobs")


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """Which engines there are for whom, and what nodes have for tasks.  None: the controller's own default."""

    warm: int | None = None
    """How many free slots hold a blank engine; None: all."""
    resources: tuple[tuple[str, float], ...] = ()
    """What this machine's node has, beside or instead of what is found."""
    placement: str | None = None
    load_limit: float | None = None
    """A share of the cores."""
    free_memory_bytes: int | None = None
    environment_patience_s: float | None = None
    """Below 0: off."""
    resource_patience_s: float | None = None
    lease_s: float | None = None
    """So long after an agent last heard the controller its engines end, and a little later their work is done
    elsewhere."""
    elastic: Limits | None = None
    """The number of this machine's engines follows the work within these; None: it stays."""


class SchedulingArguments(TypedDict, total=False):
    """The same as arguments of `Farm`."""

    warm: int | None
    resources: Mapping[str, float | str] | None
    placement: str | None
    load_limit: float | None
    free_memory: int | str | None
    environment_patience: float | timedelta | Literal[False] | None
    resource_patience: float | timedelta | None
    lease: float | timedelta | None
    min: int | None
    max: int | None
    idle: float | timedelta | None


def check_scheduling(
    warm: object = None,
    resources: object = None,
    placement: object = None,
    load_limit: object = None,
    free_memory: object = None,
    environment_patience: object = None,
    resource_patience: object = None,
    min: object = None,
    max: object = None,
    idle: object = None,
    lease: object = None,
) -> Scheduling:
    """These arguments of `Farm`, checked."""
    patience = -1.0 if environment_patience is False else check_seconds("environment_patience", environment_patience)
    return Scheduling(
        warm=check_count("warm", warm, 0),
        resources=_resources(resources),
        placement=_placement(placement),
        load_limit=_share("load_limit", load_limit),
        free_memory_bytes=check_bytes("free_memory", free_memory),
        environment_patience_s=patience,
        resource_patience_s=check_seconds("resource_patience", resource_patience),
        lease_s=_lease(lease),
        elastic=_limits(min, max, idle),
    )


def _resources(value: object) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise TypeError(f"resources must be a dict of names and amounts, not {type(value).__name__}")
    return tuple((name, resource_amount(name, each)) for name, each in value.items())


def resource_amount(name: object, value: object) -> float:
    """How much there is of a resource: a number, or a size like ``"4 GiB"``."""
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(f"resources: {name!r} is no name for a resource, use letters, digits and _")
    if isinstance(value, str):
        value = bytes_of(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"resources: {name} must be a number of 0 or more, or a size like '4 GiB', not {value!r}")
    return float(value)


def _lease(value: object) -> float | None:
    lease_s = check_seconds("lease", value)
    if lease_s is not None and lease_s < LEASE_LEAST_S:
        raise ValueError(f"lease must be {LEASE_LEAST_S:g} seconds or more, not {lease_s:g}")
    return lease_s


def _placement(value: object) -> str | None:
    if value is not None and value not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {value!r}")
    return value


def _share(what: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{what} must be a share of the cores, more than 0 and up to 1, not {value!r}")
    return float(value)


@dataclass(frozen=True)
class Agents:
    """Agents on other machines: ``Agents("slurm", 3, engines=2, options={"partition": "short"})``.

    launcher: ``slurm``, ``pbs``, ``lsf``, ``ssh``, ``dask``, or the name of one that another package brings.
    count: how many; None: as many as the launcher's options say (hosts of ssh, workers of Dask), else one.
    engines: how many each brings, beside the farm's own; None: one per core that it may use.
    time_limit: when the system ends them: seconds, a timedelta, or text like ``"2h"``; None: the system's own.
    leave: seconds (or a timedelta) for which running tasks go on once an agent was told to end.
    min, max: as many as the queue's work needs, within these; `count` is then where it begins.
    idle: seconds (or a timedelta) after which agents that nobody needs are given back, with `min` and `max`.
    python: the interpreter there; None: the same as here.
    options: the launcher's own, see ``ipytaskfarm agents add LAUNCHER --help``.
    """

    launcher: str
    count: int | None = None
    engines: int | None = None
    time_limit: float | timedelta | str | None = None
    leave: float | timedelta = 25.0
    min: int | None = None
    max: int | None = None
    idle: float | timedelta = IDLE_S
    python: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("count", "min", "max"):
            check_count(what, getattr(self, what), 0)
        check_count("engines", self.engines, 1)
        if (self.min is None) != (self.max is None):
            raise ValueError("min and max go together: how many agents at least and at most")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        limit = parse_span(self.time_limit) if isinstance(self.time_limit, str) else self.time_limit
        for name, value in (("time_limit", limit), ("leave", self.leave), ("idle", self.idle)):
            object.__setattr__(self, name, check_seconds(name, value, zero=name != "time_limit"))
        object.__setattr__(self, "options", {str(key): str(value) for key, value in self.options.items()})

    @property
    def at_start(self) -> int:
        """How many engines come with them at least, as far as can be said beforehand."""
        agents = self.min if self.min is not None else self.count
        return (1 if agents is None else agents) * (self.engines or 1)


def check_agents(agents: object) -> tuple[Agents, ...]:
    """Agents as `Farm` takes them: an `Agents`, text like ``"slurm:3"``, or several of either."""
    if agents is None:
        return ()
    if isinstance(agents, Agents):
        return (agents,)
    if isinstance(agents, str):
        launcher, colon, count = agents.partition(":")
        if not launcher or (colon and not count.isdecimal()):
            raise ValueError(f"agents: a launcher and how many are expected, like 'slurm:3', not {agents!r}")
        return (Agents(launcher, int(count) if colon else None),)
    if isinstance(agents, Iterable):
        return tuple(each for one in agents for each in check_agents(one))
    raise TypeError(f"agents: an Agents or text like 'slurm:3' is expected, not {type(agents).__name__}")


@dataclass(frozen=True, kw_only=True)
class FarmSettings:
    """Everything that can be said about a farm before it starts.  Durations are seconds."""

    name: str
    engines: int
    """How many engines are wanted on this machine."""
    agents: tuple[Agents, ...] = ()
    """Agents on other machines."""
    owned: bool = False
    """The farm lives in a temporary folder and goes with its owner, whatever becomes of that one."""
    startup: str | None = None
    """Code that every fresh engine runs first; None: leave what the farm has."""
    startup_name: str = ""
    """What people are shown of it: a file's name."""
    queue_policy: str | None = None
    """``module:Class``."""
    policy_path: tuple[Path, ...] = ()
    host: str = DEFAULT_HOST
    location: str | None = None
    """Where other machines find the farm; None: at `host`, or by this host's name if that is a wildcard."""
    port: int | None = None
    """None: the farm's own, else the default one, else any."""
    store_dir: Path | None = None
    unmet_timeout_s: float | None = None
    failure_penalty_s: float | None = None
    grace_s: float | None = None
    """Between the interrupt of a task that is over its time limit and the signals that end its engine."""
    memory_limit_bytes: int | None = None
    """What an engine and its children may have of their own; None: as much as there is."""
    max_engine_losses: int | None = None
    """A task that so many engines were lost over is quarantined."""
    node_failures: int | None = None
    """After so many failed attempts in a row a node on which nothing works gets no more tasks."""
    keep_results_s: float | None = None
    """Results are cleared so long after their task's end; None: never."""
    keep_results_bytes: int | None = None
    """The oldest results are cleared when the store holds more; None: never."""
    scheduling: Scheduling = Scheduling()
    hold: bool = False
    """Start no task until somebody says so."""
    fresh: bool = False
    take_over: bool = False
    start_timeout_s: float = 60.0
    """How long engines may take until people are told that some are missing."""
    record: Path | None = None
    """A file for a tape of all that the controller hears, for ``ipytaskfarm replay``."""
    drain_s: float | None = 10.0
    """How long running tasks may go on when the farm is stopped; None: until they end."""

    @property
    def own_lease_s(self) -> float | None:
        """The lease that controller and agents are told; None: their own default."""
        lease_s = self.scheduling.lease_s
        return OWNED_LEASE_S if lease_s is None and self.owned else lease_s

    @property
    def engines_at_start(self) -> int:
        """How many engines come up before there is any work: others are started when they are needed."""
        warm = self.scheduling.warm
        engines = self.engines + sum(agents.at_start for agents in self.agents)
        return engines if warm is None else min(engines, warm)


def check_engines(n: object) -> int:
    """A number of engines: 0 or more."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n, the number of engines, must be an int, not {type(n).__name__}")
    if n < 0:
        raise ValueError(f"n, the number of engines, must be 0 or more, not {n}")
    return n


def _limits(least: object, most: object, idle: object) -> Limits | None:
    low, high = check_count("min", least, 0), check_count("max", most, 1)
    if low is None and high is None:
        return None
    if low is None or high is None or low > high:
        raise ValueError(f"min and max go together, min no more than max: {least} and {most} were given")
    idle_s = check_seconds("idle", idle)
    return Limits(low, high) if idle_s is None else Limits(low, high, idle_s)


def engines_at_first(n: object, elastic: Limits | None, agents: tuple[Agents, ...], cores: Callable[[], int]) -> int:
    """How many engines this machine begins with; cores: how many when nothing says anything else."""
    if elastic is not None:
        return elastic.least if n is None else max(elastic.least, min(elastic.most, check_engines(n)))
    if n is None:
        return 0 if agents else cores()
    return check_engines(n)


def controller_flags(settings: FarmSettings) -> list[str]:
    """The settings that the controller is told on its command line, those that were given."""
    policy = [] if settings.queue_policy is None else ["--queue-policy", settings.queue_policy]
    for folder in settings.policy_path:
        policy += ["--policy-path", str(folder.resolve())]
    return policy + _given(
        ("--location", settings.location),
        ("--unmet-timeout", settings.unmet_timeout_s),
        ("--failure-penalty", settings.failure_penalty_s),
        ("--lease", settings.own_lease_s),
        ("--grace", settings.grace_s),
        ("--max-engine-losses", settings.max_engine_losses),
        ("--node-failures", settings.node_failures),
        ("--keep-results", settings.keep_results_s),
        ("--keep-results-bytes", settings.keep_results_bytes),
        ("--record", settings.record),
        ("--warm", settings.scheduling.warm),
        ("--placement", settings.scheduling.placement),
        ("--load-limit", settings.scheduling.load_limit),
        ("--free-memory", settings.scheduling.free_memory_bytes),
        ("--environment-patience", settings.scheduling.environment_patience_s),
        ("--resource-patience", settings.scheduling.resource_patience_s),
    )


def agent_flags(settings: FarmSettings) -> list[str]:
    """The same for the agents."""
    declared = [word for name, each in settings.scheduling.resources for word in ("--resource", f"{name}={each:g}")]
    return declared + _given(
        ("--lease", settings.own_lease_s),
        ("--grace", settings.grace_s),
        ("--memory-limit", settings.memory_limit_bytes),
    )


def _given(*flags: tuple[str, object]) -> list[str]:
    return [word for flag, value in flags if value is not None for word in (flag, str(value))]


def read_startup(startup: object) -> tuple[str | None, str]:
    """Start-up code and its name: a str is code, a path is a file of code; None leaves what the farm has."""
    if startup is None:
        return None, ""
    if isinstance(startup, str):
        return startup, "start-up code"
    if isinstance(startup, os.PathLike):
        path = Path(startup).expanduser()
        try:
            code = path.read_text(encoding="utf-8")
        except OSError as error:
            raise FileNotFoundError(f"the start-up file {path} cannot be read: {error.strerror}") from None
        if path.suffix == ".py":
            compile(code, str(path), "exec")  # a SyntaxError is better seen here than on each engine
        return code, str(path)
    raise TypeError(f"startup must be code (a str) or a file (a pathlib.Path), not {type(startup).__name__}")


def policy_name(policy: object) -> str | None:
    """A queue policy as ``module:Class``: from such a name, from ``module.Class``, or from the class itself.

    A class of ``__main__`` or a notebook is a ValueError: the controller, another process, could not import it.
    """
    if policy is None:
        return None
    if isinstance(policy, str):
        return _policy_from_text(policy)
    chosen = policy if inspect.isclass(policy) else type(policy)
    if chosen.__module__ in ("__main__", "builtins"):
        raise ValueError(
            f"queue_policy: {chosen.__qualname__} is defined in {chosen.__module__}, where the controller cannot import"
            f" it. Put it in a file, say mine.py, and give queue_policy='mine:{chosen.__name__}',"
            " policy_path=<its folder>"
        )
    if "." in chosen.__qualname__:
        raise ValueError(f"queue_policy: {chosen.__qualname__} must stand at the top level of its module")
    return f"{chosen.__module__}:{chosen.__qualname__}"


def _policy_from_text(text: str) -> str:
    if text in _OWN_POLICIES:
        return f"ipytaskfarm.policies:{text}"
    if ":" not in text and "." in text:
        module, _, name = text.rpartition(".")
        text = f"{module}:{name}"
    if not _POLICY.match(text):
        raise ValueError(
            f"queue_policy {text!r} is neither one of {', '.join(_OWN_POLICIES)}"
            " nor an importable name like 'mine:Policy'"
        )
    return text


def folder_list(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """One folder or several, as paths."""
    several = (folders,) if isinstance(folders, str | os.PathLike) else folders
    return tuple(Path(folder).expanduser() for folder in several)
