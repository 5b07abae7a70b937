"""A private sshd on loopback, with its own keys and configuration.

It neither reads nor writes files below /etc/ssh or ~/.ssh.  Its sessions get the environment variables of the test's
world, not those of this process.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import ipytaskfarm
from tests.support.polling import eventually

SSHD = "/usr/sbin/sshd"
"""An absolute path, because sshd starts itself again for each connection."""
SEPARATION = Path("/run/sshd")
"""Where sshd locks its unprivileged half in; made by init, where there is one.  Empty, and left: others may use it."""
HOSTS = ("node01", "node02")


@dataclass(frozen=True)
class Sshd:
    """One that runs."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        """Return the configuration file for ``ssh -F``, in which `HOSTS` lead here."""
        return self.folder / "ssh_config"

    def sessions(self) -> list[psutil.Process]:
        """Return the processes of logged-in sessions."""
        return psutil.Process(self.process.pid).children(recursive=True)


def missing() -> str:
    """Why there can be none; "": it can."""
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        return "needs sshd and ssh (Debian: openssh-server, openssh-client)"
    if os.geteuid() != 0 and not SEPARATION.is_dir():
        return f"sshd needs {SEPARATION}, which only root can make"
    return ""


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Sshd]:
    """An sshd that has its files in `folder` and gives its sessions these environment variables; ended afterwards."""
    if missing():
        pytest.skip(missing())
    folder.mkdir(mode=0o700)
    if not SEPARATION.is_dir():
        SEPARATION.mkdir(mode=0o755)
    _make_keys(folder)
    process, port = _start(folder, environment)
    try:
        yield Sshd(folder, port, process)
    finally:
        # The processes of sessions do not end with the server.
        sessions = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(60)
        for session in sessions:
            if session.is_running() and session.name().startswith("sshd"):
                session.terminate()


def _make_keys(folder: Path) -> None:
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(words, check=True, timeout=60)
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    os.chmod(folder / "authorized", 0o600)


def _start(folder: Path, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    # Another process may take the port before sshd binds it.
    for _ in range(5):
        port = _free_port()
        _configure(folder, port, environment)
        with open(folder / "sshd.log", "wb") as log:
            process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)

        def listens(process: subprocess.Popen[bytes] = process) -> bool:
            return b"Server listening" in (folder / "sshd.log").read_bytes() or process.poll() is not None

        eventually(listens, what="sshd listens")
        if process.poll() is None:
            return process, port
    raise AssertionError(f"sshd does not start: {(folder / 'sshd.log').read_text()}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _configure(folder: Path, port: int, environment: Mapping[str, str]) -> None:
    root = str(Path(ipytaskfarm.__file__).parents[1])
    given = " ".join(f'"{name}={value}"' for name, value in {**environment, "PYTHONPATH": root}.items())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        f"AllowTcpForwarding yes\nPrintMotd no\nUseDNS no\nMaxStartups 100\nLogLevel INFO\nSetEnv {given}\n"
    )
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "ssh_config").write_text(
        f"Host {' '.join(HOSTS)}\n"
        f"  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
        f"  StrictHostKeyChecking yes\n  HostKeyAlias [127.0.0.1]:{port}\n  LogLevel ERROR\n"
    )
