"""The ends of tasks: what clients are told of them, and which clients are told."""

from __future__ import annotations

import msgspec

from ..messages.payload import NOTHING
from ..messages.task_types import AttemptRow, Ended, FailureSummary, Final
from ..states import Reason
from .decision import Now
from .entries import EngineEntry, TaskEntry
from .state import SchedulerState
from .task import Assigned

TURN_S = 1.0
"""The longest time that a turn takes to read its messages."""


def final_of_answer(task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now) -> Final:
    """Return what clients are told of an attempt that its engine has answered."""
    # The time of a turn is that of its beginning, and an answer may have come later. A clock that is further ahead is
    # another machine's.
    end_s = ended.started_s + ended.run_s
    completed_s = end_s if now.wall_s < end_s < now.wall_s + TURN_S else now.wall_s
    return Final(
        task.id,
        ended.outcome,
        engine.id,
        engine.node,
        task.attempt,
        task.submitted_s,
        ended.started_s,
        ended.run_s,
        completed_s,
        ended.failure,
        ended.body,
        task.past.history or [],
        ended.blobs,
        task.items,
    )


def row_of(engine: EngineEntry, ended: Ended) -> AttemptRow:
    """Return the row of a task's history for an attempt that its engine has answered."""
    end_s = ended.started_s + ended.run_s
    return AttemptRow(ended.attempt, engine.id, engine.node, ended.started_s, end_s, ended.outcome, ended.failure)


def final_without_answer(
    task: TaskEntry, engine: EngineEntry | None, reason: Reason, failure: FailureSummary, now: Now
) -> Final:
    """Return what clients are told of a task that ends without its engine's answer: aborted, lost, or unmet."""
    place = task.place
    began = type(place) is Assigned and place.since_s is not None
    started = place.wall_s if type(place) is Assigned and place.wall_s is not None else now.wall_s
    ran = now.mono_s - place.since_s if type(place) is Assigned and place.since_s is not None else 0.0
    return Final(
        task.id,
        reason,
        engine.id if engine and began else -1,
        engine.node if engine and began else "",
        task.attempt,
        task.submitted_s,
        started,
        ran,
        now.wall_s,
        failure,
        b"",
        task.past.history or [],
        items=task.items,
    )


def final_of_join(task: TaskEntry, now: Now) -> Final:
    """Return the end of a join, which has no engine and no result."""
    times = (task.submitted_s, now.wall_s, 0.0, now.wall_s)
    return Final(task.id, "", -1, "", task.attempt, *times, None, NOTHING, task.past.history or [])


def tell_watchers(farm: SchedulerState, task: TaskEntry, final: Final) -> None:
    """Tell those that watch a task, or a silent item of a chunk, of its end."""
    told = {task.id: final}
    if task.items:
        watched = [i for i in farm.tasks.chunks.ids(task.id) if i in farm.clients.watchers]
        told.update((i, msgspec.structs.replace(final, id=i, body=None, items=0)) for i in watched)
    for task_id, end in told.items():
        tell_watching(farm, end, but=task.session if task_id == task.id else "")


def tell_watching(farm: SchedulerState, end: Final, but: str = "") -> None:
    """Tell those that watch the task with this end. `but`: a session that is told in any case."""
    for session in farm.clients.watchers.pop(end.id, ()):
        watching = farm.clients.of(session).watching
        if end.id in watching:
            watching.discard(end.id)
            farm.clients.watches -= 1
        if session != but:
            tell(farm, session, end)


def tell(farm: SchedulerState, session: str, final: Final) -> None:
    client = farm.clients.by_session.get(session)
    if client is not None and client.connected:
        client.finals.append(final)
        farm.clients.to_tell[session] = client
