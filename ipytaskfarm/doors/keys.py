"""The farm's CURVE keys: one pair for the controller, one per role of its peers.

They are made with the farm, lie in ``keys.json`` in its folder (0600) and live as long as it does, so that peers find
their way back after a restart. A connection file holds the controller's public key and one role's pair; this file,
with the controller's secret key, is read by the controller alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..core import errors
from . import runtime, wire

KEYS_FILE = "keys.json"


class KeyPair(msgspec.Struct, frozen=True):
    """A CURVE key pair, z85-encoded (40 characters each)."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("public", self.public)]


class FarmKeys(msgspec.Struct, frozen=True):
    """All keys of a farm."""

    server: KeyPair
    client: KeyPair
    agent: KeyPair
    reader: KeyPair
    """For those who may look and change nothing."""

    def peers(self) -> dict[str, KeyPair]:
        """Whose keys open the door: role -> pair."""
        return {"client": self.client, "agent": self.agent, "reader": self.reader}


def make_keypair() -> KeyPair:
    """A fresh pair, from the system's randomness."""
    return KeyPair(*wire.curve_keypair())


def make_farm_keys() -> FarmKeys:
    """Fresh keys for a new farm."""
    return FarmKeys(make_keypair(), make_keypair(), make_keypair(), make_keypair())


def save_keys(keys: FarmKeys, folder: Path) -> None:
    """Write ``keys.json`` into the farm's folder."""
    runtime.private_folder(folder)
    runtime.write_private(folder / KEYS_FILE, msgspec.json.encode(keys))


def load_keys(folder: Path) -> FarmKeys | None:
    """The keys in the farm's folder; None: it has none yet.

    SecurityError: the file is damaged, or others can read it.
    """
    path = folder / KEYS_FILE
    try:
        text = runtime.read_private(path)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(text, type=FarmKeys)
    except msgspec.MsgspecError as error:
        raise errors.SecurityError(
            f"{path} is damaged ({error}): put it back from a backup, or remove it. Then the farm makes "
            "new keys when it starts, and its clients must connect anew"
        ) from None


def farm_keys(folder: Path) -> FarmKeys:
    """The farm's keys, made now if it has none yet."""
    keys = load_keys(folder)
    if keys is None:
        keys = make_farm_keys()
        save_keys(keys, folder)
    return keys
