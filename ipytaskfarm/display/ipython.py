"""What the user's IPython knows and shows: its shell, the names of cells, short tracebacks.

IPython is not imported: a running shell is found, and a script that has not loaded IPython has none.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

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


# -- names of cells: ``In [7], line 3``, as IPython names them, instead of a temporary file

UNKNOWN = "a notebook's cell"
"""Name for a cell of another interpreter, or of this kernel before its restart."""

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)')
_PLACE = re.compile(r"(?P<file>(?:/[^\s:]*/ipykernel_\d+/\d+\.py|<ipython-input-\d+-[^>\s]*>)):(?P<line>\d+)")
_KERNELS = re.compile(r".*/ipykernel_\d+/\d+\.py")
_TERMINALS = re.compile(r"<ipython-input-(\d+)-[^>]*>")


def with_cells(text: str) -> str:
    """Return a text in which places in notebook cells have IPython's names.

    A function from a cell keeps the cell's file name wherever it runs.  Only the interpreter in which the cell was
    typed knows the cell's number.

    text: a traceback, or any text with places like ``file:line in function``.
    """
    return _PLACE.sub(_named_place, _FRAME.sub(_named_frame, text))


def cell_of(file: str) -> str | None:
    """Return the name of the cell with this file name; None: it is no cell."""
    if match := _TERMINALS.fullmatch(file):
        return f"In [{match[1]}]"
    if not _KERNELS.fullmatch(file):
        return None
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    named = shell.compile.format_code_name(file) if shell is not None else None
    return UNKNOWN if named is None else str(named[1]).replace("In[", "In [")


def _named_frame(match: re.Match[str]) -> str:
    cell = cell_of(match["file"])
    return match[0] if cell is None else f"{cell}, line {match['line']}"


def _named_place(match: re.Match[str]) -> str:
    return f"{cell_of(match['file'])}, line {match['line']}"


# -- tracebacks as short as those of local code: the user's frames, without the farm's between them

_PACKAGE = str(Path(__file__).parents[1])


class UserFrames:
    """The method ``_render_traceback_`` of one exception, by which IPython and Jupyter display it.

    The exception itself keeps all frames, for `%debug` and for scripts.
    """

    # A class and no closure, because exceptions are pickled with their attributes.
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> list[str]:
        """Return the lines that IPython displays."""
        error, shell = self._error, user_shell()
        tb = users_frames(error.__traceback__, is_interrupt=isinstance(error, KeyboardInterrupt))
        lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, tb) if shell else []
        return lines


def show_users_frames(error: BaseException) -> None:
    """Make IPython show only the user's frames of an exception; without IPython do nothing."""
    if user_shell() is None:
        return
    with contextlib.suppress(Exception):  # the exception's class has slots, or refuses attributes
        if not hasattr(error, "_render_traceback_"):
            error._render_traceback_ = UserFrames(error)  # type: ignore[attr-defined]


def users_frames(tb: TracebackType | None, is_interrupt: bool) -> TracebackType | None:
    """Return a traceback without the frames of the farm.

    is_interrupt: leave out all below the user's line that called the farm.  Otherwise the frames below the farm's last
    one stay: they are the user's on the engine, or those of a function that the user gave to the farm.
    """
    frames = []
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    own = [place for place, each in enumerate(frames) if each.tb_frame.f_code.co_filename.startswith(_PACKAGE)]
    if own:
        frames = frames[: own[0]] + ([] if is_interrupt else frames[own[-1] + 1 :])
    users: TracebackType | None = None
    for each in reversed(frames):
        users = TracebackType(users, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return users
