"""The controller's end of all connections: its listeners (`interface`), and a `ReliableSession` per peer.

**Calling contract** of `Hub`. One thread owns it. Each turn of the controller's loop calls, in this order:

1. `poll`: wait for something;
2. `receive`: the messages of one turn, each one once, from peers with a key that allows them. Those of one peer come in
   the order of sending; among peers, a fair order decides (`core.turn_shares`), and the rest waits for the next turn;
3. `send`, any number of times: it only queues;
4. *commit what was received*, then
5. `flush`: acknowledges all that `receive` returned, and sends what was queued. **Nothing else acknowledges**, so
   everything that a peer believes to be handled is on disk. Refusals are the exception: they are sent at once, and say
   nothing about the state; so is `send_now`, for what was on disk before.

After `PeerNewEpoch`, everything that was sent to that session before is forgotten; the peer reports what it holds.
Windows limit what is on its way to a peer, not what `send` queues: check `backlog_bytes` before sending bodies. Signal
handlers in this thread must not raise: an exception between the two parts of a message would corrupt it.
"""

from __future__ import annotations

import logging
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from ..core import errors
from ..core.limits import ByteAccounts, PeerLimits
from ..core.messages import Answer, AskQuestion, Refusal
from ..version import __version__
from . import message_parts, reliable_session, wire
from .curve_listener import CurveListener, why_not_listening
from .handshake import REPLACED, REVOKED, STORE_FULL, Handshake, Hello, Refuse, Welcome, WhoAreYou
from .hub_session import HubSession, Incoming, LazySessions, Peer, PeerGone, PeerNewEpoch, PeerSilent, PeerUp, too_slow
from .inbox import LEFT, Inbox
from .interface import GONE, OK, ConnectionId, KnownKey, PeerListener, ReceivedFrame, speakers
from .keys import FarmKeys
from .read_only import why_refused
from .reliable_session import BEGIN_ANEW, BYE, HANDSHAKE, HEADER, HELD_BYTES, Greeting, frame_of, kind_of
from .session_places import ANEW, SessionPauses, SessionPlaces, objection, pool_of
from .short_poll import ShortPoll, watch
from .unix_listener import listen_here

log = logging.getLogger(__name__)

GONE_S = {"client": 60.0, "agent": 3600.0}
"""After this many seconds of silence a session is forgotten. A peer that returns later starts again."""
JUDGE_EVERY_S = 0.5
BEAT_AFTER_S = 0.5
CONGESTED_S = 0.05
READ_BYTES = 16 << 20
"""No further packet is read in a turn that has read this much."""


