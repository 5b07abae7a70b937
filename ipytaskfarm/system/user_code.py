"""The user's code: the line that called the package, names of notebook cells, notes with the place of that line."""

from __future__ import annotations

import re
import sys
from typing import Any

# -- the line that called the package


def depth_of_user() -> int:
    """Return how many frames the caller is away from the user's code, as `warnings.warn` counts them."""
    package = __name__.partition(".")[0]
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, depth = frame.f_back, depth + 1
    return depth


def tell_user(text: str) -> None:
    """Print a note for the user on standard error, with the place of the user's line.

    A note is no warning where the program may be right: it goes on, also where warnings are errors.
    """
    frame = sys._getframe(depth_of_user() - 1)
    is_magic = frame.f_globals.get("__name__", "").startswith("IPython.")  # no line of the user's calls a magic
    place = "" if is_magic else with_cells(f" ({frame.f_code.co_filename}:{frame.f_lineno})")
    if sys.stderr is not None:
        print(f"ipytaskfarm: {text}{place}", file=sys.stderr, flush=True)


# -- names of cells: ``In [7], line 3``, as IPython names them, instead of a temporary file

UNKNOWN = "a notebook's cell"
"""Name for a cell of another interpreter, or of this kernel before its restart, which has not run here since."""

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
    terminal = _TERMINALS.fullmatch(file)
    if terminal is None and not _KERNELS.fullmatch(file):
        return None
    shell = _user_shell()
    named = shell.compile.format_code_name(file_here(file)) if shell is not None else None
    if named is not None:
        return str(named[1]).replace("In[", "In [")
    # A number of another terminal's cell would name another cell of this one.
    return UNKNOWN if terminal is None or shell is not None else f"In [{terminal[1]}]"


def file_here(file: str) -> str:
    """Return the file name that a cell of another session has in this one, if a cell with the same text ran here.

    Whoever restarts a kernel and runs the cells again gets errors of functions that the engines know from before.
    """
    if _TERMINALS.fullmatch(file):
        mark = file[file.rindex("-") :]
    elif _KERNELS.fullmatch(file):
        mark = file[file.rindex("/") :]
    else:
        return file
    known: dict[str, int] = getattr(getattr(_user_shell(), "compile", None), "_filename_map", {})
    if file in known:
        return file
    return next((name for name in reversed(list(known)) if name.endswith(mark)), file)


def lasting_name(file: str) -> str:
    """Return a file name that a cell of a notebook has after a restart of the kernel too, by its text."""
    return file[file.rindex("/") :] if _KERNELS.fullmatch(file) else file


def _user_shell() -> Any:
    """Return the IPython in which the user types; None: there is none, or this is an engine."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    is_engine = type(getattr(shell, "kernel", None)).__module__.startswith(f"{__name__.partition('.')[0]}.")
    return None if is_engine else shell


def _named_frame(match: re.Match[str]) -> str:
    cell = cell_of(match["file"])
    return match[0] if cell is None else f"{cell}, line {match['line']}"


def _named_place(match: re.Match[str]) -> str:
    return f"{cell_of(match['file'])}, line {match['line']}"
