"""Hosts on this machine: network namespaces behind a bridge, with links that can be cut, lose packets, or change
addresses.

This needs root, ``ip``, ``iptables`` and ``ss`` (see `why_not`).  The network is one of 10.0.0.0/8 to which this
machine has no route; a route of last resort keeps its packets from leaving another way when the bridge is gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.polling import eventually

TOOLS = ("ip", "iptables", "ss")
LAST_RESORT = "4000"
"""Metric of a route that is taken when there is no other."""


def why_not() -> str:
    """Why there can be no such hosts here; "": there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: iproute2, iptables)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["ip", "netns", "add", name := f"itf-{secrets.token_hex(3)}"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    run("ip", "netns", "del", name)
    return ""


def run(*words: str) -> str:
    """Run a command and return its output.  Raises AssertionError, with the output, if it failed."""
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, f"{' '.join(words)}: {ended.stderr.strip()}"
    return ended.stdout


class Host:
    """A namespace with one link, which ends at the bridge."""

    def __init__(self, network: Network, number: int) -> None:
        self.name = f"{network.name}-{number}"
        self.address = network.address_of(number + 2)
        self._network = network
        self._outer = f"{network.name}o{number}"
        inner = f"{network.name}i{number}"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._outer, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", self._outer, "master", network.name)
        run("ip", "link", "set", self._outer, "up")
        run("ip", "link", "set", inner, "netns", self.name, "name", "eth0")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")

    def words(self, *words: str) -> list[str]:
        """The command that runs these there."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str) -> str:
        """Run a command on this host; return its output."""
        return run(*self.words(*words))

    def link_bytes(self) -> tuple[int, int]:
        """Return how many bytes the host has sent and received, with all headers."""
        counters = Path("/sys/class/net") / self._outer / "statistics"
        # The bridge's end of the link receives what the host sends.
        return int((counters / "rx_bytes").read_text()), int((counters / "tx_bytes").read_text())

    def cut(self) -> None:
        """Cut the link: no packet arrives or leaves, and no end is notified."""
        run("ip", "link", "set", self._outer, "down")

    def filter(self, *rules: Sequence[str]) -> None:
        """Have the host's packet filter do this, for example ("INPUT", "-j", "DROP")."""
        for rule in rules:
            self.run("iptables", "-A", *rule)

    def mend(self) -> None:
        """The link and the filter are again as they were."""
        run("ip", "link", "set", self._outer, "up")
        self.run("iptables", "-F")

    def lose_address(self) -> None:
        """Remove the address: packets from it cannot be sent, and packets to it have no destination."""
        self.run("ip", "addr", "del", f"{self.address}/24", "dev", "eth0")

    def take_address(self, number: int) -> None:
        """Another one, in the same network."""
        self.address = self._network.address_of(number)
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")

    def reset_connections(self) -> int:
        """All its TCP connections end, with RST for the other side.  How many there were."""
        lines = self.run("ss", "-K", "-H", "-t", "-n", "state", "established").splitlines()
        return len(lines)

    def close(self) -> None:
        """Remove the host with all its processes."""
        pids = [int(pid) for pid in run("ip", "netns", "pids", self.name).split()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        eventually(lambda: not run("ip", "netns", "pids", self.name).split(), what="nothing runs there")
        run("ip", "netns", "del", self.name)


class Network:
    """A bridge that this machine has an address on, and hosts behind it."""

    def __init__(self) -> None:
        self.name = f"itf{secrets.token_hex(3)}"
        self._prefix = _unused_prefix()
        self.address = self.address_of(1)
        self.hosts: list[Host] = []
        self._undo: list[Sequence[str]] = []

    def address_of(self, number: int) -> str:
        """In its network, of 254."""
        return f"{self._prefix}.{number}"

    def open(self, hosts: int) -> None:
        """Make all of it.  `close` undoes as much as was made."""
        whole = f"{self._prefix}.0/24"
        self._do(
            ("ip", "route", "add", "unreachable", whole, "metric", LAST_RESORT),
            ("ip", "route", "del", "unreachable", whole, "metric", LAST_RESORT),
        )
        self._do(("ip", "link", "add", self.name, "type", "bridge"), ("ip", "link", "del", self.name))
        run("ip", "addr", "add", f"{self.address}/24", "dev", self.name)
        run("ip", "link", "set", self.name, "up")
        for number in range(hosts):
            self._undo.append(("ip", "netns", "del", f"{self.name}-{number}"))
            self.hosts.append(Host(self, number))
            self._undo.pop()

    def _do(self, words: Sequence[str], undo: Sequence[str]) -> None:
        run(*words)
        self._undo.append(undo)

    def close(self) -> None:
        """Nothing of it stays."""
        failed = []
        for host in self.hosts:
            try:
                host.close()
            except AssertionError as error:
                failed.append(str(error))
        for words in reversed(self._undo):
            ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
            if ended.returncode:
                failed.append(f"{' '.join(words)}: {ended.stderr.strip()}")
        assert not failed, failed


def _unused_prefix() -> str:
    """Return the prefix of a network of 254 addresses that is unknown here."""
    for _ in range(100):
        prefix = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        if not run("ip", "route", "show", "root", f"{prefix}.0/24").strip():
            return prefix
    raise AssertionError("this machine has routes to all of 10.200.0.0 to 10.249.255.255")


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """Provide a network with this number of hosts inside a block."""
    it = Network()
    try:
        it.open(hosts)
        yield it
    finally:
        it.close()
