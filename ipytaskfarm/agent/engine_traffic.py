"""Bounds of what each engine has on its way to the controller: one engine's messages must not delay those of others.

All engines of a node share the agent's one session, in which messages keep their order. So each engine may have a few
messages in it. An engine with more is not read until the controller has handled some.
"""

from __future__ import annotations

from collections.abc import Set

from ..core.messages.task_types import Incarnation

MESSAGES_MAX, BYTES_MAX = 128, 256 << 10
"""An engine with so much on its way is not read. One message may be larger."""


class EngineTraffic:
    """How many messages and bytes of each engine the controller has not acknowledged."""

    def __init__(self) -> None:
        self._under_way: dict[Incarnation, tuple[int, int]] = {}
        self._full: set[Incarnation] = set()

    @property
    def full(self) -> Set[Incarnation]:
        """Return the engines that must wait."""
        return self._full

    def sent(self, engine: Incarnation, size: int) -> None:
        """Note that a message of an engine was sent to the controller."""
        self._set(engine, 1, size)

    def arrived(self, engine: Incarnation, size: int) -> None:
        """Note that the controller has handled a message."""
        if engine in self._under_way:
            self._set(engine, -1, -size)

    def begin(self) -> None:
        """Forget everything: in a new epoch nothing is on its way."""
        self._under_way.clear()
        self._full.clear()

    def _set(self, engine: Incarnation, messages: int, size: int) -> None:
        before = self._under_way.get(engine, (0, 0))
        count, total = before[0] + messages, before[1] + size
        if count <= 0:
            self._under_way.pop(engine, None)
        else:
            self._under_way[engine] = count, total
        if count >= MESSAGES_MAX or total >= BYTES_MAX:
            self._full.add(engine)
        else:
            self._full.discard(engine)
