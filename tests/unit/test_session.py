"""Test reliable sessions over all faults of a network: each message arrives once, in order, within an epoch."""

from __future__ import annotations

import dataclasses
import tracemalloc

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipytaskfarm.transport.reliable_session import (
    BEGIN_ANEW,
    HEADER,
    Greeting,
    Heard,
    PacketKind,
    ReliableSession,
    frame_of,
    kind_of,
    list_header,
)
from tests.support.thorough import some

PACKET = 16
WINDOW = 4


def encode(number: int, size: int = 3) -> bytes:
    return msgspec.msgpack.encode((number, "x" * size))


def small() -> ReliableSession:
    return ReliableSession(packet_bytes=PACKET, window_packets=WINDOW, window_bytes=200)


def pair() -> tuple[ReliableSession, ReliableSession]:
    """A peer and a controller that have greeted each other in epoch 1, and heard of each other since."""
    peer, controller = small(), small()
    greet(peer, controller, 1)
    controller.hear(peer.beat())
    return peer, controller


def greet(peer: ReliableSession, controller: ReliableSession, epoch: int) -> Greeting:
    at, last_in = peer.position()
    met = controller.meet_hello(at, last_in, epoch)
    last_in = BEGIN_ANEW if met is Greeting.ANEW else controller.position()[1]
    assert peer.meet_welcome(epoch, last_in) is met
    return met


def speak(session: ReliableSession) -> list[bytes]:
    frames = []
    while (frame := session.next_frame()) is not None:
        session.was_sent()
        frames.append(frame)
    return frames


def listen(session: ReliableSession, frames: list[bytes]) -> list[int]:
    """The numbers heard."""
    numbers: list[int] = []
    for frame in frames:
        heard, body = session.hear(frame)
        assert heard in (Heard.NEWS, Heard.KNOWN)
        if body is not None:
            numbers += [number for number, _ in msgspec.msgpack.decode(body)]
    session.confirm()
    return numbers


def test_small_messages_are_gathered_and_large_ones_cut() -> None:
    peer, controller = pair()
    sizes = [1, 1, 1, 100, 1, 0]
    for number, size in enumerate(sizes):
        peer.say(encode(number, size), number)
    said = sum(len(encode(number, size)) for number, size in enumerate(sizes))
    assert peer.unacked_bytes == said
    heard: list[int] = []
    packets = 0
    while frames := speak(peer):
        assert all(len(frame) <= PACKET + HEADER.size + 5 for frame in frames)
        packets += len(frames)
        heard += listen(controller, frames)
        listen(peer, [controller.beat()])
    assert heard == peer.freed() == list(range(len(sizes)))
    assert packets < len(sizes) + 100 // PACKET + 2
    assert peer.unacked_bytes == 0


@pytest.mark.parametrize("length", [0, 1, 15, 16, 65535, 65536])
def test_a_list_begins_as_msgpack_has_it(length: int) -> None:
    assert msgspec.msgpack.decode(list_header(length) + b"\xc0" * length) == [None] * length


def test_the_window_bounds_packets_and_bytes() -> None:
    peer, _ = pair()
    for number in range(20):
        peer.say(encode(number, PACKET - 4))
    assert len(speak(peer)) == WINDOW
    assert peer.window_is_shut
    roomy = ReliableSession(packet_bytes=100, window_packets=1000, window_bytes=200)
    greet(roomy, small(), 1)
    for number in range(20):
        roomy.say(encode(number, 90))
    assert len(speak(roomy)) == 2


def test_nothing_is_acknowledged_before_it_is_confirmed() -> None:
    peer, controller = pair()
    peer.say(encode(1), "token")
    for frame in speak(peer):
        controller.hear(frame)
    assert controller.awaits_confirm
    assert not controller.owes_ack
    peer.hear(controller.beat())
    assert peer.freed() == []
    controller.confirm()
    assert controller.owes_ack
    peer.hear(controller.beat())
    assert peer.freed() == ["token"]
    assert not controller.owes_ack


def test_what_was_heard_and_not_confirmed_is_not_acknowledged_by_a_handshake_either() -> None:
    peer, controller = pair()
    peer.say(encode(1), "token")
    (frame,) = speak(peer)
    assert controller.hear(frame)[0] is Heard.NEWS
    assert greet(peer, controller, 1) is Greeting.RESUMED
    assert peer.freed() == []
    assert speak(peer) == [frame]
    assert controller.hear(frame) == (Heard.KNOWN, None)


