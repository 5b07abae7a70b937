"""Agents on other machines by ssh: one on each host, started, supervised and ended over short connections.

The user's ssh configuration decides who may log in, with which key and through which gateways. ssh runs as configured
and never asks for anything. On a host, each agent has a folder of 0700 with its connection file (0600) and logs
(`remote`), which is removed with the agent. The agent is detached from ssh and outlives the connection.

If the controller listens only on loopback, or cannot be reached from a host, a **tunnel** connects the agent: a
detached ssh process on this machine that forwards a port of the host's loopback to the controller. Being detached, it
outlives the process that started it. Other users of that host can reach the port, but the controller refuses them
(keys). The tunnel ends when the agent has ended.
"""

from __future__ import annotations

import contextvars
import hashlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from ipytaskfarm.core.errors import FarmNotRunning, LauncherError, TaskFarmError
from ipytaskfarm.system.farm_paths import ConnectionInfo, dialled, process_started, read_connection_file
from ipytaskfarm.version import __version__

from .. import describe_exit
from ..answering import answer_limit_s, run_command
from ..interface import AgentSpec, AgentStatus, Handle, Seat, agent_words, elsewhere, shell_line
from .command_lines import (
    CONNECT_S,
    Host,
    answer_of,
    helper_script,
    look_script,
    parse_hosts,
    said_port,
    ssh_words,
    tunnel_script,
    tunnel_words,
)

T = TypeVar("T")

ANSWER_S = 60.0
"""The time limit for a script. The longest one, a start, waits 10 s for its process."""
LOOK_S = 10.0
"""The interval at which `Ssh.tend` asks each host. It checks tunnels, which are local processes, each time."""
RESTARTS, RESTART_WINDOW_S = 3, 60.0
"""How often a crashed agent is started again within this time. If it crashes more often, it is left as it is."""
MARGIN_S = 15.0
"""Added to the time that running tasks have: for handing over results, and for the engines' ends."""
AT_ONCE = 16
"""The number of hosts that are contacted at the same time."""
EXIT_STOPPED, EXIT_REFUSED = 0, 4
"""Exit codes of agents that are not started again."""
SECRET = "(the agents' connection file, not shown)"


