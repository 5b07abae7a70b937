"""The places for sessions: bounded for each key and in all, and some kept for agents.

A client's session that has only said hello, or that has fallen silent, gives its place to a newcomer under the same
key. The client loses nothing: when it returns, its session begins anew.
"""

from __future__ import annotations

from collections import Counter

from ..core.limits import PeerLimits
from .keys import role_of

AGENT_SESSIONS_MAX = 1024
"""The limit for one enrolled agent's key: enough for all nodes of a cluster that share it, but not for all places."""


class SessionPlaces:
    """Which sessions there are, by the title of their key (`keys`)."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._of_title: Counter[str] = Counter()
        self._guests = 0
        """Sessions that are not agents'."""
        self._unused: dict[str, dict[str, None]] = {}
        """Title -> sessions that a newcomer may replace, the one that is unused for longest first."""

    def take(self, title: str, session: str) -> None:
        """Give a new session a place."""
        self._of_title[title] += 1
        self._guests += role_of(title) != "agent"
        self.is_unused(title, session)

    def free(self, title: str, session: str) -> None:
        """Take the place of a session that has ended."""
        self._of_title[title] -= 1
        self._guests -= role_of(title) != "agent"
        self.is_used(title, session)

    def is_unused(self, title: str, session: str) -> None:
        """Record that a session has said nothing yet, or has fallen silent. Agents keep their places."""
        if role_of(title) != "agent":
            self._unused.setdefault(title, {})[session] = None

    def is_used(self, title: str, session: str) -> None:
        """Record that a session has sent a message."""
        self._unused.get(title, {}).pop(session, None)

    def why_full(self, title: str) -> str:
        """Return why there is no place for another session under this key; "" if there is one."""
        limits, count = self._limits, self._of_title[title]
        most = min(limits.sessions, AGENT_SESSIONS_MAX) if ":" in title else limits.sessions
        if count >= most:
            return f"there are {count:,} sessions under the key of {title} already, the most of one key (max_sessions)"
        if role_of(title) == "agent" and self._of_title.total() < limits.sessions_in_all:
            return ""
        if self._guests >= limits.sessions_in_all - limits.sessions_kept:
            return f"there are {self._guests:,} sessions of clients already; the other places are kept for agents"
        return ""

    def replaceable(self, title: str) -> str | None:
        """Return the session that gives its place to a newcomer under the same key; None if all are in use."""
        return next(iter(self._unused.get(title, {})), None)
