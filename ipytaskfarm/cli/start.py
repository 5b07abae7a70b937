"""``ipytaskfarm start``, which is also ``ipytaskfarm -n 4``: be the farm's supervisor, here or detached."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from traitlets import Bool, Float, Int, List, Unicode
from traitlets.config import Configurable

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, Command, UsageError, exit_code, switches, values
from ipytaskfarm.core import errors
from ipytaskfarm.core.arguments import check_bytes, check_count, check_seconds
from ipytaskfarm.core.formatting import ready_engines
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.scheduler.autoscaling import IDLE_S
from ipytaskfarm.deployment.daemon import start_detached
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.settings import (
    DEFAULT_HOST,
    Agents,
    FarmSettings,
    Scheduling,
    check_agents,
    check_scheduling,
    engines_at_first,
    policy_name,
    read_startup,
)
from ipytaskfarm.deployment.supervisor import Audience, Supervisor
from ipytaskfarm.system.process import name_process, usable_cores


class Controller(Configurable):
    """The settings of a farm's controller, as ``c.Controller`` in a config file."""

    host = Unicode(DEFAULT_HOST, help="the address to listen on (this machine alone, unless you say otherwise)").tag(
        config=True, metavar="ADDRESS"
    )
    location = Unicode(
        None, allow_none=True, help="where other machines find it (default: that address, or this host's name)"
    ).tag(config=True, metavar="ADDRESS")
    port = Int(
        None, allow_none=True, help="the port to listen on (default: the farm's own, else 10113 if free, else any)"
    ).tag(config=True, metavar="PORT")
    queue_policy = Unicode(None, allow_none=True, help="which task goes first: FIFO, LIFO, FairShare or your own").tag(
        config=True, metavar="MODULE:CLASS"
    )
    policy_path = List(Unicode(), help="a folder to import your own queue policy from").tag(config=True, metavar="DIR")
    store_dir = Unicode(None, allow_none=True, help="the folder for the store, on a local disk").tag(
        config=True, metavar="DIR"
    )
    unmet_timeout = Float(
        None, allow_none=True, help="end a task that no engine may run after this long (default: let it wait)"
    ).tag(config=True, metavar="SECONDS")
    failure_penalty = Float(None, allow_none=True, help="withhold an engine this long after a failed task").tag(
        config=True, metavar="SECONDS"
    )
    lease = Float(
        None, allow_none=True, help="end engines whose agent has not heard the controller for so long (default: 900)"
    ).tag(config=True, metavar="SECONDS")
    grace = Float(
        None, allow_none=True, help="between the interrupt of a task over its time limit and the end of its engine"
    ).tag(config=True, metavar="SECONDS")
    memory_limit = Unicode(
        None, allow_none=True, help="what an engine and its children may have of their own (2G; default: all there is)"
    ).tag(config=True, metavar="SIZE")
    max_engine_losses = Int(
        None, allow_none=True, help="quarantine a task over which so many engines were lost (default: 3)"
    ).tag(config=True, metavar="N")
    node_failures = Int(
        None, allow_none=True, help="no more tasks for a node after so many failures in a row (default: 10)"
    ).tag(config=True, metavar="N")
    keep_results = Float(
        None, allow_none=True, help="clear results this long after their task's end (default: never)"
    ).tag(config=True, metavar="SECONDS")
    keep_results_size = Unicode(
        None, allow_none=True, help="clear the oldest results when the store holds more (default: never)"
    ).tag(config=True, metavar="SIZE")
    record = Unicode(
        None, allow_none=True, help="a tape of all that the controller hears, for `ipytaskfarm replay`"
    ).tag(config=True, metavar="FILE")

    warm = Int(None, allow_none=True, help="free slots that hold a blank engine (default: all)").tag(
        config=True, metavar="N"
    )
    resource = List(Unicode(), help="what tasks may ask for: gpu=2, licence=3").tag(config=True, metavar="NAME=AMOUNT")
    placement = Unicode(None, allow_none=True, help="which of several free engines a task takes").tag(
        config=True, metavar="HOW"
    )
    load_limit = Float(None, allow_none=True, help="start nothing on a node busier than this share of its cores").tag(
        config=True, metavar="SHARE"
    )
    free_memory = Unicode(None, allow_none=True, help="start nothing on a node with less memory free").tag(
        config=True, metavar="SIZE"
    )
    environment_patience = Float(
        None, allow_none=True, help="how long tasks are passed over by those of an engine's environment (-1: always)"
    ).tag(config=True, metavar="SECONDS")
    resource_patience = Float(
        None, allow_none=True, help="after so long, what becomes free is kept for a task that waits for it"
    ).tag(config=True, metavar="SECONDS")

    def scheduling(self, least: int | None, most: int | None, idle_s: float) -> Scheduling:
        """Those of these that say which engines there are for whom, checked."""
        patience = self.environment_patience
        declared = dict(_declared(text) for text in self.resource)
        return check_scheduling(
            self.warm,
            declared,
            self.placement,
            self.load_limit,
            self.free_memory,
            False if patience is not None and patience < 0 else patience,
            self.resource_patience,
            least,
            most,
            idle_s,
            self.lease,
        )