def test_a_lost_packet_is_noticed_by_the_next_one_or_by_the_beat() -> None:
    peer, controller = pair()
    peer.say(encode(1, PACKET))
    peer.say(encode(2, PACKET))
    _lost, *others = speak(peer)
    assert controller.hear(others[0]) == (Heard.GAP, None)
    assert controller.hear(peer.beat()) == (Heard.GAP, None)
    assert greet(peer, controller, 1) is Greeting.RESUMED
    # The beat tells what is on this connection, and nothing is yet.
    assert controller.hear(peer.beat())[0] is Heard.KNOWN
    assert listen(controller, speak(peer)) == [1, 2]


def test_a_resent_packet_bears_its_old_acknowledgement_and_a_beat_follows() -> None:
    peer, controller = pair()
    controller.say(encode(1))
    speak(controller)
    peer.say(encode(7))
    listen(controller, speak(peer))
    greet(peer, controller, 1)
    peer.say(encode(8))
    listen(controller, speak(peer))
    speak(controller)
    assert controller.owes_ack


def test_a_new_epoch_forgets_everything_on_both_sides() -> None:
    peer, _ = pair()
    peer.say(encode(1), "old")
    speak(peer)
    peer.say(encode(2, 100), "queued")
    restarted = small()
    assert greet(peer, restarted, 2) is Greeting.ANEW
    assert (peer.unacked_bytes, peer.next_frame(), peer.freed()) == (0, None, [])
    peer.say(encode(3), "new")
    assert listen(restarted, speak(peer)) == [3]
    listen(peer, [restarted.beat()])
    assert peer.freed() == ["new"]


def test_a_session_that_the_controller_forgot_begins_anew_in_the_same_epoch() -> None:
    peer, _ = pair()
    peer.say(encode(1))
    speak(peer)
    assert greet(peer, small(), 1) is Greeting.ANEW


def test_a_welcome_that_was_lost_after_forgetting_is_not_taken_for_one_that_arrived() -> None:
    peer, controller = pair()
    peer.say(encode(1))
    listen(controller, speak(peer))
    listen(peer, [controller.beat()])
    controller = small()
    assert controller.meet_hello(*peer.position(), 1) is Greeting.ANEW  # and the Welcome never arrives
    assert greet(peer, controller, 1) is Greeting.ANEW
    peer.say(encode(2))
    assert listen(controller, speak(peer)) == [2]


@pytest.mark.parametrize(("epoch", "last_in"), [(1, 5), (1, 1 << 63), (2, 0), (0, 0)])
def test_a_peer_in_an_impossible_position_begins_anew(epoch: int, last_in: int) -> None:
    _, controller = pair()
    assert controller.meet_hello(epoch, last_in, 1) is Greeting.ANEW


@pytest.mark.parametrize(("epoch", "last_in"), [(1, 5), (2, 0), (0, BEGIN_ANEW)])
def test_an_impossible_welcome_is_nonsense(epoch: int, last_in: int) -> None:
    peer, _ = pair()
    assert peer.meet_welcome(epoch, last_in) is Greeting.NONSENSE


def test_a_position_before_what_was_acknowledged_is_impossible() -> None:
    peer, controller = pair()
    peer.say(encode(1))
    listen(controller, speak(peer))
    listen(peer, [controller.beat()])
    assert peer.meet_welcome(1, 0) is Greeting.NONSENSE


NONSENSE = [
    b"",
    b"\x00" * (HEADER.size - 1),
    HEADER.pack(99, 1, 0),
    HEADER.pack(PacketKind.DATA, 1, 5) + b"\x90",
    HEADER.pack(PacketKind.BEAT, 0, 1 << 63),
    frame_of(PacketKind.HANDSHAKE, b"\xc0"),
    frame_of(PacketKind.BYE),
]


@pytest.mark.parametrize("frame", NONSENSE)
def test_nonsense_is_told_as_such(frame: bytes) -> None:
    _, controller = pair()
    assert controller.hear(frame) == (Heard.NONSENSE, None)


