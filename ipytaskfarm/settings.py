"""How a farm is to be: the arguments of `Farm`, which are also flags of ``ipytaskfarm start`` and traits, checked."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

DEFAULT_NAME = "default"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 10113
"""Taken if it is free and the farm has no port of its own yet."""

_POLICY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_OWN_POLICIES = ("FIFO", "LIFO", "FairShare")


@dataclass(frozen=True, kw_only=True)
class FarmSettings:
    """Everything that can be said about a farm before it starts.  Durations are seconds."""

    name: str
    engines: int
    """How many engines are wanted."""
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


def check_engines(n: object) -> int:
    """A number of engines: 0 or more."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n, the number of engines, must be an int, not {type(n).__name__}")
    if n < 0:
        raise ValueError(f"n, the number of engines, must be 0 or more, not {n}")
    return n


def check_seconds(what: str, value: object) -> float | None:
    """A duration as seconds or timedelta, 0 or more; None stays None."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{what} must be 0 seconds or more, not {value}")
    return float(value)


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*\Z", re.IGNORECASE)


def check_bytes(what: str, value: object) -> int | None:
    """A size in bytes: a number, or text like ``"300 MiB"`` (k, M, G and T are powers of 1024); None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        found = _SIZE.match(value)
        if found is None:
            raise ValueError(f"{what} must be a size like '300 MiB' or '2G', not {value!r}")
        value = int(float(found[1]) * _UNITS[found[2].lower()])
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be bytes or text like '300 MiB', not {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{what} must be more than 0 bytes, not {value}")
    return value


def check_count(what: str, value: object, least: int) -> int | None:
    """A whole number of at least `least`; None stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{what} must be {least} or more, not {value}")
    return value


def controller_flags(settings: FarmSettings) -> list[str]:
    """The settings that the controller is told on its command line, those that were given."""
    policy = [] if settings.queue_policy is None else ["--queue-policy", settings.queue_policy]
    for folder in settings.policy_path:
        policy += ["--policy-path", str(folder.resolve())]
    return policy + _given(
        ("--unmet-timeout", settings.unmet_timeout_s),
        ("--failure-penalty", settings.failure_penalty_s),
        ("--grace", settings.grace_s),
        ("--max-engine-losses", settings.max_engine_losses),
        ("--node-failures", settings.node_failures),
        ("--keep-results", settings.keep_results_s),
        ("--keep-results-bytes", settings.keep_results_bytes),
        ("--record", settings.record),
    )


def agent_flags(settings: FarmSettings) -> list[str]:
    """The same for the agents."""
    return _given(("--grace", settings.grace_s), ("--memory-limit", settings.memory_limit_bytes))


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
