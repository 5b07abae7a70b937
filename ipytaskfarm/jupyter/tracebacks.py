"""Errors as short as local ones: the user's frames on the engine, and not those of the farm around them.

An exception that has `_render_traceback_` shows itself so, in a terminal and in a notebook; it is raised all the same,
so the cell has failed, and ``%tb`` and ``%debug`` find what they always find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from IPython.core.error import UsageError

from ..core.errors import CompositeError, RemoteError
from ..display.cells import with_cells

SHOWN_TRACEBACKS = 3
"""Of an error that several engines raised."""


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """What is raised inside shows itself short."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise shorten(error)  # noqa: B904 - it is the same error


def shorten(error: Exception) -> Exception:
    """Make an error show itself short: its text, and below which frames of the user's it was raised on the engine."""
    lines = _lines(error)
    # IPython shows every SyntaxError as one of the cell's own, below all frames of the farm.
    is_theirs = isinstance(error, SyntaxError) and hasattr(error, "remote_traceback")
    shown = RemoteError(type(error).__name__, str(error)) if is_theirs else error
    with contextlib.suppress(AttributeError, TypeError):  # an exception type with slots of its own
        shown._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return shown


def _lines(error: Exception) -> list[str]:
    if isinstance(error, CompositeError):
        return _composite(error)
    text = with_cells(getattr(error, "remote_traceback", ""))
    engine_id = getattr(error, "engine_id", None)
    if text:
        return [f"on engine {engine_id}: {text.strip()}" if engine_id is not None else text.strip()]
    return [f"{type(error).__name__}: {error}"]


def _composite(error: CompositeError) -> list[str]:
    lines = []
    for engine_id, _, inner in error.elist[:SHOWN_TRACEBACKS]:
        text = with_cells(getattr(inner, "remote_traceback", "")) or f"{type(inner).__name__}: {inner}"
        lines.append(f"on engine {engine_id}: {text.strip()}")
    more = len(error.elist) - SHOWN_TRACEBACKS
    if more > 0:
        lines.append(f"… and {more} more: `err.print_tracebacks()` of the CompositeError shows all")
    return lines
