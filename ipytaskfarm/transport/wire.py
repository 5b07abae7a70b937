"""TCP between the controller and its peers: the parts that `peer` (the peer's side) and `hub` (the controller's) share.

`transport.reliable_session` repairs losses; these modules add sockets, keys, beats and the clock.

A peer has one CURVE-encrypted DEALER socket, the controller one ROUTER. Each connection is a socket of its own with a
fresh ZeroMQ identity. ZeroMQ's own reconnecting is off: it would hide that messages were lost, and a returning peer
must read the connection file first. The peer's `Hello` says who it is, which its key must allow.
"""

from __future__ import annotations

import functools
import platform
from typing import Any, get_args

import msgspec
import zmq
from zmq.utils import z85

from ..core import errors
from ..core.messages import PROTOCOL, AgentMessage, ClientMessage, ToAgent, ToClient
from ..core.text import encoded
from ..version import __version__
from .handshake import Handshake, Hello, Refuse
from .reliable_session import HANDSHAKE, HEADER, PACKET_BYTES, WINDOW_PACKETS, message_bytes_max

SILENCE_S = 5.0
"""A peer that was not heard for this many seconds counts as unreachable."""
CLIENT_SILENCE_S = 4.25
"""The same for clients: jobs that end with their client do so within 5 s."""
BEAT_S = {"agent": 1.0, "client": 2.0}
"""Peers send beats and the controller answers each, so that idle peers need no timer of the controller."""
ACK_WITHIN_S = 0.05
HANDSHAKE_S = 5.0
"""The time from dialling to `Welcome`, all steps together."""
PAUSE_S = 2.5
"""A longer time between two readings of the clock means a suspended machine or a stalled loop, not a silent peer."""
DOMAIN = b"ipytaskfarm"
USER_ID = "User-Id"

FRAME_BYTES_MAX = PACKET_BYTES + 4096
"""The limit for one ZeroMQ frame. libzmq cuts off a sender of more, before memory is allocated for it."""
TEXT_MAX = 2000
"""The limit for texts that a peer chooses and a person may read."""

SESSION_MAX = 160
"""The number of characters in the name of a session, including an agent's name."""

READABLE = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""The errors that decoding a hostile body may raise."""

TAGS = {
    "client": frozenset(kind.__name__ for kind in get_args(ClientMessage)),
    "agent": frozenset(kind.__name__ for kind in get_args(AgentMessage)),
}
"""The tags of the messages that each role may send."""

_encode = msgspec.msgpack.Encoder().encode
_handshake: msgspec.msgpack.Decoder[Handshake] = msgspec.msgpack.Decoder(Handshake)
_anything = msgspec.msgpack.Decoder()


class _AnyHello(msgspec.Struct, tag="Hello"):
    """The part of `Hello` that every version has."""

    protocol: int
    version: str = "?"


_any_hello = msgspec.msgpack.Decoder(_AnyHello)


# To make a decoder of so many types takes some 10 ms, and most processes need one of them.


@functools.cache
def from_client() -> msgspec.msgpack.Decoder[list[ClientMessage]]:
    """Return the decoder of what clients send."""
    return msgspec.msgpack.Decoder(list[ClientMessage])


@functools.cache
def from_agent() -> msgspec.msgpack.Decoder[list[AgentMessage]]:
    """Return the decoder of what agents send."""
    return msgspec.msgpack.Decoder(list[AgentMessage])


@functools.cache
def to_client() -> msgspec.msgpack.Decoder[list[ToClient]]:
    """Return the decoder of what clients are sent."""
    return msgspec.msgpack.Decoder(list[ToClient])


@functools.cache
def to_agent() -> msgspec.msgpack.Decoder[list[ToAgent]]:
    """Return the decoder of what agents are sent."""
    return msgspec.msgpack.Decoder(list[ToAgent])


def silence_s(role: str) -> float:
    """Return how long a peer of this role may be silent before the controller counts it as unreachable."""
    return SILENCE_S if role == "agent" else min(SILENCE_S, CLIENT_SILENCE_S)


def encode_message(message: object, sender: str = "controller") -> bytes:
    """Return one message in the form for a packet. Text in it that is not UTF-8 is escaped.

    sender: the role of the peer that sends it.

    Raises:
        ResultTooLarge: it is larger than any message of that sender may be.
    """
    body = encoded(_encode, message)
    if len(body) > (most := message_bytes_max(sender)):
        raise errors.ResultTooLarge(
            f"{type(message).__name__} has {len(body):,} bytes, more than the {most:,} that one message may have: "
            "pass large data in a file, or in pieces"
        )
    return body


def encode_handshake(message: Handshake) -> bytes:
    """Return a handshake message as a frame."""
    return HEADER.pack(HANDSHAKE, 0, 0) + encoded(_encode, message)


def decode_handshake(frame: bytes | memoryview) -> Handshake:
    """Return the message in a handshake frame.

    For a `Hello` of another protocol, and for an unreadable frame, return the `Refuse` that answers it.
    """
    body = memoryview(frame)[HEADER.size :]
    try:
        hello = _any_hello.decode(body)
    except READABLE:
        pass
    else:
        if hello.protocol != PROTOCOL:
            return version_refusal(own_version(), version_text(hello.protocol, hello.version))
    try:
        return _handshake.decode(body)
    except READABLE as error:
        return Refuse("VersionMismatch", f"{own_version()} cannot read this handshake: {error}"[:TEXT_MAX])


def own_version() -> str:
    """Return this program's version, for people."""
    return version_text(PROTOCOL, __version__)


