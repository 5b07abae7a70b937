"""One setting, as `declarations` declares it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..core.arguments import check_bytes, check_count, check_seconds
from ..core.scheduler.settings import SchedulerSettings
from .checks import unchecked

CONTROLLER, AGENT = "controller", "agent"
"""The processes that get settings on their command lines."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, as users and processes know it. `FarmArguments` has its name and its type."""

    help: str
    """The effect of the setting: one sentence without its full stop."""
    unit: str = ""
    """The placeholder of the value in usage lines, with its unit: ``SECONDS``, ``SIZE``, ``N``; "" for a switch."""
    default: object = None
    """The default of the argument of `Farm`, of the flag and of the configuration."""
    means: str = ""
    """The meaning of the default, if its value does not show it."""
    check: Callable[[str, Any], Any] = unchecked
    """Converts a user's value to the value to keep; the first argument is the setting's name, for errors."""
    several: bool = False
    """Whether the flag may be given several times; its values form a list."""

    flag: str = ""
    """The flag of ``ipytaskfarm start`` without its dashes; "" for the name with dashes."""
    section: Literal["Controller", "Start"] = "Controller"
    """The class in a configuration file."""
    key: str = ""
    """The key in that class; "" for the name."""

    processes: tuple[str, ...] = ()
    """The processes that get the setting on their command lines, besides the controller if it has a `field`."""
    process_flag: str = ""
    """Their flag; "" for the name with dashes."""
    parse: Callable[[str], Any] = str
    """Reads the text on their command lines."""
    field: str = ""
    """The field of `SchedulerSettings` that the setting fills; its default is the default there."""
    standard: object = None
    """The default on their command line, without a field."""

    def is_of(self, process: str) -> bool:
        """Return whether a process gets the setting on its command line."""
        return process in self.processes or (process == CONTROLLER and bool(self.field))

    @property
    def process_default(self) -> Any:
        """Return the value that a process uses if it does not get the setting."""
        return getattr(SchedulerSettings, self.field) if self.field else self.standard

    @property
    def default_text(self) -> str:
        """Return the default as text for people."""
        if self.means:
            return self.means
        value = self.process_default if self.default is None else self.default
        if value is None or value == () or isinstance(value, bool):
            return ""
        return f"{value:g}" if isinstance(value, float) else str(value)


def seconds_setting(help: str, **more: Any) -> Setting:
    """Return a setting that is a duration."""
    return Setting(help=help, **{"unit": "SECONDS", "check": check_seconds, "parse": float, **more})


def count_setting(help: str, least: int, **more: Any) -> Setting:
    """Return a setting that is a whole number of at least `least`."""
    return Setting(help=help, **{"unit": "N", "check": partial(check_count, least=least), "parse": int, **more})


def size_setting(help: str, **more: Any) -> Setting:
    return Setting(help=help, **{"unit": "SIZE", "check": check_bytes, "parse": int, **more})
