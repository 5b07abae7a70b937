"""``ipytaskfarm start``, also ``ipytaskfarm -n 4``: runs the farm's supervisor, here or detached."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from traitlets import Float, Int, List as ListTrait, Unicode
from traitlets.config import Configurable

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, Command, UsageError, exit_code, flag, flags_in, switch
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.scheduler.autoscaling import IDLE_S
from ipytaskfarm.deployment.agent_groups import launcher_of
from ipytaskfarm.deployment.daemon import fork_detached, start_detached, stop_farm
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.settings import FarmSettings, farm_settings, idle_alone
from ipytaskfarm.deployment.supervisor import Audience, Supervisor
from ipytaskfarm.display.farm_tables import ready_engines
from ipytaskfarm.display.tables import redraws
from ipytaskfarm.launchers.local import may_fork
from ipytaskfarm.settings.checks import Agents, check_agents
from ipytaskfarm.settings.declarations import SETTINGS
from ipytaskfarm.settings.setting import Setting
from ipytaskfarm.system.process import name_process, usable_cores

START_SETTINGS = {name: each for name, each in SETTINGS.items() if name != "name"}
"""The settings of this command itself; every command has the farm's name."""

TRAITS: dict[str, Callable[..., Any]] = {"SECONDS": Float, "SHARE": Float, "N": Int, "PORT": Int}
"""Unit of a setting -> the trait for its value; values of other units are text."""


def traits_of(section: str) -> dict[str, Any]:
    """Return the traits of a class of the configuration, one for each of its settings."""
    return {config_key(name): _trait(name, each) for name, each in START_SETTINGS.items() if each.section == section}


def config_key(name: str) -> str:
    """Return the name of a setting in the configuration, without its class."""
    return SETTINGS[name].key or name


def _trait(name: str, setting: Setting) -> Any:
    default = f" (default: {setting.default_text})" if setting.default_text else ""
    text = setting.help + ("; may be given several times" if setting.several else "") + default
    names = setting.flag or name.replace("_", "-")
    if not setting.unit:
        return switch(text, names)
    if setting.several:
        return flag(setting.unit, ListTrait(Unicode(), help=text), names)
    kind = TRAITS.get(setting.unit, Unicode)
    return flag(setting.unit, kind(setting.default, allow_none=True, help=text), names)


def flag_of(name: str) -> str:
    """Return the flag of a setting in the form in which people write it."""
    longest = max((SETTINGS[name].flag or name.replace("_", "-")).split(), key=len)
    return f"--{longest}"


class Controller(Configurable):
    """The settings of a farm's controller, as ``c.Controller`` in a config file."""

    locals().update(traits_of("Controller"))


