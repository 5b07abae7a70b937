"""Checks of the network: ports, names, connections, and the handshake under a key."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
import uuid
from dataclasses import dataclass

import psutil

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.start_errors import check_loopback
from ipytaskfarm.doctor import Finding, doubtful, fine, wrong
from ipytaskfarm.settings.declarations import DEFAULT_HOST
from ipytaskfarm.system.farm_paths import ConnectionInfo, dialled
from ipytaskfarm.transport.handshake import STORE_FULL, Refuse
from ipytaskfarm.transport.peer import Link, NewEpoch, Refused
from ipytaskfarm.version import __version__

CONNECT_S = 5.0
"""The time within which a host must accept a connection."""
UNKNOWN = (socket.gaierror, UnicodeError)
"""The errors of a name that cannot be looked up; the latter: one that Linux allows and DNS does not."""
GREET_S = 12.0
"""The time for three tries of a key, with the pauses between them."""


# ------------------------------------------------------------------------------------------------ the port


def loopback() -> Finding:
    """Return whether this machine can connect to itself, as the processes of a farm on one machine do."""
    try:
        check_loopback(DEFAULT_HOST)
    except errors.ConnectionError as error:
        said, _, remedy = str(error).rpartition(": ")
        return wrong("loopback", said, remedy)
    return fine("loopback", f"this machine can connect to itself at {DEFAULT_HOST}")


def port(host: str, number: int, *, fixed: bool) -> Finding:
    """Check the port of a farm that does not run.

    `fixed` says that it is the farm's own, so that no other will be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Like the controller: remains of the last one do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return wrong(
                "port", f"{host} port {number} cannot be listened on: {_said(error)}", "start it with another --host"
            )
        taken = f"{number} is taken by {holder(number)}"
        if not fixed:
            return fine("port", f"{taken}: a new farm takes any that is free")
        return wrong("port", f"{taken}, and it is this farm's own", "end that program, or start with --port 0: any")
    return fine("port", f"{number} on {host} is free")


def holder(number: int) -> str:
    """Return the process that listens on a TCP port of this machine, as text for people."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.pid is not None and each.laddr and each.laddr.port == number:
            try:
                return f"process {each.pid} ({psutil.Process(each.pid).name()})"
            except psutil.NoSuchProcess:
                continue
    return "a process of another user"


# ------------------------------------------------------------------------------------------------ names


def name(location: str, *, connected: bool) -> Finding:
    """Check the address at which other machines are told to find the farm.

    `connected` says that one of them is connected.
    """
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(location, None, type=socket.SOCK_STREAM)})
    except UNKNOWN as error:
        why = getattr(error, "strerror", error)
        return wrong("location", f"{location} is not known here: {why}", "start it with --location ADDRESS, a number")
    shown = location if found == [location] else f"{location}, here {', '.join(found)}"
    if not connected and all(is_loopback(address) for address in found):
        return doubtful(
            "location",
            f"other machines are told to find the farm at {shown}: by that this machine finds only itself",
            f"see what they find (there: getent hosts {location}); if it is not this machine: start --location ADDRESS",
        )
    return fine("location", f"other machines are told to find the farm at {shown}")


def is_loopback(address: str) -> bool:
    """Return whether a machine reaches only itself at the address. Names are not looked up."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


# ------------------------------------------------------------------------------------------------ connections


def connection(info: ConnectionInfo) -> Finding:
    """Return whether a TCP connection to the controller can be made from here."""
    host, number = dialled(info), info.port
    where = f"{host} port {number}"
    away = info.node not in ("", socket.gethostname())
    began_s = time.monotonic()
    try:
        socket.create_connection((host, number), CONNECT_S).close()
    except UNKNOWN as error:
        return wrong(
            "connection", f"{host} is not known here: {getattr(error, 'strerror', error)}",
            "start the farm with --location ADDRESS, a number that this machine reaches",
        )  # fmt: skip
    except TimeoutError:
        return wrong(
            "connection", f"{where} does not answer within {CONNECT_S:g} s: a firewall, or another network",
            f"let this machine through to TCP port {number} of {info.node or host}, start the farm with a --port that"
            " is open, or have agents placed by ssh, which makes tunnels",
        )  # fmt: skip
    except OSError as error:
        if away and is_loopback(host):
            remedy = f"the farm is told to listen on {info.node} alone: start it there with --host ADDRESS (or 0.0.0.0)"
        else:
            remedy = f"see on {info.node or host} whether the farm runs, and where it listens: ipytaskfarm list"
        return wrong("connection", f"{where}: {_said(error)}", remedy)
    return fine("connection", f"{where} takes connections ({(time.monotonic() - began_s) * 1000:.1f} ms)")


def _said(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@dataclass(frozen=True)
class Greeted:
    """The result of a handshake."""

    version: str = ""
    """The controller's version; "" if there was no handshake."""
    took_s: float = 0.0
    refusal: Refuse | None = None
    problem: str = ""


def greet(info: ConnectionInfo, limit_s: float = GREET_S) -> Greeted:
    """Say hello under the key of the file, in a session of its own, and good-bye. No question is asked."""
    role = "agent" if info.role == "agent" else "client"
    owner = f"{info.agent or 'agent'}:" if role == "agent" else ""
    link = Link(lambda: info, role, f"{owner}{uuid.uuid4().hex}", f"doctor on {socket.gethostname()}")
    began_s = time.monotonic()
    try:
        while True:
            for event in link.step(time.monotonic()):
                if isinstance(event, NewEpoch):
                    return Greeted(event.welcome.version, time.monotonic() - began_s)
                if isinstance(event, Refused):
                    return Greeted(refusal=event.refuse)
            if link.waits_for_room:
                return Greeted(refusal=Refuse(STORE_FULL, link.problem))
            if time.monotonic() >= began_s + limit_s:
                return Greeted(problem=link.problem)
            link.wait(began_s + limit_s)
    finally:
        link.close()


def handshake(info: ConnectionInfo, found: Greeted) -> Finding:
    """Return whether the controller at the address belongs to this farm and accepts this key."""
    check = "handshake"
    if found.version:
        text = f"ipytaskfarm {found.version} lets us in as {info.agent or info.role} ({found.took_s * 1000:.0f} ms)"
        return fine(check, text)
    if found.refusal is not None and found.refusal.etype == "VersionMismatch":
        remedy = f"install ipytaskfarm=={info.version} here; this is {__version__}"
        if info.version == __version__:  # copies that are not released
            remedy = "have the same copy of ipytaskfarm on both sides, and start the farm again"
        return wrong(check, found.refusal.text, remedy)
    if found.refusal is not None and found.refusal.etype == STORE_FULL:
        return wrong(check, found.refusal.text, "make room there: until then the farm takes nothing, and loses nothing")
    if found.refusal is not None:
        return wrong(
            check, found.refusal.text,
            "on the controller's host: `ipytaskfarm keys list` shows who has a key; `keys add` writes the file again",
        )  # fmt: skip
    return wrong(
        check, f"{dialled(info)} port {info.port} takes connections and does not answer as this farm: {found.problem}",
        f"another program has that port, or something between here and {info.node or 'there'} ends connections"
        " (a proxy, a port that was forwarded elsewhere)",
    )  # fmt: skip
