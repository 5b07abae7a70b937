"""Exchange messages with running tasks, and read their progress."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..core import errors, messages
from ..core.messages import tables
from ..core.messages.payload import Message
from ..core.messages.running_task import TaskMessages
from ..serialization.pack import pack, unpack
from .ids import Ids, Timeout, id_list, seconds, task_id
from .results import decode_body
from .session import Session
from .wait_notices import raise_users

_marks = itertools.count(1)
CHUNK = 500
"""Number of messages in one packet."""


class Progress(NamedTuple):
    """The progress that a task has reported."""

    value: float
    total: float | None
    message: str = ""

    @property
    def fraction(self) -> float | None:
        """Return the share that is done, 0 to 1; None if the task has not reported a total."""
        return min(1.0, self.value / self.total) if self.total else None


def send(session: Session, taskid: int, objects: tuple[Any, ...], quiet: bool) -> None:
    """Send messages to a task; see ``TaskClient.send``."""
    wanted = task_id(taskid, session.farm)
    if session.arrivals.is_live(wanted):
        session.accepted(wanted)  # the controller must know the task before its messages arrive
    bodies = [pack(each, "message") for each in objects]
    try:
        for first in range(0, len(bodies), CHUNK):
            mark = f"{session.session_id}:{next(_marks)}"
            session.ask_for(messages.SendToTask(wanted, bodies[first : first + CHUNK], mark), messages.NumberReply)
    except (errors.TaskError, IndexError):
        if not quiet:
            raise


def read_messages(session: Session, taskid: int, timeout: Timeout) -> Iterator[Message]:
    """Yield the messages of a task; see ``TaskClient.messages``."""
    wanted = task_id(taskid, session.farm)
    timeout_s = seconds(timeout)
    after = 0
    while True:
        began_s = time.monotonic()
        try:
            found = session.ask_for(messages.ReadTaskMessages(wanted, after), TaskMessages, timeout_s)
        except TimeoutError as error:
            raise_users(error)
            if timeout_s is None or time.monotonic() - began_s < timeout_s:
                raise
            raise TimeoutError(f"task {wanted} has sent no message within {timeout_s:g} s") from None
        for letter in found.letters:
            after = letter.seq
            yield Message(unpack(letter.body), letter.sender, letter.at_s)
        if found.over:
            return


def progress_of(session: Session, ids: Ids) -> dict[int, Progress]:
    """Return the latest progress of tasks by id; see ``TaskClient.progress_of``."""
    wanted = id_list(ids, session.farm)
    rows = session.ask_for(messages.ProgressOf(wanted), tables.ProgressTable).rows
    found = {row[0]: Progress(*row[1:]) for row in rows}
    for each in wanted:
        final = session.arrivals.finals.get(each) if each not in found else None
        if final is not None and final.body and (reported := decode_body(final).progress) is not None:
            found[each] = Progress(*reported)
    return found
