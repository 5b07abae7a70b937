"""The command lines and scripts of the ssh launcher, as text. Nothing here runs anything.

The login shell of the other machine may be any (csh, fish), so the only command is ``sh -s``; the script comes by
stdin. The secret comes there too, in a here-document that becomes the stdin of our own Python. It is never in a command
line or an environment variable.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...system.process import UMASK_BEFORE
from ..interface import shell_line

MARK = "ipytaskfarm-answer "
"""Begins the line with the answer, since login shells may print text of their own."""
END = "ipytaskfarm-end-of-data"
CONNECT_S = 10
"""After this time without an answer, a host counts as unreachable."""
ALIVE_S = 10
"""The interval at which a tunnel asks whether the other side lives. It ends after three unanswered requests."""
_HOST = re.compile(
    r"(?P<target>(?:[A-Za-z0-9._+-]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]))(?::(?P<engines>\d+))?"
)
_PORT = re.compile(r"Allocated port (\d+) for remote forward")

# Any old Python that may be found there must understand this. The script contains it as one quoted word.
_LOOK = """
import json, os, socket, sys
address, cwd = json.loads(sys.argv[1])
# As it was named: it may be a script of the site that prepares an environment for the interpreter.
python = sys.argv[2] if sys.argv[2].startswith("/") else sys.executable
answer = {"python": python, "python_version": "%d.%d" % sys.version_info[:2], "cwd": os.path.isdir(cwd)}
answer["home"] = os.path.expanduser("~")
answer["cache"] = os.environ.get("XDG_CACHE_HOME") or os.path.join(answer["home"], ".cache")
sys.path[:] = [path for path in sys.path if path not in ("", ".")]
try:
    import ipytaskfarm
    answer["version"] = ipytaskfarm.__version__
except Exception as error:
    answer["error"] = "%s: %s" % (type(error).__name__, error)
if address:
    try:
        socket.create_connection(tuple(address), 3).close()
        answer["reaches"] = True
    except (OSError, UnicodeError):
        answer["reaches"] = False
print("MARK" + json.dumps(answer))
""".strip().replace("MARK", MARK)


class Host(NamedTuple):
    """A machine for agents."""

    target: str
    """The name for ssh: a host name, an alias of the user's configuration, or ``user@name``."""
    engines: int | None
    """The number of engines; None for the submission's."""

    @property
    def name(self) -> str:
        """Return the name for people, without the user."""
        return self.target.rpartition("@")[2].strip("[]")

    @property
    def destination(self) -> str:
        """Return the name for ssh, which wants IPv6 addresses without brackets."""
        return self.target.replace("[", "").replace("]", "")


def parse_hosts(text: str) -> list[Host]:
    """Return the hosts of a text like ``node01:4,user@node02:2,[fe80::1]:4``.

    Raises:
        ValueError: a part is not a host. The message names it.
    """
    hosts = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        match = _HOST.fullmatch(part)
        if match is None or part.startswith("-") or "@-" in part:
            raise ValueError(
                f"{part!r} is no host: NAME, NAME:ENGINES or USER@NAME:ENGINES was expected, with commas between"
            )
        engines = int(match["engines"]) if match["engines"] is not None else None
        if engines == 0:
            raise ValueError(f"{part!r} asks for no engine at all: at least 1, or leave the number out")
        hosts.append(Host(match["target"], engines))
    if not hosts:
        raise ValueError("the option hosts is needed: hosts=node01:4,user@node02:2 (engines of each)")
    return hosts


def ssh_words(config: str | None, host: Host) -> list[str]:
    """Return the command line that runs a script, given by stdin, on the host. It never asks for anything.

    A connection that the user keeps open (``ControlPath``) is used. None is opened to stay, since it would keep our
    pipes.
    """
    # LogLevel: without it the site's banner would stand before the reason of a failure.
    options = ["ClearAllForwardings=yes", "ControlMaster=no", "LogLevel=ERROR"]
    return [*_ssh(config, options), "--", host.destination, "sh -s"]


def tunnel_words(config: str | None, host: Host, target: tuple[str, int]) -> list[str]:
    """Return the command line that forwards a port of the host's own loopback to `target`. ssh prints the port
    (`said_port`).

    The tunnel has a connection of its own: on a shared one the forwarding would stay after the end of this process.
    """
    options = [
        *("ControlPath=none", "ControlMaster=no", "ExitOnForwardFailure=yes", "LogLevel=INFO"),
        *(f"ServerAliveInterval={ALIVE_S}", "ServerAliveCountMax=3"),
    ]
    address, port = target
    shown = f"[{address}]" if ":" in address else address
    return [*_ssh(config, options), "-R", f"127.0.0.1:0:{shown}:{port}", "--", host.destination, "sh -s"]


def _ssh(config: str | None, options: Sequence[str]) -> list[str]:
    always = ("BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "RemoteCommand=none", "PermitLocalCommand=no")
    words = ["ssh", "-T", "-a", "-x", *(["-F", config] if config is not None else [])]
    for option in (*always, *options):
        words += ["-o", option]
    return words


def said_port(text: str) -> int | None:
    """Return the port on the other side that ssh has printed; None if there is none."""
    match = _PORT.search(text)
    return int(match[1]) if match else None


def look_script(pythons: Sequence[str], address: tuple[str, int] | None, cwd: str) -> str:
    """Return a script that finds the first of these interpreters, and reports its version and whether it reaches
    `address`.
    """
    candidates = " ".join(map(shlex.quote, pythons))
    return (
        "cd /\n"
        f"for python in {candidates}; do\n"
        '    path=$(command -v "$python" 2>/dev/null) || continue\n'
        f'    exec "$python" -c {shlex.quote(_LOOK)} {shlex.quote(json.dumps([address, cwd]))} "$path"\n'
        "done\n"
        f"""echo '{MARK}{{"error": "there is no Python"}}'\n"""
    )


def helper_script(python: str, verb: str, data: Mapping[str, Any]) -> str:
    """Return a script that runs one verb of `ipytaskfarm.launchers.ssh.remote` on the host, with the
    data by its stdin.
    """
    words = [python, "-P", "-m", "ipytaskfarm.launchers.ssh.remote", verb]
    # Some shells write here-documents to a file for a moment.
    umask = f"{UMASK_BEFORE}=$(umask); export {UMASK_BEFORE}; umask 077"
    return f"{umask}\ncd /\nexec {shell_line(words)} <<'{END}'\n{json.dumps(data)}\n{END}\n"


def tunnel_script(folder: str, patience_s: int) -> str:
    """Return a script that runs as long as the tunnel: until the agent of the folder has ended, or the folder is
    removed.

    `patience_s` is the time within which the folder must appear.
    """
    return (
        f"folder={shlex.quote(folder)}\n"
        "left=" + str(patience_s) + "\n"
        'while [ ! -d "$folder" ] && [ "$left" -gt 0 ]; do left=$((left - 1)); sleep 1; done\n'
        'while [ -d "$folder" ] && [ "$(cat "$folder/exit" 2>/dev/null)" != 0 ]; do sleep 1; done\n'
    )


def answer_of(text: str) -> dict[str, Any] | None:
    """Return the answer in the output of a script; None if there is none."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    if not lines:
        return None
    try:
        answer = json.loads(lines[-1].removeprefix(MARK))
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
