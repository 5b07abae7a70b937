"""A look into flight recorders, for tests of who releases what."""

from __future__ import annotations

from ipytaskfarm.system.flight_recorder import _SLOT_HEAD, _SLOT_TAIL, Recorder


def held_bytes(recorder: Recorder) -> int:
    """How many bytes of the ring wait for their release."""
    return int(recorder._slots[_SLOT_HEAD] - recorder._slots[_SLOT_TAIL])
