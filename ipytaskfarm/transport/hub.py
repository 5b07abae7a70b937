"""The controller's end of all connections: one ROUTER, its gatekeeper, and a `ReliableSession` per peer.

**Calling contract** of `Hub`. One thread owns it. Each turn of the controller's loop calls, in this order:

1. `poll`: wait for something;
2. `receive`: messages in sequence, each one once, from peers with a key that allows them;
3. `send`, any number of times: it only queues;
4. *commit what was received*, then
5. `flush`: acknowledges all that `receive` returned, and sends what was queued. **Nothing else acknowledges**, so
   everything that a peer believes to be handled is on disk. Refusals are the exception: they are sent at once, and say
   nothing about the state.

After `PeerNewEpoch`, everything that was sent to that session before is forgotten; the peer reports what it holds.
Windows limit what is on its way to a peer, not what `send` queues: check `backlog_bytes` before sending bodies. Signal
handlers in this thread must not raise: an exception between the two parts of a ZeroMQ message would corrupt it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
import zmq

from ..core import errors
from ..core.messages import (
    AgentMessage,
    Answer,
    AskQuestion,
    ClientMessage,
    ExplainTasks,
    FarmStatus,
    FetchResults,
    ListEngines,
    ListKept,
    ListSticky,
    ListTasks,
    QueueStatus,
    ReadHistory,
    Refusal,
    Stack,
    WatchTasks,
)
from ..core.messages.blob_chunks import ReadBlob
from ..core.messages.view import VIEW_QUESTIONS
from ..version import __version__
from . import wire
from .handshake import Handshake, Hello, Refuse, Welcome, WhoAreYou
from .keys import FarmKeys, role_of, session_fits
from .reliable_session import BEGIN_ANEW, Greeting, Heard, PacketKind, ReliableSession, frame_of, kind_of

GONE_S = {"client": 60.0, "agent": 3600.0}
"""After this many seconds of silence a session is forgotten. A peer that returns later begins anew."""
JUDGE_EVERY_S = 0.5
BEAT_AFTER_S = 0.5
CONGESTED_S = 0.05
SESSIONS_MAX = 20_000
AGENT_SESSIONS_MAX = 1024
"""The limit for one enrolled agent's key: enough for all nodes of a cluster that share it, but not for all places."""
PARTS_PER_LOOK = 1000
LINGER_MS = 100

READ_ONLY = (
    WatchTasks,
    FetchResults,
    QueueStatus,
    ListTasks,
    ExplainTasks,
    Stack,
    ListEngines,
    FarmStatus,
    ListKept,
    ListSticky,
    ReadBlob,
    ReadHistory,
    *VIEW_QUESTIONS,
)
"""The questions that a read-only key allows."""


class Peer(msgspec.Struct, frozen=True):
    """A peer that has a session."""

    session: str
    role: str
    """client or agent."""
    name: str
    title: str = ""
    """The title of its key, see `transport.keys`."""

    @property
    def read_only(self) -> bool:
        """Return whether the peer may change nothing."""
        return self.title == "reader"


class PeerUp(msgspec.Struct, frozen=True):
    """The peer is connected again, after a cut within the epoch or after `PeerSilent`."""


class PeerNewEpoch(msgspec.Struct, frozen=True):
    """The peer begins anew in this epoch, and will report what it holds."""

    hello: Hello


class PeerSilent(msgspec.Struct, frozen=True):
    """The peer was not heard for 5 s and is unreachable. Messages to it are queued."""


class PeerGone(msgspec.Struct, frozen=True):
    """The peer has left, or was silent for `GONE_S`: its session is forgotten."""

    said: bool = False
    """Whether it said good-bye: then this session never comes back."""


REPLACED = "the key of this connection was replaced: read the connection file again"
REVOKED = (
    "the key of this connection was revoked: ask the farm's owner for another connection file (`ipytaskfarm keys add`)"
)


PeerEvent: TypeAlias = PeerUp | PeerNewEpoch | PeerSilent | PeerGone
Incoming: TypeAlias = ClientMessage | AgentMessage | PeerEvent


