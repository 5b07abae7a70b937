"""The settings of a farm, each declared once: name, type, default, unit, help.

A key of `LeadingArguments` or `FarmArguments` is a setting; its annotation has the type that `Farm` accepts and a
`Setting`. From these are made

- the signature of `Farm` and the list of arguments in its docstring (`with_settings`),
- the flags and the configuration of ``ipytaskfarm start`` (`cli.start`),
- the command lines of the controller and of the agents (`add_flags`, `words_for`),
- the table in ``docs/commands.md`` (`tests/unit/test_settings.py`).

To add a setting: add a key here, and read its value where it takes effect.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypedDict, TypeVar, get_args, get_type_hints

from ..core.failure_values import FAILURE_VALUES
from ..core.limits import PeerLimits
from ..core.scheduler.autoscaling import IDLE_S
from ..core.scheduler.settings import COPY_PLACES, PLACEMENTS, SchedulerSettings
from ..core.text import did_you_mean
from . import checks
from .setting import AGENT, CONTROLLER, Setting, count_setting, seconds_setting, size_setting

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

DEFAULT_HOST = "127.0.0.1"
DEFAULT_POLICY = "ipytaskfarm.policies:FIFO"
_LIMITS = PeerLimits()


def _switch(help: str) -> Setting:
    return Setting(help=help, default=False, section="Start")


def _optional_patience(text: str) -> float | None:
    patience_s = float(text)
    return None if patience_s < 0 else patience_s


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    return name, float(amount)


class LeadingArguments(TypedDict, total=False):
    """The settings that `Farm` accepts by position too."""

    n: Annotated[
        int | None,
        Setting(
            help="the number of engines on this machine",
            unit="N",
            means="the usable cores; with agents 0",
            check=checks.check_engines,
            flag="n engines",
            section="Start",
        ),
    ]
    name: Annotated[
        str | None,
        Setting(
            help="the farm's name",
            unit="NAME",
            means="in Python a temporary farm, on the command line the farm `default`",
            flag="farm",
            section="Start",
        ),
    ]
    startup: Annotated[
        str | os.PathLike[str] | None,
        Setting(
            help="a file with code that every fresh engine runs first (in Python a `pathlib.Path`; a str is code)."
            " The farm keeps it until it gets other code",
            unit="FILE",
            check=checks.read_startup,
            section="Start",
        ),
    ]
    queue_policy: Annotated[
        str | type | object | None,
        Setting(
            help="the order of the queue: `FIFO`, `LIFO`, `FairShare` (clients take turns), `FairShareJobs` (jobs take"
            " turns), or your own policy",
            unit="MODULE:CLASS",
            means="FIFO",
            check=checks.policy_name,
            processes=(CONTROLLER,),
            standard=DEFAULT_POLICY,
        ),
    ]


class FarmArguments(TypedDict, total=False):
    """The settings that `Farm` accepts as keyword arguments."""

    policy_path: Annotated[
        str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        Setting(
            help="a folder from which your own queue policy is imported",
            unit="DIR",
            default=(),
            check=checks.existing_folders,
            several=True,
            processes=(CONTROLLER,),
            standard=(),
        ),
    ]
    host: Annotated[
        str,
        Setting(
            help="the address to listen on: by default only this machine can connect; `0.0.0.0` means all addresses",
            unit="ADDRESS",
            default=DEFAULT_HOST,
        ),
    ]
    location: Annotated[
        str | None,
        Setting(
            help="the name or address by which other machines find the farm",
            unit="ADDRESS",
            means="the host, or this host's name if that is a wildcard",
            processes=(CONTROLLER,),
        ),
    ]
    port: Annotated[
        int | None,
        Setting(
            help="the port to listen on",
            unit="PORT",
            check=checks.check_port,
            means="the farm's own, else 10113 if it is free, else any",
        ),
    ]
    store_dir: Annotated[
        str | os.PathLike[str] | None,
        Setting(
            help="the folder for the store of a new farm, on a local disk",
            unit="DIR",
            means="the farm's own folder",
            check=checks.folder_path,
        ),
    ]
    unmet_timeout: Annotated[
        float | timedelta | None,
        seconds_setting(
            "after this time, fail a task that no engine may run",
            means="it waits",
            field="unmet_timeout_s",
        ),
    ]
    failure_penalty: Annotated[
        float | timedelta | None,
        seconds_setting(
            "how long an engine gets no tasks after a task has failed on it",
            field="failure_penalty_s",
        ),
    ]
    lease: Annotated[
        float | timedelta | None,
        seconds_setting(
            "an agent that has not heard from the controller for this time ends its engines; a little later their tasks"
            " run on other engines; at least 5",
            means="900; of a temporary farm 60",
            check=checks.check_lease,
            processes=(AGENT,),
            field="lease_s",
        ),
    ]
    grace: Annotated[
        float | timedelta | None,
        seconds_setting(
            "the time between the interrupt of a task after its time limit and the signals that end its engine",
            processes=(AGENT,),
            field="grace_s",
        ),
    ]
    memory_limit: Annotated[
        int | str | None,
        size_setting(
            "the private memory that an engine and its child processes may use, like `2G`; an engine that uses more"
            " is ended, and its task fails with this cause",
            means="no limit",
            processes=(AGENT,),
        ),
    ]
    coroutines: Annotated[
        int | None,
        count_setting(
            "how many tasks with an `async def` function an engine runs at once, at most 1,024",
            1,
            check=checks.check_coroutines,
            field="coroutines",
        ),
    ]
    failure_values: Annotated[
        Literal["masked", "all", "none"] | None,
        Setting(
            help="which local variables of a failed task's frames, and which arguments of a failed item of a map, are "
            "shown with its failure, as short texts: `masked` (without the values of names that look like a secret's), "
            "`all`, `none`",
            unit="WHICH",
            means="masked",
            check=partial(checks.check_choice, choices=FAILURE_VALUES),
            parse=partial(checks.check_choice, "failure-values", choices=FAILURE_VALUES),
            processes=(AGENT,),
        ),
    ]
    frozen_engines: Annotated[
        int | None,
        count_setting(
            'how many engines of a node may be frozen at once, each for a failed task with `on_failure="hold"`',
            0,
            field="frozen_engines",
        ),
    ]
    frozen_time: Annotated[
        float | timedelta | None,
        seconds_setting("a frozen engine ends after this time without use", field="frozen_s"),
    ]
    max_engine_losses: Annotated[
        int | None,
        count_setting(
            "quarantine a task, whatever its retries, when this many engines were lost while they ran it",
            1,
            field="max_engine_losses",
        ),
    ]
    node_failures: Annotated[
        int | None,
        count_setting(
            "give a node no more tasks after this many failed attempts in a row, if tasks of the same kinds succeed"
            " elsewhere; at least 5",
            5,
            field="node_failures",
        ),
    ]
    second_copy_after: Annotated[
        float | None,
        Setting(
            help="begin a second copy of an idempotent task whose run takes longer than so many times the 75th"
            " percentile of others like it, at least 1.5",
            unit="TIMES",
            check=checks.check_times,
            parse=float,
            field="second_copy_after",
        ),
    ]
    second_copies_on: Annotated[
        Literal["other nodes", "any engine"] | None,
        Setting(
            help="where second copies may run: on `other nodes` than the first run; with `any engine`, on a farm with"
            " one node, on another engine of it",
            unit="WHERE",
            check=partial(checks.check_choice, choices=COPY_PLACES),
            field="second_copies_on",
        ),
    ]
    keep_results: Annotated[
        float | timedelta | None,
        seconds_setting(
            "clear results after this time since the end of the task", means="never", processes=(CONTROLLER,)
        ),
    ]
    keep_results_size: Annotated[
        int | str | None,
        size_setting(
            "clear the oldest results when the store and its large values exceed this size",
            means="never",
            processes=(CONTROLLER,),
            process_flag="keep-results-bytes",
        ),
    ]
    cache_size: Annotated[
        int | str | None,
        size_setting(
            "the most bytes that kept results of tasks with `cache=True` may have; 0: none are kept",
            means="10 GiB",
            standard=10 * 2**30,
            processes=(CONTROLLER,),
        ),
    ]
    record: Annotated[
        str | os.PathLike[str] | None,
        Setting(
            help="a file that records everything that the controller receives, with payloads, for `ipytaskfarm replay`",
            unit="FILE",
            check=checks.file_path,
            processes=(CONTROLLER,),
            parse=Path,
        ),
    ]
    warm: Annotated[
        int | None,
        count_setting(
            "how many free slots have a blank engine that is ready for any environment",
            0,
            means="all",
            field="warm",
        ),
    ]
    resources: Annotated[
        Mapping[str, float | str] | None,
        Setting(
            help="resources of this machine that tasks may ask for: `gpu=2`, `licence=3` (in Python a dict); cores,"
            " memory and GPUs are detected, unless they are given here",
            unit="NAME=AMOUNT",
            check=checks.check_resources,
            several=True,
            flag="resource",
            key="resource",
            processes=(AGENT,),
            process_flag="resource",
            parse=_resource,
            standard=(),
        ),
    ]
    placement: Annotated[
        str | None,
        Setting(
            help=f"which of several free engines takes a task: {', '.join(f'`{each}`' for each in PLACEMENTS)}",
            unit="HOW",
            check=partial(checks.check_choice, choices=PLACEMENTS),
            parse=partial(checks.check_choice, "placement", choices=PLACEMENTS),
            field="placement",
        ),
    ]
    load_limit: Annotated[
        float | None,
        Setting(
            help="start no tasks on a node with a load above this share of its cores, except tasks with `force=True`",
            unit="SHARE",
            means="no limit",
            check=checks.check_share,
            parse=float,
            field="load_limit",
        ),
    ]
    free_memory: Annotated[
        int | str | None,
        size_setting(
            "start no tasks on a node with less free memory, except tasks with `force=True`",
            means="no limit",
            field="free_memory_limit",
        ),
    ]
    environment_patience: Annotated[
        float | timedelta | Literal[False] | None,
        seconds_setting(
            "how long later tasks may overtake a task because an engine has their environment already (-1, in Python"
            " False: without limit)",
            check=checks.check_environment_patience,
            parse=_optional_patience,
            field="environment_patience_s",
        ),
    ]
    resource_patience: Annotated[
        float | timedelta | None,
        seconds_setting(
            "after this time a node reserves the resources that become free for a task that waits for them",
            field="resource_patience_s",
        ),
    ]
    hold: Annotated[bool, _switch("start no task until `ipytaskfarm resume`")]
    fresh: Annotated[bool, _switch("start with an empty store; the old one is kept, with the date in its name")]
    take_over: Annotated[
        bool, _switch("start a farm again on this host with an empty store, if its store is on another host")
    ]
    start_timeout: Annotated[
        float | timedelta,
        seconds_setting("how long engines may take to start", default=60.0, section="Start"),
    ]
    drain: Annotated[
        float | timedelta | None,
        seconds_setting("how long running tasks may continue when the farm is stopped", default=10.0, section="Start"),
    ]
    agents: Annotated[
        checks.Agents | str | Sequence[checks.Agents | str],
        Setting(
            help="agents on other machines, each with its own engines: a launcher and a number, `slurm:3` (in Python"
            " also an `Agents`)",
            unit="LAUNCHER:N",
            default=(),
            check=checks.check_agents,
            several=True,
            section="Start",
        ),
    ]
    min: Annotated[
        int | None,
        count_setting(
            "with `max`: the least number of engines on this machine, which then follows the waiting work; on the"
            " command line with agents: of agents",
            0,
            section="Start",
            key="least",
        ),
    ]
    max: Annotated[
        int | None,
        count_setting("with `min`: the greatest number of them", 1, section="Start", key="most"),
    ]
    idle: Annotated[
        float | timedelta | None,
        seconds_setting(
            "with `min` and `max`: end engines or agents that were idle for this time", default=IDLE_S, section="Start"
        ),
    ]
    # These keep one peer from taking what belongs to all, see `core.limits` and ``docs/limits.md``.
    max_tasks: Annotated[
        int | None,
        count_setting(
            "accept no further tasks while this many have not ended; clients keep theirs, and submit them when there is"
            " room",
            1,
            field="max_tasks",
        ),
    ]
    max_sessions: Annotated[
        int | None,
        count_setting(
            "how many clients, or agents, may be connected with one key; others are told to connect again later",
            8,
            processes=(CONTROLLER,),
            standard=_LIMITS.sessions,
        ),
    ]
    incoming_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller uses for received messages that it has not handled, of all peers; a peer"
            " that sends more is told to connect again later; at least 512M",
            check=checks.check_incoming,
            means="768M",
            processes=(CONTROLLER,),
            standard=_LIMITS.incoming,
        ),
    ]
    outgoing_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller uses for messages that their receivers have not taken; beyond it the peer"
            " with most of them has to start its session again; at least 512M",
            check=checks.check_incoming,
            means="1G",
            processes=(CONTROLLER,),
            standard=_LIMITS.outgoing,
        ),
    ]


def _declared(arguments: type) -> dict[str, tuple[Any, Setting]]:
    hints = get_type_hints(arguments, include_extras=True)
    return {name: get_args(hint) for name, hint in hints.items()}


_DECLARED = _declared(LeadingArguments) | _declared(FarmArguments)

SETTINGS: dict[str, Setting] = {name: setting for name, (_, setting) in _DECLARED.items()}
"""All settings by the names of `Farm`'s arguments, in the order of its signature."""