def version_text(protocol: int, version: str) -> str:
    """Return a version, for people."""
    return f"ipytaskfarm {version[:40]} (protocol {protocol})"


def version_refusal(controller: str, peer: str) -> Refuse:
    """Return the refusal for versions that do not fit. It names both (see `version_text`) and the remedy."""
    return Refuse(
        "VersionMismatch",
        f"the controller is {controller}, its peer is {peer}: install the same version on both sides, or restart the "
        "farm with the newer one: `ipytaskfarm stop`, then `ipytaskfarm start`",
    )


def python_version() -> str:
    """Return Python's version, as in `Hello.python`."""
    return platform.python_version()


def tags_in(body: bytes | memoryview) -> list[str]:
    """Return the types of the messages in a body (or the type of one message) that could not be decoded."""
    try:
        messages: Any = _anything.decode(body)
    except READABLE:
        return []
    if not isinstance(messages, list):
        messages = [messages]
    return [str(message.get("type"))[:40] for message in messages[:16] if isinstance(message, dict)]


def public_key(raw: bytes) -> str:
    """Return the z85 text of a key that ZAP gives as raw bytes."""
    return z85.encode(raw).decode("ascii")


def curve_keypair() -> tuple[str, str]:
    """Return a new key pair (public, secret), z85-encoded."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def guard(socket: zmq.Socket[bytes]) -> None:
    """Set the limits and heartbeats of every TCP socket of the farm."""
    socket.linger = 0
    socket.maxmsgsize = FRAME_BYTES_MAX
    # The window of `transport.reliable_session` limits the sequence in these queues; the rest is for frames outside of
    # it (beats, refusals).
    socket.sndhwm = WINDOW_PACKETS + 64
    socket.rcvhwm = WINDOW_PACKETS + 64
    socket.handshake_ivl = int(HANDSHAKE_S * 1000)
    # Heartbeats find half-open connections; the session's beats find loops that do not turn any more.
    socket.heartbeat_ivl = 5000
    socket.heartbeat_timeout = 15000
    socket.tcp_keepalive = 1


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Return whether a message waits. This is cheaper than the exception of an empty receive."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & int(zmq.POLLIN))


def tcp_endpoint(host: str, port: int | str) -> str:
    """Return ``tcp://host:port``, with brackets for IPv6."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class Timeouts:
    """A clock that does not count pauses of this process, since a peer's silence counts only while this
    process runs.
    """

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self.awake_s = 0.0

    def look(self, now_s: float) -> float:
        """Return how many seconds this process has been awake."""
        passed_s = now_s - self._looked_s
        if passed_s > 0.0:
            self.awake_s += passed_s if passed_s < PAUSE_S else PAUSE_S
            self._looked_s = now_s
        return self.awake_s


def is_hello(message: Handshake) -> bool:
    """Return whether a message is a valid `Hello`."""
    return isinstance(message, Hello) and 0 < len(message.session) <= SESSION_MAX and message.last_in >= 0
