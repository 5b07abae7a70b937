"""Stacks of engines as their users read them: without the frames of the farm."""

from __future__ import annotations

import re
from pathlib import Path

_FRAME = re.compile(r'  File "(?P<file>.*)", line \d+ in ')
_PACKAGE = str(Path(__file__).parents[1]) + "/"
_RUNNERS = (f"{_PACKAGE}engine/runner.py", f"{_PACKAGE}engine/commands.py")
"""Files that call the user's code."""
_NUMBER = re.compile(r"<(task|cell) [0-9a-f-]+>")
_MACHINERY = re.compile(r"/(IPython|ipykernel)/")


def users_stack(text: str) -> str:
    """Return a stack as faulthandler writes it, the innermost frame first, without the frames of the farm and IPython.

    A stack without a frame of the user's stays whole: the engine is between two tasks, or in the farm's code."""
    kept, is_users = [], False
    for line in text.splitlines():
        match = _FRAME.match(line)
        if match is None:
            kept.append(line)
            continue
        file = match["file"]
        if file in _RUNNERS:
            break
        if not file.startswith(_PACKAGE) and not _MACHINERY.search(file):
            kept.append(_NUMBER.sub(r"<\1>", line))
            is_users = True
    return "\n".join(kept) + "\n" if is_users else text