class Ssh:
    """The launcher ``ssh``; it implements `Launcher`."""

    OPTIONS: ClassVar[Mapping[str, str]] = {
        "hosts": "where: node01:4,user@node02:2 (engines of each; without a number as the submission says)",
        "config": "a configuration file for ssh, instead of ~/.ssh/config",
        "python": "the interpreter on the hosts (default: the one used here, else python3)",
        "tunnel": "auto, yes or no: whether agents reach the controller through ssh (auto: if there is no other way)",
        "folder": "where agents' connection files and logs lie on the hosts (default: ipytaskfarm in the user's cache)",
    }

    def __init__(self, options: Mapping[str, str]) -> None:
        """Create the launcher from its options.

        Raises:
            ValueError: no hosts are given, or an option has an invalid value.
        """
        self._hosts = parse_hosts(options.get("hosts", ""))
        self._config = os.path.abspath(os.path.expanduser(options["config"])) if options.get("config") else None
        self._python = options.get("python") or None
        self._tunnel = options.get("tunnel") or "auto"
        if self._tunnel not in ("auto", "yes", "no"):
            raise ValueError(f"tunnel={self._tunnel!r}: auto, yes or no was expected")
        self._folder = options.get("folder") or None
        if self._folder is not None and not self._folder.startswith("/"):
            raise ValueError(f"folder={self._folder!r}: a path on the hosts that begins with / was expected")
        self._looked_s: dict[str, float] = {}

    # ------------------------------------------------------------------ the launcher

    def names(self, group: str, count: int | None) -> list[str]:
        """Return one agent's name for each host."""
        if count not in (None, len(self._hosts)):
            raise ValueError(f"{count} agents were requested, and there are {len(self._hosts)} hosts: one goes to each")
        return [f"{group}.{number}" for number in range(len(self._hosts))]

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        """Return the commands and the input of each host's shell, without the secret. No host is contacted."""
        parts = []
        for seat, host in zip(seats, self._hosts, strict=True):
            info = _info_shown(seat, spec)
            answer: dict[str, Any] = {"python": self._pythons(spec)[0], "cwd": True, "cache": "~/.cache"}
            folder = self._remote_folder(answer, info, seat.name)
            start = helper_script(answer["python"], "start", self._start_data(answer, host, seat, spec, folder, SECRET))
            if self._tunnel != "no":
                command = shell_line(tunnel_words(self._config, host, (dialled(info), info.port)))
                when = "" if self._tunnel == "yes" else ", if it does not reach the controller"
                script = tunnel_script(folder, int(ANSWER_S))
                parts.append(f"# {seat.name}: a tunnel{when}\n{command} <<'EOF'\n{script}EOF\n")
            command = shell_line(ssh_words(self._config, host))
            parts.append(f"# {seat.name}: the agent\n{command} <<'EOF'\n{start}EOF\n")
        return "\n".join(parts)

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Start all agents or none.

        Raises:
            LauncherError: some hosts refuse. The message names each of them.
        """
        pairs = list(zip(seats, self._hosts, strict=True))
        outcomes = _for_each(pairs, lambda pair: _caught(lambda: self._begin(pair[0], pair[1], spec)))
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, LauncherError)]
        begun = {seat.name: o for (seat, _), o in zip(pairs, outcomes, strict=True) if not isinstance(o, LauncherError)}
        handle: Handle = {"config": self._config, "agents": begun}
        if failed:
            try:
                self.cancel(handle)
            except LauncherError as error:
                failed.append(str(error))
            raise LauncherError("\n".join(failed))
        return handle

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Ask all hosts at once, each over one connection.

        An agent on a host that cannot be asked counts as ``running``, with the reason. A crashed agent is ``waiting``
        for `tend`, which is called soon.
        """
        agents: dict[str, dict[str, Any]] = handle["agents"]
        found = _for_each(agents.values(), lambda agent: _caught(lambda: self._ask(handle, agent, "look")))
        statuses = {name: _status(agents[name], answer) for name, answer in zip(agents, found, strict=True)}
        for name, status in statuses.items():
            if status.state == "waiting":
                self._looked_s.pop(name, None)
        return statuses

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """Send SIGTERM, and SIGKILL when its running tasks have had their time and `MARGIN_S`.

        Then the agent's folder is removed, and its tunnel ends.

        Raises:
            LauncherError: some hosts could not be contacted. The message names them.
        """
        agents = [agent for name, agent in handle["agents"].items() if names is None or name in names]
        outcomes = _for_each(agents, lambda agent: _caught(lambda: self._end(handle, agent)))
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, LauncherError)]
        if failed:
            raise LauncherError("\n".join(failed))

    def tend(self, handle: Handle) -> Handle:
        """Renew broken tunnels and tell agents the new port; start crashed agents again."""
        agents: dict[str, dict[str, Any]] = handle["agents"]
        tended = _for_each(agents.items(), lambda item: self._tend(handle, item[0], dict(item[1])))
        return {**handle, "agents": dict(zip(agents, tended, strict=True))}

    # ------------------------------------------------------------------ one agent

    def _begin(self, seat: Seat, host: Host, spec: AgentSpec) -> dict[str, Any]:
        info = read_connection_file(seat.connection_file)
        address = None if self._tunnel == "yes" else elsewhere(info)
        target = None if address is None else (address, info.port)
        script = look_script(self._pythons(spec), target, str(spec.cwd))
        answer = _answer(self._config, host, script)
        _check(host, answer, info)
        tunneled = self._tunnel == "yes" or not answer.get("reaches", False)
        if tunneled and self._tunnel == "no":
            raise LauncherError(
                f"{host.target} does not reach the controller on {info.location or info.host} port {info.port}: let it"
                " listen where hosts can reach it (`ipytaskfarm start --host ADDRESS`), or leave tunnel=no out"
            )
        folder = self._remote_folder(answer, info, seat.name)
        agent: dict[str, Any] = {
            "name": seat.name,
            "host": host.target, "python": answer["python"], "folder": folder, "tunneled": tunneled, "tunnel": None,
            "connection_file": str(seat.connection_file), "log": str(spec.logs / f"{seat.name}.tunnel.log"),
            "patience_s": spec.leave_s + MARGIN_S, "restarts": [], "over": False, "sent": "",
        }  # fmt: skip
        agent["words"] = self._start_data(answer, host, seat, spec, folder, "")["words"]
        self._start(self._config, agent)
        return agent

    def _pythons(self, spec: AgentSpec) -> list[str]:
        return [self._python] if self._python is not None else [spec.python, "python3"]

    def _remote_folder(self, answer: dict[str, Any], info: ConnectionInfo, name: str) -> str:
        # Hosts may share homes, and farms of several machines may have one name.
        return f"{self._folder or answer['cache'] + '/ipytaskfarm'}/{info.farm}-{info.incarnation[:8]}-{name}"

    def _start_data(
        self, answer: dict[str, Any], host: Host, seat: Seat, spec: AgentSpec, folder: str, connection: str
    ) -> dict[str, Any]:
        engines = host.engines if host.engines is not None else spec.engines
        cwd = spec.cwd if answer["cwd"] else Path(answer["home"])
        words = agent_words(
            replace(spec, engines=engines, cwd=cwd), seat.name, f"{folder}/connection.json", node=host.name
        )
        return {
            "folder": folder,
            "connection": connection,
            "words": [answer["python"], *words, "--log", f"{folder}/agent.log"],
        }

    def _start(self, config: str | None, agent: dict[str, Any]) -> None:
        """Open the tunnel, if the host needs one, and start the agent."""
        try:
            text = self._connection(config, agent)
            started = self._told(config, agent, "start", connection=text, words=agent["words"])
        except BaseException:
            _end_tunnel(agent)
            raise
        agent["pid"], agent["started"] = started["pid"], started["started"]
        agent["sent"] = _digest(text)

    def _connection(self, config: str | None, agent: dict[str, Any]) -> str:
        """Return the text of an agent's connection file with the port of its tunnel, which is renewed if
        it is broken.
        """
        info = read_connection_file(Path(agent["connection_file"]))
        if agent["tunneled"]:
            target = [dialled(info), info.port]
            tunnel = agent["tunnel"]
            if tunnel is None or not _lives(tunnel) or tunnel["target"] != target:
                _end_tunnel(agent)
                agent["tunnel"] = _open_tunnel(config, agent, (dialled(info), info.port))
            info = msgspec.structs.replace(info, host="127.0.0.1", location="", port=agent["tunnel"]["port"])
        return msgspec.json.encode(info).decode()

    def _tend(self, handle: Handle, name: str, agent: dict[str, Any]) -> dict[str, Any]:
        if agent["over"]:
            return agent
        try:
            now_s = time.monotonic()
            if _is_cut_off(agent) or now_s - self._looked_s.get(name, -LOOK_S) >= LOOK_S:
                self._looked_s[name] = now_s
                self._mend(handle, agent)
        except (TaskFarmError, OSError):
            pass  # the host or the farm is not reachable now; `status` reports it, and the next call tries again
        return agent

    def _mend(self, handle: Handle, agent: dict[str, Any]) -> None:
        answer = self._ask(handle, agent, "look")
        if answer["state"] == "running":
            text = self._connection(handle["config"], agent)
            if _digest(text) != agent["sent"]:
                self._told(handle["config"], agent, "update", connection=text)
                agent["sent"] = _digest(text)
        elif _starts_again(agent, answer):
            agent["restarts"] = [*agent["restarts"], time.time()][-RESTARTS:]
            self._start(handle["config"], agent)
        else:
            agent["over"] = True
            _end_tunnel(agent)

    def _end(self, handle: Handle, agent: dict[str, Any]) -> None:
        try:
            answer = self._told(handle["config"], agent, "end", name=agent["name"], patience_s=agent["patience_s"])
        except LauncherError:
            _end_tunnel(agent)  # useless, since the host cannot be reached
            raise
        # Otherwise the tunnel still carries results to the controller.
        if answer["state"] == "gone":
            _end_tunnel(agent)

    def _ask(self, handle: Handle, agent: dict[str, Any], verb: str) -> dict[str, Any]:
        return self._told(handle["config"], agent, verb)

    def _told(self, config: str | None, agent: dict[str, Any], verb: str, **data: Any) -> dict[str, Any]:
        host = Host(agent["host"], None)
        answer = _answer(config, host, helper_script(agent["python"], verb, {"folder": agent["folder"], **data}))
        if "error" in answer:
            raise LauncherError(f"on {host.target}: {answer['error']}")
        return answer