def _declared(text: str) -> tuple[str, str | float]:
    name, equals, amount = text.partition("=")
    if not equals:
        raise ValueError(f"--resource: NAME=AMOUNT is expected, like gpu=2, not {text!r}")
    try:
        return name, float(amount)
    except ValueError:
        return name, amount


class Start(Command):
    """``ipytaskfarm start``"""

    name = "start"
    description = """
Starts a farm on this machine, or resumes the one of that name: waiting tasks go on, results are kept, ids continue.
In the foreground it says what happens to engines, and Ctrl-C stops all; a second Ctrl-C does not wait for running
tasks. With --daemonize it returns when the engines are ready, and `ipytaskfarm stop` ends the farm.
"""
    examples = """
        ipytaskfarm -n 4
        ipytaskfarm start -n 4 --daemonize
        ipytaskfarm start --farm nightly --startup imports.py --queue-policy FairShare
        ipytaskfarm start --min 1 --max 8
        ipytaskfarm start --host 0.0.0.0 --agents slurm:3 --agent-engines 4 --agent-time 2h
        ipytaskfarm start --queue-policy mine:Policy --policy-path ~/policies
    """
    classes: Any = List([Controller])

    n = Int(None, allow_none=True, help="how many engines (default: the usable cores)").tag(config=True, metavar="N")
    agents = List(Unicode(), help="agents on other machines, by a launcher: slurm:3").tag(
        config=True, metavar="LAUNCHER:N"
    )
    agent_engines = Int(None, allow_none=True, help="how many engines each agent brings (default: one per core)").tag(
        config=True, metavar="N"
    )
    agent_time = Unicode(None, allow_none=True, help="when the system ends them: 90m, 2h").tag(
        config=True, metavar="SPAN"
    )
    agent_option = List(Unicode(), help="an option of the launcher: partition=short").tag(
        config=True, metavar="KEY=VALUE"
    )
    least = Int(None, allow_none=True, help="at least so many engines, or agents if there are --agents").tag(
        config=True, metavar="N"
    )
    most = Int(None, allow_none=True, help="at most so many: their number follows the work").tag(
        config=True, metavar="N"
    )
    idle = Float(IDLE_S, help="with --min and --max: give back what nobody needs for so long").tag(
        config=True, metavar="SECONDS"
    )
    startup = Unicode(None, allow_none=True, help="code that every fresh engine runs first").tag(
        config=True, metavar="FILE"
    )
    start_timeout = Float(60.0, help="how long engines may take to come up").tag(config=True, metavar="SECONDS")
    drain = Float(10.0, help="how long running tasks may go on after Ctrl-C").tag(config=True, metavar="SECONDS")
    daemonize = Bool(False, help="go on in the background").tag(config=True)
    fresh = Bool(False, help="begin anew, and set the old store aside").tag(config=True)
    hold = Bool(False, help="start no task until `ipytaskfarm resume`").tag(config=True)
    take_over = Bool(False, help="begin anew on this host with a farm whose store is on another").tag(config=True)
    progress_fd = Int(-1).tag(config=True)

    aliases: Any = values(
        ("n engines", "Start.n"),
        ("agents", "Start.agents"),
        ("agent-engines", "Start.agent_engines"),
        ("agent-time", "Start.agent_time"),
        ("agent-option", "Start.agent_option"),
        ("min", "Start.least"),
        ("max", "Start.most"),
        ("idle", "Start.idle"),
        ("startup", "Start.startup"),
        ("queue-policy", "Controller.queue_policy"),
        ("policy-path", "Controller.policy_path"),
        ("unmet-timeout", "Controller.unmet_timeout"),
        ("failure-penalty", "Controller.failure_penalty"),
        ("lease", "Controller.lease"),
        ("grace", "Controller.grace"),
        ("memory-limit", "Controller.memory_limit"),
        ("max-engine-losses", "Controller.max_engine_losses"),
        ("node-failures", "Controller.node_failures"),
        ("keep-results", "Controller.keep_results"),
        ("keep-results-size", "Controller.keep_results_size"),
        ("record", "Controller.record"),
        ("warm", "Controller.warm"),
        ("resource", "Controller.resource"),
        ("placement", "Controller.placement"),
        ("load-limit", "Controller.load_limit"),
        ("free-memory", "Controller.free_memory"),
        ("environment-patience", "Controller.environment_patience"),
        ("resource-patience", "Controller.resource_patience"),
        ("store-dir", "Controller.store_dir"),
        ("host", "Controller.host"),
        ("location", "Controller.location"),
        ("port", "Controller.port"),
        ("start-timeout", "Start.start_timeout"),
        ("drain", "Start.drain"),
    )
    flags: Any = switches(
        ("daemonize", "Start.daemonize", True, "return when the engines are ready; the farm goes on"),
        ("fresh", "Start.fresh", True, "begin anew; the old store is set aside, with the date in its name"),
        ("hold", "Start.hold", True, "start no task until `ipytaskfarm resume`"),
        ("take-over", "Start.take_over", True, "begin anew here with a farm whose store is on another host"),
    )

    def carry_out(self) -> int:
        settings = self.settings()
        home = Home.of(settings.name)
        if self.daemonize:
            return _detach(home, self.argv, settings)
        return _supervise(settings, home, self._audience(settings))

    def _agents(self) -> tuple[Agents, ...]:
        """With settings of all agents; they are for one launcher, where there are options or limits."""
        given = check_agents(self.agents)
        if not given and (self.agent_option or self.agent_engines or self.agent_time):
            raise ValueError("--agent-engines, --agent-time and --agent-option go with --agents")
        if len(given) > 1 and (self.agent_option or self.least is not None or self.most is not None):
            raise ValueError("--agent-option, --min and --max go with one --agents; `ipytaskfarm agents add` adds more")
        options = option_pairs("--agent-option", self.agent_option)
        return tuple(
            Agents(
                each.launcher, each.count, self.agent_engines, self.agent_time,
                min=self.least, max=self.most, idle=self.idle, options=options,
            )
            for each in given
        )  # fmt: skip

    def _audience(self, settings: FarmSettings) -> Audience:
        if self.progress_fd >= 0:
            return Reporter(os.fdopen(self.progress_fd, "w", buffering=1), settings.name)
        return Terminal(settings.name)

    def settings(self) -> FarmSettings:
        """What the command line and the config files ask for, checked."""
        controller = Controller(parent=self)
        try:
            agents = self._agents()
            least, most = (None, None) if agents else (self.least, self.most)
            scheduling = controller.scheduling(least, most, self.idle)
            code, code_name = read_startup(None if self.startup is None else Path(self.startup))
            return FarmSettings(
                name=self.home().name,
                engines=engines_at_first(self.n, scheduling.elastic, agents, usable_cores),
                agents=agents,
                startup=code,
                startup_name=code_name,
                queue_policy=policy_name(controller.queue_policy),
                policy_path=tuple(_folder("--policy-path", folder) for folder in controller.policy_path),
                host=controller.host,
                location=controller.location,
                port=controller.port,
                store_dir=None if controller.store_dir is None else Path(controller.store_dir).expanduser(),
                unmet_timeout_s=check_seconds("--unmet-timeout", controller.unmet_timeout),
                failure_penalty_s=check_seconds("--failure-penalty", controller.failure_penalty),
                grace_s=check_seconds("--grace", controller.grace),
                memory_limit_bytes=check_bytes("--memory-limit", controller.memory_limit),
                max_engine_losses=check_count("--max-engine-losses", controller.max_engine_losses, 1),
                node_failures=check_count("--node-failures", controller.node_failures, 5),
                keep_results_s=check_seconds("--keep-results", controller.keep_results),
                keep_results_bytes=check_bytes("--keep-results-size", controller.keep_results_size),
                record=None if controller.record is None else Path(controller.record).expanduser().absolute(),
                scheduling=scheduling,
                hold=self.hold,
                fresh=self.fresh,
                take_over=self.take_over,
                start_timeout_s=self.start_timeout,
                drain_s=self.drain,
            )
        except (ValueError, TypeError, SyntaxError, FileNotFoundError) as error:
            raise UsageError(str(error)) from None


