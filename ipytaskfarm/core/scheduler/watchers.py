"""Who is told of the end of a task: the client that handed it in, and those that watch it."""

from __future__ import annotations

import msgspec

from ..messages.task_types import Final
from .entries import TaskEntry
from .state import SchedulerState


def tell_watchers(farm: SchedulerState, task: TaskEntry, final: Final) -> None:
    """Tell those that watch a task, or a silent item of a chunk, of its end."""
    told = {task.id: final}
    if task.items:
        watched = [i for i in farm.tasks.chunks.ids(task.id) if i in farm.clients.watchers]
        told.update((i, msgspec.structs.replace(final, id=i, body=None, items=0)) for i in watched)
    for task_id, end in told.items():
        for session in farm.clients.watchers.pop(task_id, ()):
            watching = farm.clients.of(session).watching
            if task_id in watching:
                watching.discard(task_id)
                farm.clients.watches -= 1
            if session != task.session or task_id != task.id:
                tell(farm, session, end)


def tell(farm: SchedulerState, session: str, final: Final) -> None:
    client = farm.clients.by_session.get(session)
    if client is not None and client.connected:
        client.finals.append(final)
        farm.clients.to_tell[session] = client
