"""The names of agents, sessions and engines.

An engine's incarnation names its agent's session, and the session names the agent: ``slurm-1.0:5e2f….3``.
"""

from __future__ import annotations

from collections.abc import Iterable

SHARED = "agent"
"""The name in sessions of agents that share the role's key."""


def owner(engine: str) -> str:
    """Return the session of the agent that an engine belongs to."""
    return engine.rpartition(".")[0]


def agent_name(session: str) -> str:
    """Return the agent's name according to its key.  "": the session has none."""
    return session.rpartition(":")[0]


def goes_by(agent: str, names: Iterable[str]) -> bool:
    """Return whether an agent's name is one of these, or one of several that share it.

    The agent ``dask-1.host`` goes by the name ``dask-1``."""
    return any(agent == name or agent.startswith(f"{name}.") for name in names)