def option_pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, several times."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise ValueError(f"{flag}: KEY=VALUE is expected, like partition=short, not {key!r}")
    return {key: value for key, _, value in pairs}


def _folder(flag: str, text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"{flag}: {path} is not a folder")
    return path


class Terminal:
    """Tells a person: what is waited for on one line that is overwritten, what happened on lines that stay."""

    def __init__(self, farm: str, *, stop_with: str = "Ctrl-C") -> None:
        self._farm = farm
        self._stop_with = stop_with
        self._rewrites = sys.stderr.isatty()
        self._shown = ""

    def progress(self, text: str) -> None:
        """On a terminal only the last one is seen; in a file, each that is new."""
        if text == self._shown:
            return
        _write(sys.stderr, f"\r\033[K{text} …" if self._rewrites else f"{text} …\n")
        self._shown = text

    def say(self, line: str) -> None:
        """A line that stays."""
        self.wipe()
        _write(sys.stdout, printing.safe(line) + "\n")

    def ready(self, state: FarmState) -> None:
        """The one line that says all one needs."""
        self.say(ready_line(state, self._farm, self._stop_with))

    def wipe(self) -> None:
        """Take the line away that says what is waited for."""
        if self._shown and self._rewrites:
            _write(sys.stderr, "\r\033[K")
        self._shown = ""


