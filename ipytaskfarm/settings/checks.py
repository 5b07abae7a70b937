"""Checks of the values that users give for settings. Each returns the value in the form to keep; None stays None.

The first argument of a check is the name of the setting in the user's words, an argument or a flag, for errors.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..core.arguments import check_bytes, check_count, check_seconds
from ..core.parsing import parse_span
from ..core.requirements import bytes_of
from ..core.scheduler.autoscaling import IDLE_S
from ..core.scheduler.settings import COROUTINES_MAX
from ..core.text import did_you_mean

LEASE_LEAST_S = 5.0
"""A shorter lease would end engines in short pauses of the network."""

_POLICY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_OWN_POLICIES = ("FIFO", "LIFO", "FairShare", "FairShareJobs")


@dataclass(frozen=True)
class Agents:
    """Agents on other machines: ``Agents("slurm", 3, engines=2, options={"partition": "short"})``.

    Args:
        launcher: ``slurm``, ``pbs``, ``lsf``, ``ssh``, ``dask``, or the name of a launcher of another package.
        count: the number of agents; None: as many as the launcher's options say (hosts of ssh, workers of Dask), else
            one.
        engines: the number of engines per agent, in addition to the farm's own; None: one per core that the agent may
            use.
        time_limit: when the batch system ends the agents: seconds, a timedelta, or text like ``"2h"``; None: the batch
            system's own limit.
        leave: seconds (or a timedelta) for which running tasks go on after an agent was told to end.
        min, max: the number of agents follows the work in the queue within these limits, starting at `count`.
        idle: seconds (or a timedelta) after which unneeded agents are given back, with `min` and `max`.
        python: the interpreter on the other machines; None: the same path as here.
        options: the launcher's own options, see ``ipytaskfarm agents launchers``.

    Raises:
        TypeError, ValueError: a value does not fit.
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
            raise ValueError("min and max go together: give the smallest and the largest number of agents")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        limit = self.time_limit
        if isinstance(limit, str):
            try:
                limit = parse_span(limit)
            except ValueError as error:
                raise ValueError(f"time_limit: {error}") from None
        for name, value in (("time_limit", limit), ("leave", self.leave), ("idle", self.idle)):
            object.__setattr__(self, name, check_seconds(name, value, zero=name != "time_limit"))
        object.__setattr__(self, "options", {str(key): str(value) for key, value in self.options.items()})

    @property
    def at_start(self) -> int:
        """Return how many engines the agents bring at least, as far as the arguments show."""
        agents = self.min if self.min is not None else self.count
        return (1 if agents is None else agents) * (self.engines or 1)


def unchecked(what: str, value: Any) -> Any:
    """Return the value, which is checked later."""
    return value


def check_agents(what: str, agents: object) -> tuple[Agents, ...]:
    """Return agents from an `Agents`, text like ``"slurm:3"``, or several of either."""
    if agents is None:
        return ()
    if isinstance(agents, Agents):
        return (agents,)
    if isinstance(agents, str):
        launcher, colon, count = agents.partition(":")
        if not launcher or (colon and not count.isdecimal()):
            raise ValueError(f"{what}: a launcher and a number are expected, like 'slurm:3', not {agents!r}")
        return (Agents(launcher, int(count) if colon else None),)
    if isinstance(agents, Iterable):
        return tuple(each for one in agents for each in check_agents(what, one))
    raise TypeError(f"{what}: an Agents or text like 'slurm:3' is expected, not {type(agents).__name__}")


def check_engines(what: str, n: object) -> int | None:
    """Return a number of engines: 0 or more."""
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{what}, the number of engines, must be an int, not {type(n).__name__}")
    if n < 0:
        raise ValueError(f"{what}, the number of engines, must be 0 or more, not {n}")
    return n


def check_resources(what: str, value: object) -> tuple[str, ...] | None:
    """Return resources as words for the agent's command line, ``gpu=2.0``.

    `value` is a dict of names and amounts, or texts like ``gpu=2``. An amount is a number or a size like ``"4 GiB"``.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        amounts = dict(value)
    elif isinstance(value, list):
        amounts = dict(_declared_resource(what, text) for text in value)
    else:
        raise TypeError(f"{what} must be a dict of names and amounts, not {type(value).__name__}")
    return tuple(f"{name}={_resource_amount(what, name, each)!r}" for name, each in amounts.items())


def _declared_resource(what: str, text: str) -> tuple[str, str | float]:
    name, equals, amount = text.partition("=")
    if not equals:
        raise ValueError(f"{what}: NAME=AMOUNT is expected, like gpu=2, not {text!r}")
    try:
        return name, float(amount)
    except ValueError:
        return name, amount


def _resource_amount(what: str, name: object, value: object) -> float:
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(f"{what}: {name!r} is no name for a resource, use letters, digits and _")
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = bytes_of(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{what}: {name} must be a number of 0 or more, or a size like '4 GiB', not {value!r}")
    return float(value)


def check_port(what: str, value: object) -> int | None:
    """Return the number of a port: the system would take a larger one without its upper bits."""
    number = check_count(what, value, least=0)
    if number is not None and number > PORT_MAX:
        raise ValueError(f"{what} must be a port, {PORT_MAX:,} at most, not {number}")
    return number


def check_coroutines(what: str, value: object) -> int | None:
    """Return how many coroutine tasks an engine runs at once."""
    number = check_count(what, value, least=1)
    if number is not None and number > COROUTINES_MAX:
        raise ValueError(f"{what} must be {COROUTINES_MAX:,} or less, not {number:,}: start more engines")
    return number


def check_lease(what: str, value: object) -> float | None:
    """Return a lease in seconds."""
    lease_s = check_seconds(what, value)
    if lease_s is not None and lease_s < LEASE_LEAST_S:
        raise ValueError(f"{what} must be {LEASE_LEAST_S:g} seconds or more, not {lease_s:g}")
    return lease_s


PORT_MAX = 65_535

MESSAGES_LEAST_BYTES = 512 << 20
"""Room for the largest message of one key, which is 256 MiB, and for others beside it."""


def check_incoming(what: str, value: object) -> int | None:
    """Return a size in bytes that has room for the largest message."""
    size = check_bytes(what, value)
    if size is not None and size < MESSAGES_LEAST_BYTES:
        raise ValueError(f"{what} must be 512M or more, not {size:,} bytes: the largest message has 256M")
    return size


def check_environment_patience(what: str, value: object) -> float | None:
    """Return a duration in seconds; -1 for no limit, given as False or -1."""
    unlimited = value is False or (isinstance(value, int | float) and value == -1)
    return -1.0 if unlimited else check_seconds(what, value)


def check_choice(what: str, value: object, choices: Sequence[str]) -> str | None:
    """Return one of these words."""
    if value is None or (isinstance(value, str) and value in choices):
        return value
    words = ", ".join(repr(each) if " " in each else each for each in choices)
    raise ValueError(f"{what} must be one of {words}, not {value!r}{did_you_mean(value, choices)}")


def check_times(what: str, value: object) -> float | None:
    """Return a multiple of a duration: 1.5 or more."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1.5 <= value < math.inf:
        raise ValueError(f"{what} must be a number, 1.5 or more, not {value!r}")
    return float(value)