# ---------------------------------------------------------------------------------------- running ssh


def _answer(config: str | None, host: Host, script: str) -> dict[str, Any]:
    """Run a script on the host. The message of a LauncherError says what to type to see the same."""
    try:
        ended = run_command(ssh_words(config, host), answer_limit_s(ANSWER_S), script, host.target)
    except FileNotFoundError:
        raise LauncherError("there is no ssh here: install an OpenSSH client (Debian: openssh-client)") from None
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"{host.target} did not answer within {error.timeout:g} s. {_try(config, host)}") from None
    answer = answer_of(ended.said)
    if answer is not None:
        return answer
    said = (ended.complaint.strip() or ended.said.strip() or "it said nothing").splitlines()[-1].rstrip(". ")
    if ended.code == 255:
        raise LauncherError(f"cannot log in to {host.target}: {said}. {_try(config, host)}")
    raise LauncherError(f"{host.target} ended with exit code {ended.code}: {said}. {_try(config, host)}")


def _try(config: str | None, host: Host) -> str:
    given = f"-F {shlex.quote(config)} " if config is not None else ""
    return f"Try: ssh {given}-o BatchMode=yes {host.destination} true"


def _check(host: Host, answer: dict[str, Any], info: ConnectionInfo) -> None:
    remedy = f"install ipytaskfarm=={__version__} there, or name another interpreter with python=PATH"
    if "python" not in answer:
        raise LauncherError(f"{host.target} has no such Python: {remedy}")
    python = f"{answer['python']} on {host.target}"
    if "version" not in answer:
        raise LauncherError(
            f"{python} (Python {answer['python_version']}) lacks ipytaskfarm ({answer['error']}): {remedy}"
        )
    if answer["version"] != __version__:
        raise LauncherError(f"{python} has ipytaskfarm {answer['version']}, and here is {__version__}: {remedy}")


