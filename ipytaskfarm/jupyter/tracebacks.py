"""Show short tracebacks: the frames of the user's code on the engine, without those of the farm.

IPython displays an exception by its method `_render_traceback_`, in terminals and notebooks.  The exception is still
raised, so the cell fails, and ``%tb`` and ``%debug`` work as usual.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from IPython.core.error import UsageError

from ..core.errors import CompositeError, RemoteError
from ..core.messages.payload import CellPlace
from ..core.text import text_of
from ..system.user_code import with_cells

SHOWN_TRACEBACKS = 3
"""Number of tracebacks that are shown if several engines raised errors."""


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Give exceptions that are raised inside a short display."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise shorten(error)  # noqa: B904 - it is the same error


def shorten(error: Exception) -> Exception:
    """Give an error a short display: its text, and the frames of the user's code on the engine."""
    if isinstance(error, SyntaxError) and not hasattr(error, "remote_traceback"):  # an expression in the magic's line
        return UsageError(f"{(error.text or '').strip()!r} is no expression: {error.msg}")
    lines = _lines(error)
    # IPython shows every SyntaxError as an error of the cell itself, below all frames of the farm.
    shown = RemoteError(type(error).__name__, text_of(error)) if isinstance(error, SyntaxError) else error
    with contextlib.suppress(AttributeError, TypeError):  # the exception type has slots
        shown._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return shown


def _lines(error: Exception) -> list[str]:
    if isinstance(error, CompositeError):
        return _composite(error)
    text = with_cells(getattr(error, "remote_traceback", ""))
    engine_id = getattr(error, "engine_id", None)
    if text:
        shown = f"on engine {engine_id}: {text.strip()}" if engine_id is not None else text.strip()
        return [shown, *_notes_beyond(error, text)]
    return [f"{type(error).__name__}: {text_of(error)}"]


def _notes_beyond(error: Exception, text: str) -> list[str]:
    """Return the notes that the client has added, without the place, which the traceback shows."""
    notes = [str(each) for each in getattr(error, "__notes__", None) or ()]
    return [
        each
        for each in notes
        if not each.startswith("raised on engine ") and not all(line in text for line in each.splitlines())
    ]


def _composite(error: CompositeError) -> list[str]:
    lines = []
    for engine_id, _, inner in error.elist[:SHOWN_TRACEBACKS]:
        text = with_cells(getattr(inner, "remote_traceback", "")) or f"{type(inner).__name__}: {inner}"
        lines.append(f"on engine {engine_id}: {text.strip()}")
    more = len(error.elist) - SHOWN_TRACEBACKS
    if more > 0:
        lines.append(f"… and {more} more: `err.print_tracebacks()` of the CompositeError shows all")
    return [*lines, *map(str, getattr(error, "__notes__", ()))]


def cell_place(shell: Any, code: str) -> CellPlace:
    """Return where code stands that a magic was given, for tracebacks: the file name of the cell that runs now."""
    history = shell.history_manager.input_hist_raw
    cell = history[-1].rstrip() if history else ""
    body = code.rstrip()
    number = len(history) - 1  # IPython has counted on already, but not every version of it
    if not body or not cell.endswith(body):  # another magic has changed the text, or the shell keeps no history
        cell, number = f"%%task\n{body}", shell.execution_count
    # IPython's own name for the cell, of which IPython tells the number and shows the lines.
    file: str = shell.compile.cache(cell, number, raw_code=cell)
    return CellPlace(file, cell[: len(cell) - len(body)].count("\n"))
