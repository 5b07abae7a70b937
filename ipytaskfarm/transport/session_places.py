"""The places for sessions: bounded for each pool and in all, and some kept for agents and for the farm's owner.

The sessions under one key form a pool; those that come by the unix socket, so from the farm's owner on the farm's own
machine, form another one (`pool_of`). Whoever has a copy of a connection file cannot take the owner's places.

A client's session that has only said hello, or that has fallen silent, gives its place to a newcomer of the same pool.
The client loses nothing: when it returns, its session starts again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..core.limits import PeerLimits
from .handshake import Hello, Refuse
from .keys import role_of, session_fits
from .wire import TEXT_MAX

AGENT_SESSIONS_MAX = 1024
"""The limit for one enrolled agent's key: enough for all nodes of a cluster that share it, but not for all places."""
_HERE = "@here"
ANEW = Refuse("ConnectionError", "the controller begins a new epoch: say hello again", later=True)


def pool_of(title: str, is_here: bool) -> str:
    """Return the pool of a session: its key's title, with a mark if it came by the unix socket."""
    return title + _HERE if is_here else title


def _is_guest(pool: str) -> bool:
    """Return whether these sessions are those of clients elsewhere."""
    return not pool.endswith(_HERE) and role_of(pool) != "agent"


def _is_client(pool: str) -> bool:
    return role_of(pool.removesuffix(_HERE)) != "agent"


class SessionPlaces:
    """Which sessions there are, by pool."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._in_pool: Counter[str] = Counter()
        self._guests = 0
        self._unused: dict[str, dict[str, None]] = {}
        """Pool -> sessions that a newcomer may replace, the one that is unused for longest first."""

    def take(self, pool: str, session: str) -> None:
        """Give a new session a place."""
        self._in_pool[pool] += 1
        self._guests += _is_guest(pool)
        self.is_unused(pool, session)

    def free(self, pool: str, session: str) -> None:
        """Take the place of a session that has ended."""
        self._in_pool[pool] -= 1
        self._guests -= _is_guest(pool)
        self.is_used(pool, session)

    def is_unused(self, pool: str, session: str) -> None:
        """Record that a session has said nothing yet, or has fallen silent. Agents keep their places."""
        if _is_client(pool):
            self._unused.setdefault(pool, {})[session] = None

    def is_used(self, pool: str, session: str) -> None:
        """Record that a session has sent a message."""
        self._unused.get(pool, {}).pop(session, None)

    def why_full(self, pool: str) -> str:
        """Return why there is no place for another session of this pool; "" if there is one."""
        limits, count = self._limits, self._in_pool[pool]
        most = min(limits.sessions, AGENT_SESSIONS_MAX) if pool.startswith("agent:") else limits.sessions
        if count >= most:
            title = pool.removesuffix(_HERE)
            return f"there are {count:,} sessions under the key of {title} already, the most of one key (max_sessions)"
        if _is_guest(pool) and self._guests >= limits.sessions_in_all - limits.sessions_kept:
            return f"there are {self._guests:,} sessions of clients already; the other places are kept for agents"
        total = self._in_pool.total()
        return f"there are {total:,} sessions already" if total >= limits.sessions_in_all else ""

    def replaceable(self, pool: str) -> str | None:
        """Return the session that gives its place to a newcomer of the same pool; None if all are in use."""
        return next(iter(self._unused.get(pool, {})), None)


class SessionPauses:
    """The sessions that are kept away for a while, because the controller has a bug with what they send."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paused: dict[str, tuple[float, str]] = {}
        """Session -> (until when, why)."""

    def begin(self, session: str, pause_s: float, why: str) -> None:
        """Keep a session away for `pause_s` seconds."""
        now_s = self._clock()
        self._paused = {each: pause for each, pause in self._paused.items() if pause[0] > now_s}
        self._paused[session] = now_s + pause_s, why

    def refusal(self, session: str) -> Refuse | None:
        """Return why a session may not come back yet; None if it may."""
        until_s, why = self._paused.get(session, (0.0, ""))
        left_s = until_s - self._clock()
        if left_s <= 0.0:
            return None
        text = f"the controller has a bug: {why}; what you sent is kept here, and tried again in {left_s:.0f} s"
        return Refuse("ConnectionError", text[:TEXT_MAX], later=True)


def objection(hello: Hello, title: str, known_title: str, farm: str, name: str, epoch: int) -> Refuse | None:
    """Return why a peer is refused; None if it is accepted.

    Args:
        hello: its greeting.
        title: the title of its key.
        known_title: the title of the key under which the session is known; `title` for a new session.
        farm: the farm's incarnation.
        name: the farm's name.
        epoch: the number of this life of the controller; a peer that knew a later one knew another store.
    """
    role = role_of(title)
    if hello.role != ("client" if role == "reader" else role):
        return Refuse("SecurityError", f"a key of {title} does not allow to be {hello.role[:40]!r}")
    if not session_fits(title, hello.session):
        return Refuse("SecurityError", f"a key of {title} does not allow to speak for the session {hello.session!r}")
    if hello.farm is not None and (hello.farm != farm or hello.epoch > epoch):
        text = f"farm {name!r} is another one than the farm of that name which this peer knew: make a new client"
        return Refuse("FarmReplaced", text)
    if known_title != title:
        return Refuse("SecurityError", "this session belongs to a peer with another key")
    return None