class Start(Command):
    """``ipytaskfarm start``"""

    name = "start"
    description = """
Starts a farm on this machine, or resumes the farm of this name with its waiting tasks and its results. In the
foreground it prints what happens to engines. Ctrl-C stops the farm; a second Ctrl-C does not wait for running tasks.
With --daemonize it returns when the engines are ready, and `ipytaskfarm stop` stops the farm.
"""
    examples = """
        ipytaskfarm -n 4
        ipytaskfarm start -n 4 --daemonize
        ipytaskfarm start --farm nightly --startup imports.py --queue-policy FairShare
        ipytaskfarm start --min 1 --max 8
        ipytaskfarm start --host 0.0.0.0 --agents slurm:3 --agent-engines 4 --agent-time 2h
        ipytaskfarm start --queue-policy mine:Policy --policy-path ~/policies
    """
    classes: Any = ListTrait([Controller])

    agent_engines = flag(
        "N", Int(None, allow_none=True, help="how many engines each agent starts (default: one per core)")
    )
    agent_time = flag("SPAN", Unicode(None, allow_none=True, help="when the batch system ends the agents: 90m, 2h"))
    agent_option = flag(
        "KEY=VALUE", ListTrait(Unicode(), help="an option of the launcher: partition=short; may be given several times")
    )
    daemonize = switch("return when the engines are ready; the farm continues")
    progress_fd = Int(-1).tag(config=True)
    locals().update(traits_of("Start"))

    def flag_groups(self) -> list[dict[str, Any]]:
        """Return the settings of a farm first, in their own order, whatever class of the configuration has them."""
        of_farm = flags_in(Controller) | flags_in(Start)
        ordered = (f"{each.section}.{config_key(name)}" for name, each in START_SETTINGS.items())
        return [{target: of_farm[target] for target in ordered}, *super().flag_groups()]

    def carry_out(self) -> int:
        try:
            settings = self.settings()
        except UsageError as error:
            if self.progress_fd >= 0:
                Reporter(os.fdopen(self.progress_fd, "w", buffering=1), self.farm).failed(error)
            raise
        home = Home.of(settings.name)
        if self.daemonize:
            return _detach(home, self.argv, settings)
        return _supervise(settings, home, self._audience(settings))

    def _agents(self, given: Mapping[str, Any]) -> tuple[Agents, ...]:
        """Return the agents of ``--agents`` with the settings that apply to all of them."""
        agents = check_agents("--agents", given["agents"])
        if not agents and (self.agent_option or self.agent_engines or self.agent_time):
            raise ValueError("--agent-engines, --agent-time and --agent-option go with --agents")
        least, most = given["min"], given["max"]
        if len(agents) > 1 and (self.agent_option or least is not None or most is not None):
            raise ValueError("--agent-option, --min and --max go with one --agents; `ipytaskfarm agents add` adds more")
        if agents and least is None and most is None and given["idle"] != IDLE_S:
            raise ValueError(idle_alone(flag_of))
        options = option_pairs("--agent-option", self.agent_option)
        return tuple(
            Agents(
                each.launcher, each.count, self.agent_engines, self.agent_time,
                min=least, max=most, idle=given["idle"], options=options,
            )
            for each in agents
        )  # fmt: skip

    def _audience(self, settings: FarmSettings) -> Audience:
        if self.progress_fd >= 0:
            return Reporter(os.fdopen(self.progress_fd, "w", buffering=1), settings.name)
        return Terminal(settings.name)

    def settings(self) -> FarmSettings:
        """Return the checked settings of the command line and the configuration files."""
        sections = {"Start": self, "Controller": Controller(parent=self)}
        given = {name: getattr(sections[each.section], config_key(name)) for name, each in START_SETTINGS.items()}
        try:
            given["agents"] = self._agents(given)
            if given["agents"]:  # in this case their number follows the work, not that of this machine's engines
                given["min"] = given["max"] = given["idle"] = None
            if given["startup"] is not None:
                given["startup"] = Path(given["startup"])
            for agents in given["agents"]:  # a wrong name is refused before anything is started
                launcher_of(agents)
            return farm_settings(given, self.home().name, usable_cores, as_written=flag_of)
        except (ValueError, TypeError, SyntaxError, FileNotFoundError) as error:
            raise UsageError(str(error)) from None


def option_pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Return the options of several texts KEY=VALUE."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise ValueError(f"{flag}: KEY=VALUE is expected, like partition=short, not {key!r}")
    return {key: value for key, _, value in pairs}


class Terminal:
    """Shows messages to a person: progress on one line that is overwritten, events on lines that stay."""

    def __init__(self, farm: str, *, stop_with: str = "Ctrl-C") -> None:
        self._farm = farm
        self._stop_with = stop_with
        self._rewrites = redraws(sys.stderr)
        self._shown = ""

    def progress(self, text: str) -> None:
        """Show progress. On a terminal only the last text stays; in a file, each new text."""
        if text == self._shown:
            return
        _write(sys.stderr, f"\r\033[K{text} …" if self._rewrites else f"{text} …\n")
        self._shown = text

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.wipe()
        _write(sys.stdout, printing.safe(line) + "\n")

    def ready(self, state: FarmState) -> None:
        """Print the line that says that the farm is ready."""
        self.say(ready_line(state, self._farm, self._stop_with))

    def wipe(self) -> None:
        """Remove the line with the progress."""
        if self._shown and self._rewrites:
            _write(sys.stderr, "\r\033[K")
        self._shown = ""