def test_pieces_without_end_are_nonsense() -> None:
    controller = ReliableSession(max_message_bytes=100)
    controller.meet_hello(0, 0, 1)
    heard = [controller.hear(HEADER.pack(PacketKind.PART, number, 0) + b"x" * 40)[0] for number in (1, 2, 3)]
    assert heard == [Heard.NEWS, Heard.NEWS, Heard.NONSENSE]


@pytest.mark.parametrize("kind", [PacketKind.PART, PacketKind.DATA])
def test_empty_pieces_are_nonsense(kind: PacketKind) -> None:
    _, controller = pair()
    assert controller.hear(HEADER.pack(PacketKind.PART, 1, 0) + b"x")[0] is Heard.NEWS
    assert controller.hear(HEADER.pack(kind, 2, 0))[0] is Heard.NONSENSE
    assert controller.pieces_bytes == 0


def test_small_pieces_take_no_more_memory_than_they_are_counted_for() -> None:
    _, controller = pair()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 50_001):
            controller.hear(HEADER.pack(PacketKind.PART, number, 0) + b"x")
        assert controller.pieces_bytes == 50_000
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    heard, body = controller.hear(HEADER.pack(PacketKind.DATA, 50_001, 0) + b"y")
    assert (heard, body) == (Heard.NEWS, b"x" * 50_000 + b"y")


def test_the_kind_of_a_frame() -> None:
    assert kind_of(frame_of(PacketKind.BYE)) is PacketKind.BYE
    assert kind_of(b"abc") is None
    assert kind_of(HEADER.pack(5, 0, 0)) is None


@hypothesis.given(st.binary(max_size=40))
def test_random_bytes_never_raise(frame: bytes) -> None:
    _, controller = pair()
    heard, _ = controller.hear(frame)
    assert heard in Heard


# ------------------------------------------------------------------------------------------- under a network


@dataclasses.dataclass
class Side:
    """One end of a session, with the messages that it sends and receives in the present epoch."""

    session: ReliableSession
    said: list[int] = dataclasses.field(default_factory=list)
    heard: list[int] = dataclasses.field(default_factory=list)
    confirmed: int = 0
    acked: list[int] = dataclasses.field(default_factory=list)
    wire: list[bytes] = dataclasses.field(default_factory=list)
    """On the way to this side."""

    beginning: int = 0
    """Which one: the two sides' words can be compared only when they have seen the same."""

    def begin(self, beginning: int) -> None:
        self.beginning = beginning
        self.said, self.heard, self.confirmed, self.acked, self.wire = [], [], 0, [], []


