"""What the user's IPython knows and shows: its shell, short tracebacks.

IPython is not imported: a running shell is found, and a script that has not loaded IPython has none.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import opcode
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import TaskFarmError

# -- the shell


def user_shell() -> Any:
    """Return the IPython shell of a user, in a notebook or a terminal; None: there is none.

    The shell of an engine does not count.
    """
    find_shell = getattr(builtins, "get_ipython", None)
    shell = find_shell() if find_shell is not None else None
    kernel = getattr(shell, "kernel", None)
    return None if type(kernel).__module__.startswith("ipytaskfarm.") else shell


def notebook_shell() -> Any:
    """Return the shell of a notebook's kernel; None: this is no notebook."""
    shell = user_shell()
    return shell if getattr(shell, "kernel", None) is not None else None


_INLINE = "matplotlib_inline.backend_inline"


def show_figures() -> None:
    """Let a notebook show figures that a value from an engine may have brought.

    matplotlib's backend for notebooks teaches IPython to show figures when the first one is made here.  Those from
    engines are made there, and were shown as ``<Figure size 640x480 with 1 Axes>``.
    """
    if "matplotlib.figure" not in sys.modules or _INLINE in sys.modules or notebook_shell() is None:
        return
    # The setting itself: asking matplotlib for its backend would choose one.
    if "inline" in str(dict.get(sys.modules["matplotlib"].rcParams, "backend")):
        with contextlib.suppress(ImportError):
            importlib.import_module(_INLINE)


