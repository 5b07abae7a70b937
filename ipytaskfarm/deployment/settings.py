"""`FarmSettings`: what a farm is started with, checked, from the arguments of `Farm` or of ``ipytaskfarm start``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.scheduler.autoscaling import Limits
from ..core.text import did_you_mean
from ..settings.checks import Agents
from ..settings.declarations import AGENT, CONTROLLER, DEFAULT_HOST, SETTINGS, words_for

DEFAULT_NAME = "default"
DEFAULT_PORT = 10113
"""Taken if it is free and the farm has no port of its own yet."""

_NUMBER_OF_ENGINES = frozenset({"engines", "n_engines", "num_engines", "workers", "n_workers", "n_jobs", "processes"})
"""What people write for `n` who come from somewhere else."""

OWNED_LEASE_S = 60.0
"""An owned farm's agent ends by itself so long after its controller, if owner and controller die together."""


@dataclass(frozen=True, kw_only=True)
class FarmSettings:
    """What a farm is started with.  Durations are in seconds."""

    name: str
    engines: int
    """How many engines are wanted on this machine."""
    agents: tuple[Agents, ...] = ()
    """Agents on other machines."""
    owned: bool = False
    """The farm is in a temporary folder and is deleted when its owner ends, however the owner ends."""
    startup: str | None = None
    """Code that every fresh engine runs first.  None: the farm keeps the code that it has."""
    startup_name: str = ""
    """What people are shown for the start-up code: the file's name."""
    host: str = DEFAULT_HOST
    port: int | None = None
    """None: the farm's own, else the default one, else any."""
    store_dir: Path | None = None
    elastic: Limits | None = None
    """The number of this machine's engines follows the work within these limits.  None: it stays."""
    hold: bool = False
    """Start no task until somebody resumes the farm."""
    fresh: bool = False
    take_over: bool = False
    start_timeout_s: float = 60.0
    """How long engines may take until people are told that some are missing."""
    drain_s: float | None = 10.0
    """How long running tasks may go on when the farm is stopped.  None: until they end."""
    passed: Mapping[str, Any] = field(default_factory=dict)
    """The settings that only the controller and the agents read, by name, those that were given."""

    @property
    def own_lease_s(self) -> float | None:
        """Return the lease that the controller and the agents are told.  None: their default."""
        lease_s: float | None = self.passed.get("lease")
        return OWNED_LEASE_S if lease_s is None and self.owned else lease_s

    @property
    def engines_at_start(self) -> int:
        """Return how many engines start before there is any work; others start when they are needed."""
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

    arguments: values as users give them, by the names of `Farm`'s arguments; what is missing has its default.
    cores: returns the number of engines if nothing else says it.
    as_written: makes of an argument's name what the user wrote, an argument or a flag, for errors.

    Raises TypeError, ValueError, and what reading the start-up code may raise."""
    for unknown in arguments.keys() - SETTINGS.keys():
        near = ", did you mean 'n'?" if unknown in _NUMBER_OF_ENGINES else did_you_mean(unknown, SETTINGS)
        raise TypeError(f"Farm() has no argument {unknown!r}{near or ', see help(Farm)'}")
    values = {
        each: setting.check(as_written(each), arguments.get(each, setting.default))
        for each, setting in SETTINGS.items()
    }
    elastic = _limits(values["min"], values["max"], values["idle"])
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
    return bool(SETTINGS[name].processes) and value is not None and value != ()


def _limits(least: int | None, most: int | None, idle_s: float | None) -> Limits | None:
    if least is None and most is None:
        return None
    if least is None or most is None or least > most:
        raise ValueError(f"min and max go together, min no more than max: {least} and {most} were given")
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
    """Return the words of the controller's command line for the settings that were given."""
    return words_for(CONTROLLER, {**settings.passed, "lease": settings.own_lease_s})


def agent_flags(settings: FarmSettings) -> list[str]:
    """Return the words of an agent's command line for the settings that were given."""
    return words_for(AGENT, {**settings.passed, "lease": settings.own_lease_s})
