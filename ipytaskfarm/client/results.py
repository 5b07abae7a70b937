"""The results of tasks: `TaskResult`, its namespace `NS`, and `Failure`.

A result is unpickled on its first use, in the thread that uses it.  So fetching 20,000 results does not cost 20,000
unpicklings, and the user's code that unpickling may run does not run in the IO thread.
"""

from __future__ import annotations

import builtins
import contextlib
import html
import re
import sys
import traceback
from datetime import datetime
from textwrap import indent
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

import msgspec

from ..core import errors
from ..core.messages.payload import ResultBody
from ..core.messages.task_types import Final
from ..core.states import ABORTS, Reason, State
from ..core.text import Text, did_you_mean, error_line, is_of_library, place_beside, shown, text_of
from ..display.ipython import show_figures, show_users_frames
from ..display.text import local_time, span, stamp
from ..serialization.pack import note_rebuild, traceback_of, unpack, unpack_error
from ..system.user_code import with_cells
from .old_names import OldNames
from .output_printer import in_order, output_html, text_html, value_html
from .python2 import add_remedy, tell_of_iterators
from .session_hints import add_hints

_decode_body = msgspec.msgpack.Decoder(ResultBody).decode

_NOTHING = ResultBody()
_MADE_NAME = re.compile(r"<(task|cell) [0-9a-f-]+>")

_USUAL_LIMIT = 1000
"""Python's recursion limit, with which tasks begin unless all engines have another one."""
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
    """Return the decoded body of a final state; an empty body if the task left none.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        return _decode_body(final.body) if final.body else _NOTHING
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.TaskError(f"the result of task {final.id} is none that the farm has written: {error}") from None


def _add_last_lines(error: BaseException, text: str) -> None:
    lines = text.strip().splitlines()[-_LAST_LINES:]
    if lines:
        error.add_note("it had written to its standard error: " + "\n".join(lines)[-_LAST_CHARACTERS:])


_LAST_LINES = 3
_LAST_CHARACTERS = 500


def error_named(etype: str, text: str) -> Exception:
    """Return an error by its name in `core.errors` or the builtins; a RemoteError for any other name."""
    found = getattr(errors, etype, None) or getattr(builtins, etype, None)
    if isinstance(found, type) and issubclass(found, Exception) and found is not errors.CompositeError:
        try:
            return found(text)
        except TypeError:
            pass
    return errors.RemoteError(etype, text)


def error_of(final: Final, body: ResultBody) -> BaseException:
    """Return the exception of a failed task: the one that the task raised, or else one for the reason of
    the failure.
    """
    error: BaseException | None = None
    if final.reason in ABORTS:
        # An aborted task has raised TaskCancelled, but its caller gets TaskAborted.
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
    place = final.failure.place if final.failure is not None else ""
    sign(error, final.engine_id, body.failure.traceback if body.failure else "", place)
    show_users_frames(error)
    return error


_SIGNED = "raised on engine "


def sign(error: BaseException, engine_id: int, traceback_text: str, place: str = "") -> None:
    """Set `engine_id` and `remote_traceback` of an exception, and add its engine to the printed text.

    place: the innermost frame of the user's code, where it is known.

    The frames of the engine are usually part of the exception's traceback.  If there are none, as in a result of an
    older farm, the text of the traceback is added.
    """
    for attribute, value in (("engine_id", engine_id), ("remote_traceback", traceback_text)):
        with contextlib.suppress(Exception):  # the exception type has slots, or its __getattr__ raises
            if not hasattr(error, attribute):
                setattr(error, attribute, value)
    own: dict[str, Any] = object.__getattribute__(error, "__dict__")
    notes = own.get("__notes__") or []
    if traceback_text and not any(str(note).startswith(_SIGNED) for note in notes):
        notes = [
            *notes,
            f"{_SIGNED}{engine_id}{with_cells(f': {place}') if place else _place_or(traceback_text, error)}",
        ]
        if isinstance(error, RecursionError) and sys.getrecursionlimit() > _USUAL_LIMIT:
            notes.append(
                f"the recursion limit is {sys.getrecursionlimit()} here, and that of its engine in a task: call "
                "sys.setrecursionlimit in the function, or for all engines with mec.execute(…)"
            )
        own["__notes__"] = notes
    if traceback_text:
        add_hints(error, traceback_text)
    add_remedy(error)


def _place_or(text: str, error: BaseException) -> str:
    """Return the innermost place of an error, or the text if it has none and the text says more than the error."""
    places = traceback.extract_tb(traceback_of(error), limit=-1)
    if not places:
        with contextlib.suppress(Exception):  # the exception's class may do anything when it is asked
            if text.rstrip() == "".join(traceback.format_exception(error)).rstrip():
                return ""
        return f":\n{text.rstrip()}"
    if isinstance(error, SyntaxError) and not (error.filename or "<").startswith("<"):
        return f": {error.filename}:{error.lineno}"  # a file that is no Python: its faulty line
    return with_cells(f": {places[0].filename}:{places[0].lineno} in {places[0].name}")


class MissingName(KeyError):
    """Raised if a task has no result of this name: a KeyError that is printed as a sentence."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NS:
    """The results of a task as attributes and as items: ``tr.ns.a``, ``tr.ns["a"]``."""

    def __init__(self, names: dict[str, Any], owner: TaskResult | None = None) -> None:
        self.__dict__.update(names)
        # The instance dict holds the results alone, so the owner is kept in a slot.
        object.__setattr__(self, "_task_result_", owner)

    __slots__ = ("__dict__", "_task_result_")

    def __getattr__(self, name: str) -> Any:
        owner: TaskResult | None = object.__getattribute__(self, "_task_result_")
        if owner is None or name.startswith("__"):  # e.g. copy and pickle look for special methods
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


