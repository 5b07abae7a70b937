"""Show Ctrl-C as short as an interrupt of local code: the frames of the user's code, without those of the farm.

IPython and Jupyter display an exception by its method ``_render_traceback_``, if it has one.  The exception itself
keeps all frames, for `%debug` and for scripts.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).parents[1])


def show_users_frames(interrupt: KeyboardInterrupt) -> None:
    """Make IPython show only the user's frames of an interrupt; without IPython do nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    if shell is not None:
        interrupt._render_traceback_ = partial(_rendered, shell, interrupt)  # type: ignore[attr-defined]


def users_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the beginning of a traceback, up to the user's line that called the farm."""
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
