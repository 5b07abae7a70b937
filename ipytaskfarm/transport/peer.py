"""A peer's connection to the controller: dialling, handshake, beats, and received messages as events.

**Calling contract** of `Link`. One thread owns it. It has no thread of its own: everything happens in `step`, which
never blocks. Call `step` when `fds` is readable (its one descriptor stays the same over reconnects), when
`next_deadline` has come, and after `send`. The events that `step` returns count as handled when `step` is called again:
only then are they acknowledged to the controller.

On `NewEpoch`, everything that was given to `send` before and has not come back as `Acked` is forgotten on both sides:
report again what you hold. This also applies to the first connection: send nothing before the first `NewEpoch`, or send
it again after it. A cut within an epoch (`Lost` ... `Resumed`) needs no action: nothing is lost or doubled. `Refused`
is the last event of a link.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import select
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec
import zmq

from ..core import errors
from ..core.limits import PARTS_MAX
from ..core.messages import PROTOCOL, ToAgent, ToClient
from ..core.messages.running_task import TaskCall
from ..system.farm_paths import ConnectionInfo, dialled, endpoint
from ..version import __version__
from . import wire
from .curve_connection import CurveConnection
from .handshake import STORE_FULL, Handshake, Hello, Refuse, Welcome, WhoAreYou
from .interface import PeerConnection
from .message_parts import COUNTED_BYTES, check_parts
from .reliable_session import BYE, GAP, HANDSHAKE, NONSENSE, Greeting, ReliableSession, frame_of, kind_of
from .unix_connection import connect_by_unix

_chance = random.SystemRandom()
"""The link's own generator, because users may seed the shared one."""

RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
RETRY_NEAR_S = 0.5
"""The longest pause while the controller's unix socket is there: an attempt costs little, and its successor starts."""
FRAMES_PER_STEP = 256
DENIALS_MAX = 3
"""How often a key may be denied. The connection file is read again each time: a farm that starts again changes both."""
LINGER_MS = 100
NEVER_CONNECTED = "not connected yet"
"""The problem of a link that has not tried yet, or tries for the first time."""


def _epoll() -> select.epoll:
    """Return an epoll object, also in a program whose standard library gevent has patched.

    gevent takes the name away, because a wait in an epoll would hold up all greenlets. Clients wait elsewhere, for the
    descriptor.
    """
    if hasattr(select, "epoll"):
        return select.epoll()
    spec = select.__spec__
    assert spec is not None
    assert spec.loader is not None
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)
    made: select.epoll = unpatched.epoll()
    return made


class ReceivedMessage(msgspec.Struct, frozen=True):
    """A message from the controller."""

    message: ToClient | ToAgent


class Acked(msgspec.Struct, frozen=True):
    """The controller has handled (committed) the message that was sent with this token."""

    token: object


class NewEpoch(msgspec.Struct, frozen=True):
    """The session starts again: the owner of the link reports what it holds.

    This happens at the first contact, after the controller's restart, and when the controller has forgotten the
    session. It may happen again within an epoch: a controller that has received nothing since its Welcome cannot know
    that the Welcome arrived.
    """

    welcome: Welcome


class Resumed(msgspec.Struct, frozen=True):
    """The link is connected again, and nothing is lost. There may have been no `Lost` before."""


class Lost(msgspec.Struct, frozen=True):
    """The connection is cut; the link dials again."""

    why: str


class Refused(msgspec.Struct, frozen=True):
    """The end of this link: VersionMismatch, SecurityError or FarmReplaced."""

    refuse: Refuse


LinkEvent: TypeAlias = ReceivedMessage | Acked | NewEpoch | Resumed | Lost | Refused


