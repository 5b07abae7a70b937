"""ipyparallel's errors.  Each error of an engine has ours as its cause.

Errors with the same meaning in both packages are the farm's own classes, for example `TaskAborted`.  Only errors with
another interface are classes of this module.  Their names in tracebacks are ipyparallel's, which programs and their
users know.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn

from ipytaskfarm.core import errors

PUBLIC = "ipytaskfarm.ipyparallel"

IPythonError = errors.TaskFarmError
KernelError = errors.KernelError
NoEnginesRegistered = errors.NoEnginesRegistered
TaskAborted = errors.TaskAborted
TaskTimeout = errors.TaskTimeout
TaskRejectError = errors.TaskRejectError
TimeoutError = builtins.TimeoutError

EngineInfo = dict[str, Any]
"""``engine_id``, ``engine_uuid`` and ``method`` (apply, execute …) of a call that failed."""


class UnmetDependency(errors.TaskRejectError):
    """Raised by a task that must not run on this engine: the task goes to another one."""


class ImpossibleDependency(UnmetDependency):
    """No engine can run the task, or a task that it depends on has failed."""


class DependencyTimeout(ImpossibleDependency):
    """The dependencies of a task were not met within the `timeout` of its view."""


class InvalidDependency(ImpossibleDependency):
    """A task depends on a task that does not exist."""


class EngineFailure(errors.RemoteError):
    """An exception on an engine; ipyparallel's ``RemoteError``.

    Attributes: `ename` and `evalue` (name and text of the exception), `traceback` (a text), `engine_info`. The
    exception itself is `__cause__`.
    """

    def __init__(self, ename: str, evalue: str, traceback: str = "", engine_info: EngineInfo | None = None) -> None:
        super().__init__(ename, evalue)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback
        self.engine_info: EngineInfo = engine_info or {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}[{self.engine_info.get('engine_id', ' ')}]:{self.ename}({self.evalue})>"

    def __str__(self) -> str:
        return f"{place(self.engine_info)} {self.ename}: {self.evalue}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ename, self.evalue, self.traceback, self.engine_info)

    def render_traceback(self) -> list[str]:
        """Return the engine's traceback as lines."""
        return [place(self.engine_info), *(self.traceback or "No traceback available").splitlines()]

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of the frames of this process."""
        return self.render_traceback()

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the engine's traceback; `excid` is for errors of several engines."""
        print("\n".join(self.render_traceback()))


class EngineError(EngineFailure, errors.EngineLost):
    """The engine was lost during the call; the text names the engine, and how it ended."""


class EngineFailures(EngineFailure):
    """Exceptions of one or more engines; ipyparallel's ``CompositeError``.

    ``elist`` has a tuple (ename, evalue, traceback, engine_info) for each of them, ``exceptions`` the errors
    themselves.
    """

    tb_limit: ClassVar[int] = 4
    """Number of tracebacks that are shown."""

    def __init__(self, message: str, elist: Iterable[tuple[str, Any, str, EngineInfo]]) -> None:
        found = list(elist)
        super().__init__("CompositeError", message)
        self.msg = message
        self.elist = found
        self.args = tuple(each[0] for each in found)
        self.exceptions: list[BaseException] = []

    def __str__(self) -> str:
        lines = [self.msg, *(f"{place(info)}{name}: {text}" for name, text, _, info in self.elist[: self.tb_limit])]
        if len(self.elist) > self.tb_limit:
            lines.append(f".... {len(self.elist) - self.tb_limit} more exceptions ...")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"CompositeError({len(self.elist)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.msg, self.elist)

    def render_traceback(self, excid: int | None = None) -> list[str]:
        """Return the tracebacks as lines: one of them, or the first `tb_limit`."""
        chosen = self.elist[: self.tb_limit] if excid is None else [self._pick(excid)]
        lines: list[str] = []
        for _, _, traceback, info in chosen:
            lines += [f"{place(info)}:", *(traceback or "No traceback available").splitlines(), ""]
        if excid is None and len(self.elist) > self.tb_limit:
            lines.append(f"... {len(self.elist) - self.tb_limit} more exceptions ...")
        return lines

    def print_traceback(self, excid: int | None = None) -> None:
        """Print one traceback, or the first `tb_limit`."""
        print("\n".join(self.render_traceback(excid)))

    def raise_exception(self, excid: int = 0) -> None:
        """Raise one of the errors.  Raises IndexError if there is none of that number."""
        picked = self._pick(excid)
        if self.exceptions:
            raise self.exceptions[excid]
        raise EngineFailure(*picked)

    def _pick(self, excid: int) -> tuple[str, Any, str, EngineInfo]:
        try:
            return self.elist[excid]
        except IndexError:
            raise IndexError(f"an exception with index {excid} does not exist") from None