# -- tracebacks as short as those of local code: the user's frames, without the farm's between them

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARY = ("<frozen ", *{sysconfig.get_path(kind) + "/" for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


class UserFrames:
    """The method ``_render_traceback_`` of one exception, by which IPython and Jupyter display it.

    The exception itself keeps all frames, for `%debug` and for scripts.
    """

    # A class and no closure, because exceptions are pickled with their attributes.
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> list[str]:
        """Return the lines that IPython displays."""
        shell = user_shell()
        return _lines_of(self._error, shell) if shell is not None else []


def show_users_frames(error: BaseException) -> None:
    """Make IPython show only the user's frames of an exception; without IPython do nothing."""
    if user_shell() is None:
        return
    with contextlib.suppress(Exception):  # the exception's class has slots, or refuses attributes
        if not hasattr(error, "_render_traceback_"):
            error._render_traceback_ = UserFrames(error)  # type: ignore[attr-defined]


def _lines_of(error: BaseException, shell: Any) -> list[str]:
    """Return the lines that IPython displays of an error, with the user's frames alone."""
    tb = users_frames(error.__traceback__, is_interrupt=isinstance(error, KeyboardInterrupt) or _is_cancelled(error))
    with _users_chain(error):
        lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, tb)
    return lines


def _lines_of_ours(error: TaskFarmError) -> list[str]:
    """Return the lines that IPython displays of an error of the farm's own classes, also in an engine's console, and in
    a script that IPython runs before its prompt.
    """
    return _lines_of(error, sys.modules["IPython"].get_ipython())


# Here, because `core` does not know IPython; for the class, because its errors are raised in a hundred places.
TaskFarmError._render_traceback_ = _lines_of_ours  # type: ignore[attr-defined]


@contextlib.contextmanager
def _users_chain(error: BaseException) -> Iterator[None]:
    """Take the farm's frames from an error's causes and contexts for the duration of the block.

    A cause whose other frames are all of libraries is left out: of a refused value, the refusal says what pickle said.
    """
    undo: list[Callable[[], object]] = []
    seen = {id(error)}
    each = error
    try:
        while (cause := each.__cause__ or (None if each.__suppress_context__ else each.__context__)) is not None:
            if id(cause) in seen:
                break
            seen.add(id(cause))
            if _is_of_farm(cause.__traceback__):
                users = users_frames(cause.__traceback__, is_interrupt=False)
                if not _is_of_user(users):
                    undo.append(partial(_set_chain, each, each.__cause__, each.__suppress_context__))
                    _set_chain(each, None, True)
                    break
                undo.append(partial(BaseException.with_traceback, cause, cause.__traceback__))
                BaseException.with_traceback(cause, users)
            each = cause
        yield
    finally:
        for step in undo:
            step()


def _set_chain(error: BaseException, cause: BaseException | None, suppresses: bool) -> None:
    # Of the base class, because an exception's own __setattr__ may do anything.
    BaseException.__setattr__(error, "__cause__", cause)
    BaseException.__setattr__(error, "__suppress_context__", suppresses)


def _is_of_farm(tb: TracebackType | None) -> bool:
    return any(frame.f_code.co_filename.startswith(_PACKAGE) for frame, _ in traceback.walk_tb(tb))


def _is_of_user(tb: TracebackType | None) -> bool:
    return any(map(_is_users, _entries(tb)))


def _is_users(entry: TracebackType) -> bool:
    file = entry.tb_frame.f_code.co_filename
    return not file.startswith(_LIBRARY) and not file.startswith(_PACKAGE)


def _entries(tb: TracebackType | None) -> list[TracebackType]:
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    return entries


def _farms(entries: list[TracebackType]) -> list[int]:
    return [place for place, each in enumerate(entries) if each.tb_frame.f_code.co_filename.startswith(_PACKAGE)]


def users_frames(tb: TracebackType | None, is_interrupt: bool) -> TracebackType | None:
    """Return a traceback without the frames of the farm.

    is_interrupt: leave out all below the user's line that called the farm.  Otherwise the frames below the farm's last
    one stay: they are the user's on the engine, or those of a function that the user gave to the farm.  Of those
    between the farm's frames the user's stay: of a generator that calls the farm itself.
    """
    frames = _entries(tb)
    own = _farms(frames)
    if own:
        inner = [] if is_interrupt else list(filter(_is_users, frames[own[0] : own[-1]])) + frames[own[-1] + 1 :]
        frames = frames[: own[0]] + inner
    return _joined(frames)


def _joined(entries: list[TracebackType]) -> TracebackType | None:
    joined: TracebackType | None = None
    for each in reversed(entries):
        joined = TracebackType(joined, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return joined


# -- errors of other classes: the farm refuses an argument with TypeError, ValueError, IndexError, KeyError …

_RAISE = opcode.opmap["RAISE_VARARGS"]


def hide_farms_frames(shell: Any) -> None:
    """Let a shell show refusals, and errors of the user's code that the farm calls, without the farm's frames.

    IPython asks a class how its errors are displayed, and Python's own classes cannot be told.  So each error of these
    two kinds is told before the shell shows it.
    """
    show = shell.showtraceback
    if getattr(show, "_hides_farms_frames", False):
        return

    @functools.wraps(show)
    def showtraceback(exc_tuple: Any = None, *args: Any, **kwargs: Any) -> Any:
        error = exc_tuple[1] if exc_tuple is not None else sys.exception() or getattr(sys, "last_value", None)
        with contextlib.suppress(Exception):  # an exception's own class may do anything
            if error is not None and (_is_cancelled(error) or _is_for_user(error)):
                show_users_frames(error)
                # %debug goes through the frames that the exception has, and a group is shown with them.
                users = users_frames(error.__traceback__, is_interrupt=_is_cancelled(error))
                if isinstance(error, BaseExceptionGroup):
                    users = _without_ipythons(users)
                BaseException.with_traceback(error, users)
                exc_tuple = type(error), error, users
        return show(exc_tuple, *args, **kwargs)

    showtraceback._hides_farms_frames = True  # type: ignore[attr-defined]
    shell.showtraceback = showtraceback


def _is_cancelled(error: BaseException) -> bool:
    """Return whether the stop button, or the program, has cancelled a cell that awaited a task."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError) and _is_of_farm(error.__traceback__)


def _without_ipythons(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback without IPython's own frames, such as those between a cell and its magic.

    IPython shows groups of exceptions by Python's own printer, which shows all frames.
    """
    return _joined([each for each in _entries(tb) if not str(_module(each)).startswith("IPython.core.")])


def _module(entry: TracebackType) -> object:
    return entry.tb_frame.f_globals.get("__name__")


def _is_for_user(error: BaseException) -> bool:
    """Return whether the farm's frames say nothing to the user: it refuses something, or called code of the user.

    An error in the farm itself keeps its frames: it is no statement `raise` that ends there, or one of a library.
    """
    entries = _entries(error.__traceback__)
    own = _farms(entries)
    if not own or not isinstance(error, Exception):
        return False
    inner = entries[own[-1] + 1 :]
    if inner:
        return any(map(_is_users, inner))
    last = entries[-1]
    of_python = str(type(error).__module__).partition(".")[0] in ("builtins", __name__.partition(".")[0])
    is_raised = last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE
    return of_python and is_raised and not isinstance(error, AssertionError)
