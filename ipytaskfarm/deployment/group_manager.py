"""Manages a farm's agents on other machines, in a thread of its own beside the supervisor.

Launchers run commands that take seconds (``squeue``, ``ssh``), for which the supervisor's loop must not wait.
`GroupManager` places the agents of the farm's settings, lets launchers restart their local processes, reports agents to
the controller that their system has ended, lets groups grow and shrink with the work (`core.scheduler.autoscaling`),
and ends all of them after the controller has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import AgentsEnded, FarmStatus, Question, RemoveAgents, Reply, SetWanted
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.parsing import SHARED, agent_name, goes_by, owner
from ipytaskfarm.core.scheduler.autoscaling import AGENT_PATIENCE_S, ENGINE_PATIENCE_S, Limits, Load, Scaler
from ipytaskfarm.deployment import agent_groups as grouped
from ipytaskfarm.deployment.agent_groups import AgentGroup
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import Questioner
from ipytaskfarm.deployment.settings import FarmSettings
from ipytaskfarm.launchers.answering import telling
from ipytaskfarm.launchers.interface import AgentStatus, Launcher
from ipytaskfarm.settings.checks import Agents

WAITS = "stopping: "
"""The beginning of lines that `ipytaskfarm stop` passes on from the supervisor's output."""
LOOK_S = 1.0
DOUBT_S = 2.0
"""The interval at which launchers are asked if the controller does not hear some agents …"""
CALM_S = 60.0
"""… and if it hears all of them."""
WHY_MAX = 1000
END_S = 20.0
"""Agents are told to end by the controller; after this time their launchers end them."""


@dataclass
class _GroupSetting:
    """A group of agents in the farm's settings."""

    name: str
    agents: Agents
    scaler: Scaler | None
    launcher: Launcher | None = None