def check_share(what: str, value: object) -> float | None:
    """Return a share of the cores: more than 0 and up to 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{what} must be a share of the cores, more than 0 and up to 1, not {value!r}")
    return float(value)


def folder_path(what: str, value: str | os.PathLike[str] | None) -> Path | None:
    """Return the path of a folder, which need not exist yet."""
    return None if value is None else Path(value).expanduser()


def file_path(what: str, value: str | os.PathLike[str] | None) -> Path | None:
    """Return the absolute path of a file, which need not exist yet."""
    return None if value is None else Path(value).expanduser().absolute()


def existing_folders(
    what: str, folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None
) -> tuple[Path, ...]:
    """Return one folder or several as absolute paths.

    Raises:
        ValueError: one is not a folder.
    """
    several = (folders,) if isinstance(folders, str | os.PathLike) else folders or ()
    paths = tuple(Path(folder).expanduser().resolve() for folder in several)
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{what}: {path} is not a folder")
    return paths


def read_startup(what: str, startup: object) -> tuple[str | None, str]:
    """Return start-up code and its name for people. None: the farm keeps its present code.

    `startup` is code if it is a str, and a file of code if it is a path.

    Raises:
        FileNotFoundError: the file cannot be read.
        ValueError: a str is the name of a file, or the file is not UTF-8.
        SyntaxError: the code is not valid Python.
    """
    if startup is None:
        return None, ""
    if isinstance(startup, str):
        if re.fullmatch(r"\S+\.py", startup):
            raise ValueError(
                f"{what}={startup!r} is the name of a file, and a str is code: give pathlib.Path({startup!r})"
            )
        return startup, "start-up code"
    if isinstance(startup, os.PathLike):
        path = Path(startup).expanduser()
        try:
            code = path.read_text(encoding="utf-8")
        except OSError as error:
            raise FileNotFoundError(f"the start-up file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"the start-up file {path} is not UTF-8 ({error.reason}): save it as UTF-8") from None
        if path.suffix == ".py":
            compile(code, str(path), "exec")  # a SyntaxError is better seen here than on each engine
        return code, str(path)
    raise TypeError(f"{what} must be code (a str) or a file (a pathlib.Path), not {type(startup).__name__}")


def policy_name(what: str, policy: object) -> str | None:
    """Return a queue policy as ``module:Class``.

    `policy` is such a name, ``module.Class``, the name of one of the farm's policies, or the class itself.

    Raises:
        ValueError: the controller, another process, could not import it, because it is defined in ``__main__`` or a
            notebook.
    """
    if policy is None:
        return None
    if isinstance(policy, str):
        return _policy_from_text(what, policy)
    chosen = policy if inspect.isclass(policy) else type(policy)
    if chosen.__module__ in ("__main__", "builtins"):
        raise ValueError(
            f"{what}: {chosen.__qualname__} is defined in {chosen.__module__}, where the controller cannot import"
            f" it. Put it in a file, say mine.py, and give queue_policy='mine:{chosen.__name__}',"
            " policy_path=<its folder>"
        )
    if "." in chosen.__qualname__:
        raise ValueError(f"{what}: {chosen.__qualname__} must be defined at the top level of its module")
    return f"{chosen.__module__}:{chosen.__qualname__}"


def _policy_from_text(what: str, text: str) -> str:
    if text in _OWN_POLICIES:
        return f"ipytaskfarm.policies:{text}"
    if ":" not in text and "." in text:
        module, _, name = text.rpartition(".")
        text = f"{module}:{name}"
    if not _POLICY.match(text):
        raise ValueError(
            f"{what} {text!r} is neither one of {', '.join(_OWN_POLICIES)} nor an importable name like 'mine:Policy'"
            f"{did_you_mean(text, _OWN_POLICIES)}"
        )
    return text