def _write(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # The terminal was closed, or the log's disk is full: the farm must still be looked after, and stopped in order.
        pass


class Reporter:
    """Sends messages to the command that detached this process, until the farm is ready; from then on to the log."""

    def __init__(self, pipe: IO[str], farm: str) -> None:
        self._pipe: IO[str] | None = pipe
        self._farm = farm

    def progress(self, text: str) -> None:
        self._send("progress", text)

    def say(self, line: str) -> None:
        _write(sys.stdout, printing.safe(line) + "\n")
        self._send("say", line)

    def ready(self, state: FarmState) -> None:
        line = ready_line(state, self._farm, f"ipytaskfarm stop{farm_flag(self._farm)}")
        _write(sys.stdout, line + "\n")
        self._send("ready", line)
        self.close()

    def failed(self, error: Exception) -> None:
        """Report that the start failed."""
        _write(sys.stdout, printing.safe(error) + "\n")
        self._send("failed", str(error), code=exit_code(error))
        self.close()

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _send(self, what: str, text: str, **more: object) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.write(json.dumps({"what": what, "text": text, **more}) + "\n")
        except BrokenPipeError:
            self._pipe = None


def farm_flag(name: str) -> str:
    """Return the words to add to a command so that it refers to this farm."""
    return "" if name == "default" else f" --farm {name}"


def ready_line(state: FarmState, farm: str, stop_with: str) -> str:
    """Return the line with name, engines, and the ways to connect and to stop."""
    argument = "" if farm == "default" else repr(farm)
    held = ", paused: `ipytaskfarm resume` lets tasks start" if state.held else ""
    refused = f" No task is accepted: {state.refusing}." if state.refusing and not state.stopping else ""
    return (
        f"farm {farm!r} is ready: {printing.number(ready_engines(state), 'engine')}, controller pid {state.pid}{held}."
        f"{refused} Connect: ipytaskfarm.TaskClient({argument}). Stop: {stop_with}"
    )


def _supervise(settings: FarmSettings, home: Home, audience: Audience) -> int:
    """Run the supervisor until the farm has ended."""
    supervisor = Supervisor(settings, home, audience)
    if isinstance(audience, Reporter):
        name_process(f"ipytaskfarm supervisor --farm {settings.name}")

    def on_signal(number: int, frame: object) -> None:
        supervisor.request_stop()

    # SIGHUP too: a foreground farm ends with its terminal, unless `nohup` has started it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        supervisor.start()
        supervisor.run()
    except (errors.TaskFarmError, OSError) as error:
        if isinstance(audience, Reporter):
            audience.failed(error)
            return exit_code(error)
        raise
    audience.say(f"farm {settings.name!r} has stopped: no process is left; what waited goes on with the next start")
    return OK


def _detach(home: Home, argv: list[str], settings: FarmSettings) -> int:
    """Supervise the farm in a process of its own, and follow it until the farm is ready."""
    terminal = Terminal(settings.name)

    def supervise(pipe: IO[str]) -> int:
        return _supervise(settings, home, Reporter(pipe, settings.name))

    if may_fork():
        started = fork_detached(home, supervise, terminal)
    else:  # a program that calls `ipytaskfarm.cli.main`
        started = start_detached(home, [word for word in argv if word != "--daemonize"], terminal)
    terminal.wipe()
    if started.code:
        print(f"ipytaskfarm start: {started.text}", file=sys.stderr)
    else:
        terminal.say(started.text)
    return started.code


class Stop(Command):
    """``ipytaskfarm stop``"""

    name = "stop"
    description = """
Stops a farm. No further task is started. Running tasks may continue for ten seconds (--wait SECONDS, or --drain for
any time), and are then interrupted: tasks that may repeat go back to their queue, the others fail. Waiting tasks and
all results stay on disk for the next start. The command returns when all processes of the farm have ended.
"""
    examples = """
        ipytaskfarm stop
        ipytaskfarm stop --farm nightly --drain
    """
    wait = flag("SECONDS", Float(10.0, help="how long running tasks may continue (default: 10)"))
    drain = switch("wait until all running tasks have ended")

    def carry_out(self) -> int:
        if not self.wait >= 0:
            raise UsageError(f"--wait must be 0 seconds or more, not {self.wait:g}")
        home = self.home()
        terminal = Terminal(home.name)
        try:
            stop_farm(home, None if self.drain else self.wait, terminal)
        except KeyboardInterrupt:
            at_once = f"`ipytaskfarm stop{farm_flag(home.name)} --wait 0`"
            terminal.say(f"farm {home.name!r} goes on stopping; {at_once} does not wait for running tasks")
            raise
        terminal.say(f"farm {home.name!r} has stopped")
        return OK
