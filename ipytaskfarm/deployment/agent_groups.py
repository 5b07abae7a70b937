"""The farm's groups of agents: the requests to launchers, and their results.

A group is one submission of a number of agents to one launcher. It is recorded in ``agents.json`` in the farm's folder,
so that commands, the supervisor, and the supervisor's successor share it. A process that changes it holds its lock
during the whole change, including calls of the launcher. So nothing is submitted twice, or ended while it is started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmStatus, RemoveAgents
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.parsing import goes_by
from ipytaskfarm.deployment.enrolment import enrol, revoke
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import Questioner
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Handle, Launcher, Seat, find_launcher
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.host import working_folder
from ipytaskfarm.system.private_files import without_locks

log = logging.getLogger(__name__)

GROUPS_FILE = "agents.json"
LOCK_FILE = "agents.lock"
POLL_S = 0.2
END_S = 15.0
"""How long agents have for their end, beyond the time for running tasks; then their launchers end them."""

Make = Callable[[Agents], Launcher]
"""A function that makes a launcher. It differs from `launcher_of` if the launcher works in this very process."""


class AgentGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One submission."""

    name: str
    """For example ``slurm-1``."""
    agents: Agents
    names: tuple[str, ...]
    """The names of its agents, as they were enrolled: ``slurm-1.0``."""
    handle: Handle
    submitted_s: float
    setting: str = msgspec.field(default="", name="pool")
    """The name of the group in the farm's settings; "" for a command's submission."""


_own: dict[tuple[str, ...], Launcher] = {}


def use(agents: Agents, launcher: Launcher) -> None:
    """Use `launcher`, in this process, for agents of this launcher and these options.

    It holds something that only this process has: the caller's own connection to a cluster.
    """
    _own[_key(agents)] = launcher


def use_no_more(agents: Agents) -> None:
    """Undo `use`: the launcher is made from its options from now on."""
    _own.pop(_key(agents), None)


def _key(agents: Agents) -> tuple[str, ...]:
    return (agents.launcher, *(f"{name}={value}" for name, value in sorted(agents.options.items())))


def launcher_of(agents: Agents) -> Launcher:
    """Return the launcher that these agents name.

    Raises:
        ValueError: there is no such launcher, or it has no such option.
    """
    return _own.get(_key(agents)) or find_launcher(agents.launcher, agents.options)


def read_groups(home: Home) -> list[AgentGroup]:
    """Return the groups, the oldest one first."""
    try:
        found = msgspec.json.decode(farm_paths.read_private(home.folder / GROUPS_FILE), type=list[dict[str, Any]])
        return [_group(**record) for record in found]
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        path = home.folder / GROUPS_FILE
        raise errors.LauncherError(
            f"{path} is damaged ({error}): end the farm's agents by their systems' own means, then remove it"
        ) from None


def _group(agents: dict[str, Any], names: list[str], pool: str = "", **rest: Any) -> AgentGroup:
    # msgspec cannot decode `Agents` directly: it has converted durations from people to seconds.
    return AgentGroup(agents=Agents(**agents), names=tuple(names), setting=pool, **rest)


