"""Ctrl-C, shown as short as it was pressed: where the user's code waited, without the frames of the farm.

IPython and Jupyter ask an exception that has ``_render_traceback_`` how it is to be shown.  The exception itself keeps
all of its frames, for `%debug` and for scripts.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).parents[1])


def show_users_frames(interrupt: KeyboardInterrupt) -> None:
    """Have IPython show the user's frames of an interrupt alone.  Nothing is changed elsewhere."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    if shell is not None:
        interrupt._render_traceback_ = partial(_rendered, shell, interrupt)  # type: ignore[attr-defined]


def users_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the beginning of a traceback, up to the line of the user's that called the farm."""
    frames = []
    while tb is not None and not tb.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frames.append(tb)
        tb = tb.tb_next
    users: TracebackType | None = None
    for each in reversed(frames):
        users = TracebackType(users, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return users


def _rendered(shell: Any, interrupt: KeyboardInterrupt) -> list[str]:
    tb = users_frames(interrupt.__traceback__)
    lines: list[str] = shell.InteractiveTB.structured_traceback(type(interrupt), interrupt, tb)
    return lines
