"""Describes errors whatever their classes do: in full where possible, else by type and text."""

from __future__ import annotations

from ..core.messages.payload import FailureBody
from ..core.messages.task_types import FailureSummary
from ..core.text import text_of
from . import loss
from .failures import describe

NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 2000


def described(error: BaseException, filename: str = "", code: str = "") -> tuple[FailureSummary, FailureBody]:
    """Return an error in the two forms of `failures.describe`; its traceback is dropped.

    An exception's own class may do anything when it is examined. In that case only its type and its text are given.
    """
    note = loss.note_on(error)
    try:
        found = describe(error, filename, code)
    except BaseException as problem:
        failure = brief(error, problem)
        found = failure, FailureBody(failure.etype, failure.value)
    if note:
        found = loss.with_note(found[0], note), found[1]
    BaseException.with_traceback(error, None)  # the class may override __setattr__
    return found


def brief(error: BaseException, problem: BaseException) -> FailureSummary:
    """Return an error by its type's qualified name and as much of its text as is available.

    `problem` is the reason why there is no more.
    """
    kind = type(error)
    is_plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"
    why = "" if problem is error else f" (no more can be told: {type(problem).__name__}: {text_of(problem):.200})"
    return FailureSummary(text_of(name)[:NAME_CHARS_MAX], f"{text_of(error)[:TEXT_CHARS_MAX]}{why}")
