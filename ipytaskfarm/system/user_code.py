"""The user's code: the line that called the package, names of notebook cells, notes with the place of that line."""

from __future__ import annotations

import re
import sys

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
