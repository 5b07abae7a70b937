"""What comes back: `TaskResult`, its namespace `NS`, and `Failure`.

A result is unpacked when it is looked at, in the caller's thread: fetching twenty thousand of them
must not cost twenty thousand unpicklings, and unpickling may run code of the user's.
"""

from __future__ import annotations

import builtins
import contextlib
import html
import sys
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TextIO

import msgspec

from ..core import errors
from ..core.messages.payload import ResultBody
from ..core.messages.task_types import FailureSummary as WireFailure, Final
from ..core.states import ABORTS, Reason, State
from ..core.text import did_you_mean, shown
from ..display.cells import with_cells
from ..serialization.pack import traceback_of, unpack, unpack_error
from .display import output_html, text_html, value_html

_decode_body = msgspec.msgpack.Decoder(ResultBody).decode

_NOTHING = ResultBody()

_BY_REASON: dict[str, type[Exception]] = {
    Reason.ABORTED: errors.TaskAborted,
    Reason.JOB_ABORTED: errors.TaskAborted,
    Reason.TIME_LIMIT: errors.TimeLimitExceeded,
    Reason.ENGINE_LOST: errors.EngineLost,
    Reason.MEMORY: errors.MemoryLimitExceeded,
    Reason.QUARANTINED: errors.Quarantined,
    Reason.REJECTED: errors.TaskRejectError,
    Reason.UNMET: errors.TaskTimeout,
    Reason.TOO_LARGE: errors.ResultTooLarge,
    Reason.ENVIRONMENT: errors.EnvironmentSetupError,
    Reason.NEEDED: errors.DependencyFailed,
    Reason.SKIPPED: errors.TaskSkipped,
    Reason.DEFERRED: errors.DeferredTooLong,
}


def decode_body(final: Final) -> ResultBody:
    """Return the decoded body of a final result; an empty one where the task left none."""
    return _decode_body(final.body) if final.body else _NOTHING


def error_named(etype: str, text: str) -> Exception:
    """Return an error by its name in `core.errors` or among the builtins; a RemoteError for any other name."""
    found = getattr(errors, etype, None) or getattr(builtins, etype, None)
    if isinstance(found, type) and issubclass(found, Exception) and found is not errors.CompositeError:
        try:
            return found(text)
        except TypeError:
            pass
    return errors.RemoteError(etype, text)


def error_of(final: Final, body: ResultBody) -> BaseException:
    """Return the exception of a failed task: the task's own where there is one, else what its reason says."""
    error: BaseException | None = None
    if final.reason in ABORTS:
        # What the task itself saw was TaskCancelled; that is not what happened to the caller.
        text = final.failure.value if final.failure else ""
        error = errors.TaskAborted(text or f"task {final.id} was aborted")
    elif body.failure is not None and final.reason != Reason.DEFERRED:
        error = unpack_error(body.failure, final.engine_id)
    elif final.reason in _BY_REASON:
        text = final.failure.value if final.failure else ""
        error = _BY_REASON[final.reason](text or f"task {final.id} failed: {final.reason}")
    elif final.failure is not None:
        error = error_named(final.failure.etype, final.failure.value)
    else:
        error = errors.RemoteError("TaskError", f"task {final.id} failed: {final.reason}")
    sign(error, final.engine_id, body.failure.traceback if body.failure else "")
    return error


def sign(error: BaseException, engine_id: int, traceback_text: str) -> None:
    """Say where it was raised: `engine_id` and `remote_traceback`, and the engine in what is printed.

    An exception bears the engine's frames as its own traceback, below those of the caller.  The text is added where
    it has none: in a result of an older farm.
    """
    for attribute, value in (("engine_id", engine_id), ("remote_traceback", traceback_text)):
        with contextlib.suppress(Exception):  # an exception type with slots of its own, or with a hostile __getattr__
            if not hasattr(error, attribute):
                setattr(error, attribute, value)
    own: dict[str, Any] = object.__getattribute__(error, "__dict__")
    notes = own.get("__notes__") or []
    # The first note of an item of a map names the item; further ones are the user's own.
    if traceback_text and (not notes or (len(notes) == 1 and str(notes[0]).startswith("item "))):
        own["__notes__"] = [*notes, f"raised on engine {engine_id}:{_place_or(traceback_text, traceback_of(error))}"]