def _variable(name: str, value: str) -> str:
    """Return a line about a variable; a value of several lines, such as a table, begins on a line of its own."""
    return f"    {name} =\n{indent(value, ' ' * 8)}" if "\n" in value else f"    {name} = {value}"


FRAMES_SHOWN = 3
"""The number of frames of which `explain` and the HTML show the variables."""


class FailedFrame(NamedTuple):
    """One frame of the user's code that a failure went through."""

    file: str
    line: int
    function: str
    variables: dict[str, str]
    """Local variables with short texts of their values.  They come with the innermost frames only."""


class Failure(OldNames):
    """Why a task failed, with the interface of Twisted's Failure, which IPython 0.10 used.

    Attributes: `type` (the exception's class), `value` (the exception itself), `etype` (the class's name).
    """

    def __init__(self, value: BaseException, traceback_text: str = "", place: str = "") -> None:
        self.value = value
        self.type = type(value)
        self.place = with_cells(place)
        self._traceback_text = with_cells(traceback_text)
        self._frames = traceback_of(value)

    @property
    def etype(self) -> str:
        """Return the name of the exception's type, as on the engine."""
        return self.value.etype if isinstance(self.value, errors.RemoteError) else self.type.__name__

    def getErrorMessage(self) -> str:  # noqa: N802 - Twisted's name
        """Return the text of the exception."""
        text = self.value.value if isinstance(self.value, errors.RemoteError) else text_of(self.value)
        # The file name of a task's code is made for its engine, and is ``<task>`` in every place.
        return _MADE_NAME.sub("<task>", text) if self.etype == "SyntaxError" else text

    def getTraceback(self) -> str:  # noqa: N802 - Twisted's name
        """Return the remote traceback as text, with the frames of the user's code."""
        return self._traceback_text or self._summary()

    def getBriefTraceback(self) -> str:  # noqa: N802 - Twisted's name
        """Return type and message, then a line ``file:line:function`` for each frame, the outermost first."""
        places = traceback.extract_tb(self._frames)
        frames = [f"{place.filename}:{place.lineno}:{place.name}" for place in places]
        lines = frames or ([self.place] if self.place else [])
        return "\n".join([f"Traceback: {error_line(self.etype, self.getErrorMessage())}", *lines]) + "\n"

    def printTraceback(self, file: TextIO | None = None) -> None:  # noqa: N802 - Twisted's name
        """Print the remote traceback.  file: where to print; None: sys.stderr."""
        print(self.getTraceback().rstrip("\n"), file=file or sys.stderr)

    @property
    def frames(self) -> list[FailedFrame]:
        """Return the frames of the user's code on the engine, the outermost first.

        The farm's setting `failure_values` says which local variables came along.
        """
        found = []
        for frame, line in traceback.walk_tb(self._frames):
            code = frame.f_code
            # Frames that came from an engine hold texts; others are of this process, and hold values.
            variables = {name: str(value) for name, value in frame.f_locals.items() if isinstance(value, Text)}
            found.append(FailedFrame(with_cells(code.co_filename), line, code.co_name, variables))
        return found

    def variables(self) -> str:
        """Return the local variables of the innermost frames as text: of the user's own code, or else of all."""
        told = [frame for frame in self.frames if frame.variables]
        told = [frame for frame in told if not is_of_library(frame.file)] or told
        return "\n".join(
            f"in {frame.function}, line {frame.line}:\n"
            + "\n".join(_variable(name, value) for name, value in frame.variables.items())
            for frame in told[-FRAMES_SHOWN:]
        )

    def check(self, *types: type[BaseException] | str) -> type[BaseException] | str | None:
        """Return the first of these exception types that matches, or None.

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
        """Return the first of these exception types that matches.  Raises the task's exception if none does."""
        found = self.check(*types)
        if found is None:
            self.raiseException()
        return found

    @property
    def tb(self) -> TracebackType | None:
        """Return the traceback object, with the frames of the user's code on the engine."""
        return self._frames

    def printBriefTraceback(self, file: TextIO | None = None) -> None:  # noqa: N802 - Twisted's name
        """Print `getBriefTraceback`.  file: where to print; None: sys.stderr."""
        print(self.getBriefTraceback().rstrip("\n"), file=file or sys.stderr)

    printDetailedTraceback = printTraceback  # noqa: N815 - Twisted's name

    def cleanFailure(self) -> None:  # noqa: N802 - Twisted's name
        """Do nothing: a failure holds no frames with the engine's values."""

    def _summary(self) -> str:
        text = self.getErrorMessage()
        return f"{error_line(self.etype, text)}{place_beside(text, self.place)}"

    def raiseException(self) -> NoReturn:  # noqa: N802 - Twisted's name
        """Raise the task's exception, of its own type if that type can be imported here."""
        # Without with_traceback each call would add frames to the traceback of the last one.
        raise BaseException.with_traceback(self.value, self._frames)

    def __repr__(self) -> str:
        return f"<Failure {error_line(self.etype, self.getErrorMessage())}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the frames, which no pickle takes: the traceback stays as text."""
        return Failure, (self.value, self._traceback_text, self.place)


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


