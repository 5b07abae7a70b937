"""The notice on a replacement engine that names of the lost engine may be missing, added to errors about
missing names.
"""

from __future__ import annotations

import msgspec

from ..core.messages.task_types import FailureSummary

_notices: list[str] = []


def remember(notice: str) -> None:
    """Store the notice: which engine was replaced, and what was not repeated on the replacement."""
    _notices[:] = [notice]


def forget() -> None:
    """Forget the notice, because the namespace was cleared on purpose: a missing name was not lost."""
    _notices.clear()


def note_on(error: BaseException) -> str:
    """Add the notice to an error about a missing name. Return the notice; "" if nothing was added."""
    if not _notices or type(error) is not NameError:
        return ""
    if _notices[0] not in getattr(error, "__notes__", ()):
        error.add_note(_notices[0])
    return _notices[0]


def with_note(failure: FailureSummary, note: str) -> FailureSummary:
    """Return a failure with the note after its text."""
    return msgspec.structs.replace(failure, value=f"{failure.value}\n{note}")
