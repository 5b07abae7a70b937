"""The least that is told of an error, when its own class keeps all else from being told: its type and its text."""

from __future__ import annotations

from ..core.parcels import Failure
from ..core.text import text_of

NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 2000


def brief(error: BaseException, problem: BaseException) -> Failure:
    """An error by its type's qualified name and as much of its text as can be had.  problem: why there is no more."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    why = "" if problem is error else f" (no more can be told: {type(problem).__name__}: {text_of(problem):.200})"
    return Failure(text_of(name)[:NAME_CHARS_MAX], f"{text_of(error)[:TEXT_CHARS_MAX]}{why}")