def _write(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # The terminal was closed: nobody reads on, and the farm must still be stopped in order.
        pass


class Reporter:
    """Tells the command that detached us, until that one has seen the farm ready; from then on the log."""

    def __init__(self, pipe: IO[str], farm: str) -> None:
        self._pipe: IO[str] | None = pipe
        self._farm = farm

    def progress(self, text: str) -> None:
        self._send("progress", text)

    def say(self, line: str) -> None:
        print(printing.safe(line), flush=True)
        self._send("say", line)

    def ready(self, state: FarmState) -> None:
        line = ready_line(state, self._farm, f"ipytaskfarm stop{farm_flag(self._farm)}")
        print(line, flush=True)
        self._send("ready", line)
        self.close()

    def failed(self, error: Exception) -> None:
        """The start came to nothing."""
        print(printing.safe(error), flush=True)
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
    """What to add to a command so that it means this farm."""
    return "" if name == "default" else f" --farm {name}"


def ready_line(state: FarmState, farm: str, stop_with: str) -> str:
    """Name, engines, how to connect, how to stop."""
    argument = "" if farm == "default" else repr(farm)
    held = ", held: `ipytaskfarm resume` lets tasks start" if state.held else ""
    return (
        f"farm {farm!r} is ready: {printing.number(ready_engines(state), 'engine')}, controller pid {state.pid}{held}."
        f" Connect: ipytaskfarm.TaskClient({argument}). Stop: {stop_with}"
    )


def _supervise(settings: FarmSettings, home: Home, audience: Audience) -> int:
    """Be the supervisor until the farm has ended."""
    supervisor = Supervisor(settings, home, audience)
    if isinstance(audience, Reporter):
        name_process(f"ipytaskfarm supervisor --farm {settings.name}")

    def on_signal(number: int, frame: object) -> None:
        supervisor.request_stop()

    # SIGHUP too: a foreground farm ends with its terminal.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
    """Start this same command as a process of its own, and watch it until the farm is ready."""
    terminal = Terminal(settings.name)
    started = start_detached(home, [word for word in argv if word != "--daemonize"], terminal)
    terminal.wipe()
    if started.code:
        print(f"ipytaskfarm start: {started.text}", file=sys.stderr)
    else:
        terminal.say(started.text)
    return started.code
