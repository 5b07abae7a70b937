"""What this engine is the replacement of: whoever misses a name here is told that its bearer may have been lost."""

from __future__ import annotations

import msgspec

from ..core.messages.task_types import FailureSummary

_notices: list[str] = []


def remember(notice: str) -> None:
    """Note what the engine replaces, and what was not done again on it."""
    _notices[:] = [notice]


def forget() -> None:
    """The namespace was emptied on purpose: a name that is missing now was not lost."""
    _notices.clear()


def note_on(error: BaseException) -> str:
    """Add the notice to an error about a missing name, and return what was added.  "": nothing."""
    if not _notices or type(error) is not NameError:
        return ""
    if _notices[0] not in getattr(error, "__notes__", ()):
        error.add_note(_notices[0])
    return _notices[0]


def with_note(failure: FailureSummary, note: str) -> FailureSummary:
    """Return a failure with the note behind its text."""
    return msgspec.structs.replace(failure, value=f"{failure.value}\n{note}")