class Conversation(RuleBasedStateMachine):
    """A peer and a controller over connections that lose, double and delay packets, with controllers that die."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = Side(small())
        self.controller = Side(small())
        self.epoch = 1
        self.number = 0
        self.beginnings = 0
        self.connected = False

    @rule(size=st.sampled_from([0, 1, 5, PACKET, 3 * PACKET]), by_peer=st.booleans())
    def say(self, size: int, by_peer: bool) -> None:
        side = self.peer if by_peer else self.controller
        if side.session.epoch == 0 or side.session.epoch != self.epoch:
            return  # users say nothing before the first NewEpoch
        self.number += 1
        side.said.append(self.number)
        side.session.say(encode(self.number, size), self.number)

    @precondition(lambda self: self.connected)
    @rule(by_peer=st.booleans(), most=st.integers(1, 6), beat=st.booleans())
    def speak(self, by_peer: bool, most: int, beat: bool) -> None:
        side, other = self._sides(by_peer)
        for _ in range(most):
            frame = side.session.next_frame()
            if frame is None:
                break
            side.session.was_sent()
            other.wire.append(frame)
        if beat:
            other.wire.append(side.session.beat())

    @precondition(lambda self: self.connected)
    @rule(at_peer=st.booleans(), most=st.integers(1, 6))
    def listen(self, at_peer: bool, most: int) -> None:
        side, other = self._sides(at_peer)
        for _ in range(min(most, len(side.wire))):
            if not self.connected or not self._hear(side, other, side.wire.pop(0)):
                break

    @rule(at_peer=st.booleans())
    def confirm(self, at_peer: bool) -> None:
        side, _ = self._sides(at_peer)
        side.session.confirm()
        side.confirmed = len(side.heard)

    @precondition(lambda self: self.connected)
    @rule(at_peer=st.booleans(), data=st.data())
    def drop_a_frame(self, at_peer: bool, data: st.DataObject) -> None:
        side, _ = self._sides(at_peer)
        if side.wire:
            side.wire.pop(data.draw(st.integers(0, len(side.wire) - 1)))

    @precondition(lambda self: self.connected)
    @rule(at_peer=st.booleans(), data=st.data())
    def double_or_swap(self, at_peer: bool, data: st.DataObject) -> None:
        side, _ = self._sides(at_peer)
        if side.wire:
            one = data.draw(st.integers(0, len(side.wire) - 1))
            to = data.draw(st.integers(0, len(side.wire) - 1))
            side.wire.insert(to, side.wire[one] if data.draw(st.booleans()) else side.wire.pop(one))

    @precondition(lambda self: not self.connected)
    @rule(welcome_lost=st.booleans())
    def connect(self, welcome_lost: bool) -> None:
        epoch, last_in = self.peer.session.position()
        met = self.controller.session.meet_hello(epoch, last_in, self.epoch)
        if met is Greeting.ANEW:
            self._begin_controller()
        self._collect(self.controller)
        if welcome_lost:
            return
        last_in = BEGIN_ANEW if met is Greeting.ANEW else self.controller.session.position()[1]
        assert self.peer.session.meet_welcome(self.epoch, last_in) is met
        if met is Greeting.ANEW:
            self.peer.begin(self.controller.beginning)
        self._collect(self.peer)
        self.connected = True

    # One rule for all breaks: each rule is tried as often as any other, and conversations are mostly not broken.
    @rule(how=st.sampled_from(["cut", "cut", "restarted", "forgotten"]))
    def interrupt(self, how: str) -> None:
        self._cut()
        if how == "cut":
            return
        self.epoch += how == "restarted"
        self.controller.session = small()
        self._begin_controller()

    def _begin_controller(self) -> None:
        self.beginnings += 1
        self.controller.begin(self.beginnings)

    def _cut(self) -> None:
        self.connected = False
        self.peer.wire, self.controller.wire = [], []

    def _sides(self, peer: bool) -> tuple[Side, Side]:
        return (self.peer, self.controller) if peer else (self.controller, self.peer)

    def _hear(self, side: Side, other: Side, frame: bytes) -> bool:
        heard, body = side.session.hear(frame)
        assert heard is not Heard.NONSENSE
        self._collect(side)
        if heard is Heard.GAP:
            self._cut()  # what a link does: shake hands again
            return False
        if body is not None:
            side.heard += [number for number, _ in msgspec.msgpack.decode(body)]
        return True

    def _collect(self, side: Side) -> None:
        side.acked += [token for token in side.session.freed() if isinstance(token, int)]

    @invariant()
    def what_was_heard_is_what_was_said(self) -> None:
        if self.peer.beginning != self.controller.beginning:
            return
        for side, other in (self._sides(True), self._sides(False)):
            assert side.heard == other.said[: len(side.heard)]

    @invariant()
    def what_was_acknowledged_was_confirmed(self) -> None:
        if self.peer.beginning != self.controller.beginning:
            return
        for side, other in (self._sides(True), self._sides(False)):
            assert side.acked == side.said[: len(side.acked)]
            assert len(side.acked) <= other.confirmed

    @invariant()
    def windows_hold(self) -> None:
        for side in (self.peer, self.controller):
            assert len(side.session._flight) <= WINDOW
            assert side.session.unacked_bytes >= 0

    def teardown(self) -> None:
        """Heal the network: everything that was said in this epoch arrives, and is acknowledged."""
        self._cut()
        self.connect(False)
        for _ in range(400):
            for by_peer in (True, False):
                self.speak(by_peer, 1000, True)
                self.confirm(by_peer)
                self.listen(by_peer, 1000)
            if not self.peer.session.unacked_bytes and not self.controller.session.unacked_bytes:
                break
        assert self.connected
        assert self.peer.heard == self.controller.said
        assert self.controller.heard == self.peer.said
        self.what_was_acknowledged_was_confirmed()
        assert self.peer.acked == self.peer.said


Conversation.TestCase.settings = hypothesis.settings(max_examples=some(100, 400), stateful_step_count=60, deadline=None)
TestConversation = Conversation.TestCase