# ---------------------------------------------------------------------------------------- tunnels


def _info_shown(seat: Seat, spec: AgentSpec) -> ConnectionInfo:
    """Return the connection file of an agent; with words for people in it if the agent is not enrolled yet."""
    try:
        return read_connection_file(seat.connection_file)
    except FarmNotRunning:
        return ConnectionInfo(
            farm=spec.farm, incarnation="FARM", host="CONTROLLER", port=0, server_key="", public_key="", secret_key="",
            role="agent", controller_pid=0, controller_started=0.0, version="", protocol=0,
        )  # fmt: skip


def _open_tunnel(config: str | None, agent: dict[str, Any], target: tuple[str, int]) -> dict[str, Any]:
    """Start a detached ssh process that forwards a port of the host's loopback to `target`; return its pid and the
    port.
    """
    host, log = Host(agent["host"], None), Path(agent["log"])
    tunnel: dict[str, Any] = {
        **_detached(tunnel_words(config, host, target), tunnel_script(agent["folder"], int(ANSWER_S)), log)
    }
    tunnel["target"] = list(target)
    deadline = time.monotonic() + 2 * CONNECT_S
    while True:
        lives = _lives(tunnel)
        said = log.read_text(errors="replace")
        port = said_port(said)
        if port is not None:
            return {**tunnel, "port": port}
        if not lives or time.monotonic() > deadline:
            _kill(tunnel)
            last = (said.strip() or "ssh said nothing").splitlines()[-1]
            raise LauncherError(f"no tunnel through {host.target}: {last}. {_try(config, host)}, and see {log}")
        time.sleep(0.02)


