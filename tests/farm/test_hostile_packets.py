"""Packets of a hostile client that are small, and many: the controller's memory grows by no more than is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm
from ipytaskfarm.system.farm_paths import read_connection_file
from ipytaskfarm.transport.handshake import Refuse
from ipytaskfarm.transport.reliable_session import PacketKind
from ipytaskfarm.transport.wire import decode_handshake
from tests.support.flood import PATIENCE_MS, Flood, RawSession
from tests.support.hostile import controller_pid

pytestmark = pytest.mark.farm

PACKETS = 600_000
MEMORY_BYTES = 16 << 20


@pytest.fixture
def flood(farm: Farm) -> Iterator[Flood]:
    flood = Flood(read_connection_file(farm.connection_file))
    yield flood
    flood.close()


def test_pieces_of_one_byte_take_the_memory_that_they_are_counted_for(farm: Farm, flood: Flood) -> None:
    session = flood.session()
    assert _growth_bytes(farm, session, lambda: session._send(PacketKind.PART, b"x")) < MEMORY_BYTES


def test_an_empty_piece_ends_the_connection(flood: Flood) -> None:
    session = flood.session()
    session._send(PacketKind.PART, b"x")
    session._send(PacketKind.PART, b"")
    refusal = _refusal(session)
    assert refusal is not None
    assert "nonsense" in refusal.text


def _growth_bytes(farm: Farm, session: RawSession, send: Callable[[], object]) -> int:
    """Send a packet many times, and return by how much the peak of the controller's memory has grown."""
    before = _peak_bytes(farm)
    for n in range(PACKETS):
        send()
        if n % 3000 == 0:
            session.drain()
    session.hello(session.name)  # its answer comes after all that was sent before
    assert session.is_welcome()
    return _peak_bytes(farm) - before


def _peak_bytes(farm: Farm) -> int:
    status = Path(f"/proc/{controller_pid(farm)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _refusal(session: RawSession) -> Refuse | None:
    while session.socket.poll(PATIENCE_MS):
        frame = session.socket.recv()
        if frame[0] == PacketKind.HANDSHAKE and isinstance(found := decode_handshake(frame), Refuse):
            return found
    return None