# -- The signature and the docstring of `Farm`

PLACE_OF_ARGUMENTS = "{settings}"
"""The line of a docstring that the list of arguments replaces."""

_KINDS = {
    "SECONDS": "seconds, or a timedelta",
    "SIZE": 'bytes, or text like ``"2 GiB"``',
    "SHARE": "more than 0, up to 1",
}
"""Unit -> the values that the argument of `Farm` accepts."""

_Class = TypeVar("_Class", bound=type)


def with_settings(owner: _Class) -> _Class:
    """Give the constructor of a class its full signature, and the docstring its list of arguments.

    `owner` is a class with the constructor of `Farm`; mypy reads the same from ``Unpack[FarmArguments]``.
    """
    leading = set(LeadingArguments.__annotations__)
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if name in leading else inspect.Parameter.KEYWORD_ONLY,
            default=setting.default,
            annotation=kind,
        )
        for name, (kind, setting) in _DECLARED.items()
    ]
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    owner.__init__.__signature__ = inspect.Signature([self, *parameters])  # type: ignore[misc]
    if owner.__doc__ is not None:  # python -OO removes docstrings
        # Python 3.13 has removed the docstring's indentation already.
        owner.__doc__ = inspect.cleandoc(owner.__doc__).replace(PLACE_OF_ARGUMENTS, argument_list())
    return owner