class TaskResult:
    """The result of one task.  It is unpickled on first use.

    Attributes: `taskid`, `engineid`, `results` (a dict, empty on failure), `keys`, `failure` (None or a `Failure`),
    `ns`, `result`, `submitted`, `completed`, `duration`, and those documented below.

    ``tr['a']`` is ``tr.results['a']``.  `ns`, ``tr['a']`` and `result` raise the exception of a failed task.
    """

    __slots__ = ("_final", "_body", "_value", "_failure")

    def __init__(self, final: Final, body: ResultBody | None = None) -> None:
        self._final = final
        self._body = body
        self._value: Any = _NOTHING
        self._failure: Failure | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property has raised an AttributeError, such as the task's own
                return object.__getattribute__(self, name)
            of_ns = not name.startswith("_") and name in self.keys
            hint = f": a pulled name is tr.ns.{name}, tr[{name!r}]" if of_ns else ""
            raise AttributeError(f"'TaskResult' object has no attribute {name!r}{hint}", name=name, obj=self)

    # Identity and state

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
        """Return ``succeeded`` or ``failed``."""
        return str(State.FAILED if self._final.reason else State.SUCCEEDED)

    @property
    def from_cache(self) -> bool:
        """Return whether the result was taken from the result cache, so that the task ran nowhere."""
        return self._final.from_cache

    @property
    def reason(self) -> str:
        """Return why the task failed: error, aborted, time limit, engine lost …; "" if it succeeded."""
        return self._final.reason

    # Values and errors

    @property
    def results(self) -> dict[str, Any]:
        """Return a dict of the pulled names; {} for a failed task and for a function call."""
        value = self._value if self._value is not _NOTHING else self._unpacked()
        return value if value.__class__ is dict and self._contents().kind == "names" else {}

    @property
    def result(self) -> Any:
        """Return the return value of a function call, or the dict of a StringTask.

        Raises the exception of a failed task.
        """
        self.raise_exception()
        return self._unpacked()

    @property
    def keys(self) -> list[str]:
        """Return the pulled names."""
        return list(self.results)

    @property
    def ns(self) -> NS:
        """Return the pulled names as attributes.  Raises the exception of a failed task."""
        self.raise_exception()
        return NS(self.results, self)

    def __getitem__(self, name: str) -> Any:
        if self._final.reason:
            self.raise_exception()
        try:
            return self.results[name]
        except KeyError:
            raise MissingName(self.without(name)) from None

    def without(self, name: object) -> str:
        """Return a sentence for an error: why there is no result of this name, and what to do."""
        if self._contents().kind != "names":
            return f"task {self.taskid} called a function: its return value is .result, and it has no name {name!r}"
        pulled = self.keys
        near = did_you_mean(name, pulled)
        found = f"it pulled {', '.join(map(repr, pulled))}{near}" if pulled else "it pulled nothing"
        again = f"; Task(…, pull={shown([*pulled, name] if pulled else name)}) brings it back" if not near else ""
        return f"task {self.taskid} has no result {name!r}: {found}{again}"

    @property
    def failure(self) -> Failure | None:
        """Return the failure of a failed task; None for one that succeeded."""
        if self._final.reason and self._failure is None:
            body = self._contents()
            place = self._final.failure.place if self._final.failure else ""
            text = body.failure.traceback if body.failure else ""
            error = error_of(self._final, body)
            if self._final.failure is not None and self._final.failure.etype == "SystemExit":
                # A program's parser of arguments says only there what it wanted.
                _add_last_lines(error, body.stderr)
            self._failure = Failure(error, text, place)
        return self._failure

    def raise_exception(self) -> None:
        """Raise the exception of a failed task; do nothing for one that succeeded."""
        failure = self.failure
        if failure is not None:
            raise BaseException.with_traceback(failure.value, failure._frames)

    raiseException = raise_exception  # noqa: N815 - IPython 0.10's name

    # Times

    @property
    def submitted(self) -> str:
        """Return the time of submission as text in local time, as in IPython 0.10."""
        return stamp(self._final.submitted_s)

    @property
    def completed(self) -> str:
        """Return the time of the end as text in local time, as in IPython 0.10."""
        return stamp(self._final.completed_s)

    @property
    def duration(self) -> float:
        """Return the seconds of the last run, without the time in the queue."""
        return self._final.run_s

    @property
    def submitted_at(self) -> datetime:
        """Return the time of submission, with a time zone."""
        return local_time(self._final.submitted_s)

    @property
    def started_at(self) -> datetime:
        """Return when the last run began, with a time zone."""
        return local_time(self._final.started_s)

    @property
    def completed_at(self) -> datetime:
        """Return when the task ended, with a time zone."""
        return local_time(self._final.completed_s)

    @property
    def attempts(self) -> list[Attempt]:
        """Return all attempts, the last one included."""
        final = self._final
        rows = [
            Attempt(r.number, r.engine_id, r.node, local_time(r.started_s), local_time(r.ended_s), r.outcome)
            for r in final.history
        ]
        if final.attempts > len(rows):
            started, ended = local_time(final.started_s), local_time(final.started_s + final.run_s)
            rows.append(Attempt(final.attempts, final.engine_id, final.node, started, ended, final.reason))
        return rows

    # Output

    @property
    def stdout(self) -> str:
        """Return what the task printed to stdout."""
        return self._contents().stdout

    @property
    def stderr(self) -> str:
        """Return what the task printed to stderr."""
        return self._contents().stderr

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Return the rich displays of the task: dicts ``{"data": {mime type: …}, "metadata": {…}}``."""
        return self._contents().outputs

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the farm said: what was unpacked here, such as a traceback, is unpacked again."""
        return TaskResult, (self._final, self._body if self._final.body is None else None)

    def __repr__(self) -> str:
        return f"TaskResult[ID:{self._final.id}]:{self._shown()!r}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the value as IPython shows it alone: of a long list the first thousand items, not all."""
        head = f"TaskResult[ID:{self._final.id}]:"
        with printer.group(len(head), head):
            printer.pretty(self._shown())

    def _shown(self) -> Any:
        return self.failure if self._final.reason else self._unpacked()

    def _repr_html_(self) -> str:
        return self.html()

    def html(self, displays: bool = True) -> str:
        """Return the result as HTML; displays=False: without figures and tables."""
        final, body = self._final, self._contents()
        where = f" on engine {final.engine_id}" if final.engine_id >= 0 else ""
        state = self.status if final.reason in ("", self.status) else f"{self.status}: {final.reason}"
        took = f" in {span(final.run_s)}" if final.run_s else ""  # an aborted task may never have run
        parts = [f"<div><b>task {final.id}</b> {html.escape(state)}{where}{took}</div>"]
        shown = enumerate(body.outputs if displays else ())
        parts += [
            text_html(text) if output is None else output_html(output)
            for text, _, output in in_order(body.stdout, len(body.stdout), shown)
        ]
        parts.append(text_html(body.stderr, error=True))
        if final.reason:
            failure = self.failure
            parts.append(text_html(failure.getTraceback() if failure else "", error=True))
            variables = failure.variables() if failure else ""
            if variables:
                parts.append(f"<details><summary>local variables</summary>{text_html(variables)}</details>")
        elif body.kind == "names":
            parts += [f"<div><code>{html.escape(name)}</code>{value_html(v)}</div>" for name, v in self.results.items()]
        else:
            parts.append(value_html(self._unpacked()))
        return "".join(parts)

    # Unpacking

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
                try:
                    self._value = unpack(body.value)
                except Exception as error:
                    note_rebuild(error, f"the result of task {self.taskid}, which has succeeded, was rebuilt here")
                    raise
                except SystemExit as error:  # a module that it needs ends the program when it is imported
                    text = f"rebuilding the result of task {self.taskid}, which has succeeded, ended with {error!r}"
                    raise errors.TaskError(f"{text}: import what it needs without that") from error
                show_figures()
                if body.kind == "names":
                    tell_of_iterators(self._value)
        return self._value
