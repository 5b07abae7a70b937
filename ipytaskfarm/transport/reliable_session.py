"""Reliable sessions over connections that lose packets: numbers, acknowledgements, resends, epochs.

ZeroMQ drops what it holds when a connection is reset, and reports nothing. A `ReliableSession` is one side's memory
of a conversation between a peer (agent or client) and the controller; it outlives any number of connections.
Nothing here touches a socket or a clock: frames go in and come out, and `transport.wire` transports them.

Three rules:

1. Within an **epoch** (one life of the controller) every message that one side sends arrives once, in the order of
   sending, whatever connections do. In a new epoch both sides forget everything, and report again what they hold.
2. A packet is acknowledged only after `confirm`: the receiver has dealt with it (the controller: committed it).
3. The window bounds what is unacknowledged; further messages wait here, and `unacked_bytes` counts them.

**A frame** is a header of 17 bytes and a body::

    kind: u8   number: u64   ack: u64   (big endian)   body

==========  ==================================================  ===============================================
kind        number                                              body
==========  ==================================================  ===============================================
DATA        of this packet: 1, 2, 3 ... in this direction       a msgpack list of messages, or the last piece
PART        the same count                                      a piece of a list that goes on
BEAT        of the last packet sent before                      none
HANDSHAKE   0                                                   one `Hello`, `Welcome`, `Refuse` or `WhoAreYou`
BYE         0                                                   none
==========  ==================================================  ===============================================

`ack` is the last packet of the other direction that was dealt with. Small messages are gathered into packets of
`PACKET_BYTES`; larger ones are cut into pieces of that size, so that beats, acknowledgements and the check for silence
work while something huge crosses a slow link, and a cut costs one piece. The header and the first two fields of
`Hello` never change: that is how peers of any two versions can tell each other that they do not fit.

**Calling contract**, for both sides. On a new connection: exchange `Hello` and `Welcome` through `position`,
`meet_hello` and `meet_welcome`. Then for each frame that arrives call `hear`, deal with the body it returns, and call
`confirm` when that is done. Put `next_frame` onto the connection and call `was_sent`, until it returns None. When
`owes_ack` is still true then, send `beat`. Send `beat` at intervals, too: it shows the other side that the last packets
before a pause were lost.
"""

from __future__ import annotations

import struct
from collections import deque
from enum import Enum, IntEnum

import msgspec

HEADER = struct.Struct("!BQQ")
PACKET_BYTES = 256 << 10
WINDOW_PACKETS = 4096
WINDOW_BYTES = 64 << 20
MAX_MESSAGE_BYTES = 256 << 20
"""The most bytes of one encoded message. A larger one raises `ResultTooLarge`."""
CLIENT_MESSAGE_BYTES = 16 << 20
"""The same for a message of a client. The controller takes it into its store in one commit, while all others wait."""
PACKET_COST_BYTES = 128
"""About the memory that a packet takes beyond its body while it waits."""
HELD_BYTES = MAX_MESSAGE_BYTES + WINDOW_BYTES + WINDOW_PACKETS * PACKET_COST_BYTES
"""The most bytes that a receiver holds for an honest session: an unfinished message, and a window of others."""
BEGIN_ANEW = -1
"""The value of `Welcome.last_in` if the controller does not know this session: both counters start again."""


class PacketKind(IntEnum):
    """The kind of a frame."""

    DATA = 0
    PART = 1
    BEAT = 2
    HANDSHAKE = 3
    BYE = 4


class Heard(Enum):
    """The meaning of a received frame."""

    NEWS = "the next packet"
    KNOWN = "a packet that came before, or a beat"
    GAP = "something before it was lost: shake hands again, and it is sent again"
    NONSENSE = "nothing that an honest peer sends"


DATA, PART, BEAT, HANDSHAKE, BYE = PacketKind
NEWS, KNOWN, GAP, NONSENSE = Heard
"""Access to a member of an enumeration takes long, compared with the code that is run for each frame."""


class Greeting(Enum):
    """The result of a handshake."""

    RESUMED = "the same epoch: what the other side lacks is sent again"
    ANEW = "another epoch: both sides state what they hold"
    NONSENSE = "a position that an honest peer cannot be in"


_KINDS = tuple(PacketKind)
_HEADER_BYTES = HEADER.size


def frame_of(kind: PacketKind, body: bytes = b"") -> bytes:
    """Return a frame outside the sequence."""
    return HEADER.pack(kind, 0, 0) + body


def kind_of(frame: bytes | memoryview) -> PacketKind | None:
    """Return a frame's kind; None if it is no valid frame."""
    if len(frame) < _HEADER_BYTES or frame[0] >= len(_KINDS):
        return None
    return _KINDS[frame[0]]


def list_header(length: int) -> bytes:
    """Return the beginning of a msgpack list of this length.

    Messages are encoded one by one, which gives their sizes, and then joined.
    """
    if length < 16:
        return bytes((0x90 | length,))
    if length < 1 << 16:
        return struct.pack("!BH", 0xDC, length)
    return struct.pack("!BI", 0xDD, length)


_ONE = list_header(1)


