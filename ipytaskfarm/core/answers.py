"""Answers to clients' questions and to running tasks' calls."""

from __future__ import annotations

from .calls import ChildTable, Counted, Declined, Letters, Spawned, Taken, TaskCall, TaskReply
from .decision import Decision
from .engine_entry import EngineEntry
from .messages import Answer, Reply


def answer(session: str, n: int, payload: Reply, out: Decision) -> None:
    """Answer question number `n` of a client's session."""
    out.sends.append((session, Answer(n, payload)))


def reply(
    engine: EngineEntry,
    call: TaskCall,
    payload: Spawned | ChildTable | Counted | Taken | Letters | Declined,
    out: Decision,
) -> None:
    """Answer a running task's call."""
    out.sends.append((engine.agent, TaskReply(engine.name, call.run, call.n, payload)))
