"""The end of a forked child of a task that has returned to code where only the engine may be."""

from __future__ import annotations

import os
from typing import NoReturn


def leave_fork(error: BaseException | None) -> NoReturn:
    """End the child process as a script ends."""
    if isinstance(error, SystemExit):
        code = error.code
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    if error is not None:
        import traceback

        traceback.print_exception(error)
    os._exit(0 if error is None else 1)