@dataclass
class _Heard:
    """The controller's view of agents."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def row(self, name: str) -> dict[str, Any] | None:
        """Return the row of the agent of this name, or of the first of several that share it."""
        found = self.rows.get(name)
        return found or next((row for each, row in self.rows.items() if goes_by(each, [name])), None)

    def hears(self, name: str) -> bool:
        """Return whether the agent is known and reachable."""
        row = self.row(name)
        return row is not None and row["state"] != "unreachable"


class GroupManager:
    """The manager of the agents; one per supervisor.

    Call `begin` when the controller answers, and `end` when it has ended; `ended` is set once all agents have ended.
    """

    def __init__(
        self,
        settings: FarmSettings,
        home: Home,
        say: Callable[[str], None],
        fail: Callable[[Exception], None],
        wake: Callable[[], None],
    ) -> None:
        """Create it. The functions `say`, `fail` and, at the end, `wake` are called in its thread."""
        self._home = home
        self._say = say
        self._fail = fail
        self._wake = wake
        elastic = settings.elastic
        self._engines = Scaler(elastic, ENGINE_PATIENCE_S) if elastic is not None else None
        self._settings_of_groups = [_setting_of(number, agents) for number, agents in enumerate(settings.agents)]
        self._made: dict[str, Launcher] = {}
        self._ending = threading.Event()
        self.ended = threading.Event()
        self._questioner: Questioner | None = None
        self._asked_s = 0.0
        self._told: set[str] = set()
        self._heard: set[str] = set()
        """The agents that the controller has heard."""
        self._statuses: dict[str, AgentStatus] = {}
        self._groups: list[AgentGroup] = []
        """As they were last read: a temporary farm's folder goes with its controller."""
        self._thread = threading.Thread(target=self._run, name=f"agents of {home.name}", daemon=True)

    def begin(self) -> None:
        """Start to manage the agents."""
        self._thread.start()

    @property
    def has_agents(self) -> bool:
        """Return whether there are agents that launchers have started."""
        return bool(self._groups)

    def end(self) -> None:
        """End all agents. `ended` is set when that is done."""
        self._ending.set()
        if not self._thread.is_alive():
            self.ended.set()

    def _run(self) -> None:
        with telling(self._tell):
            self._manage()

    def _manage(self) -> None:
        try:
            self._questioner = Questioner(self._home.read_info)
            self._place_groups()
            while not self._ending.wait(LOOK_S):
                self._once(self._tend)
        except Exception as error:  # any error: the supervisor reports it, as a thread has no one else to
            self._fail(error)
            self._ending.wait()
        finally:
            if self._questioner is not None:
                self._questioner.close()
            self._once(lambda: end_agents(self._home, self._groups, self._launcher))
            self.ended.set()
            self._wake()

    def _once(self, what: Callable[[], None]) -> None:
        """Call a function. Errors of launchers and of the connection are temporary, or are reported once."""
        try:
            what()
        except Exception as error:  # a launcher may be anyone's code
            text = str(error) if isinstance(error, (errors.TaskFarmError, OSError)) else repr(error)
            self._say_once(text)

    def _tell(self, text: str) -> None:
        """Pass on which slow command is waited for, if somebody waits for the farm's end."""
        if self._ending.is_set():
            self._say(f"{WAITS}{text}")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(f"agents: {text}")

    def _ask(self, question: Question) -> Reply:
        assert self._questioner is not None
        return self._questioner.answer(question)

    def _launcher(self, agents: Agents) -> Launcher:
        key = f"{agents.launcher} {sorted(agents.options.items())}"
        if key not in self._made:
            self._made[key] = grouped.launcher_of(agents)
        return self._made[key]

    # ------------------------------------------------------------------ placing

    def _place_groups(self) -> None:
        groups = grouped.read_groups(self._home)
        if groups:
            # A supervisor that takes over a living farm finds the agents that the former one has placed. After a power
            # cut none of them may be left.
            statuses = grouped.statuses(groups, self._launcher, self._say_once)
            dead = [name for name, status in statuses.items() if status.state == "ended"]
            grouped.cancel(self._home, dead, self._launcher)
        there = {group.setting for group in grouped.read_groups(self._home)}
        for setting in self._settings_of_groups:
            if setting.name in there or self._ending.is_set():
                continue
            count = setting.agents.count
            if setting.scaler is not None:
                count = max(setting.scaler.limits.least, min(count or 0, setting.scaler.limits.most))
            if count != 0:
                self._place(setting, count)

    def _place(self, setting: _GroupSetting, count: int | None) -> None:
        group = grouped.add(self._home, setting.agents, count, setting=setting.name, make=self._launcher)
        self._asked_s = 0.0
        self._groups.append(group)
        agents = "1 agent" if len(group.names) == 1 else f"{len(group.names)} agents"
        self._say(f"{group.name}: {agents} asked for")

    # ------------------------------------------------------------------ management

    def _tend(self) -> None:
        groups = grouped.tend(self._home, self._launcher) if grouped.read_groups(self._home) else []
        scaling = self._engines is not None or any(setting.scaler for setting in self._settings_of_groups)
        if not groups and not self._groups and not scaling:
            return
        state = self._ask(FarmStatus())
        assert isinstance(state, FarmState)
        if state.stopping:
            return
        # Not before: if a temporary farm's folder does not exist any more, there are no groups to read either.
        self._groups = groups
        heard = _Heard({row["name"]: row for row in state.agents if row["name"]})
        if groups:
            groups = self._look_for_dead(groups, heard)
        if self._engines is not None:
            self._scale_engines(self._engines, state)
        for setting in self._settings_of_groups:
            if setting.scaler is not None:
                own = [group for group in groups if group.setting == setting.name]
                load = load_of(state, [name for group in own for name in group.names])
                self._scale(setting, setting.scaler, own, heard, load)

    def _look_for_dead(self, groups: list[AgentGroup], heard: _Heard) -> list[AgentGroup]:
        """Ask launchers about agents that the controller does not hear. Return the remaining groups."""
        now_s = time.monotonic()
        self._heard.update(name for group in groups for name in group.names if heard.row(name) is not None)
        all_there = all(heard.hears(name) for group in groups for name in group.names)
        if now_s - self._asked_s < (CALM_S if all_there else DOUBT_S):
            return groups
        self._asked_s = now_s
        self._statuses = grouped.statuses(groups, self._launcher, self._say_once)
        ended = {name: status for name, status in self._statuses.items() if status.state == "ended"}
        lost = [name for name in ended if heard.row(name) is not None and not heard.hears(name)]
        if lost:
            why = ended[lost[0]].why or "it has ended"
            self._ask(AgentsEnded(lost, f"its launcher says: {why}"))
        gone = [name for name in ended if heard.row(name) is None]
        if gone:
            for name in gone:
                if name not in self._heard:
                    self._ask(AgentsEnded([name], ended[name].why[:WHY_MAX] or "its launcher does not say why"))
                self._say(f"agent {name} has ended" + (f": {ended[name].why}" if ended[name].why else ""))
            self._heard.difference_update(gone)
            grouped.cancel(self._home, gone, self._launcher)
            return grouped.read_groups(self._home)
        return groups

    def _scale_engines(self, scaler: Scaler, state: FarmState) -> None:
        there = state.wanted - sum(row["brings"] or 0 for row in state.agents if row["state"] != "leaving")
        wanted = scaler.wanted(load_of(state, [SHARED]), there, time.monotonic())
        if wanted != there:
            self._ask(SetWanted(wanted))

    def _scale(
        self, setting: _GroupSetting, scaler: Scaler, groups: list[AgentGroup], heard: _Heard, load: Load
    ) -> None:
        names = [name for group in groups for name in group.names]
        leaving = {name for name in names if (row := heard.row(name)) is not None and row["state"] == "leaving"}
        staying = [name for name in names if name not in leaving]
        up = [row for name in staying if (row := heard.row(name)) is not None]
        if setting.agents.engines is None and up:
            scaler.engines_each = max(1, sum(row["brings"] or 1 for row in up) // len(up))
        wanted = scaler.wanted(load, len(staying), time.monotonic())
        if wanted > len(staying):
            self._place(setting, wanted - len(staying))
        elif wanted < len(staying):
            self._shrink(staying, len(staying) - wanted, scaler.limits, heard)

    def _shrink(self, names: list[str], surplus: int, limits: Limits, heard: _Heard) -> None:
        """End agents that nobody has placed yet, then agents that have been idle; never one on which something runs."""
        waiting = [name for name in names if heard.row(name) is None and self._waits(name)][:surplus]
        if waiting:
            grouped.cancel(self._home, waiting, self._launcher)
        idle: list[tuple[float, str]] = []
        for name in names:
            row = heard.row(name)
            if row is not None and row["idle"] is not None and row["idle"] >= limits.idle_s:
                idle.append((row["idle"], name))
        chosen = [name for _, name in sorted(idle, reverse=True)[: surplus - len(waiting)]]
        if chosen:
            self._ask(RemoveAgents(chosen))
            self._asked_s = 0.0

    def _waits(self, name: str) -> bool:
        status = self._statuses.get(name)
        return status is not None and status.state == "waiting"


def end_agents(home: Home, known: Sequence[AgentGroup] = (), make: grouped.Make = grouped.launcher_of) -> None:
    """End agents after the controller has ended: waiting ones at once; running ones were told, and have `END_S` to end.

    `known` has the groups in case the farm's folder does not exist any more.
    """
    groups = grouped.read_groups(home) or list(known)
    if not groups:
        return
    deadline_s = time.monotonic() + END_S
    delay = threading.Event()
    unanswered: list[str] = []  # not told: the same system does not cancel either, which is told
    statuses = grouped.statuses(groups, make, unanswered.append)
    problems: list[str] = []
    for group in groups:
        waiting = [name for name in group.names if name in statuses and statuses[name].state == "waiting"]
        if waiting:
            _cancel(group, waiting, make, [])
    while any(status.state == "running" for status in statuses.values()) and time.monotonic() < deadline_s:
        delay.wait(0.25)
        statuses = grouped.statuses(groups, make, unanswered.append)
    # The others are tried again by the next stop, or adopted by the next start.
    ended = [group for group in groups if _cancel(group, None, make, problems)]
    if home.folder.exists():
        grouped.forget(home, ended)
    if problems:
        left = ", ".join(group.name for group in groups if group not in ended)
        remedy = (
            f"The farm itself has ended; what may be left of {left} is ended by another"
            f" `ipytaskfarm stop --farm {home.name}` when its system answers"
        )
        raise errors.LauncherError("\n".join([*dict.fromkeys(problems), remedy]))


def _cancel(group: AgentGroup, names: Sequence[str] | None, make: grouped.Make, problems: list[str]) -> bool:
    """Cancel one group, and return whether its system answered. The other groups are ended all the same."""
    try:
        make(group.agents).cancel(group.handle, names)
    except (errors.LauncherError, OSError) as error:
        problems.append(f"{group.name}: {error}")
        return False
    return True


def _setting_of(number: int, agents: Agents) -> _GroupSetting:
    scaler = None
    if agents.min is not None and agents.max is not None:
        idle_s = agents.idle
        assert isinstance(idle_s, (int, float))
        scaler = Scaler(Limits(agents.min, agents.max, idle_s), AGENT_PATIENCE_S, agents.engines or 1)
    return _GroupSetting(f"{number}:{agents.launcher}", agents, scaler)


def load_of(state: FarmState, names: Sequence[str]) -> Load:
    """Return the work for agents of these names: waiting tasks count for all, tasks that run elsewhere do not count."""
    busy = sum(row.state == "busy" and goes_by(agent_name(owner(row.engine)), names) for row in state.engines)
    return Load(busy=busy, waiting=state.waiting, waiting_s=state.waiting_s)