def argument_list() -> str:
    """Return the lines for each argument in the docstring of `Farm`."""
    return "\n".join(_argument_lines(name, setting) for name, setting in SETTINGS.items())


def _argument_lines(name: str, setting: Setting) -> str:
    unit = f" ({_KINDS[setting.unit]})" if setting.unit in _KINDS else ""
    default = f"; default: {setting.default_text}" if setting.default_text else ""
    text = f"{name}: {setting.help}{unit}{default}."
    return fill(text, 115, subsequent_indent="    ", break_on_hyphens=False)


# -- The command lines of the controller and of the agents


_ARGPARSE = (
    (r"unrecognized arguments: (\S+).*", "there is no flag {0}"),
    (r"the following arguments are required: (.*)", "{0}: needed, and not given"),
    (r"argument (\S+): expected one argument", "{0} needs a value"),
    (r"argument (\S+): invalid \S+ value: (.*)", "{0} cannot be {1}"),
    (r"argument (\S+): (.*)", "{0}: {1}"),
)
"""What argparse says of a wrong command line, and how it is said here."""


def wrong_command_line(parser: ArgumentParser, process: str, said: str) -> NoReturn:
    """End this process with exit code 2 and a sentence in place of what argparse says of a wrong command line."""
    for pattern, sentence in _ARGPARSE:
        if found := re.fullmatch(pattern, said):
            flags = [flag for action in parser._actions for flag in action.option_strings]
            near = did_you_mean(found[1], flags, "") if pattern.startswith("unrecognized") else ""
            said = sentence.format(*found.groups()) + near
            break
    parser.exit(2, f"ipytaskfarm {process}: {said}\nTry: ipytaskfarm {process} --help\n")


