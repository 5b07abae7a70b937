"""Messages between clients and running tasks: on disk before they are acknowledged, in order, each taken once.

A message to a task waits for it, also from one attempt to the next. A message from a task is kept with its result. The
bodies are in the store; here are only numbers, and the sessions that wait for the next message.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..limits import COUNTS
from ..messages import NumberReply, ReadTaskMessages, Refusal, SendToTask
from ..messages.running_task import Counted, Post, Receive, TaskCall, TaskMessages
from ..saves import SaveMail
from .decision import Decision, LoadMail, Now
from .entries import EngineEntry, TaskEntry
from .running_tasks import Family, Mailbox, Reader
from .state import SchedulerState

MARK_MAX = 200
"""The most characters of a message's mark."""
_decode_marks = msgspec.json.Decoder(list[str]).decode


def _box(farm: SchedulerState, task_id: int) -> Mailbox:
    return farm.conversations.mailboxes.setdefault(task_id, Mailbox())


def on_send(farm: SchedulerState, session: str, n: int, question: SendToTask, now: Now, out: Decision) -> None:
    """Save messages to a task that has not ended."""
    if question.id not in farm.tasks.unfinished:
        ended = farm.tasks.has_ended(question.id)
        what = "has ended" if ended else "is not known"
        text = f"task {question.id} {what}: nobody will read what is sent to it (quiet=True: never mind)"
        out.answer(session, n, Refusal("TaskError" if ended else "IndexError", text))
        return
    who, _, number = question.mark.rpartition(":")
    if not (who and len(question.mark) <= MARK_MAX and number.isascii() and number.isdigit()):
        out.answer(session, n, Refusal("ValueError", f"{question.mark[:MARK_MAX]!r} is no mark: 'NAME:3' is one"))
        return
    box = _box(farm, question.id)
    is_own = farm.tasks.unfinished[question.id].session == session
    if who not in box.marks and len(box.marks) >= COUNTS.senders + (COUNTS.own_senders if is_own else 0):
        text = f"{COUNTS.senders:,} clients have sent messages to task {question.id}, the most of a task"
        out.answer(session, n, Refusal("TaskError", text))
        return
    last, known = box.marks.get(who, (0, 0))
    if int(number) > last:
        client = farm.clients.by_session.get(session)
        sender = client.name if client is not None and client.name else "client"
        for body in question.bodies:
            box.incoming += 1
            out.saves.append(SaveMail(question.id, False, box.incoming, sender, question.mark, now.wall_s, body))
        known = box.incoming
        box.marks[who] = int(number), known
        _wake_task(farm, question.id, box, out)
    out.answer(session, n, NumberReply(known))


def _wake_task(farm: SchedulerState, task_id: int, box: Mailbox, out: Decision) -> None:
    if box.receiver is not None:
        engine = farm.engines.by_name.get(box.receiver.engine)
        question = box.receiver.question
        if engine is not None and isinstance(question, Receive):
            out.loads.append(LoadMail(engine.agent, 0, task_id, False, question.after, box.receiver))
        box.receiver = None


def receive(
    farm: SchedulerState, engine: EngineEntry, task: TaskEntry, call: TaskCall, question: Receive, out: Decision
) -> None:
    """Send a running task the messages that it has not read, or make it wait for the next one."""
    box = _box(farm, task.id)
    box.receiver = call
    if box.incoming > question.after:
        _wake_task(farm, task.id, box, out)


def post(
    farm: SchedulerState, engine: EngineEntry, task: TaskEntry, call: TaskCall, question: Post, now: Now, out: Decision
) -> None:
    """Save messages from a running task, and pass them on to the clients that wait for them."""
    box = _box(farm, task.id)
    sender = f"task {task.id}"
    mark = f"{call.run[1]}"
    done = box.posted.get(call.run[1], 0)
    for number, body in enumerate(question.bodies, question.first):
        if number <= done:
            continue  # a repetition: the task has not heard that the message was taken
        box.outgoing += 1
        done = number
        out.saves.append(SaveMail(task.id, True, box.outgoing, sender, mark, now.wall_s, body))
    box.posted[call.run[1]] = done
    out.reply(engine.agent, call, Counted(done))
    readers, box.readers = box.readers, []
    for reader in readers:
        farm.conversations.reading.end(reader.session)
        out.loads.append(LoadMail(reader.session, reader.n, task.id, True, reader.after))


def on_read(farm: SchedulerState, session: str, n: int, question: ReadTaskMessages, now: Now, out: Decision) -> None:
    """Answer with the messages from a task. If a running task has sent none, answer as soon as there is one."""
    if question.id in farm.tasks.unfinished:
        box = _box(farm, question.id)
        if box.outgoing > question.after:
            out.loads.append(LoadMail(session, n, question.id, True, question.after))
        elif (refusal := farm.conversations.reading.why_not(session)) is not None:
            out.answer(session, n, refusal)
        else:
            farm.conversations.reading.begin(session)
            box.readers.append(Reader(session, n, question.after))
    elif question.id in farm.tasks.finals:
        out.loads.append(LoadMail(session, n, question.id, True, question.after, over=True))
    elif question.id in farm.tasks.refusals:
        out.answer(session, n, TaskMessages([], True))
    else:
        text = f"task ID not registered: {question.id} (never issued, or cleared)"
        out.answer(session, n, Refusal("IndexError", text))


def close(farm: SchedulerState, task_id: int, out: Decision) -> None:
    """Send the rest of an ended task's messages to the clients that wait for them."""
    box = farm.conversations.mailboxes.pop(task_id, None)
    for reader in box.readers if box is not None else ():
        farm.conversations.reading.end(reader.session)
        out.loads.append(LoadMail(reader.session, reader.n, task_id, True, reader.after, over=True))


def forget_readers(farm: SchedulerState, session: str) -> None:
    """Forget that a client, which is gone, waits for messages of tasks."""
    if session not in farm.conversations.reading.by_session:
        return
    for box in farm.conversations.mailboxes.values():
        left = [reader for reader in box.readers if reader.session != session]
        if len(left) < len(box.readers):
            farm.conversations.reading.end(session, len(box.readers) - len(left))
            box.readers = left


def restore_conversations(
    farm: SchedulerState, children: Iterable[tuple[int, str, int]], mail: Iterable[tuple[int, int, int, str]]
) -> None:
    """Restore the children and the mailboxes of unfinished tasks, see `StoredState.children` and `StoredState.mail`."""
    for parent, spawn, child in children:
        key, _, check = spawn.rpartition(".")
        family = farm.conversations.families.setdefault(parent, Family())
        family.spawned.setdefault(key, (int(check), []))[1].append(child)
    for task_id, outgoing, last, marks in mail:
        _restore_mail(_box(farm, task_id), bool(outgoing), last, _decode_marks(marks))


def _restore_mail(box: Mailbox, outgoing: bool, last: int, marks: list[str]) -> None:
    if outgoing:
        box.outgoing = last
        for mark in marks:
            box.posted[int(mark)] = box.posted.get(int(mark), 0) + 1
    else:
        box.incoming = last
        for number, mark in enumerate(marks, 1):
            who, _, own = mark.rpartition(":")
            box.marks[who] = int(own), number
