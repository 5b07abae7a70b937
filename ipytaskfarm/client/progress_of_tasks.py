"""The value of ``tc.progress``."""

from __future__ import annotations

from .ids import Ids, id_list
from .progress import LiveProgress
from .session import Session
from .task_work import TaskWork


class ProgressOfTasks:
    """The value of ``tc.progress``: calling it with ids returns a display, and its truth value is whether waits show
    one.
    """

    def __init__(self, session: Session, shows: bool) -> None:
        self._session = session
        self._shows = shows

    def __call__(self, ids: Ids | None = None) -> LiveProgress:
        """Return the progress of tasks at once, as an object that shows itself.

        In a notebook the display follows the tasks until they have ended; elsewhere its repr is the present state.

        ids: the tasks; None: all unfinished tasks of this process.

        Raises IndexError for an id that was never issued.
        """
        wanted = self._session.unfinished() if ids is None else set(id_list(ids))
        self._session.watch(wanted)
        work = TaskWork(self._session, wanted)
        return LiveProgress(work)

    def __bool__(self) -> bool:
        return self._shows

    def __repr__(self) -> str:
        return f"<progress displays: {'on' if self._shows else 'off'}; tc.progress(ids) shows one>"
