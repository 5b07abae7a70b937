"""Wait for tasks, with a progress display and the output of the tasks."""

from __future__ import annotations

from collections.abc import Callable

from ..display.ipython import notebook_shell
from .output_printer import OutputPrinter
from .progress import ProgressDisplay
from .session import Session
from .streams import Stream
from .task_work import TaskWork
from .wait_notices import say


def wait_for_tasks(
    session: Session,
    ids: set[int],
    timeout_s: float | None = None,
    show: bool = True,
    stream: bool = False,
    name: str = "",
    labelled: bool = True,
    ended_too: bool = False,
) -> bool:
    """Wait until these watched tasks have ended; return False after `timeout_s` seconds.

    Args:
        session: the session of the tasks.
        ids: ids for which `Session.watch` was called.
        timeout_s: seconds; None: no limit.
        show: show a progress display.
        stream: show what the tasks print and display while they run.
        name: the name of a job, for the display.
        labelled: whether each line of output begins with its task's id; False: for a single task.
        ended_too: also show the output of tasks that had ended before the wait.
    """
    work = TaskWork(session, ids)
    try:
        with ProgressDisplay(work, show=show, name=name) as display:

            def tell(why: str) -> None:
                if show and notebook_shell() is not None:
                    work.blocked(why)
                else:
                    display.beside(lambda: say(why))

            if not stream:
                waited = session.wait(ids, timeout_s, display.tick, tell=tell)
            else:
                waited = _stream(session, ids, timeout_s, display, tell, labelled, ended_too)
            if not waited:
                display.close("not waited for any longer")
            return waited
    finally:
        work.close()


def _stream(
    session: Session,
    ids: set[int],
    timeout_s: float | None,
    display: ProgressDisplay,
    tell: Callable[[str], None],
    labelled: bool,
    ended_too: bool,
) -> bool:
    followed = ids if ended_too else session.arrivals.live(ids)
    printer = OutputPrinter(display, labelled)
    shown = Stream(session, session.arrivals, followed, printer, None if labelled else session.fetch)
    session.io.output_listeners.append(shown.take)

    def tick() -> None:
        # The bar is shown first, so that the output of the tasks appears below it.
        display.tick()
        if display.is_due:
            shown.tick()

    try:
        tick()
        return session.wait(ids, timeout_s, tick, tell=tell)
    finally:
        session.io.output_listeners.remove(shown.take)
        shown.close()