def add_flags(parser: ArgumentParser, process: str) -> None:
    """Add the flags of all settings for a process. Sizes are bytes there, durations seconds."""
    parser.error = partial(wrong_command_line, parser, process)  # type: ignore[method-assign]
    for name, setting in _told(process):
        action: dict[str, Any] = {"action": "append"} if setting.several else {}
        default = list(setting.standard) if setting.several else setting.process_default  # type: ignore[call-overload]
        metavar = "BYTES" if setting.unit == "SIZE" else setting.unit
        parser.add_argument(
            process_flag(name), dest=name, type=setting.parse, default=default, metavar=metavar,
            help=setting.help.replace("%", "%%"), **action,
        )  # fmt: skip


def words_for(process: str, values: Mapping[str, Any]) -> list[str]:
    """Return the words for a process's command line, for the given settings.

    `values` has checked values by the names of the settings.
    """
    words = []
    for name, setting in _told(process):
        value = values.get(name)
        each = () if value is None else value if setting.several else (value,)
        words += [word for one in each for word in (process_flag(name), str(one))]
    return words


def scheduler_settings(options: Namespace, **more: Any) -> SchedulerSettings:
    """Return the scheduler's settings from the controller's command line.

    `more` has the fields of `SchedulerSettings` that are not settings themselves.
    """
    fields = {setting.field: getattr(options, name) for name, setting in _told(CONTROLLER) if setting.field}
    return SchedulerSettings(**fields, **more)


def process_flag(name: str) -> str:
    """Return the flag of a setting on the command lines of the controller and of the agents."""
    return f"--{SETTINGS[name].process_flag or name.replace('_', '-')}"


def _told(process: str) -> Iterator[tuple[str, Setting]]:
    return ((name, setting) for name, setting in SETTINGS.items() if setting.is_of(process))
