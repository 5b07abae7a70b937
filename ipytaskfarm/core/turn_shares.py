"""Shares of the controller's turns: which session's message is handled next, and when a turn ends.

The shell measures what each message costs in seconds, and reports it by `TurnShares.charge`. Who has used least comes
first, first among keys and then among the sessions of one key. So a session that sends a million messages delays a
session that sends one by the cost of a single message.

Messages are *light* or *heavy*. Heavy ones are questions that read the store or build tables. They come after the light
ones of a turn, one per session and turn, as many as fit into `HEAVY_S` by what each session's last ones have cost.

The order is that of start-time fair queueing (Goyal, Vin and Cheng, 1996), with the cost known afterwards.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

LIGHT_S = 0.05
"""The cost of the light messages of one turn, in seconds; the last one may exceed it."""
HEAVY_S = 0.02
"""The expected cost of the heavy messages of one turn, in seconds; there is at least one, if any waits."""
NEW_HEAVY_S = 0.01
"""The expected cost of a heavy message of a session that has not sent one before."""
DEBT_MAX_S = 0.2
"""By how much one that used more may be put back behind the others: a costly message is not repaid for minutes."""


class FairOrder:
    """An order of names by the time that each has used: the one that has used least comes first.

    A name that comes to wait after a pause has no credit for the pause.
    """

    def __init__(self) -> None:
        self._used_s: dict[str, float] = {}
        """Name -> its virtual time, for the names that are ahead of `_now_s` or wait."""
        self._waiting: dict[str, int] = {}
        """Name -> the number of its entry in the heap."""
        self._heap: list[tuple[float, int, str]] = []
        self._now_s = 0.0
        """The virtual time: what a name had used that has waited all the time."""
        self._entries = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def wait(self, name: str) -> None:
        """Record that a name waits. It is in the order once, however often this is called."""
        if name in self._waiting:
            return
        used_s = min(max(self._used_s.get(name, 0.0), self._now_s), self._now_s + DEBT_MAX_S)
        self._used_s[name] = used_s
        self._entries += 1
        self._waiting[name] = self._entries
        heapq.heappush(self._heap, (used_s, self._entries, name))

    def first(self) -> str | None:
        """Return the name that comes next; None if none waits."""
        while self._heap:
            _, entry, name = self._heap[0]
            if self._waiting.get(name) == entry:
                return name
            heapq.heappop(self._heap)
        return None

    def leave(self, name: str) -> None:
        """Record that a name does not wait any more."""
        self._waiting.pop(name, None)
        if len(self._heap) > 64 + 2 * len(self._waiting):
            self._heap = [entry for entry in self._heap if self._waiting.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def charge(self, name: str, seconds: float) -> None:
        """Add to the time that a name has used. A waiting name moves back."""
        # The virtual time passes with the service that each of the waiting ones could have had, so that names which
        # come and go cannot hold back one that has used more.
        self._now_s += seconds / (len(self._waiting) + 1)
        self._used_s[name] = max(self._used_s.get(name, 0.0), self._now_s) + seconds
        if name in self._waiting:
            self.leave(name)
            self.wait(name)

    def forget(self, name: str) -> None:
        """Drop everything about a name."""
        self.leave(name)
        self._used_s.pop(name, None)

    def tidy(self) -> None:
        """Drop the times of names that have no debt: they would begin again with the same."""
        if len(self._used_s) > 64 + 2 * len(self._waiting):
            self._used_s = {n: s for n, s in self._used_s.items() if n in self._waiting or s > self._now_s}


class GroupedOrder:
    """A fair order of groups, and within each group of its sessions."""

    def __init__(self) -> None:
        self._groups = FairOrder()
        self._sessions: dict[str, FairOrder] = {}
        self._group_of: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def __bool__(self) -> bool:
        return bool(self._groups)  # a group waits as long as one of its sessions does

    def join(self, group: str, session: str) -> FairOrder:
        """Note the group of a session, and return the order of the sessions in this group."""
        order = self._sessions.get(group)
        if order is None:
            order = self._sessions[group] = FairOrder()
        self._group_of[session] = group
        return order

    def wait(self, group: str, session: str) -> None:
        """Record that a session of a group waits."""
        self.join(group, session).wait(session)
        self._groups.wait(group)

    def pop(self) -> str | None:
        """Return the session that comes next, which does not wait any more; None if none waits."""
        group = self._groups.first()
        if group is None:
            return None
        order = self._sessions[group]
        session = order.first()
        assert session is not None, f"group {group} waits without a session"
        self._leave(group, order, session)
        return session

    def _leave(self, group: str, order: FairOrder, session: str) -> None:
        order.leave(session)
        if not order:
            self._groups.leave(group)
            order.tidy()

    def charge(self, session: str, seconds: float) -> None:
        """Add to the time that a session, and so its group, has used."""
        group = self._group_of.get(session)
        if group is not None:
            self._sessions[group].charge(session, seconds)
            self._groups.charge(group, seconds)

    def forget(self, session: str) -> None:
        """Drop everything about a session."""
        group = self._group_of.pop(session, None)
        if group is not None:
            order = self._sessions[group]
            self._leave(group, order, session)
            order.forget(session)


@dataclass(slots=True)
class TurnShares:
    """The order in which messages are handled, turn by turn.

    Each turn: `begin`, then `pop` a session until it returns None. For each session: handle one of its messages, call
    `charge` with what it has cost, and `wait` if it has another one.
    """

    light_s: float = LIGHT_S
    heavy_s: float = HEAVY_S
    _light: GroupedOrder = field(default_factory=GroupedOrder)
    _heavy: GroupedOrder = field(default_factory=GroupedOrder)
    _light_left_s: float = 0.0
    _heavy_left_s: float = 0.0
    _is_heavy: bool = False
    """Whether the message that is handled now is a heavy one."""
    _served: set[str] = field(default_factory=set)
    """Sessions that had a heavy message handled in this turn."""
    _next_turn: dict[str, str] = field(default_factory=dict)
    """Session -> group, for further heavy messages of these sessions."""
    _expected_s: dict[str, float] = field(default_factory=dict)
    """Session -> the expected cost of its next heavy message."""

    def __len__(self) -> int:
        return len(self._light) + len(self._heavy) + len(self._next_turn)

    def __bool__(self) -> bool:
        return bool(self._light) or bool(self._heavy) or bool(self._next_turn)

    def begin(self) -> None:
        self._light_left_s, self._heavy_left_s = self.light_s, self.heavy_s
        self._is_heavy = False
        self._served.clear()
        for session, group in self._next_turn.items():
            self._heavy.wait(group, session)
        self._next_turn.clear()

    def wait(self, group: str, session: str, heavy: bool) -> None:
        """Record that a session's next message waits. A session that waits already stays where it is."""
        if not heavy:
            self._light.wait(group, session)
        elif session in self._served:
            self._next_turn[session] = group
        else:
            self._heavy.wait(group, session)

    def pop(self) -> str | None:
        """Return the session whose message is handled next; None if the turn is over."""
        self._is_heavy = False
        session = self._light.pop() if self._light_left_s > 0 else None
        if session is None and self._heavy_left_s > 0:
            session = self._heavy.pop()
            if session is not None:
                self._is_heavy = True
                self._served.add(session)
                self._heavy_left_s -= self._expected_s.get(session, NEW_HEAVY_S)
        return session

    def charge(self, session: str, seconds: float) -> None:
        """Record what the last message of this session has cost."""
        self._light_left_s -= seconds
        if self._is_heavy:
            # What it cost beyond the expectation is not there for others of this turn.
            self._heavy_left_s -= max(0.0, seconds - self._expected_s.get(session, NEW_HEAVY_S))
            self._expect(session, seconds)
        self._light.charge(session, seconds)
        self._heavy.charge(session, seconds)

    def charge_alone(self, group: str, session: str, seconds: float) -> None:
        """Record what a light message has cost that was handled at once, since nobody else waited."""
        self._light.join(group, session)
        self.charge(session, seconds)

    def _expect(self, session: str, seconds: float) -> None:
        self._expected_s[session] = max(seconds, 0.7 * self._expected_s.get(session, 0.0))

    def charge_answer(self, session: str, seconds: float) -> None:
        """Record what the answer to a heavy message of this session has cost, after its turn."""
        self._expect(session, seconds)
        self._light.charge(session, seconds)
        self._heavy.charge(session, seconds)

    def forget(self, session: str) -> None:
        """Drop everything about a session that has ended."""
        self._light.forget(session)
        self._heavy.forget(session)
        self._served.discard(session)
        self._next_turn.pop(session, None)
        self._expected_s.pop(session, None)
