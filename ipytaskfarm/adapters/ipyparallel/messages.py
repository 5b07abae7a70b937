"""The futures of single calls: of one command on one engine, or of one task.

An `AsyncResult` has one or more of them, as ipyparallel's has messages.  The message id of a task is its task id as
text, so it is good in any client; that of a command names the command and its engine.
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ipytaskfarm.adapters.ipyparallel.errors import EngineInfo, in_ipyparallels_words
from ipytaskfarm.client import MultiEngineClient, TaskClient, TaskResult
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.engine_answers import EngineAnswer
from ipytaskfarm.client.futures import end_inherited
from ipytaskfarm.client.session import Session
from ipytaskfarm.client.tables import TaskStatus
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.core.states import ABORTS

REMEMBERED = 1000
"""Number of the last commands whose records are kept, and whose results `get_result` finds if they are small."""
SMALL_BYTES = 64 * 1024

Names = Callable[[int], str]
"""Engine id -> the name of its incarnation."""


class Metadata(dict[str, Any]):
    """What is known of a call, by the names of ipyparallel's metadata; also as attributes."""

    def __init__(self, msg_id: str = "", label: Any = None) -> None:
        super().__init__(
            msg_id=msg_id, submitted=None, started=None, completed=None, received=None, engine_uuid=None,
            engine_id=None, follow=[], after=[], status=None, execute_input=None, execute_result=None, error=None,
            stdout="", stderr="", outputs=[], data={}, outputs_ready=False, label=label,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class MessageFuture(concurrent.futures.Future[Any]):
    """The future of a call: a ``concurrent.futures.Future`` with a message id and `Metadata`."""

    def __init__(self, msg_id: str, method: str, label: Any = None) -> None:
        super().__init__()
        self.msg_id = msg_id
        self.method = method
        self.metadata = Metadata(msg_id, label)
        self.metadata["submitted"] = datetime.now(UTC)

    @property
    def info(self) -> EngineInfo:
        """Return the engine of the call, as errors show it."""
        found = {name: self.metadata[name] for name in ("engine_id", "engine_uuid")}
        return found | {"method": self.method}

    def outcome(self) -> Any:
        """Return the value or the error of an ended call."""
        error = self.exception()
        return self.result() if error is None else error

    def end(self, value: Any, error: BaseException | None) -> None:
        """Resolve the future."""
        self.metadata["received"] = datetime.now(UTC)
        submitted, started = self.metadata["submitted"], self.metadata["started"]
        if None not in (submitted, started):  # a call may have begun before this future was made
            self.metadata["submitted"] = min(submitted, started)
        self.metadata["outputs_ready"] = True
        self.metadata["status"] = "ok" if error is None else "error"
        if error is None:
            self.set_result(value)
        else:
            self.metadata["error"] = error = in_ipyparallels_words(error, self.info)
            if isinstance(error, errors.TaskAborted):
                self.metadata["status"] = "aborted"
            self.set_exception(error)


class CommandMessage(MessageFuture):
    """The future of one engine's part of a command."""

    def __init__(
        self,
        msg_id: str,
        method: str,
        engine: int,
        uuid: str,
        read: Callable[[EngineAnswer, Metadata], Any],
        label: Any,
    ) -> None:
        """Create it. uuid: the name of the engine's incarnation.

        read: returns the value of an answer, and may add to the metadata. label: the user's name for the call.
        """
        super().__init__(msg_id, method, label)
        self.metadata.update(engine_id=engine, engine_uuid=uuid)
        self._read = read
        self.pending: PendingResult | None = None
        """The command, which other engines may do too."""
        self.answer: EngineAnswer | None = None
        """The engine's answer, once it has come."""

    def forgetful(self) -> Callable[[], CommandMessage]:
        """Return a function that makes a future for the same call, which has ended; it holds the packed value alone."""
        data, answer = self.metadata, self.answer
        assert answer is not None, "the call has ended"
        arguments = self.msg_id, self.method, data["engine_id"], data["engine_uuid"], self._read, data["label"]

        def make() -> CommandMessage:
            made = CommandMessage(*arguments)
            made.metadata["submitted"] = data["submitted"]
            made.settle(answer)
            return made

        return make

    def settle(self, answer: EngineAnswer) -> None:
        """Resolve the future with the answer of its engine."""
        self.answer = answer
        output = answer.output
        self.metadata.update(
            started=answer.began_at, completed=answer.ended_at or datetime.now(UTC),
            stdout=output.stdout, stderr=output.stderr, outputs=output.outputs,
        )  # fmt: skip
        value, error = None, answer.error
        if error is None:
            try:
                value = self._read(answer, self.metadata)
            except Exception as unread:  # a value whose class is unknown here
                error = unread
        self.end(value, error)


class TaskMessage(MessageFuture):
    """The future of a task, or of an item of a map."""

    def __init__(
        self, client: TaskClient, task_id: int, uuid_of: Names, label: Any = None, is_item: bool = False
    ) -> None:
        """Create it.

        uuid_of: names the incarnation of an engine. is_item: of a map: the value is the list of the item's only value.
        """
        super().__init__(str(task_id), "apply", label)
        self.id = task_id
        self._client = client
        self._uuid_of = uuid_of
        self._is_item = is_item
        self._ended_otherwise: BaseException | None = None

    def end_with(self, error: BaseException) -> None:
        """Let the future raise this error in the place of that of the task, which is about to be aborted."""
        self._ended_otherwise = error

    def settle(self, final: Final) -> None:
        """Resolve the future with the end of its task."""
        value, error = None, self._ended_otherwise
        try:
            found = self._client.get_task_result(self.id, raw=False)
            self._describe(found)
            error = error or (None if found.failure is None else found.failure.value)
            value = found.result if error is None else None
        except Exception as unread:  # an aborted or refused task, or a value whose class is unknown here
            error = error or self._refusal(unread, final)
        self.end([value] if self._is_item else value, error)

    def _refusal(self, error: BaseException, final: Final) -> BaseException:
        if final.reason not in ABORTS:
            return error
        text = final.failure.value if final.failure else ""
        return errors.TaskAborted(text or f"task {self.id} was aborted")

    def _describe(self, found: TaskResult) -> None:
        self.metadata.update(
            submitted=found.submitted_at, started=found.started_at, completed=found.completed_at,
            engine_id=found.engineid, engine_uuid=self._uuid_of(found.engineid) if found.engineid >= 0 else None,
            stdout=found.stdout, stderr=found.stderr, outputs=found.outputs,
        )  # fmt: skip


class Messages:
    """The calls of this process to one farm, by their message ids."""

    def __init__(self) -> None:
        self.outstanding: dict[str, MessageFuture] = {}
        """The calls that have not ended."""
        self._living: WeakValueDictionary[str, MessageFuture] = WeakValueDictionary()
        self._ended: OrderedDict[str, Callable[[], CommandMessage]] = OrderedDict()
        """Message id -> makes the future of a command again whose answer was small."""
        self.records: OrderedDict[str, Metadata] = OrderedDict()
        """Message id -> what is known of the last commands."""

    @staticmethod
    def of(session: Session) -> Messages:
        """Return the calls of the clients of a session."""
        found = _messages.get(session)
        if found is None:
            found = _messages.setdefault(session, Messages())
            session.at_fork.append(found._after_fork)
        return found

    def _after_fork(self, error: BaseException) -> None:
        """Let the calls in a forked child raise an error: their answers come to the parent."""
        end_inherited(list(self.outstanding.values()), error)

    def add(self, message: MessageFuture) -> None:
        """Record a call that was sent."""
        self.outstanding[message.msg_id] = message
        self._living[message.msg_id] = message
        if isinstance(message, CommandMessage):
            self.records[message.msg_id] = message.metadata
            if len(self.records) > REMEMBERED:
                self.records.popitem(last=False)
        message.add_done_callback(self._note_end)

    def _note_end(self, message: concurrent.futures.Future[Any]) -> None:
        assert isinstance(message, MessageFuture)
        self.outstanding.pop(message.msg_id, None)
        if isinstance(message, CommandMessage) and message.answer is not None and message.answer.size <= SMALL_BYTES:
            self._ended[message.msg_id] = message.forgetful()
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def find(self, msg_id: str) -> MessageFuture | None:
        """Return a call of this process; None: it is unknown, or its result is not kept any more."""
        found = self._living.get(msg_id)
        if found is None and msg_id in self._ended:
            found = self._living[msg_id] = self._ended[msg_id]()
        return found

    def known_of(self, msg_id: str) -> Mapping[str, Any]:
        """Return the metadata of a call of this process; empty if its result is not in use any more."""
        found = self._living.get(msg_id)
        return found.metadata if found is not None else {}

    def forget(self, msg_ids: list[str] | None) -> None:
        """Forget ended commands, all or these."""
        ended = [each for each in (msg_ids or list(self.records)) if each not in self.outstanding]
        for msg_id in ended:
            self.records.pop(msg_id, None)
            self._ended.pop(msg_id, None)
            self._living.pop(msg_id, None)


_messages: WeakKeyDictionary[Session, Messages] = WeakKeyDictionary()


def engine_names(client: MultiEngineClient) -> dict[int, str]:
    """Return the incarnation of each engine that takes commands now, by the engine's id."""
    return {row.id: row.engine for row in client.engines() if row.state in ("idle", "busy")}


Record = dict[str, Any]


_OF_CALLS: Record = {
    "received": None, "execute_input": None, "execute_result": None, "error": None, "stdout": "", "stderr": "",
}  # fmt: skip
"""Entries that only the process has which made the call, and their values for the calls of others."""


def records_of(
    rows: Iterable[TaskStatus],
    calls: Messages,
    uuid_of: Callable[[int], str],
) -> list[Record]:
    """Return the records of the farm's tasks, and of the calls of this process, in order of submission."""
    found = [_of_task(row, uuid_of) for row in rows]
    found += [_of_command(metadata) for metadata in calls.records.values()]
    for record in found:
        _complete(record, calls.known_of(record["msg_id"]))
    return sorted(found, key=lambda record: record["submitted"])


def _of_task(row: TaskStatus, uuid_of: Callable[[int], str]) -> Record:
    return {
        "msg_id": str(row.id),
        "queue": "task",
        "submitted": row.submitted_at,
        "started": row.started_at,
        "completed": row.completed_at,
        "engine_id": row.engineid,
        "engine_uuid": uuid_of(row.engineid) if row.engineid is not None else None,
        "status": row.state,
        "label": row.name or None,
    }


def _of_command(metadata: Mapping[str, Any]) -> Record:
    names = ("msg_id", "submitted", "started", "completed", "engine_id", "engine_uuid", "status")
    return {name: metadata[name] for name in names} | {"queue": "mux", "label": metadata["label"]}


def _complete(record: Record, own: Mapping[str, Any]) -> None:
    """Add the other entries that ipyparallel's records have."""
    record |= {name: own.get(name, value) for name, value in _OF_CALLS.items()}
    msg_id, ended = record["msg_id"], record["completed"]
    kind = "apply" if record["queue"] == "task" else "execute"
    header = {"msg_id": msg_id, "msg_type": f"{kind}_request", "date": record["submitted"]}
    record |= {"header": header, "metadata": {"label": record["label"]}, "content": {}, "resubmitted": None}
    status = None if ended is None else "error" if record["status"] in ("failed", "error", "aborted") else "ok"
    result = {"engine": record["engine_uuid"], "started": record["started"], "status": status}
    record["result_metadata"] = result if status else None
    record["result_header"] = {"msg_type": f"{kind}_reply", "date": ended} if status else None
    record["result_content"] = {"status": status} if status else None
    record["received"] = record["received"] or ended


def status_of_engines(
    queues: Iterable[tuple[int, Mapping[str, Any]]], records: Iterable[Record], verbose: bool
) -> dict[Any, Any]:
    """Return for each engine its commands in ``queue``, what it has ``completed``, and its ``tasks``.

    queues: (engine id, what it runs and what waits there, as texts). verbose: lists in place of their lengths.
    """
    completed: dict[int | None, list[str]] = {}
    for record in records:
        if record["completed"] is not None:
            completed.setdefault(record["engine_id"], []).append(record["msg_id"])
    found: dict[Any, Any] = {}
    for engine, status in queues:
        running = [status["pending"]] if status["pending"] else []
        tasks = [text.removeprefix("task ") for text in running if text.startswith("task ")]
        queue = [*(text for text in running if not text.startswith("task ")), *status["queue"]]
        lists = {"queue": queue, "completed": completed.get(engine, []), "tasks": tasks}
        found[engine] = lists if verbose else {name: len(entries) for name, entries in lists.items()}
    return found


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$lt": lambda value, limit: value is not None and value < limit,
    "$lte": lambda value, limit: value is not None and value <= limit,
    "$gt": lambda value, limit: value is not None and value > limit,
    "$gte": lambda value, limit: value is not None and value >= limit,
    "$in": lambda value, values: value in values,
    "$nin": lambda value, values: value not in values,
    "$all": lambda value, values: all(value in each for each in values),
    "$mod": lambda value, of: value is not None and value % of[0] == of[1],
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$glob": lambda value, pattern: value is not None and fnmatch.fnmatch(value, pattern),
}


def matching(records: Iterable[Record], query: Mapping[str, Any]) -> list[Record]:
    """Return the records that meet all conditions of a query.  Raises ValueError for an unknown condition."""
    return [record for record in records if all(_meets(record.get(name), wanted) for name, wanted in query.items())]


def _meets(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return bool(value == wanted)
    for name in wanted:
        if name not in _CONDITIONS:
            raise ValueError(f"a query has no condition {name!r}: {', '.join(_CONDITIONS)}")
    return all(_CONDITIONS[name](value, argument) for name, argument in wanted.items())