class Hub:
    """All connections of a controller. The module's docstring has the calling contract.

    Args:
        host, port: the address for TCP; port 0 for any that is free.
        keys, farm, name: the farm's keys, its incarnation and its name.
        epoch: the number of this life of the controller.
        socket_path: the unix socket for peers of this machine, in a folder of mode 0700; None for none.
        limits: the bounds of what peers may hold; None for the defaults.

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
        socket_path: Path | None = None,
        limits: PeerLimits | None = None,
    ) -> None:
        self._farm = farm
        self._limits = limits = limits or PeerLimits()
        self._inbox = Inbox(clock, self, self.backlog_bytes)
        self._incoming = ByteAccounts(HELD_BYTES, limits.incoming_per_key, limits.incoming)
        self._name = name
        self._epoch = epoch
        self._clock = clock
        self._patience = wire.Timeouts(clock())
        self._judged_awake_s = 0.0
        self._read_bytes = self._said_bytes = 0
        self._states: dict[str, HubSession] = {}
        self._by_connection: dict[ConnectionId, HubSession] = {}
        self._dirty: dict[str, HubSession] = {}
        self._places = SessionPlaces(limits)
        self.pauses = SessionPauses(clock)
        self._lazy = LazySessions()
        self.rejected: Counter[str] = Counter()
        """How often connections or messages were refused, by reason."""
        self._known: dict[str, KnownKey] = {}
        """Public key -> user id of all that comes under it, and the secret half."""
        self._titles: dict[str, str] = {}
        """User id -> the title of that key."""
        self._set_keys(keys)
        try:
            self._curve = CurveListener(host, port, keys.server.secret, self._known, self.rejected)
        except zmq.ZMQError as error:
            raise errors.ConnectionError(why_not_listening(name, host, port, error)) from None
        self.port = self._curve.port
        self._epoll = select.epoll()
        self._short_poll = ShortPoll(self._epoll.poll)
        self._extra: set[int] = set()
        """The caller's descriptors that `_epoll` knows."""
        self._extra_given: Sequence[int] = ()
        for fd in self._curve.fds():
            self._epoll.register(fd, select.EPOLLIN)
        self._unix = listen_here(socket_path, keys.server.public, self._known, self._epoll, self.rejected)

    def _set_keys(self, keys: FarmKeys) -> None:
        # The user id contains the key itself: messages under a replaced key do not count as messages under the new one.
        named = {f"{title} {pair.public}": (title, pair) for title, pair in keys.peers().items()}
        self._titles = {user: title for user, (title, _) in named.items()}
        self._known.clear()
        self._known.update((pair.public, KnownKey(user, pair.secret)) for user, (_, pair) in named.items())

    @property
    def socket_path(self) -> Path | None:
        """Return the unix socket for peers of this machine; None if there is none."""
        return self._unix.path if self._unix is not None else None

    # --------------------------------------------------------------------------------------- state

    def peers(self) -> list[tuple[Peer, bool]]:
        """Return the known peers, and whether each is connected."""
        return [(state.peer, state.connection is not None) for state in self._states.values()]

    def backlog_bytes(self, session: str) -> int:
        """Return how many bytes for this session are queued or not acknowledged; 0 if the session is unknown."""
        state = self._states.get(session)
        return state.session.unacked_bytes if state else 0

    # ---------------------------------------------------------------------------------------- actions

    def send(self, session: str, message: object, *, can_wait: bool = False) -> bool:
        """Queue a message for the next `flush`. Return False if there is no such session (any more).

        With `can_wait` it is sent with the next other message, or after `hub_session.LAZY_S`.

        Raises:
            ResultTooLarge: the message is larger than `message_bytes_max`.
        """
        state = self._states.get(session)
        if state is None:
            return False
        body = wire.encode_message(message)
        state.session.say(body)
        self._dirty[session] = state
        state.is_urgent = state.is_urgent or not can_wait
        self._said_bytes += len(body)
        if self._said_bytes > self._limits.outgoing // 16:
            self._bound_backlogs()
        return True

    def send_now(self, session: str, message: object) -> None:
        """Send what is on disk already, before the commit. If the connection is full, it waits for the next `flush`."""
        if self.send(session, message) and (state := self._states[session]).welcome is None:
            self._send_waiting(state, state.spoke_awake_s)

    def _bound_backlogs(self) -> None:
        """Forget what was said to peers that take too little of it, the one with most first: they start again."""
        self._said_bytes = 0
        for state in too_slow(self._states.values(), self._limits.outgoing_per_session, self._limits.outgoing):
            self.rejected["slow reader"] += 1
            state.session.begin(0)
            self._inbox.drop(state.peer.session)
            self._count_bytes(state)
            if (connection := state.connection) is not None:
                self._unbind(state)
                self._answer(connection, WhoAreYou())

    def charge_answer(self, session: str, seconds: float) -> None:
        """Record how long the answer to a question of this session took: its next one waits its turn accordingly."""
        if session in self._states:
            self._inbox.shares.charge_answer(session, seconds)

    def forget(self, session: str) -> None:
        """Drop a session, all messages that are queued for it, and those of it that are not handled."""
        state = self._states.pop(session, None)
        if state is not None:
            self._unbind(state)
            self._dirty.pop(session, None)
            self._lazy.drop(session)
            self._inbox.forget(session)
            self._incoming.hold(state.pool, session, 0)
            self._places.free(state.pool, session)

    def begin_epoch(self, epoch: int) -> None:
        """Forget all sessions: their peers say hello again, and report what they hold, as to a new controller."""
        self._epoch = epoch
        # The caller may have closed some of its descriptors, and have opened others with the same numbers.
        self._extra, self._extra_given = watch(self._epoll, self._extra, set()), ()
        for session, state in list(self._states.items()):
            connection, is_welcomed = state.connection, state.welcome is None
            self.forget(session)
            if connection is not None:  # a peer that waits for its Welcome does not answer a question
                self._answer(connection, WhoAreYou() if is_welcomed else ANEW)

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

    def _turn_away(self, connection: ConnectionId, user: str) -> None:
        """Refuse a connection whose key was replaced or revoked."""
        self.rejected["key of the past"] += 1
        if (state := self._by_connection.get(connection)) is not None:
            self._unbind(state)
        replaced = user.rpartition(" ")[0] in self._titles.values()
        self._answer(connection, Refuse("SecurityError", REPLACED if replaced else REVOKED, later=replaced))

    def poll(self, timeout_s: float, extra_fds: Sequence[int] = ()) -> set[int]:
        """Wait until a peer has sent something, one of `extra_fds` is readable (those are returned), or the time is up.

        It may return earlier, because `receive` must look for silent peers twice a second.
        """
        if self._states:
            # A session that is still to be flushed has a full connection, and ZeroMQ does not report when that has room
            # again.
            timeout_s = min(timeout_s, CONGESTED_S if self._dirty else JUDGE_EVERY_S)
        if self._inbox.has_work:
            timeout_s = 0.0
        deadline_s = min(self._clock() + timeout_s, self._lazy.until_s)
        if extra_fds != self._extra_given:
            self._extra, self._extra_given = watch(self._epoll, self._extra, set(extra_fds)), extra_fds
        while True:
            there, ready = self._wait(max(0.0, deadline_s - self._clock()))
            if there or ready or self._clock() >= deadline_s:
                return ready

    def _wait(self, timeout_s: float) -> tuple[bool, set[int]]:
        """Wait once. Return whether a listener may have input, and which of `extra_fds` are readable."""
        # ZeroMQ's descriptors report only changes, so its sockets are asked before each wait.
        there = self._curve.has_input() or (self._unix is not None and self._unix.has_input)
        ready: set[int] = set()
        for fd, events in self._short_poll.wait(0 if there else timeout_s, self._read_bytes):
            if fd in self._extra:
                ready.add(fd)
            elif not self._curve.is_ready(fd) and self._unix is not None and self._unix.is_ready(fd, events):
                there = True
        return there, ready

    def put_off(self, why: str, timeout_s: float, extra_fds: Sequence[int]) -> set[int]:
        """Wait like `poll`, and refuse whoever speaks: the controller lives, and cannot commit what it receives.

        Nothing is acknowledged or forgotten: these peers try again, and continue when they are let in.
        """
        self._extra, self._extra_given = watch(self._epoll, self._extra, set(extra_fds)), extra_fds
        _, ready = self._wait(timeout_s)
        for listener in self._listeners_with_input():
            for connection in speakers(listener):
                self._refuse(connection, STORE_FULL, why, "no room", later=True)
        return ready

    def receive(self, limit: int = 256) -> Iterator[tuple[Peer, Incoming]]:
        """Read up to `limit` packets, or `READ_BYTES`, and return the events and messages of this turn.

        A message is decoded when it is asked for, and has cost its session the time until the next one is.
        """
        awake_s = self._patience.look(self._clock())
        heard: list[tuple[Peer, Incoming]] = []
        listeners = self._listeners_with_input()
        self._read_bytes = 0
        for _ in range(limit):
            if self._read_bytes > READ_BYTES or not listeners:
                break
            for listener in listeners:
                frame = listener.receive()
                if frame is None:
                    listeners.remove(listener)
                    break
                self._read_bytes += len(frame.frame or b"")
                self._on_frame(frame, heard, awake_s)
        for connection in self._unix.take_ended() if self._unix is not None else ():
            if (ended := self._by_connection.get(connection)) is not None:
                self._unbind(ended)
        # Also if more is waiting: the listeners read from all connections in turn, so each peer that sent something was
        # heard.
        self._judge(heard, awake_s)
        return self._of_this_turn(heard)

    def _of_this_turn(self, heard: list[tuple[Peer, Incoming]]) -> Iterator[tuple[Peer, Incoming]]:
        yield from heard
        for session, message in self._inbox.take():
            state = self._states.get(session)
            if state is None:
                continue
            self._dirty[session] = state
            if message is LEFT:
                self.forget(session)
                yield state.peer, PeerGone(said=True)
            else:
                yield state.peer, message

    def flush(self, now_s: float) -> None:
        """Acknowledge all that `receive` returned, and send queued messages, as far as the windows allow.

        Call it only after the commit. `now_s` is monotonic.
        """
        awake_s = self._patience.look(now_s)
        dirty, self._dirty = self._dirty, {}
        for state in self._to_flush(dirty.values(), self._lazy.take(now_s), now_s):
            if not self._flush_one(state, awake_s):
                self._dirty[state.peer.session] = state

    def _to_flush(self, states: Iterable[HubSession], waited: dict[str, HubSession], now_s: float) -> list[HubSession]:
        """Return those that cannot wait and those that have, agents first: a task's hand-out is longer than its end."""
        now = list(waited.values())
        for state in states:
            if state.peer.session in waited:
                continue
            if state.is_urgent or state.welcome is not None or state.beat_due:
                self._lazy.drop(state.peer.session)
                now.append(state)
            else:
                self._confirm(state)
                self._lazy.add(state, now_s + state.patience_s(self._read_bytes))
        if len(now) > 1:
            now.sort(key=lambda state: state.peer.role)
        return now

    def close(self) -> None:
        """Say good-bye to all peers. Queued messages are dropped: call `flush` first."""
        for state in self._states.values():
            if state.connection is not None:
                self._put(state.connection, frame_of(BYE))
        self._curve.close()
        if self._unix is not None:
            self._unix.close()
        self._epoll.close()

    # ------------------------------------------------------------------------------------- receiving

    def _listeners_with_input(self) -> list[PeerListener]:
        listeners: list[PeerListener] = [self._curve] if self._curve.has_input() else []
        if self._unix is not None and self._unix.has_input:
            listeners.append(self._unix)
        return listeners

    def _on_frame(self, packet: ReceivedFrame, heard: list[tuple[Peer, Incoming]], awake_s: float) -> None:
        connection, user, frame = packet
        if frame is None:
            return
        kind = kind_of(frame)
        state = self._by_connection.get(connection)
        if user not in self._titles:
            self._turn_away(connection, user)
        elif kind is HANDSHAKE:
            self._on_handshake(connection, user, wire.decode_handshake(frame), heard, awake_s)
        elif state is None:
            self._answer(connection, WhoAreYou())
        elif kind is None or state.user != user:
            self._refuse(connection, "SecurityError", "this connection sent nonsense", "nonsense")
        elif kind is BYE:
            self._on_bye(state, heard)
        else:
            self._on_packet(state, connection, frame, awake_s)

    def _on_bye(self, state: HubSession, heard: list[tuple[Peer, Incoming]]) -> None:
        self._unbind(state)
        # What it sent before is handled first.
        if not self._inbox.leave(state.peer.session):
            self.forget(state.peer.session)
            heard.append((state.peer, PeerGone(said=True)))

    def _on_packet(self, state: HubSession, connection: ConnectionId, frame: memoryview, awake_s: float) -> None:
        state.heard_awake_s = awake_s
        session, name = state.session, state.peer.session
        if len(frame) > HEADER.size and (why := self._incoming.why_not(state.pool, name, len(frame))):
            return self._begin_later(state, connection, why)
        what, body = session.hear(frame)
        session.freed()
        self._dirty[name] = state
        if what is reliable_session.GAP:
            self.rejected["gap"] += 1
            self._unbind(state)
            self._answer(connection, WhoAreYou())
        elif what is reliable_session.NONSENSE:
            self._refuse(connection, "SecurityError", "this connection sent nonsense", "nonsense")
        elif what is reliable_session.KNOWN:
            # An acknowledgement of a very recent message needs no beat in answer.
            state.beat_due = awake_s - state.spoke_awake_s > BEAT_AFTER_S
        elif body is not None:
            self._inbox.put(name, state.pool, state.peer.role, session.last_in, body)
            self._places.is_used(state.pool, name)
            # A small packet counts only if it still waits at the end of the turn: few do.
            if len(body) > message_parts.SMALL_BYTES or self._incoming.of(name):
                self._count_bytes(state)
        else:
            self._count_bytes(state)

    def _count_bytes(self, state: HubSession) -> None:
        name = state.peer.session
        self._incoming.hold(state.pool, name, self._inbox.bytes_of(name) + state.session.pieces_bytes)

    def _confirm(self, state: HubSession) -> None:
        """Let what was handled of a session be acknowledged, and count what still waits."""
        handled = self._inbox.handled(state.peer.session)
        state.session.confirm(handled)
        if handled is not None or self._incoming.of(state.peer.session):
            self._count_bytes(state)

    def _begin_later(self, state: HubSession, connection: ConnectionId, why: str) -> None:
        """Drop what a session has sent and was not handled: it connects after a pause, and sends that again.

        Nothing of it was acknowledged. The place that it had is free for others, so that one of them gets ready.
        """
        state.session.begin(0)
        self._inbox.drop(state.peer.session)
        self._count_bytes(state)
        text = f"farm {self._name!r} holds too many bytes of messages that it has not handled: {why} (incoming_limit)"
        self._refuse(connection, "ConnectionError", text, "too many bytes", later=True)

    def read(self, session: str, raw: Any) -> Any:
        """Return a message as the inbox has it, decoded; None if its session may not send it. Called by the inbox."""
        message = message_parts.decoded(raw)
        state = self._states.get(session)
        if state is None or not (state.peer.read_only and (text := why_refused(message))):
            return None if state is None else message
        self.rejected["read-only key"] += 1
        if isinstance(message, AskQuestion):
            self.send(session, Answer(message.n, Refusal("SecurityError", text)))
        else:
            self._refuse_peer(state, "SecurityError", text, "read-only key")
        return None

    def unreadable(self, session: str, body: Any, error: Exception) -> None:
        """End the connection of a session that sent something unreadable. Called by the inbox.

        Skipping one packet of a sequence would lose it.
        """
        state = self._states.get(session)
        if state is None:
            return
        etype, text = message_parts.why_unreadable(state.peer.role, body, error)
        self._refuse_peer(state, etype, text, "unreadable")

    def _on_handshake(
        self,
        connection: ConnectionId,
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
        pool = pool_of(title, isinstance(connection, int))
        state = self._states.get(message.session)
        refuse = objection(message, title, state.peer.title if state else title, self._farm, self._name, self._epoch)
        refuse = refuse or self.pauses.refusal(message.session) or self._no_place(message, pool, heard)
        if refuse is not None:
            self.rejected[refuse.etype] += 1
            return self._answer(connection, refuse)
        if state is None:
            versions = message.version[:40], message.python[:40]
            state = HubSession(Peer(message.session, message.role, message.name[:200], title, *versions), pool)
            self._states[message.session] = state
            self._places.take(pool, message.session)
        state.user = user
        self._unbind(state)
        if (former := self._by_connection.get(connection)) is not None:
            self._unbind(former)
        state.connection = connection
        self._by_connection[connection] = state
        state.heard_awake_s = awake_s
        state.silent = False
        state.welcome = state.session.meet_hello(message.epoch, message.last_in, self._epoch)
        self._dirty[message.session] = state
        if again := state.welcome is Greeting.ANEW:
            self._inbox.drop(message.session)
            self._count_bytes(state)
        heard.append((state.peer, PeerNewEpoch(message) if again else PeerUp()))

    def _no_place(self, hello: Hello, pool: str, heard: list[tuple[Peer, Incoming]]) -> Refuse | None:
        """Return why there is no place for a new session; None if there is one, perhaps because another gave it up."""
        if hello.session in self._states or not (why := self._places.why_full(pool)):
            return None
        unused = self._places.replaceable(pool)
        if unused is None:
            return Refuse("ConnectionError", f"farm {self._name!r} is full: {why}", later=True)
        heard.append((self._states[unused].peer, PeerGone()))
        self.forget(unused)
        return None

    def _judge(self, heard: list[tuple[Peer, Incoming]], awake_s: float) -> None:
        """Find the peers that have become silent."""
        if awake_s - self._judged_awake_s < JUDGE_EVERY_S:
            return
        self._judged_awake_s = awake_s
        if self._unix is not None:
            self._unix.look_after(self._clock())
        for state in list(self._states.values()):
            silent_s = awake_s - state.heard_awake_s
            if silent_s > wire.silence_s(state.peer.role) and not state.silent:
                state.silent = True
                self._places.is_unused(state.pool, state.peer.session)
                # Nothing more is sent on the connection. A peer that hears nothing reconnects, even if only one
                # direction is broken.
                self._unbind(state)
                heard.append((state.peer, PeerSilent()))
            if silent_s > GONE_S[state.peer.role]:
                self.forget(state.peer.session)
                heard.append((state.peer, PeerGone()))

    # ------------------------------------------------------------------------------------ sending

    def _flush_one(self, state: HubSession, awake_s: float) -> bool:
        """Acknowledge and send what one session may send. Return False if the connection is full."""
        self._confirm(state)
        return self._send_waiting(state, awake_s)

    def _send_waiting(self, state: HubSession, awake_s: float) -> bool:
        session, connection = state.session, state.connection
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
        state.is_urgent = session.has_unsent
        if session.owes_ack or state.beat_due:
            state.spoke_awake_s = awake_s
            state.beat_due = False
            self._put(connection, session.beat())
        return True

    def _put(self, connection: ConnectionId, frame: bytes) -> bool:
        if isinstance(connection, bytes):
            sent = self._curve.send(connection, frame)
        else:
            sent = self._unix.send(connection, frame) if self._unix is not None else GONE
        state = self._by_connection.get(connection) if sent is GONE else None
        if state is not None and state.connection == connection:
            state.connection, state.ended = None, connection
        return sent is OK

    def _answer(self, connection: ConnectionId, message: Handshake) -> None:
        self._put(connection, wire.encode_handshake(message))

    def _refuse(self, connection: ConnectionId, etype: str, text: str, counted_as: str, *, later: bool = False) -> None:
        """Refuse a peer that breaks the rules. Its connection is forgotten, and not cut: it reads the reason."""
        self.rejected[counted_as] += 1
        if (state := self._by_connection.get(connection)) is not None:
            self._unbind(state)
        self._answer(connection, Refuse(etype, text[: wire.TEXT_MAX], later=later))

    def _refuse_peer(self, state: HubSession, etype: str, text: str, counted_as: str) -> None:
        if (connection := state.connection or state.ended) is not None:
            self._refuse(connection, etype, text, counted_as)

    def _unbind(self, state: HubSession) -> None:
        for connection in (state.connection, state.ended):
            if connection is not None:
                self._by_connection.pop(connection, None)
        state.connection = state.ended = None