class Link:
    """One peer's connection to the controller. The module's docstring has the calling contract.

    Args:
        read_info: returns the content of the connection file; called before each dialling. Its FarmNotRunning (or
            another
            ConnectionError or OSError) means "not now"; its SecurityError is final.
        role: "client" or "agent".
        session: a nonce that lives as long as this process; for an agent its name and a colon stand in front
            (`transport.keys`).
        name: the name for people.
        farm: the incarnation to insist on; None for the first one that answers.
        python: the version of Python, for people.
    """

    def __init__(
        self,
        read_info: Callable[[], ConnectionInfo],
        role: str,
        session: str,
        name: str,
        *,
        farm: str | None = None,
        python: str | None = None,
    ) -> None:
        self._read_info = read_info
        self._role = role
        self._beat_s = wire.BEAT_S[role]
        self._decode = wire.to_agent().decode if role == "agent" else wire.to_client().decode
        self._nonce = session
        self._name = name
        self._python = python or wire.python_version()
        self.farm = farm
        self.heard_s = -math.inf
        """When the controller was heard last, on the clock that `step` is given."""
        self.problem = NEVER_CONNECTED
        """Why there is no connection now, for people; "" while there is one."""
        self.waits_for_room = False
        """Whether the controller has said that it lives, and takes nothing because its store has no room."""
        self._session = ReliableSession()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._epoll = _epoll()
        self._connection: PeerConnection | None = None
        self._watched: list[int] = []
        self._avoids_unix = False
        """Whether the unix socket led to no welcome the last time."""
        self._address = ""
        self._owner = ""
        self._over = False
        self._up = False
        self._more = False
        self._congested = False
        self._tries = 0
        self._denials = 0
        self._now_s = 0.0
        self._retry_at_s = -math.inf
        self._is_near = False
        """Whether the controller's unix socket is on this machine."""
        self._beat_at_s = math.inf
        self._ack_at_s = math.inf
        self._patience: wire.Timeouts | None = None
        self._awake_s = 0.0
        self._heard_awake_s = 0.0

    # ------------------------------------------------------------------------------------- state

    @property
    def is_up(self) -> bool:
        """Return whether the link is connected and welcomed."""
        return self._up

    @property
    def epoch(self) -> int:
        """Return the controller's epoch that this link knows; 0 for none."""
        return self._session.epoch

    @property
    def unacked_bytes(self) -> int:
        """Return how many bytes are queued or not acknowledged."""
        return self._session.unacked_bytes

    def fds(self) -> list[int]:
        """Return the descriptor to poll for readability; it stays the same for the link's whole life."""
        return [self._epoll.fileno()]

    def next_deadline(self) -> float:
        """Return the time by which `step` must be called, on the clock that `step` is given; inf for never."""
        if self._over:
            return math.inf
        if self._more:
            return -math.inf
        if self._connection is None:
            return self._retry_at_s
        congested = self._congested or self._connection.is_congested
        # At least this often, so that `Timeouts` can distinguish this process's sleep from a suspended machine.
        latest = self._now_s + (wire.ACK_WITHIN_S if congested else wire.PAUSE_S - 0.5)
        return min(self._beat_at_s, self._ack_at_s, latest)

    # -------------------------------------------------------------------------------------- actions

    def send(self, message: object, token: object | None = None) -> None:
        """Queue a message, which `step` sends. `Acked(token)` comes once the controller has handled it.

        Raises:
            ResultTooLarge: the message is larger than `message_bytes_max`, or it is an agent's and has more values than
                the controller accepts.
            TypeError: it cannot be encoded.
        """
        # What a task submits and sends goes into the store in one commit too.
        body = wire.encode_message(message, "client" if type(message) is TaskCall else self._role)
        if self._role == "agent" and len(body) > COUNTED_BYTES:
            check_parts(body, PARTS_MAX - 1)  # the packet's list is one value more
        self._session.say(body, token)

    def is_due(self, now_s: float) -> bool:
        """Return whether `step` has something to do although nothing was received."""
        return self._session.can_speak or now_s >= self.next_deadline()

    def wait(self, until_s: float = math.inf) -> None:
        """Wait until `step` has something to do, or until this moment, on the monotonic clock."""
        self._epoll.poll(max(0.0, min(until_s, self.next_deadline()) - time.monotonic()))

    def step(self, now_s: float, readable: bool = True) -> list[LinkEvent]:
        """Dial, send, receive and beat, as far as possible now.

        `now_s` is monotonic. `readable` says whether one of `fds` was found readable, or may be.
        """
        events: list[LinkEvent] = []
        if self._over:
            return events
        self._now_s = now_s
        self._patience = self._patience or wire.Timeouts(now_s)
        self._awake_s = self._patience.look(now_s)
        self._session.confirm()
        if self._connection is None and now_s >= self._retry_at_s:
            self._dial(events)
        if self._connection is not None:
            self._converse(events, readable or self._must_listen(self._connection))
        return events

    def close(self, timeout_s: float = 0.0) -> bool:
        """End the connection; wait up to `timeout_s` for the acknowledgement of what was sent.

        Return whether everything was acknowledged. Events that arrive in the meantime are dropped.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._session.unacked_bytes and not self._over:
            now_s = time.monotonic()
            self.step(now_s)
            if now_s >= deadline_s:
                break
            self.wait(deadline_s)
        if self._connection is not None and self._up:
            self._put(frame_of(BYE))
        self._over = True
        self._hang_up(LINGER_MS if self._up else 0)
        self._up = False
        self._epoll.close()
        self._context.term()
        return not self._session.unacked_bytes

    # ----------------------------------------------------------------------------------- dialling

    def _dial(self, events: list[LinkEvent]) -> None:
        self._more = False
        self._heard_awake_s = self._awake_s
        try:
            info = self._read_info()
        except errors.SecurityError as error:
            return self._end(Refuse("SecurityError", str(error)), events)
        except (errors.ConnectionError, OSError) as error:
            return self._retry(str(error))
        if info.protocol != PROTOCOL:
            controller = wire.version_text(info.protocol, info.version)
            return self._end(wire.version_refusal(controller, wire.own_version()), events)
        if self.farm is not None and info.incarnation != self.farm:
            return self._end(_replaced(info.farm), events)
        host = dialled(info)
        if self._tries % 2 and info.location:
            host = info.location  # another machine may have the name of the controller's
        # Under another key this is another peer: sessions are bound to their keys by their names.
        self._owner = "reader:" if info.role == "reader" else ""
        try:
            self._connection = self._connect(info, host)
        except (zmq.ZMQError, ValueError) as error:
            return self._retry(f"the connection file of farm {info.farm!r} cannot be used: {error}")
        self._watched = self._connection.fds()
        for fd in self._watched:
            self._epoll.register(fd, select.EPOLLIN)
        self._say_hello()

    def _connect(self, info: ConnectionInfo, host: str) -> PeerConnection:
        """Return a connection by the farm's unix socket if this process can use it, else by TCP."""
        self._is_near = bool(info.socket) and os.path.exists(info.socket)
        if self._is_near and not self._avoids_unix:
            local = connect_by_unix(info)
            if local is not None:
                self._address = info.socket
                self._avoids_unix = True  # until it has led to a welcome
                return local
        self._address = endpoint(host, info.port)
        self._avoids_unix = False
        return CurveConnection(self._context, info, host)

    def _say_hello(self) -> None:
        """Send a `Hello`; also on a standing connection, when the controller asks for it or something was lost on the
        way.
        """
        self._up = False
        self._beat_at_s = self._ack_at_s = math.inf
        epoch, last_in = self._session.position()
        session = self._owner + self._nonce
        hello = Hello(PROTOCOL, __version__, self._python, self._role, session, self.farm, epoch, last_in, self._name)
        self._put(wire.encode_handshake(hello))

    def _hang_up(self, linger_ms: int) -> None:
        if self._connection is None:
            return
        # Before they are closed: ZeroMQ closes the descriptors later, in a thread of its own.
        for fd in self._watched:
            self._epoll.unregister(fd)
        self._connection.close(linger_ms)
        self._connection = None
        self._watched = []
        self._congested = self._more = False

    def _retry(self, why: str) -> None:
        self.waits_for_room, self.problem = False, why
        longest_s = min(RETRY_NEAR_S, RETRY_LONGEST_S) if self._is_near else RETRY_LONGEST_S
        delay_s = min(longest_s, RETRY_FIRST_S * 2 ** min(self._tries, 10))
        self._tries += 1
        self._retry_at_s = self._now_s + delay_s * _chance.uniform(0.5, 1.0)

    def _drop(self, why: str, events: list[LinkEvent]) -> None:
        if self._up:
            events.append(Lost(why))
        self._up = False
        self._hang_up(0)
        self._retry(f"{self._address}: {why}")

    def _end(self, refuse: Refuse, events: list[LinkEvent]) -> None:
        self._hang_up(0)
        self._over = True
        self._up = False
        self.problem = refuse.text
        events.append(Refused(refuse))

    # --------------------------------------------------------------------------------- exchange

    def _must_listen(self, connection: PeerConnection) -> bool:
        """Return whether the connection must be read although it was not found readable: that also sends what waits."""
        return self._more or self._congested or connection.reports_changes_only or connection.is_congested

    def _converse(self, events: list[LinkEvent], readable: bool) -> None:
        """Send and receive until neither makes progress.

        ZeroMQ's descriptors report only changes: after sending, the connection must be read until it is empty, or the
        next message would wake nobody.
        """
        budget = FRAMES_PER_STEP
        while True:
            self._speak()
            budget, empty = self._listen(budget, events) if readable else (budget, True)
            if self._connection is None:
                return
            # A received frame may have been an acknowledgement, which opens the window.
            if not empty or not self._up or self._congested or not self._session.can_speak:
                break
        self._more = not empty
        if readable and not self._watch(events):
            return
        if self._session.awaits_confirm:
            self._ack_at_s = min(self._ack_at_s, self._now_s + wire.ACK_WITHIN_S)
        if self._awake_s - self._heard_awake_s > wire.SILENCE_S:
            self._drop(f"it was silent for {wire.SILENCE_S:g} s", events)

    def _speak(self) -> None:
        """Send all frames that the window and the connection allow."""
        if not self._up:
            return
        while (frame := self._session.next_frame()) is not None:
            if not self._put(frame):
                break
            self._session.was_sent()
        beats = self._now_s >= self._beat_at_s
        if beats or (self._session.owes_ack and self._now_s >= self._ack_at_s):
            self._put(self._session.beat())
        if beats:
            self._beat_at_s = self._now_s + self._beat_s
        if not self._session.owes_ack:
            self._ack_at_s = math.inf

    def _put(self, frame: bytes) -> bool:
        assert self._connection is not None
        self._congested = not self._connection.send(frame)
        return not self._congested

    def _listen(self, budget: int, events: list[LinkEvent]) -> tuple[int, bool]:
        """Take at most `budget` frames. Return the remaining budget, and whether the connection is empty."""
        while budget > 0:
            if self._connection is None:
                return budget, True
            try:
                frame = self._connection.receive()
            except ValueError as error:
                self._drop(str(error), events)
                return budget, True
            if frame is None:
                return budget, True
            budget -= 1
            self.heard_s = self._now_s
            self._heard_awake_s = self._awake_s
            self._on_frame(frame, events)
        return budget, False

    def _on_frame(self, frame: bytes | memoryview, events: list[LinkEvent]) -> None:
        kind = kind_of(frame)
        if kind is HANDSHAKE:
            return self._on_handshake(wire.decode_handshake(frame), events)
        if kind is BYE:
            return self._drop("the controller said good-bye", events)
        if not self._up:
            return  # it was on its way before our Hello
        heard, body = self._session.hear(frame)
        self._hand_back(events)
        if heard is GAP:
            self._say_hello()
        elif heard is NONSENSE:
            self._drop("it sent nonsense", events)
        elif body is not None:
            self._on_body(body, events)

    def _on_body(self, body: bytes | memoryview, events: list[LinkEvent]) -> None:
        try:
            messages = self._decode(body)
        except wire.READABLE as error:
            text = f"{wire.own_version()} cannot read what the controller sent: {error}"
            return self._end(Refuse("VersionMismatch", text), events)
        events.extend(map(ReceivedMessage, messages))

    def _hand_back(self, events: list[LinkEvent]) -> None:
        events.extend(map(Acked, self._session.freed()))

    def _on_handshake(self, message: Handshake, events: list[LinkEvent]) -> None:
        if isinstance(message, Refuse):
            if message.later:
                self._drop(message.text, events)
                if message.etype == STORE_FULL:
                    self.waits_for_room, self.problem = True, message.text
            else:
                self._end(message, events)
        elif isinstance(message, WhoAreYou):
            if self._up:
                self._say_hello()
        elif isinstance(message, Welcome) and not self._up:
            self._on_welcome(message, events)

    def _on_welcome(self, welcome: Welcome, events: list[LinkEvent]) -> None:
        if self.farm is not None and welcome.farm != self.farm:
            return self._end(_replaced(welcome.name), events)
        self.farm = welcome.farm
        greeting = self._session.meet_welcome(welcome.epoch, welcome.last_in)
        if greeting is Greeting.NONSENSE:
            self._session.begin(0)
            return self._say_hello()
        self._up = True
        self._avoids_unix = False
        self._tries = self._denials = 0
        self.waits_for_room, self.problem = False, ""
        # at once: until the controller hears something, it assumes that its Welcome was lost
        self._beat_at_s = self._now_s
        self._hand_back(events)
        events.append(NewEpoch(welcome) if greeting is Greeting.ANEW else Resumed())

    def _watch(self, events: list[LinkEvent]) -> bool:
        """Look whether the connection has ended. Return whether it stands."""
        assert self._connection is not None
        failure = self._connection.failure()
        if failure is None:
            return True
        if failure.denied:
            self._denials += 1
            if self._denials >= DENIALS_MAX:
                text = f"the farm at {self._address} does not know the key in our connection file"
                self._end(Refuse("SecurityError", text), events)
                return False
        # What arrived before the cut can still be read.
        while self._connection is not None and not self._listen(FRAMES_PER_STEP, events)[1]:
            pass
        if self._connection is not None:
            self._drop(failure.why, events)
        return False


def _replaced(name: str) -> Refuse:
    return Refuse(
        "FarmReplaced",
        f"another farm answers under the name {name!r} now: the former one is gone, with its tasks. Make a new client",
    )