class AlreadyDisplayedError(EngineFailure):
    """An error of ``%px`` that was shown while the cell was running."""

    def __init__(self, original_error: EngineFailures) -> None:
        super().__init__("AlreadyDisplayedError", "")
        self.original_error = original_error
        self.n = len(original_error.elist)

    def __repr__(self) -> str:
        return f"<AlreadyDisplayedError({self.n} errors)>"

    def __str__(self) -> str:
        return f"{self.n} errors"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.original_error,)

    def render_traceback(self) -> list[str]:
        """Return the number of errors, in place of their tracebacks."""
        return [str(self)]


def _show_as(kind: type, name: str) -> None:
    kind.__name__ = kind.__qualname__ = name
    kind.__module__ = PUBLIC


_show_as(EngineFailure, "RemoteError")
_show_as(EngineFailures, "CompositeError")

RemoteError = EngineFailure
CompositeError = EngineFailures


def place(info: EngineInfo) -> str:
    """Return the engine and the kind of a call, as error texts show them."""
    return f"[{info['engine_id']}:{info['method']}]" if info else "[Engine Exception]"


_NAMES: dict[type[BaseException], str] = {
    errors.EngineLost: "EngineError",
    errors.Quarantined: "EngineError",
    errors.DependencyFailed: "ImpossibleDependency",
    errors.TaskSkipped: "ImpossibleDependency",
    errors.TaskRejectError: "ImpossibleDependency",
    UnmetDependency: "ImpossibleDependency",
}
"""Errors that have another name in ipyparallel when they end a call."""
_UNCHANGED = (
    EngineFailure,
    errors.TaskAborted,
    errors.ConnectionError,
    errors.NoEnginesRegistered,
    errors.InvalidEngineID,
    errors.InvalidDeferredID,
    errors.StoreError,
)
"""Errors that are not about one engine's call."""


def in_ipyparallels_words(error: BaseException, info: EngineInfo) -> BaseException:
    """Return the error that ipyparallel would raise for an error of an engine or a task, with `error` as its cause."""
    if isinstance(error, _UNCHANGED):
        return error
    found: BaseException
    if isinstance(error, errors.QueueCleared):
        found = errors.TaskAborted(str(error))
    else:
        kind = EngineError if isinstance(error, errors.EngineLost | errors.Quarantined) else EngineFailure
        found = kind(_name_of(error), _text_of(error), getattr(error, "remote_traceback", "") or "", info)
    found.__cause__ = error
    return found


def _name_of(error: BaseException) -> str:
    if isinstance(error, errors.RemoteError):
        return error.etype.rpartition(".")[2]
    if isinstance(error, errors.UnpickleableException) and error.__cause__ is not None:
        return type(error.__cause__).__name__  # pickle's own error, as programs know it
    return _NAMES.get(type(error), type(error).__name__)


def _text_of(error: BaseException) -> str:
    return str(error.value) if isinstance(error, errors.RemoteError) else str(error)


def raise_together(failed: list[BaseException], method: str) -> NoReturn:
    """Raise the errors of several calls: a CompositeError, or the first error if none is an engine's."""
    if not any(isinstance(each, EngineFailure) for each in failed):
        raise failed[0]
    found: list[tuple[str, Any, str, EngineInfo]] = []
    members: list[BaseException] = []
    for each in failed:
        if isinstance(each, EngineFailures):
            found += each.elist
            members += each.exceptions
        elif isinstance(each, EngineFailure):
            found.append((each.ename, each.evalue, each.traceback, each.engine_info))
            members.append(each)
        else:
            found.append((type(each).__name__, str(each), "", {}))
            members.append(each)
    error = EngineFailures(f"one or more exceptions raised in: {method}", found)
    error.exceptions = members
    error.__cause__ = members[0].__cause__
    raise error