class _State:
    """The hub's state of one session."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.user = ""
        """The ZeroMQ user id of its present connection, which tells the key."""
        self.session = ReliableSession()
        self.decode: Callable[[bytes | memoryview], Sequence[ClientMessage | AgentMessage]]
        self.decode = wire.from_agent.decode if peer.role == "agent" else wire.from_client.decode
        self.connection: bytes | None = None
        self.ended: bytes | None = None
        """The connection that the peer has closed, until there is a new one: its last messages may still be read."""
        self.welcome: Greeting | None = None
        """The Welcome to be sent by the next flush."""
        self.beat_due = False
        self.spoke_awake_s = 0.0
        self.heard_awake_s = 0.0
        self.silent = False


class Hub:
    """All connections of a controller. The module's docstring has the calling contract.

    Raises:
        ConnectionError: the address cannot be listened on. The message has the remedy.
    """

    def __init__(
        self,
        host: str,
        port: int,
        keys: FarmKeys,
        farm: str,
        name: str,
        epoch: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._farm = farm
        self._name = name
        self._epoch = epoch
        self._clock = clock
        self._patience = wire.Timeouts(clock())
        self._judged_awake_s = 0.0
        self._states: dict[str, _State] = {}
        self._by_connection: dict[bytes, _State] = {}
        self._dirty: dict[str, _State] = {}
        self._sessions_of: Counter[str] = Counter()
        """By the title of their key."""
        self._discarding = False
        self.rejected: Counter[str] = Counter()
        """How often connections or messages were refused, by reason."""
        self._users: dict[bytes, str] = {}
        """Raw public key -> user id of all that comes under it."""
        self._titles: dict[str, str] = {}
        """User id -> the title of that key."""
        self._set_keys(keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._gate = self._context.socket(zmq.REP)
        self._gate.linger = 0
        self._gate.bind("inproc://zeromq.zap.01")
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self._listen(host, port, keys)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise errors.ConnectionError(
                f"farm {name!r} cannot listen on {host}:{port}: {error.strerror or error}. Another program has that "
                "port, or this machine has no such address; choose another port, or 0 for any that is free"
            ) from None
        self.port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def _listen(self, host: str, port: int, keys: FarmKeys) -> None:
        wire.guard(self._router)
        self._router.router_mandatory = 1
        self._router.ipv6 = ":" in host
        self._router.curve_server = 1
        self._router.curve_secretkey = keys.server.secret.encode()
        self._router.setsockopt(zmq.ZAP_DOMAIN, wire.DOMAIN)
        # Without this option libzmq would accept everyone if the gatekeeper were missing.
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._router.bind(wire.tcp_endpoint(host, port or "*"))

    def _set_keys(self, keys: FarmKeys) -> None:
        # The user id contains the key itself: messages under a replaced key do not count as messages under the new one.
        titles = {f"{title} {pair.public}": title for title, pair in keys.peers().items()}
        self._users = {wire.raw_key(user.rpartition(" ")[2]): user for user in titles}
        self._titles = titles

    # --------------------------------------------------------------------------------------- state

    def peers(self) -> list[tuple[Peer, bool]]:
        """Return the known peers, and whether each is connected."""
        return [(state.peer, state.connection is not None) for state in self._states.values()]

    def backlog_bytes(self, session: str) -> int:
        """Return how many bytes for this session are queued or not acknowledged; 0 if the session is unknown."""
        state = self._states.get(session)
        return state.session.unacked_bytes if state else 0

    # ---------------------------------------------------------------------------------------- actions

    def send(self, session: str, message: object) -> bool:
        """Queue a message for the next `flush`. Return False if there is no such session (any more).

        Raises:
            ResultTooLarge: the message is larger than `MAX_MESSAGE_BYTES`.
        """
        state = self._states.get(session)
        if state is None:
            return False
        state.session.say(wire.encode_message(message))
        self._dirty[session] = state
        return True

    def forget(self, session: str) -> None:
        """Drop a session and all messages that are queued for it."""
        state = self._states.pop(session, None)
        if state is not None:
            self._unbind(state)
            self._dirty.pop(session, None)
            self._sessions_of[state.peer.title] -= 1

    def rekey(self, keys: FarmKeys) -> tuple[int, list[str]]:
        """Accept these peers' keys from now on, and no others. The controller's own key does not change.

        A connection under a replaced key is cut, so that its peer reads the connection file again and continues. A
        connection under a revoked key is cut for good, and its session is forgotten.

        Returns:
            (number of connections that were cut, sessions that are over).
        """
        self._set_keys(keys)
        titles, cut, over = set(self._titles.values()), 0, []
        for session, state in list(self._states.items()):
            connection, revoked = state.connection, state.peer.title not in titles
            if connection is not None and state.user not in self._titles:
                cut += 1
                self._turn_away(connection, state.user)
            if revoked:
                over.append(session)
                self.forget(session)
        return cut, over

    def _turn_away(self, connection: bytes, user: str) -> None:
        """Refuse a connection whose key was replaced or revoked."""
        self.rejected["key of the past"] += 1
        state = self._by_connection.get(connection)
        if state is not None:
            self._unbind(state)
        replaced = user.rpartition(" ")[0] in self._titles.values()
        self._answer(connection, Refuse("SecurityError", REPLACED if replaced else REVOKED, later=replaced))

    def poll(self, timeout_s: float, extra_fds: Sequence[int] = ()) -> set[int]:
        """Wait until a peer has sent something, one of `extra_fds` is readable (those are returned), or the time is up.

        It may return earlier, because `receive` must look for silent peers twice a second.
        """
        if self._states:
            # A session that is still to be flushed has a full connection, and nothing reports when that has room again.
            timeout_s = min(timeout_s, CONGESTED_S if self._dirty else JUDGE_EVERY_S)
        deadline_s = self._clock() + timeout_s
        watched: list[tuple[zmq.Socket[bytes] | int, int]] = [(self._gate, zmq.POLLIN), (self._router, zmq.POLLIN)]
        watched += [(fd, zmq.POLLIN) for fd in extra_fds]
        while True:
            wait_s = max(0.0, deadline_s - self._clock())
            ready: list[Any] = [thing for thing, _ in zmq.zmq_poll(watched, int(wait_s * 1000 + 0.999))]
            self._serve_gate()
            others = [thing for thing in ready if thing is not self._gate]
            if others or self._clock() >= deadline_s:
                return {thing for thing in others if isinstance(thing, int)}

    def receive(self, limit: int = 256) -> list[tuple[Peer, Incoming]]:
        """Return the messages and events since the last call, about `limit` of them: packets are not split."""
        self._serve_gate()
        awake_s = self._patience.look(self._clock())
        heard: list[tuple[Peer, Incoming]] = []
        for _ in range(limit):
            if len(heard) >= limit:
                break
            if not self._receive_one(heard, awake_s):
                break
        # Also if more is waiting: ZeroMQ reads from all connections in turn, so each peer that sent something was
        # heard.
        self._judge(heard, awake_s)
        return heard

    def flush(self, now_s: float) -> None:
        """Acknowledge all that `receive` returned, and send queued messages, as far as the windows allow.

        Call it only after the commit. `now_s` is monotonic.
        """
        awake_s = self._patience.look(now_s)
        dirty, self._dirty = self._dirty, {}
        for session, state in dirty.items():
            if not self._flush_one(state, awake_s):
                self._dirty[session] = state

    def close(self) -> None:
        """Say good-bye to all peers. Queued messages are dropped: call `flush` first."""
        for state in self._states.values():
            if state.connection is not None:
                self._put(state.connection, frame_of(PacketKind.BYE))
        self._router.close(LINGER_MS)
        self._gate.close(0)
        self._context.term()

    # ------------------------------------------------------------------------------------- the gate

    def _serve_gate(self) -> None:
        """Answer ZeroMQ's questions whether a key is accepted.

        The answer contains the user id for all messages under that key.
        """
        while wire.has_input(self._gate):
            version, request, domain, _, _, mechanism, *credentials = self._gate.recv_multipart(zmq.NOBLOCK)
            user = None
            if domain == wire.DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
                user = self._users.get(credentials[0])
            if user is None:
                self.rejected["unknown key"] += 1
                verdict = [b"400", b"this key is not of this farm", b""]
            else:
                verdict = [b"200", b"", user.encode()]
            self._gate.send_multipart([version, request, *verdict, b""], zmq.NOBLOCK)

    # ------------------------------------------------------------------------------------- receiving

    def _receive_one(self, heard: list[tuple[Peer, Incoming]], awake_s: float) -> bool:
        """Take one packet, and return whether there was one."""
        if self._discarding:
            self._discard()
            return True
        try:
            connection = self._router.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        # Only a frame that was not copied has the user id of its key.
        packet = self._router.recv(zmq.NOBLOCK, copy=False)
        if packet.more:
            self.rejected["too many parts"] += 1
            self._discarding = True
            return True
        user = str(packet.get(wire.USER_ID))
        frame = packet.buffer
        kind = kind_of(frame)
        state = self._by_connection.get(connection)
        if user not in self._titles:
            self._turn_away(connection, user)
        elif kind is PacketKind.HANDSHAKE:
            self._on_handshake(connection, user, wire.decode_handshake(frame), heard, awake_s)
        elif state is None:
            self._answer(connection, WhoAreYou())
        elif kind is None or state.user != user:
            self._refuse(connection, "SecurityError", "this connection sent nonsense", "nonsense")
        elif kind is PacketKind.BYE:
            self.forget(state.peer.session)
            heard.append((state.peer, PeerGone(said=True)))
        else:
            self._on_packet(state, connection, frame, heard, awake_s)
        return True

    def _discard(self) -> None:
        """Skip the parts of a message that has too many, some at a time."""
        for _ in range(PARTS_PER_LOOK):
            if not self._router.getsockopt(zmq.RCVMORE):
                self._discarding = False
                return
            self._router.recv(zmq.NOBLOCK, copy=False)

    def _on_packet(
        self, state: _State, connection: bytes, frame: memoryview, heard: list[tuple[Peer, Incoming]], awake_s: float
    ) -> None:
        state.heard_awake_s = awake_s
        what, body = state.session.hear(frame)
        state.session.freed()
        self._dirty[state.peer.session] = state
        if what is Heard.GAP:
            self.rejected["gap"] += 1
            self._unbind(state)
            self._answer(connection, WhoAreYou())
        elif what is Heard.NONSENSE:
            self._refuse(connection, "SecurityError", "this connection sent nonsense", "nonsense")
        elif what is Heard.KNOWN:
            # An acknowledgement of a very recent message needs no beat in answer.
            state.beat_due = awake_s - state.spoke_awake_s > BEAT_AFTER_S
        elif body is not None:
            self._on_body(state, connection, body, heard)

    def _on_body(
        self, state: _State, connection: bytes, body: bytes | memoryview, heard: list[tuple[Peer, Incoming]]
    ) -> None:
        peer = state.peer
        try:
            messages: Iterable[ClientMessage | AgentMessage] = state.decode(body)
        except wire.READABLE as error:
            return self._unreadable(state, connection, body, error)
        if peer.read_only:
            messages = [message for message in messages if self._may_read(state, connection, message)]
        heard.extend((peer, message) for message in messages)

    def _unreadable(self, state: _State, connection: bytes, body: bytes | memoryview, error: Exception) -> None:
        """Report the error and end the connection: skipping one packet of a sequence would lose it."""
        role = state.peer.role
        foreign = [tag for tag in wire.tags_in(body) if tag not in wire.TAGS[role]]
        if foreign:
            text = f"a key for the role {role} does not allow to send {foreign[0]}"
            return self._refuse(connection, "SecurityError", text, "role")
        text = f"the controller is {wire.own_version()} and cannot read what this peer sent: {error}"
        self._refuse(connection, "VersionMismatch", text, "unreadable")

    def _may_read(self, state: _State, connection: bytes, message: ClientMessage | AgentMessage) -> bool:
        """Return whether a message under a read-only key only asks. If it does not, it is refused here."""
        if isinstance(message, AskQuestion) and isinstance(message.question, READ_ONLY):
            return True
        self.rejected["read-only key"] += 1
        what = type(message.question if isinstance(message, AskQuestion) else message).__name__
        text = f"this connection's key is read-only: it does not allow {what}"
        if isinstance(message, AskQuestion):
            self.send(state.peer.session, Answer(message.n, Refusal("SecurityError", text)))
        else:
            self._refuse(connection, "SecurityError", text, "read-only key")
        return False

    def _on_handshake(
        self,
        connection: bytes,
        user: str,
        message: Handshake,
        heard: list[tuple[Peer, Incoming]],
        awake_s: float,
    ) -> None:
        if isinstance(message, Refuse):
            return self._refuse(connection, message.etype, message.text, "version")
        if not isinstance(message, Hello) or not wire.is_hello(message):
            return self._refuse(connection, "SecurityError", "this is no greeting", "nonsense")
        title = self._titles[user]
        refuse = self._objection(message, title)
        if refuse is not None:
            self.rejected[refuse.etype] += 1
            return self._answer(connection, refuse)
        state = self._states.get(message.session)
        if state is None:
            state = _State(Peer(message.session, message.role, message.name[:200], title))
            self._states[message.session] = state
            self._sessions_of[title] += 1
        state.user = user
        self._unbind(state)
        former = self._by_connection.get(connection)
        if former is not None:
            self._unbind(former)
        state.connection = connection
        self._by_connection[connection] = state
        state.heard_awake_s = awake_s
        state.silent = False
        state.welcome = state.session.meet_hello(message.epoch, message.last_in, self._epoch)
        self._dirty[message.session] = state
        anew = state.welcome is Greeting.ANEW
        heard.append((state.peer, PeerNewEpoch(message) if anew else PeerUp()))

    def _objection(self, hello: Hello, title: str) -> Refuse | None:
        """Return why this peer is refused; None if it is accepted."""
        role = role_of(title)
        if hello.role != ("client" if role == "reader" else role):
            return Refuse("SecurityError", f"a key of {title} does not allow to be {hello.role[:40]!r}")
        if not session_fits(title, hello.session):
            text = f"a key of {title} does not allow to speak for the session {hello.session!r}"
            return Refuse("SecurityError", text)
        if hello.farm is not None and hello.farm != self._farm:
            text = (
                f"farm {self._name!r} is another one than the farm of that name which this peer knew: make a new client"
            )
            return Refuse("FarmReplaced", text)
        state = self._states.get(hello.session)
        if state is not None and state.peer.title != title:
            return Refuse("SecurityError", "this session belongs to a peer with another key")
        if state is None and len(self._states) >= SESSIONS_MAX:
            return Refuse("ConnectionError", f"farm {self._name!r} has {SESSIONS_MAX:,} sessions already", later=True)
        if state is None and ":" in title and self._sessions_of[title] >= AGENT_SESSIONS_MAX:
            return Refuse("ConnectionError", f"{title} has {AGENT_SESSIONS_MAX:,} sessions already", later=True)
        return None

    def _judge(self, heard: list[tuple[Peer, Incoming]], awake_s: float) -> None:
        """Find the peers that have become silent."""
        if awake_s - self._judged_awake_s < JUDGE_EVERY_S:
            return
        self._judged_awake_s = awake_s
        for state in list(self._states.values()):
            silent_s = awake_s - state.heard_awake_s
            if silent_s > wire.silence_s(state.peer.role) and not state.silent:
                state.silent = True
                # Nothing more is sent on the connection. A peer that hears nothing reconnects, even if only one
                # direction is broken.
                self._unbind(state)
                heard.append((state.peer, PeerSilent()))
            if silent_s > GONE_S[state.peer.role]:
                self.forget(state.peer.session)
                heard.append((state.peer, PeerGone()))

    # ------------------------------------------------------------------------------------ sending

    def _flush_one(self, state: _State, awake_s: float) -> bool:
        """Send what one session may send. Return False if the connection is full."""
        session = state.session
        session.confirm()
        connection = state.connection
        if connection is None:
            return True
        if state.welcome is not None:
            last_in = BEGIN_ANEW if state.welcome is Greeting.ANEW else session.position()[1]
            welcome = Welcome(self._farm, self._name, self._epoch, last_in, __version__)
            if not self._put(connection, wire.encode_handshake(welcome)):
                return state.connection is None
            state.welcome = None
        while (frame := session.next_frame()) is not None:
            if not self._put(connection, frame):
                return state.connection is None
            session.was_sent()
            state.spoke_awake_s = awake_s
            state.beat_due = False
        if session.owes_ack or state.beat_due:
            state.spoke_awake_s = awake_s
            state.beat_due = False
            self._put(connection, session.beat())
        return True

    def _put(self, connection: bytes, frame: bytes) -> bool:
        try:
            self._router.send_multipart([connection, frame], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            state = self._by_connection.get(connection)
            if state is not None and state.connection == connection:
                state.connection, state.ended = None, connection
            return False
        return True

    def _answer(self, connection: bytes, message: Handshake) -> None:
        self._put(connection, wire.encode_handshake(message))

    def _refuse(self, connection: bytes, etype: str, text: str, counted_as: str) -> None:
        """Refuse a peer that breaks the rules. ZeroMQ cannot cut its connection, so the hub forgets the connection."""
        self.rejected[counted_as] += 1
        state = self._by_connection.get(connection)
        if state is not None:
            self._unbind(state)
        self._answer(connection, Refuse(etype, text[: wire.TEXT_MAX]))

    def _unbind(self, state: _State) -> None:
        for connection in (state.connection, state.ended):
            if connection is not None:
                self._by_connection.pop(connection, None)
        state.connection = state.ended = None
