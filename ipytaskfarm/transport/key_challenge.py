"""Proof that both ends of a unix socket have keys of the same farm. No key crosses the socket.

The kernel says which user is at the other end, and the folder admits only this user. The proof adds what CURVE gives on
TCP: the controller knows under which key a peer comes, so that roles and revocation hold, and the peer knows that the
controller is its farm's.

==============  ====================================================  =========================================
sender          frame                                                 meaning
==============  ====================================================  =========================================
controller      `MAGIC`, nonce (32 bytes)                             prove that you have a key
peer            public key (40 bytes of z85), nonce (32), MAC (32)    this key
controller      MAC (32), or nothing                                  so have I; or: this key is not of this farm
==============  ====================================================  =========================================

A MAC is HMAC-SHA256 over the direction, both nonces and the public key. Its key is made of the controller's public key
and the secret half of the peer's, which the controller has in ``keys.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping

from .interface import Frame, KnownKey

MAGIC = b"ipytfrm\x01"
"""The beginning of a challenge; its last byte is the version of this exchange."""
_NONCE_BYTES = 32
_KEY_BYTES = 40
_MAC_BYTES = 32
ANSWER_BYTES = _KEY_BYTES + _NONCE_BYTES + _MAC_BYTES


def new_challenge() -> bytes:
    """Return the controller's first frame on a connection."""
    return MAGIC + os.urandom(_NONCE_BYTES)


def answer_challenge(challenge: Frame, server: str, public: str, secret: str) -> tuple[bytes, bytes]:
    """Return the peer's frame that answers a challenge, and the frame with which the controller must reply.

    Raises:
        ValueError: this is no challenge of this version.
    """
    given = bytes(challenge)
    if len(given) != len(MAGIC) + _NONCE_BYTES or not given.startswith(MAGIC):
        raise ValueError("this is no challenge")
    nonces = given[len(MAGIC) :] + (own := os.urandom(_NONCE_BYTES))
    key = public.encode()
    answer = key + own + _mac(b"peer", nonces, key, server, secret)
    return answer, _mac(b"controller", nonces, key, server, secret)


def judge_answer(
    challenge: bytes, answer: Frame, server: str, known: Mapping[str, KnownKey]
) -> tuple[KnownKey, bytes] | None:
    """Return the key that a peer has proven to have, and the controller's reply; None if it has proven nothing."""
    given = bytes(answer)
    if len(given) != ANSWER_BYTES:
        return None
    key, own, proof = given[:_KEY_BYTES], given[_KEY_BYTES:-_MAC_BYTES], given[-_MAC_BYTES:]
    found = known.get(key.decode("ascii", "replace"))
    if found is None:
        return None
    nonces = challenge[len(MAGIC) :] + own
    if not hmac.compare_digest(proof, _mac(b"peer", nonces, key, server, found.secret)):
        return None
    return found, _mac(b"controller", nonces, key, server, found.secret)


def _mac(direction: bytes, nonces: bytes, public: bytes, server: str, secret: str) -> bytes:
    key = hashlib.sha256(f"{server} {secret}".encode()).digest()
    return hmac.digest(key, direction + nonces + public, "sha256")
