"""Name notebook cells as IPython does: ``In [7], line 3`` instead of a temporary file.

A function from a cell keeps the cell's file name wherever it runs.  Only the interpreter in which the cell was typed
knows the cell's number.
"""

from __future__ import annotations

import re
import sys

UNKNOWN = "a notebook's cell"
"""Name for a cell of another interpreter, or of this kernel before its restart."""

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)')
_PLACE = re.compile(r"(?P<file>(?:/[^\s:]*/ipykernel_\d+/\d+\.py|<ipython-input-\d+-[^>\s]*>)):(?P<line>\d+)")
_KERNELS = re.compile(r".*/ipykernel_\d+/\d+\.py")
_TERMINALS = re.compile(r"<ipython-input-(\d+)-[^>]*>")


def with_cells(text: str) -> str:
    """Return a text in which places in notebook cells have IPython's names.

    text: a traceback, or any text with places like ``file:line in function``.
    """
    return _PLACE.sub(_named_place, _FRAME.sub(_named_frame, text))


def cell_of(file: str) -> str | None:
    """Return the name of the cell with this file name; None: it is no cell."""
    if match := _TERMINALS.fullmatch(file):
        return f"In [{match[1]}]"
    if not _KERNELS.fullmatch(file):
        return None
    # IPython is not imported: a script that has not loaded it has no cells.
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    named = shell.compile.format_code_name(file) if shell is not None else None
    return UNKNOWN if named is None else str(named[1]).replace("In[", "In [")


def _named_frame(match: re.Match[str]) -> str:
    cell = cell_of(match["file"])
    return match[0] if cell is None else f"{cell}, line {match['line']}"


def _named_place(match: re.Match[str]) -> str:
    return f"{cell_of(match['file'])}, line {match['line']}"
