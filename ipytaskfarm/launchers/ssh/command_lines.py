"""What the ssh launcher types: command lines and scripts, as text.  Nothing here runs anything.

The other machine's login shell may be any (csh, fish), so it is only ever told ``sh -s``; what is to happen comes by
stdin.  There the secret is too, in a here-document that becomes the stdin of our own Python: never in a command line or
an environment variable.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core.inherited_variables import UMASK_BEFORE
from ..interface import shell_line

MARK = "ipytaskfarm-answer "
"""Begins the line that is the answer: login shells may print things of their own."""
END = "ipytaskfarm-end-of-data"
CONNECT_S = 10
"""A host that does not answer for so long is not there."""
ALIVE_S = 10
"""A tunnel asks so often whether the other side lives, and ends after three unanswered."""
_HOST = re.compile(
    r"(?P<target>(?:[A-Za-z0-9._+-]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]))(?::(?P<engines>\d+))?"
)
_PORT = re.compile(r"Allocated port (\d+) for remote forward")

# As old a Python as may be found there understands this.  It stands in the script as one quoted word.
_LOOK = """
import json, os, socket, sys
address, cwd = json.loads(sys.argv[1])
answer = {"python": sys.executable, "python_version": "%d.%d" % sys.version_info[:2], "cwd": os.path.isdir(cwd)}
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
    except OSError:
        answer["reaches"] = False
print("MARK" + json.dumps(answer))
""".strip().replace("MARK", MARK)


class Host(NamedTuple):
    """One machine that agents go to."""

    target: str
    """As ssh knows it: a name, an alias of the user's configuration, ``user@name``."""
    engines: int | None
    """None: as the submission says."""

    @property
    def name(self) -> str:
        """For people: without the user."""
        return self.target.rpartition("@")[2].strip("[]")

    @property
    def destination(self) -> str:
        """For ssh, which wants IPv6 addresses without brackets."""
        return self.target.replace("[", "").replace("]", "")


def parse_hosts(text: str) -> list[Host]:
    """``node01:4,user@node02:2,[fe80::1]:4`` -> hosts.  ValueError names the part that is none."""
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
    """Return the command line that runs a script, given by stdin, on that host.  It never asks for anything.

    A connection that the user keeps open (``ControlPath``) is used, none is opened to stay: it would hold our pipes.
    """
    options = ["ClearAllForwardings=yes", "ControlMaster=no"]
    return [*_ssh(config, options), "--", host.destination, "sh -s"]


def tunnel_words(config: str | None, host: Host, target: tuple[str, int]) -> list[str]:
    """Return the command line that lets that host reach `target` by a port of its own loopback, which ssh says
    (`said_port`).

    It has a connection of its own: over a shared one the forwarding would stay when this process ends.
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
    """Return the port that ssh says it has been given on the other side."""
    match = _PORT.search(text)
    return int(match[1]) if match else None


def look_script(pythons: Sequence[str], address: tuple[str, int] | None, cwd: str) -> str:
    """Finds the first of these interpreters and says what it has, and whether it reaches `address`."""
    candidates = " ".join(map(shlex.quote, pythons))
    return (
        "cd /\n"
        f"for python in {candidates}; do\n"
        '    command -v "$python" >/dev/null 2>&1 || continue\n'
        f'    exec "$python" -c {shlex.quote(_LOOK)} {shlex.quote(json.dumps([address, cwd]))}\n'
        "done\n"
        f"""echo '{MARK}{{"error": "there is no Python"}}'\n"""
    )


def helper_script(python: str, verb: str, data: Mapping[str, Any]) -> str:
    """Runs one verb of `ipytaskfarm.launchers.ssh.remote` there; data by its stdin."""
    words = [python, "-P", "-m", "ipytaskfarm.launchers.ssh.remote", verb]
    # Some shells keep here-documents in a file for a moment.
    umask = f"{UMASK_BEFORE}=$(umask); export {UMASK_BEFORE}; umask 077"
    return f"{umask}\ncd /\nexec {shell_line(words)} <<'{END}'\n{json.dumps(data)}\n{END}\n"


def tunnel_script(folder: str, patience_s: int) -> str:
    """Lasts as long as the tunnel is to: until the agent of that folder has ended well, or the folder is gone.

    patience_s: how long the folder may take to appear.
    """
    return (
        f"folder={shlex.quote(folder)}\n"
        "left=" + str(patience_s) + "\n"
        'while [ ! -d "$folder" ] && [ "$left" -gt 0 ]; do left=$((left - 1)); sleep 1; done\n'
        'while [ -d "$folder" ] && [ "$(cat "$folder/exit" 2>/dev/null)" != 0 ]; do sleep 1; done\n'
    )


def answer_of(text: str) -> dict[str, Any] | None:
    """Return the answer in what a script printed; None: there is none."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    if not lines:
        return None
    try:
        answer = json.loads(lines[-1].removeprefix(MARK))
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