class Packet(msgspec.Struct, frozen=True):
    """A numbered packet that is kept until it is acknowledged."""

    number: int
    frame: bytes
    ack: int
    """The acknowledgement in the header. It may be out of date when the packet is sent again."""
    tokens: list[object]
    """Returned with the acknowledgement."""


def message_bytes_max(role: str) -> int:
    """Return the most bytes of one message that a peer of this role may send."""
    return CLIENT_MESSAGE_BYTES if role == "client" else MAX_MESSAGE_BYTES


class ReliableSession:
    """One side of a conversation. The module's docstring has the calling contract."""

    def __init__(
        self,
        *,
        packet_bytes: int = PACKET_BYTES,
        window_packets: int = WINDOW_PACKETS,
        window_bytes: int = WINDOW_BYTES,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._packet_bytes = packet_bytes
        self._window_packets = window_packets
        self._window_bytes = window_bytes
        self._max_message_bytes = max_message_bytes
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Forget everything, and begin a conversation of this epoch; 0 for none yet."""
        self.epoch = epoch
        # Sending
        self._said: deque[tuple[bytes, object | None]] = deque()
        self._said_bytes = 0
        self._cut_at = 0  # how much of the first message of _said has been sent in pieces
        self._flight: deque[Packet] = deque()
        self._flight_bytes = 0
        self._on_connection = 0  # how many of _flight were put onto the present connection
        self._last_out = 0  # highest number ever put onto a connection
        self._freed: list[object] = []
        # Receiving
        self._last_in = 0
        self._confirmed = 0
        self._ack_told = 0
        self._proven = False  # something was received from the other side since this began
        self._pieces = bytearray()  # no list: of small pieces, that would take many times their bytes

    # ---------------------------------------------------------------------------------- sending

    def say(self, message: bytes, token: object | None = None) -> None:
        """Queue one encoded message. `freed` returns its token when the other side has handled the message."""
        self._said.append((message, token))
        self._said_bytes += len(message)

    @property
    def unacked_bytes(self) -> int:
        """Return the size of all messages that were not acknowledged, sent or not."""
        return self._said_bytes + self._flight_bytes

    @property
    def window_is_shut(self) -> bool:
        """Return whether the other side cannot be sent more at present."""
        return len(self._flight) >= self._window_packets or self._flight_bytes >= self._window_bytes

    @property
    def has_unsent(self) -> bool:
        """Return whether messages wait for the connection or for the window."""
        return bool(self._said) or self._on_connection < len(self._flight)

    @property
    def can_speak(self) -> bool:
        """Return whether `next_frame` has a frame."""
        return self._on_connection < len(self._flight) or (bool(self._said) and not self.window_is_shut)

    def next_frame(self) -> bytes | None:
        """Return the next frame for the connection; None if there is none, or the window is shut."""
        if self._on_connection < len(self._flight):
            return self._flight[self._on_connection].frame
        if not self._said or self.window_is_shut:
            return None
        number = self._flight[-1].number + 1 if self._flight else self._last_out + 1
        packet = self._cut(number) if len(self._said[0][0]) > self._packet_bytes else self._gather(number)
        self._flight.append(packet)
        self._flight_bytes += len(packet.frame)
        return packet.frame

    def was_sent(self) -> None:
        """Record that the frame of `next_frame` is on the connection."""
        packet = self._flight[self._on_connection]
        self._on_connection += 1
        if packet.number > self._last_out:
            self._last_out = packet.number
        if packet.ack > self._ack_told:
            self._ack_told = packet.ack

    def _gather(self, number: int) -> Packet:
        """Return a packet of as many waiting messages as fit into it, and at least one."""
        if len(self._said) == 1:
            message, token = self._said.popleft()
            self._said_bytes -= len(message)
            head = HEADER.pack(DATA, number, self._confirmed)
            return Packet(number, b"".join((head, _ONE, message)), self._confirmed, [] if token is None else [token])
        bodies: list[bytes] = []
        tokens: list[object] = []
        size = 0
        while self._said:
            message, token = self._said[0]
            if bodies and size + len(message) > self._packet_bytes:
                break
            self._said.popleft()
            size += len(message)
            bodies.append(message)
            if token is not None:
                tokens.append(token)
        self._said_bytes -= size
        head = HEADER.pack(DATA, number, self._confirmed)
        return Packet(number, b"".join((head, list_header(len(bodies)), *bodies)), self._confirmed, tokens)

    def _cut(self, number: int) -> Packet:
        """Return the next piece of a message that is too large for one packet."""
        message, token = self._said[0]
        piece = memoryview(message)[self._cut_at : self._cut_at + self._packet_bytes]
        start = list_header(1) if self._cut_at == 0 else b""
        self._cut_at += len(piece)
        self._said_bytes -= len(piece)
        tokens: list[object] = []
        kind = PART
        if self._cut_at == len(message):
            kind = DATA
            self._said.popleft()
            self._cut_at = 0
            if token is not None:
                tokens.append(token)
        head = HEADER.pack(kind, number, self._confirmed)
        return Packet(number, b"".join((head, start, piece)), self._confirmed, tokens)

    def freed(self) -> list[object]:
        """Return the tokens of the messages that were acknowledged since the last call, in the order of sending."""
        tokens, self._freed = self._freed, []
        return tokens

    def beat(self) -> bytes:
        """Return a beat frame: the last packet sent on this connection, and the last received one that was handled."""
        self._ack_told = self._confirmed
        if self._on_connection:
            number = self._flight[self._on_connection - 1].number
        else:
            number = self._first_kept() - 1
        return HEADER.pack(BEAT, number, self._confirmed)

    def _first_kept(self) -> int:
        return self._flight[0].number if self._flight else self._last_out + 1

    # ----------------------------------------------------------------------------------- receiving

    @property
    def owes_ack(self) -> bool:
        """Return whether packets were handled that are not acknowledged yet."""
        return self._ack_told < self._confirmed

    @property
    def awaits_confirm(self) -> bool:
        """Return whether packets were received for which `confirm` was not called."""
        return self._confirmed < self._last_in

    @property
    def last_in(self) -> int:
        """Return the number of the last packet that was received in sequence."""
        return self._last_in

    @property
    def pieces_bytes(self) -> int:
        """Return how many bytes were received of a message that is not complete."""
        return len(self._pieces)

    def confirm(self, upto: int | None = None) -> None:
        """Record that the received packets up to this number (None: all) were handled and may be acknowledged."""
        self._confirmed = self._last_in if upto is None else max(self._confirmed, min(upto, self._last_in))

    def hear(self, frame: bytes | memoryview) -> tuple[Heard, bytes | memoryview | None]:
        """Take a DATA, PART or BEAT frame of the present connection. The body comes with the last piece of its list."""
        kind = kind_of(frame)
        if kind is None or kind > BEAT:
            return NONSENSE, None
        _, number, ack = HEADER.unpack_from(frame)
        if not self._acknowledge(ack):
            return NONSENSE, None
        self._proven = True
        if kind is BEAT:
            return (GAP if number > self._last_in else KNOWN), None
        if number != self._last_in + 1:
            return (GAP if number > self._last_in else KNOWN), None
        body = memoryview(frame)[_HEADER_BYTES:]
        self._last_in = number
        if kind is DATA and not self._pieces:
            return NEWS, body
        return self._collect(kind, body)

    def _collect(self, kind: PacketKind, piece: memoryview) -> tuple[Heard, memoryview | None]:
        # An honest peer sends no empty piece, and nothing would limit how many come.
        if not piece or len(self._pieces) + len(piece) > self._max_message_bytes + 1:  # the list's header
            self._pieces = bytearray()
            return NONSENSE, None
        self._pieces += piece
        if kind is PART:
            return NEWS, None
        whole, self._pieces = self._pieces, bytearray()
        return NEWS, memoryview(whole).toreadonly()

    def _acknowledge(self, ack: int) -> bool:
        """Drop the packets up to `ack`. Return False if it acknowledges a packet that was never sent."""
        if ack > self._last_out:
            return False
        while self._flight and self._flight[0].number <= ack:
            packet = self._flight.popleft()
            self._flight_bytes -= len(packet.frame)
            # A handshake can acknowledge a packet before the packet was put onto the present connection.
            self._on_connection = max(0, self._on_connection - 1)
            self._freed.extend(packet.tokens)
        return True

    # ------------------------------------------------------------------------------- connections

    def position(self) -> tuple[int, int]:
        """Return (epoch, last packet of it that was handled), for `Hello`, and for `Welcome` to a session that goes on.

        It is an acknowledgement: received packets that were not handled are sent again, and recognised.
        """
        return self.epoch, self._confirmed

    def meet_hello(self, epoch: int, last_in: int, own_epoch: int) -> Greeting:
        """Do the controller's side of a handshake.

        The result is never NONSENSE: a peer that is out of step begins again.

        So does a peer of which nothing was heard since the last beginning. Its `Welcome` may have been lost; then the
        epoch in its `Hello` is the one before this session was forgotten, though the number is the same.
        """
        goes_on = 0 < epoch == own_epoch == self.epoch and self._proven and self._resend_after(last_in)
        if not goes_on:
            self.begin(own_epoch)
        return Greeting.RESUMED if goes_on else Greeting.ANEW

    def meet_welcome(self, epoch: int, last_in: int) -> Greeting:
        """Do the peer's side of a handshake. After NONSENSE the peer says hello again without an epoch: `begin(0)`."""
        if epoch <= 0:
            return Greeting.NONSENSE
        if last_in == BEGIN_ANEW:
            self.begin(epoch)
            return Greeting.ANEW
        goes_on = epoch == self.epoch and self._resend_after(last_in)
        return Greeting.RESUMED if goes_on else Greeting.NONSENSE

    def _resend_after(self, last_in: int) -> bool:
        """Send again, on a new connection, all packets after `last_in`.

        Return False if that position is not possible.
        """
        if last_in < self._first_kept() - 1 or not self._acknowledge(last_in):
            return False
        self._on_connection = 0
        self._ack_told = self._confirmed
        return True