def _detached(words: list[str], script: str, log: Path) -> dict[str, Any]:
    """Run a command with the script as its stdin.

    It is nobody's child: it outlives this process, and is reaped when it ends.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # A shell gives a background process no stdin, unless it is told which.
        started = subprocess.run(
            ["/bin/sh", "-c", 'exec 3<&0 4>&1 >&2; "$@" <&3 3<&- 4>&- & echo $! >&4', "sh", *words],
            input=script.encode(), stdout=subprocess.PIPE, stderr=output, start_new_session=True, check=True,
        )  # fmt: skip
    finally:
        os.close(output)
    pid = int(started.stdout)
    return {"pid": pid, "started": process_started(pid)}


def _lives(tunnel: dict[str, Any]) -> bool:
    return tunnel["started"] is not None and process_started(int(tunnel["pid"])) == tunnel["started"]


def _is_cut_off(agent: dict[str, Any]) -> bool:
    return bool(agent["tunneled"]) and (agent["tunnel"] is None or not _lives(agent["tunnel"]))


def _kill(tunnel: dict[str, Any]) -> None:
    if _lives(tunnel):
        try:
            os.kill(int(tunnel["pid"]), signal.SIGTERM)
        except ProcessLookupError:
            pass


def _end_tunnel(agent: dict[str, Any]) -> None:
    if agent["tunnel"] is not None:
        _kill(agent["tunnel"])
        agent["tunnel"] = None


# ---------------------------------------------------------------------------------------- helpers


def _status(agent: dict[str, Any], answer: dict[str, Any] | LauncherError) -> AgentStatus:
    where = Host(agent["host"], None).name
    if isinstance(answer, LauncherError):
        return AgentStatus("running", where, str(answer))
    if answer["state"] == "running":
        return AgentStatus("running", where)
    if answer["state"] == "gone":
        return AgentStatus("ended", where, "nothing of it is left there")
    code, said = answer.get("code"), str(answer.get("said", "")).rpartition("\n")[2]
    if code == EXIT_STOPPED:
        return AgentStatus("ended", where, "ended as told")
    # A shell reports 128 + the signal.
    how = "is gone" if code is None else describe_exit(128 - code if code > 128 else code)
    why = f"it {how}{f' ({said})' if said else ''}"
    if _starts_again(agent, answer):
        return AgentStatus("waiting", where, f"{why}; it is to be started again")
    return AgentStatus("ended", where, why)


def _starts_again(agent: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Return whether an agent that has ended was meant to go on, and has not crashed too often recently."""
    if agent["over"] or answer["state"] != "ended" or answer["code"] in (EXIT_STOPPED, EXIT_REFUSED):
        return False
    restarts = agent["restarts"]
    return len(restarts) < RESTARTS or not 0 <= time.time() - restarts[0] < RESTART_WINDOW_S


def _for_each(items: Any, call: Callable[[Any], T]) -> list[T]:
    found = list(items)
    if len(found) < 2:
        return [call(item) for item in found]
    with ThreadPoolExecutor(min(AT_ONCE, len(found)), thread_name_prefix="ssh") as pool:
        # In a copy of this context: who is told of slow commands, and how much time these have, holds there too.
        running = [pool.submit(contextvars.copy_context().run, call, item) for item in found]
        return [each.result() for each in running]


def _caught(call: Callable[[], T]) -> T | LauncherError:
    try:
        return call()
    except LauncherError as error:
        return error
    except (TaskFarmError, OSError) as error:
        return LauncherError(str(error))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