def _write_groups(home: Home, groups: Sequence[AgentGroup]) -> None:
    path = home.folder / GROUPS_FILE
    if groups:
        farm_paths.write_private(path, msgspec.json.format(msgspec.json.encode(list(groups))))
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(home.folder / LOCK_FILE, flags, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise without_locks(home.folder / LOCK_FILE, error) from None
        yield
    finally:
        os.close(file)


def preview(home: Home, agents: Agents, count: int | None = None) -> str:
    """Return the text that `add` would hand over to the launcher."""
    launcher = launcher_of(agents)
    name = _free_name(agents.launcher, read_groups(home))
    names = launcher.names(name, agents.count if count is None else count)
    folder = home.folder / "agents"
    return launcher.preview([Seat(each, folder / f"{each}.json") for each in names], _spec(home, name, agents))


def add(
    home: Home, agents: Agents, count: int | None = None, *, setting: str = "", make: Make = launcher_of
) -> AgentGroup:
    """Place agents, and return when their system has accepted them, which may be before they run.

    `count` is used instead of `Agents.count`.

    Raises:
        LauncherError, ValueError (options, count), FarmNotRunning.
    """
    launcher = make(agents)
    with _locked(home):
        groups = read_groups(home)
        name = _free_name(agents.launcher, groups)
        names = launcher.names(name, agents.count if count is None else count)
        seats = [Seat(each, path) for each, path in enrol(home, names).items()]
        handle: Handle | None = None
        try:
            handle = launcher.submit(seats, _spec(home, name, agents))
            group = AgentGroup(
                name=name, agents=agents, names=tuple(names), handle=handle, submitted_s=time.time(), setting=setting
            )
            _write_groups(home, [*groups, group])
        except BaseException:
            if handle is not None:  # nobody would find them again
                launcher.cancel(handle)
            revoke(home, names)
            raise
    return group


def _free_name(launcher: str, groups: Sequence[AgentGroup]) -> str:
    taken = {group.name for group in groups}
    return next(name for i in range(1, len(taken) + 2) if (name := f"{launcher}-{i}") not in taken)


def _spec(home: Home, name: str, agents: Agents) -> AgentSpec:
    limit_s, leave_s = agents.time_limit, agents.leave
    assert limit_s is None or isinstance(limit_s, float)
    assert isinstance(leave_s, float)
    spec = AgentSpec(
        farm=home.name,
        group=name,
        engines=agents.engines,
        cwd=working_folder(),
        logs=farm_paths.private_folder(home.logs),
        time_limit_s=limit_s,
        leave_s=leave_s,
    )
    return spec if agents.python is None else dataclasses.replace(spec, python=agents.python)


def statuses(
    groups: Sequence[AgentGroup], make: Make = launcher_of, say: Callable[[str], None] = log.warning
) -> dict[str, AgentStatus]:
    """Return agent's name -> its status, as the launcher reports it.

    If a launcher does not answer, its agents are missing, and `say` is told why.
    """
    found: dict[str, AgentStatus] = {}
    for group in groups:
        try:
            said = make(group.agents).status(group.handle)
            # A launcher may still report agents that were ended.
            found.update({name: status for name, status in said.items() if goes_by(name, group.names)})
        except (errors.LauncherError, OSError) as error:
            say(f"{group.name}: {error}")
    return found


def tend(home: Home, make: Make = launcher_of) -> list[AgentGroup]:
    """Let launchers restart their local processes. Return the groups afterwards."""
    with _locked(home):
        groups = read_groups(home)
        after = [_tended(group, make) for group in groups]
        if after != groups:
            _write_groups(home, after)
    return after


def _tended(group: AgentGroup, make: Make) -> AgentGroup:
    try:
        handle = make(group.agents).tend(group.handle)
    except (errors.LauncherError, OSError) as error:
        log.warning("%s: %s", group.name, error)
        return group
    return group if handle == group.handle else msgspec.structs.replace(group, handle=handle)


def cancel(home: Home, names: Collection[str] | None = None, make: Make = launcher_of) -> None:
    """End these agents (None: all) by their launchers, revoke their keys, and forget groups without agents.

    Their engines' tasks should have been recalled before.
    """
    with _locked(home):
        left: list[AgentGroup] = []
        problems: list[str] = []
        for group in read_groups(home):
            ending = [each for each in group.names if names is None or each in names]
            staying = tuple(each for each in group.names if each not in ending)
            if ending:
                try:
                    make(group.agents).cancel(group.handle, ending if staying else None)
                except (errors.LauncherError, OSError) as error:
                    problems.append(f"{group.name}: {error}")
                    left.append(group)
                    continue
                revoke(home, ending)
            if staying:
                left.append(msgspec.structs.replace(group, names=staying))
        _write_groups(home, left)
    if problems:
        raise errors.LauncherError("; ".join(problems))


def forget(home: Home, groups: Sequence[AgentGroup]) -> None:
    """Forget groups that have ended with the farm, and revoke their keys."""
    with _locked(home):
        ended = {group.name for group in groups}
        _write_groups(home, [group for group in read_groups(home) if group.name not in ended])
        revoke(home, [name for group in groups for name in group.names])


def chosen(groups: Sequence[AgentGroup], words: Sequence[str]) -> list[str]:
    """Return the agents' names for names of groups or agents.

    Raises:
        ValueError: there is no agent or group of that name.
    """
    found: dict[str, None] = {}
    for word in words:
        names = [each for group in groups for each in group.names if word in (group.name, each)]
        if not names:
            known = ", ".join(group.name for group in groups)
            there = f"the groups are {known}" if known else "none were added to this farm"
            raise ValueError(f"there is no agent and no group {word!r}: {there}")
        found.update(dict.fromkeys(names))
    return list(found)


def remove(home: Home, words: Sequence[str], within_s: float | None) -> list[str]:
    """Remove agents by their names or their groups' names, and return the agents' names when they are gone.

    `within_s` is how long running tasks may go on; None: until they end.

    Raises:
        ValueError: there is no agent or group of that name.
    """
    names = chosen(read_groups(home), words)
    with Questioner(home.read_info) as questioner:
        questioner.answer(RemoveAgents(names, within_s))
        deadline_s = None if within_s is None else time.monotonic() + within_s + END_S
        delay = threading.Event()
        while _are_there(questioner, names) and (deadline_s is None or time.monotonic() < deadline_s):
            delay.wait(POLL_S)
    try:
        cancel(home, names)
    except errors.LauncherError as error:
        raise errors.LauncherError(
            f"{error}\n{', '.join(names)}: told to end, and given no more tasks. When their system answers again, the"
            " farm forgets those whose jobs have ended, and `ipytaskfarm agents remove` ends the others"
        ) from error
    return names


def _are_there(questioner: Questioner, names: Sequence[str]) -> bool:
    state = questioner.answer_for(FarmStatus(), FarmState)
    # An unreachable agent keeps its lease: do not wait for it.
    return any(goes_by(row["name"], names) for row in state.agents if row["state"] != "unreachable")
