"""`FarmSettings`: the checked settings of a farm, from the arguments of `Farm` or of ``ipytaskfarm start``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.scheduler.autoscaling import IDLE_S, Limits
from ..core.text import did_you_mean
from ..settings.checks import Agents
from ..settings.declarations import DEFAULT_HOST, SETTINGS, words_for
from ..settings.setting import AGENT, CONTROLLER

DEFAULT_NAME = "default"
DEFAULT_PORT = 10113
"""Used if it is free and the farm has no port of its own yet."""

_NUMBER_OF_ENGINES = frozenset({"engines", "n_engines", "num_engines", "workers", "n_workers", "n_jobs", "processes"})
"""Names that users of other libraries try in place of `n`."""

OWNED_LEASE_S = 60.0
"""An owned farm's agent ends by itself this long after its controller, if owner and controller die together."""


@dataclass(frozen=True, kw_only=True)
class FarmSettings:
    """The settings with which a farm is started. Durations are in seconds."""

    name: str
    engines: int
    """The number of wanted engines on this machine."""
    agents: tuple[Agents, ...] = ()
    """Agents on other machines."""
    owned: bool = False
    """Whether the farm is in a temporary folder that is deleted when its owner ends, however the owner ends."""
    startup: str | None = None
    """Code that every fresh engine runs first. None: the farm keeps its present code."""
    startup_name: str = ""
    """The name of the start-up code for people: the file's name."""
    host: str = DEFAULT_HOST
    port: int | None = None
    """None: the farm's own port, else the default one, else any."""
    store_dir: Path | None = None
    elastic: Limits | None = None
    """Limits within which the number of this machine's engines follows the work. None: it does not change."""
    hold: bool = False
    """Whether no task starts until the farm is resumed."""
    fresh: bool = False
    take_over: bool = False
    start_timeout_s: float = 60.0
    """The time after which people are told that engines are missing."""
    drain_s: float | None = 10.0
    """How long running tasks may go on when the farm is stopped. None: until they end."""
    passed: Mapping[str, Any] = field(default_factory=dict)
    """The given settings that only the controller and the agents read, by name."""

    @property
    def own_lease_s(self) -> float | None:
        """Return the lease for the controller and the agents; None for their default."""
        lease_s: float | None = self.passed.get("lease")
        return OWNED_LEASE_S if lease_s is None and self.owned else lease_s

    @property
    def engines_at_start(self) -> int:
        """Return how many engines start before there is work. The others start when they are needed."""
        warm: int | None = self.passed.get("warm")
        engines = self.engines + sum(agents.at_start for agents in self.agents)
        return engines if warm is None else min(engines, warm)


def farm_settings(
    arguments: Mapping[str, Any],
    name: str,
    cores: Callable[[], int],
    *,
    owned: bool = False,
    as_written: Callable[[str], str] = str,
) -> FarmSettings:
    """Check the arguments of a farm and return its settings.

    Args:
        arguments: values by the names of `Farm`'s arguments. Missing ones have their defaults.
        name: the farm's name.
        cores: returns the number of engines if no argument gives it.
        owned: whether the farm ends with its owner.
        as_written: returns an argument's name as the user wrote it, an argument or a flag, for error messages.

    Raises:
        TypeError, ValueError: an argument is not valid.
        OSError: the start-up code cannot be read.
    """
    for unknown in arguments.keys() - SETTINGS.keys():
        near = ", did you mean 'n'?" if unknown in _NUMBER_OF_ENGINES else did_you_mean(unknown, SETTINGS)
        raise TypeError(f"Farm() has no argument {unknown!r}{near or ', see help(Farm)'}")
    values = {
        each: setting.check(as_written(each), arguments.get(each, setting.default))
        for each, setting in SETTINGS.items()
    }
    elastic = _limits(values["min"], values["max"], values["idle"], as_written)
    return FarmSettings(
        name=name,
        engines=_engines_at_first(values["n"], elastic, values["agents"], cores),
        agents=values["agents"],
        owned=owned,
        startup=values["startup"][0],
        startup_name=values["startup"][1],
        host=values["host"],
        port=values["port"],
        store_dir=values["store_dir"],
        elastic=elastic,
        hold=values["hold"],
        fresh=values["fresh"],
        take_over=values["take_over"],
        start_timeout_s=values["start_timeout"] or 0.0,
        drain_s=values["drain"],
        passed={each: values[each] for each in SETTINGS if _is_passed(each, values[each])},
    )


def _is_passed(name: str, value: object) -> bool:
    return any(map(SETTINGS[name].is_of, (CONTROLLER, AGENT))) and value is not None and value != ()


def idle_alone(as_written: Callable[[str], str]) -> str:
    """Return what is wrong with a time after which idle engines end, if their number does not follow the work."""
    least, most = as_written("min"), as_written("max")
    return (
        f"{as_written('idle')} goes with {least} and {most}: the number of engines, or of agents, follows the work"
        f" only between two limits. Give both, or leave {as_written('idle')} out"
    )


def _limits(
    least: int | None, most: int | None, idle_s: float | None, as_written: Callable[[str], str]
) -> Limits | None:
    if least is None and most is None:
        if idle_s not in (None, IDLE_S):
            raise ValueError(idle_alone(as_written))
        return None
    if least is None or most is None:
        raise ValueError(f"{as_written('min')} and {as_written('max')} go together: give both")
    if least > most:
        raise ValueError(f"{as_written('min')} must be no more than {as_written('max')}: {least} and {most} were given")
    return Limits(least, most) if idle_s is None else Limits(least, most, idle_s)


def _engines_at_first(
    n: int | None, elastic: Limits | None, agents: tuple[Agents, ...], cores: Callable[[], int]
) -> int:
    if elastic is not None:
        return elastic.least if n is None else max(elastic.least, min(elastic.most, n))
    if n is None:
        return 0 if agents else cores()
    return n


def controller_flags(settings: FarmSettings) -> list[str]:
    """Return the controller's command-line words for the given settings."""
    return words_for(CONTROLLER, {**settings.passed, "lease": settings.own_lease_s})


def agent_flags(settings: FarmSettings) -> list[str]:
    """Return an agent's command-line words for the given settings."""
    return words_for(AGENT, {**settings.passed, "lease": settings.own_lease_s})
