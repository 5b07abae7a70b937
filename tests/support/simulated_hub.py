"""The controller's end of all connections in a simulation: no sockets, the real sessions and the real inbox."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ipytaskfarm.core.turn_shares import LIGHT_S, TurnShares
from ipytaskfarm.transport import message_parts
from ipytaskfarm.transport.hub_session import Peer, PeerNewEpoch, PeerSilent, PeerUp
from ipytaskfarm.transport.inbox import MESSAGE_S, Inbox
from ipytaskfarm.transport.reliable_session import BEGIN_ANEW, Greeting, Heard, ReliableSession
from tests.support.simulated_peers import Connection, Frame, encode

if TYPE_CHECKING:
    from tests.support.simulation import World

SILENCE_S = 5.0


class Hearing:
    """The state of one session at the controller's end."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.link = ReliableSession()
        self.connection: Connection | None = None
        self.welcome: Greeting | None = None
        self.heard_s = 0.0
        self.silent = False


class SimHub:
    """Stands for `transport.hub.Hub`: the same rules for handshakes, silence, fair turns and acknowledgements.

    While faults happen, a turn has room for a few messages, and sessions are told now and then that they hold too much:
    they lose what was not acknowledged, and start again.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.epoch = 0
        self.connections: dict[str, Connection] = {}
        self.hearing: dict[str, Hearing] = {}
        self.inbox = self._new_inbox()
        self._chance = random.Random(world.chance.random())

    def _new_inbox(self) -> Inbox:
        return Inbox(lambda: self.world.clock.mono_s, self, self.backlog_bytes, TurnShares())

    def restart(self, epoch: int) -> None:
        self.epoch = epoch
        self.hearing = {}
        self.inbox = self._new_inbox()
        for connection in self.connections.values():
            connection.cut = True
        self.connections = {}

    def poll(self, timeout_s: float, fds: Sequence[int] = ()) -> set[int]:
        return set()

    def backlog_bytes(self, session: str) -> int:
        return 0

    def charge_answer(self, session: str, seconds: float) -> None:
        self.inbox.shares.charge_answer(session, seconds)

    def send(self, session: str, message: object, *, can_wait: bool = False) -> bool:
        state = self.hearing.get(session)
        if state is None:
            return False
        state.link.say(encode(message))
        return True

    def forget(self, session: str) -> None:
        self.hearing.pop(session, None)
        self.inbox.forget(session)

    def read(self, session: str, raw: Any) -> Any:
        return message_parts.decoded(raw)

    def unreadable(self, session: str, body: Any, error: Exception) -> None:
        raise error

    def receive(self) -> Iterator[tuple[Peer, Any]]:
        heard: list[tuple[Peer, Any]] = []
        now_s = self.world.clock.mono_s
        for session, connection in list(self.connections.items()):
            for _ in range(self.world.chance.randint(0, 6) if self.world.hostile else len(connection.up)):
                if connection.cut or not connection.up or self.connections.get(session) is not connection:
                    break
                self._take(session, connection, self.world.from_wire(connection.up), heard, now_s)
        for state in self.hearing.values():
            if now_s - state.heard_s > SILENCE_S and not state.silent:
                state.silent = True
                state.connection = None
                heard.append((state.peer, PeerSilent()))
        if heard or self.inbox.has_work:
            self.world.kill_point("received")
        return self._of_this_turn(heard)

    def _of_this_turn(self, heard: list[tuple[Peer, Any]]) -> Iterator[tuple[Peer, Any]]:
        yield from heard
        is_short = self.world.hostile and self._chance.random() < 0.3
        self.inbox.shares.light_s = self._chance.randint(1, 8) * MESSAGE_S if is_short else LIGHT_S
        for session, message in self.inbox.take():
            if session in self.hearing:
                yield self.hearing[session].peer, message

    def _take(self, session: str, connection: Connection, frame: Frame, heard: list[Any], now_s: float) -> None:
        what, data = frame
        state = self.hearing.get(session)
        if what == "hello":
            role = self.world.speakers[session].role
            if state is None:
                state = self.hearing[session] = Hearing(Peer(session, role, session))
            state.connection = connection
            state.heard_s, state.silent = now_s, False
            epoch, last_in = data
            state.welcome = state.link.meet_hello(epoch, last_in, self.epoch)
            again = state.welcome is Greeting.ANEW
            if again:
                self.inbox.drop(session)
            heard.append((state.peer, PeerNewEpoch(msgspec.UNSET) if again else PeerUp()))  # type: ignore[arg-type]
            return
        if state is None or state.connection is not connection:
            connection.down.append(("who are you", None))
            return
        state.heard_s = now_s
        if self.world.hostile and self.inbox.bytes_of(session) and self._chance.random() < 0.1:
            self._begin_later(state, connection)
            return
        news, body = state.link.hear(data)
        state.link.freed()
        if news is Heard.GAP or news is Heard.NONSENSE:
            state.connection = None
            connection.down.append(("who are you", None))
        elif body is not None:
            self.inbox.put(session, state.peer.role, state.peer.role, state.link.last_in, body)

    def _begin_later(self, state: Hearing, connection: Connection) -> None:
        """Drop what was received of a session and not handled, as `Hub` does with one that holds too much."""
        self.world.deaths["too many bytes"] += 1
        state.link.begin(0)
        self.inbox.drop(state.peer.session)
        state.connection = None
        connection.down.append(("who are you", None))

    def flush(self, now_s: float) -> None:
        for session, state in self.hearing.items():
            state.link.confirm(self.inbox.handled(session))
            connection = state.connection
            if connection is None or connection.cut:
                continue
            if state.welcome is not None:
                last_in = BEGIN_ANEW if state.welcome is Greeting.ANEW else state.link.position()[1]
                connection.down.append(("welcome", (self.epoch, last_in)))
                state.welcome = None
            while (frame := state.link.next_frame()) is not None:
                self.world.kill_point("sending")
                connection.down.append(("frame", frame))
                state.link.was_sent()
            connection.down.append(("frame", state.link.beat()))
