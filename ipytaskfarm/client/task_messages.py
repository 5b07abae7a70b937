"""Calls of `TaskClient` that talk with running tasks: messages both ways, and progress."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import errors, messages
from ..core.messages import tables
from ..core.messages.payload import Message
from ..core.messages.running_task import TaskMessages
from ..serialization.pack import pack, unpack
from .ids import Ids, Timeout, id_list, seconds, task_id
from .results import decode_body

if TYPE_CHECKING:
    from .taskclient import TaskClient

_marks = itertools.count(1)
CHUNK = 500
"""Messages that travel together."""


class Progress(NamedTuple):
    """How far a task has come, by its own word."""

    value: float
    total: float | None
    message: str = ""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where no total was given."""
        return min(1.0, self.value / self.total) if self.total else None


def send(self: TaskClient, taskid: int, *objects: Any, quiet: bool = False) -> None:
    """Send a task one message, or several in this order; ``current_task().receive()`` gets them.

    They are on disk when this returns, wait for a task that has not begun, and each is read once per attempt.
    Raises TaskError for a task that has ended, IndexError for one that is not there (quiet=True: nothing is raised),
    UnpickleableException for what cannot travel.
    """
    wanted = task_id(taskid)
    if self._session.arrivals.is_live(wanted):
        self._session.accepted(wanted)  # it is there before what is sent to it
    bodies = [pack(each, "message") for each in objects]
    try:
        for first in range(0, len(bodies), CHUNK):
            mark = f"{self._session.session_id}:{next(_marks)}"
            self._ask(messages.SendToTask(wanted, bodies[first : first + CHUNK], mark), messages.NumberReply)
    except (errors.TaskError, IndexError):
        if not quiet:
            raise


def read_messages(self: TaskClient, taskid: int, timeout: Timeout = None) -> Iterator[Message]:
    """What a task sends (``current_task().send(obj)``), from the first on, each as soon as it is there; ends with the
    task.  Each call begins anew: messages are kept with the result.

    Each is a `Message`: value, sender, at_s.  Raises TimeoutError when none has come for `timeout` seconds.
    """
    wanted = task_id(taskid)
    timeout_s = seconds(timeout)
    after = 0
    while True:
        try:
            found = self._session.ask(messages.ReadTaskMessages(wanted, after), timeout_s)
        except TimeoutError:
            raise TimeoutError(f"task {wanted} has sent no message within {timeout_s:g} s") from None
        if not isinstance(found, TaskMessages):
            raise TypeError(f"the controller answered Read with {type(found).__name__}")
        for letter in found.letters:
            after = letter.seq
            yield Message(unpack(letter.body), letter.sender, letter.at_s)
        if found.over:
            return


def progress_of(self: TaskClient, ids: Ids) -> dict[int, Progress]:
    """The latest progress of those of these tasks that have told any: of running ones the last word or the share of
    their children that have ended, of ended ones the last word."""
    wanted = id_list(ids)
    rows = self._ask(messages.ProgressOf(wanted), tables.ProgressTable).rows
    found = {row[0]: Progress(*row[1:]) for row in rows}
    for each in wanted:
        final = self._session.arrivals.finals.get(each) if each not in found else None
        if final is not None and final.body and (said := decode_body(final).progress) is not None:
            found[each] = Progress(*said)
    return found