def _place_or(text: str, tb: TracebackType | None) -> str:
    """Return the innermost place of a traceback; the text, where there is none."""
    places = traceback.extract_tb(tb, limit=-1)
    if not places:
        return f"\n{text.rstrip()}"
    return with_cells(f" {places[0].filename}:{places[0].lineno} in {places[0].name}")


class MissingName(KeyError):
    """No result of a task has this name.  As a KeyError, but shown as the sentence that it is."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NS:
    """The results as attributes and as items: ``tr.ns.a``, ``tr.ns["a"]``."""

    def __init__(self, names: dict[str, Any], owner: TaskResult | None = None) -> None:
        self.__dict__.update(names)
        # Not among its attributes, which are the names.
        object.__setattr__(self, "_task_result_", owner)

    __slots__ = ("__dict__", "_task_result_")

    def __getattr__(self, name: str) -> Any:
        owner: TaskResult | None = object.__getattribute__(self, "_task_result_")
        if owner is None or name.startswith("__"):  # somebody asks for a protocol
            raise AttributeError(f"'NS' object has no attribute {name!r}")
        raise AttributeError(owner.without(name), name=name, obj=self)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            if self._task_result_ is None:
                raise
            raise MissingName(self._task_result_.without(name)) from None

    def __repr__(self) -> str:
        return f"NS{self.__dict__!r}"


class Failure:
    """Why a task failed (the shape of Twisted's Failure, which IPython 0.10 gave out).

    Attributes: `type` (the exception's class), `value` (the exception itself), `etype` (its name).
    """

    def __init__(self, value: BaseException, traceback_text: str = "", place: str = "") -> None:
        self.value = value
        self.type = type(value)
        self.place = with_cells(place)
        self._traceback_text = with_cells(traceback_text)
        self._frames = traceback_of(value)

    @property
    def etype(self) -> str:
        """Return the exception's type by name, as it was on the engine."""
        return self.value.etype if isinstance(self.value, errors.RemoteError) else self.type.__name__

    def getErrorMessage(self) -> str:  # noqa: N802 - Twisted's name
        """Return what the exception says."""
        return self.value.value if isinstance(self.value, errors.RemoteError) else str(self.value)

    def getTraceback(self) -> str:  # noqa: N802 - Twisted's name
        """Return the remote traceback, user frames only, as text."""
        return self._traceback_text or self._summary()

    def getBriefTraceback(self) -> str:  # noqa: N802 - Twisted's name
        """Return type and message, then a line ``file:line:function`` for each frame, the outermost first."""
        places = traceback.extract_tb(self._frames)
        frames = [f"{place.filename}:{place.lineno}:{place.name}" for place in places]
        lines = frames or ([self.place] if self.place else [])
        return "\n".join([f"Traceback: {self.etype}: {self.getErrorMessage()}", *lines]) + "\n"

    def printTraceback(self, file: TextIO | None = None) -> None:  # noqa: N802 - Twisted's name
        """Print the remote traceback.  file: where to; None: to stderr."""
        print(self.getTraceback().rstrip("\n"), file=file or sys.stderr)

    def check(self, *types: type[BaseException] | str) -> type[BaseException] | str | None:
        """Return the first of these exception types that fits, or None.

        types: classes, or names such as ``"ZeroDivisionError"`` and ``"numpy.linalg.LinAlgError"``.
        """
        for wanted in types:
            if isinstance(wanted, str):
                if wanted in {name for known in self.type.__mro__ for name in _names_of(known)} | {self.etype}:
                    return wanted
            elif isinstance(self.value, wanted):
                return wanted
        return None

    def trap(self, *types: type[BaseException] | str) -> type[BaseException] | str:
        """Return the first of these exception types that fits.  Raises the task's exception if none does."""
        found = self.check(*types)
        if found is None:
            self.raiseException()
        return found

    def _summary(self) -> str:
        at = f" ({self.place})" if self.place else ""
        return f"{self.etype}: {self.getErrorMessage()}{at}"

    def raiseException(self) -> NoReturn:  # noqa: N802 - Twisted's name
        """Raise the task's exception here, of its own type where that can be had."""
        # Raised as often as asked: without this each time would add its frames to the one before.
        raise BaseException.with_traceback(self.value, self._frames)

    def __repr__(self) -> str:
        return f"<Failure {self.etype}: {self.getErrorMessage()}>"


def _names_of(known: type) -> tuple[str, str]:
    return known.__qualname__, f"{known.__module__}.{known.__qualname__}"


class Attempt(NamedTuple):
    """One attempt of a task; times are aware datetimes."""

    number: int
    engine: int
    node: str
    started: datetime
    ended: datetime
    outcome: str


def _when(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC).astimezone()


def _stamp(at_s: float) -> str:
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(at_s))


class TaskResult:
    """The end of one task.  Unpacked when it is looked at.

    Attributes: `taskid`, `engineid`, `results` (a dict, empty on failure), `keys`, `failure` (None or a
    `Failure`), `ns`, `result`, `submitted`, `completed`, `duration`, and those documented below.
    ``tr['a']`` is ``tr.results['a']``.  `ns`, ``tr['a']`` and `result` of a failed task raise its exception.
    """

    __slots__ = ("_final", "_body", "_value", "_failure")

    def __init__(self, final: Final, body: ResultBody | None = None) -> None:
        self._final = final
        self._body = body
        self._value: Any = _NOTHING
        self._failure: Failure | None = None

    # What it was

    @property
    def taskid(self) -> int:
        """Return the task's id."""
        return self._final.id

    @property
    def engineid(self) -> int:
        """Return the id of the engine that ran the last attempt."""
        return self._final.engine_id

    @property
    def status(self) -> str:
        """``succeeded`` or ``failed``."""
        return str(State.FAILED if self._final.reason else State.SUCCEEDED)

    @property
    def reason(self) -> str:
        """Why it failed: error, aborted, time limit, engine lost …; empty for one that succeeded."""
        return self._final.reason

    # What it left

    @property
    def results(self) -> dict[str, Any]:
        """Return the pulled names and their values; {} for a failed task and for a function's result."""
        value = self._unpacked()
        return value if value.__class__ is dict and self._contents().kind == "names" else {}

    @property
    def result(self) -> Any:
        """Return a function's return value; for a StringTask the dict of `results`.  Raises what a failed task
        raised."""
        self.raise_exception()
        return self._unpacked()

    @property
    def keys(self) -> list[str]:
        """Return the names in `results`."""
        return list(self.results)

    @property
    def ns(self) -> NS:
        """Return the results as attributes."""
        self.raise_exception()
        return NS(self.results, self)

    def __getitem__(self, name: str) -> Any:
        self.raise_exception()
        try:
            return self.results[name]
        except KeyError:
            raise MissingName(self.without(name)) from None

    def without(self, name: object) -> str:
        """Return why there is no result of that name, and what to do, as a sentence."""
        if self._contents().kind != "names":
            return f"task {self.taskid} called a function: its return value is .result, and it has no name {name!r}"
        pulled = self.keys
        near = did_you_mean(name, pulled)
        found = f"it pulled {', '.join(map(repr, pulled))}{near}" if pulled else "it pulled nothing"
        again = f"; Task(…, pull={shown([*pulled, name] if pulled else name)}) brings it back" if not near else ""
        return f"task {self.taskid} has no result {name!r}: {found}{again}"

    @property
    def failure(self) -> Failure | None:
        """None for a task that succeeded."""
        if self._final.reason and self._failure is None:
            body = self._contents()
            place = self._final.failure.place if self._final.failure else ""
            text = body.failure.traceback if body.failure else ""
            self._failure = Failure(error_of(self._final, body), text, place)
        return self._failure

    def raise_exception(self) -> None:
        """Raise what the task raised; nothing for one that succeeded."""
        failure = self.failure
        if failure is not None:
            raise BaseException.with_traceback(failure.value, failure._frames)

    raiseException = raise_exception  # noqa: N815 - IPython 0.10's name

    # When

    @property
    def submitted(self) -> str:
        """When it was handed in, local time, as in IPython 0.10."""
        return _stamp(self._final.submitted_s)

    @property
    def completed(self) -> str:
        """When it ended, local time, as in IPython 0.10."""
        return _stamp(self._final.completed_s)

    @property
    def duration(self) -> float:
        """Seconds of the last run alone, without waiting."""
        return self._final.run_s

    @property
    def submitted_at(self) -> datetime:
        """When it was handed in."""
        return _when(self._final.submitted_s)

    @property
    def started_at(self) -> datetime:
        """When its last run began."""
        return _when(self._final.started_s)

    @property
    def completed_at(self) -> datetime:
        """When it ended."""
        return _when(self._final.completed_s)

    @property
    def attempts(self) -> list[Attempt]:
        """Return every attempt, the last one included."""
        final = self._final
        rows = [
            Attempt(r.number, r.engine_id, r.node, _when(r.started_s), _when(r.ended_s), r.outcome)
            for r in final.history
        ]
        if final.attempts > len(rows):
            ended = final.started_s + final.run_s
            outcome = final.reason
            rows.append(
                Attempt(final.attempts, final.engine_id, final.node, _when(final.started_s), _when(ended), outcome)
            )
        return rows

    # What it printed

    @property
    def stdout(self) -> str:
        """Return what it printed."""
        return self._contents().stdout

    @property
    def stderr(self) -> str:
        """Return what it printed to stderr."""
        return self._contents().stderr

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Rich displays: ``{"data": {mime type: …}, "metadata": {…}}``."""
        return self._contents().outputs

    def __repr__(self) -> str:
        if self._final.reason:
            shown: Any = self.failure
        else:
            shown = self._unpacked()
        return f"TaskResult[ID:{self._final.id}]:{shown!r}"

    def _repr_html_(self) -> str:
        return self.html()

    def html(self, displays: bool = True) -> str:
        """Return the result as HTML; displays=False: without its figures and tables."""
        final, body = self._final, self._contents()
        where = f" on engine {final.engine_id}" if final.engine_id >= 0 else ""
        state = self.status if final.reason in ("", self.status) else f"{self.status}: {final.reason}"
        parts = [f"<div><b>task {final.id}</b> {html.escape(state)}{where} in {final.run_s:.3f} s</div>"]
        parts += [text_html(body.stdout), text_html(body.stderr, error=True)]
        parts += [output_html(output) for output in body.outputs if displays]
        if final.reason:
            failure = self.failure
            parts.append(text_html(failure.getTraceback() if failure else "", error=True))
        elif body.kind == "names":
            parts += [f"<div><code>{html.escape(name)}</code>{value_html(v)}</div>" for name, v in self.results.items()]
        else:
            parts.append(value_html(self._unpacked()))
        return "".join(parts)

    # Unpacking

    @property
    def _is_large(self) -> bool:
        """Some of it lay in blobs; known only of results that came by themselves."""
        return bool(self._final.blobs)

    def _contents(self) -> ResultBody:
        body = self._body
        if body is None:
            body = self._body = decode_body(self._final)
        return body

    def _unpacked(self) -> Any:
        if self._value is _NOTHING:
            body = self._contents()
            if self._final.reason or body.value is None:
                self._value = {} if body.kind == "names" else None
            else:
                self._value = unpack(body.value)
        return self._value


def failure_text(failure: WireFailure | None) -> str:
    """Return one line for a table."""
    return "" if failure is None else f"{failure.etype}: {failure.value}"
