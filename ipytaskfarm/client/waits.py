"""Wait for tasks: with a progress display and the output of the tasks, in asyncio loops, or only show the progress."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from ..display.ipython import notebook_shell
from ..system.deadlines import left_s
from .ids import Ids, id_list
from .map_jobs import MapMembers, wait_for
from .output_printer import OutputPrinter
from .progress import LiveProgress, ProgressDisplay
from .session import TICK_S, Session
from .streams import Stream
from .task_work import MapWork, TaskWork
from .wait_notices import going_on, note_cancelled, say


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
    """Wait until these watched tasks have ended; return False after `timeout_s` seconds (None: no limit).

    Args:
        session: the session of the tasks.
        ids: ids for which `Session.watch` was called.
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


def wait_for_map(
    session: Session,
    members: MapMembers,
    timeout_s: float | None = None,
    show: bool = True,
    stream: bool = False,
    name: str = "",
    go_on_text: str = "",
) -> bool:
    """Wait until the items of a map have ended; return False after `timeout_s` seconds (None: no limit).

    stream: show what the items print and display while they run, each line with the item's place in the map.
    go_on_text: a notice after Ctrl-C, see `Session.wait`. The other arguments are those of `wait_for_tasks`.
    """
    with ProgressDisplay(MapWork(session, members), "items", show=show, name=name) as display:
        if stream:
            shown = stream_of_map(session, lambda: members.held(session.arrivals), members.place_of, display)
            with followed(session, shown, display) as tick:
                waited = wait_for(session, members, timeout_s, tick, go_on_text)
        else:
            waited = wait_for(session, members, timeout_s, display.tick, go_on_text)
        if not waited:
            display.close("not waited for any longer")
        return waited


def stream_of_map(
    session: Session,
    held: Callable[[], set[int]],
    place_of: Callable[[int], int],
    display: ProgressDisplay | None = None,
) -> Stream:
    """Return a stream of the output of a map's items, each line behind the item's place in the map.

    held: returns the ids of the tasks whose output is shown.  place_of: returns the place of an item by its id.
    """
    printer = OutputPrinter(display)
    return Stream(session, session.arrivals, set(), printer, session.fetch, label=lambda i: str(place_of(i)), held=held)


@contextlib.contextmanager
def followed(session: Session, shown: Stream, display: ProgressDisplay | None = None) -> Iterator[Callable[[], None]]:
    """Show output during a block, which calls the given function a few times a second."""
    session.io.output_listeners.append(shown.take)

    def tick() -> None:
        # The bar is shown first, so that the output of the tasks appears below it.
        if display is not None:
            display.tick()
        if display is None or display.is_due:
            shown.tick()

    try:
        tick()
        yield tick
    finally:
        session.io.output_listeners.remove(shown.take)
        shown.close()


def _stream(
    session: Session,
    ids: set[int],
    timeout_s: float | None,
    display: ProgressDisplay,
    tell: Callable[[str], None],
    labelled: bool,
    ended_too: bool,
) -> bool:
    wanted = ids if ended_too else session.arrivals.live(ids)
    printer = OutputPrinter(display, labelled)
    shown = Stream(session, session.arrivals, wanted, printer, None if labelled else session.fetch)
    with followed(session, shown, display) as tick:
        return session.wait(ids, timeout_s, tick, tell=tell)


async def completed_async(session: Session, ids: list[int], end_s: float | None = None) -> AsyncIterator[int]:
    """Yield each of these watched tasks as soon as it has ended, in any asyncio loop, which the IO thread wakes.

    Raises TimeoutError at the moment `end_s` of the monotonic clock.  Only waits here end then: ``asyncio.timeout``
    around a ``yield`` would cancel what the caller awaits between two tasks.
    """
    loop = asyncio.get_running_loop()
    bell = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed while it waited
            loop.call_soon_threadsafe(bell.set)

    waiter, ended = session.begin_wait(ids, wake)
    left = len(ids)
    try:
        while True:
            for task_id in ended:
                yield task_id
            left -= len(ended)
            if not left:
                return
            over_s = left_s(end_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), TICK_S if over_s is None else min(TICK_S, over_s))
            bell.clear()
            ended = session.ended_since(waiter)
            if over_s == 0 and not ended:
                raise TimeoutError(f"{left} of {len(ids)} tasks have not ended in time")
    finally:
        session.arrivals.end_wait(waiter)


async def ended_async(session: Session, task_id: int) -> None:
    """Wait until a watched task has ended, in any asyncio loop.  A cancelled wait says that the task continues."""
    try:
        async for _ in completed_async(session, [task_id]):
            pass
    except asyncio.CancelledError as cancelled:
        note_cancelled(cancelled, going_on({task_id}))
        raise


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
