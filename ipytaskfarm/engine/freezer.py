"""Keeps the frames of a failed run, so that a console on this engine can look at them.

From then on the engine is *frozen*: it runs no task and no command, and its surroundings stay as the run has left them.
``%debug`` in a console opens the frames.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from ..core.messages import FromEngine, Frozen
from ..core.messages.task_types import FrozenRun, RunKey
from ..core.text import text_of
from ..serialization.exceptions import known_sources
from ..serialization.pack import traceback_of
from .failures import place_of, user_frames

ERROR_CHARS_MAX = 200


class Freezer:
    """What this engine keeps for a debugger."""

    def __init__(self, engine: str, shell: Any, send: Callable[[FromEngine], None]) -> None:
        self._engine = engine
        self._shell = shell
        self._send = send
        self._error: BaseException | None = None
        self._frames: TracebackType | None = None
        self._sources = contextlib.ExitStack()
        self.run: FrozenRun | None = None
        """The run that failed.  None: the engine is not frozen."""

    def keep(self, key: RunKey, task: int, error: BaseException) -> None:
        """Freeze the engine with the frames of an error; an error without frames of the user's changes nothing.

        Called before the error is packed, which leaves it without its frames.

        Args:
            key: the run that has failed.
            task: the task as people know it: of a chunk, the item that failed.
            error: the error of the run.
        """
        frames = user_frames(traceback_of(error))
        if frames is None or self.run is not None:
            return
        self._error, self._frames = error, frames
        text = f"{type(error).__name__}: {text_of(error)}".partition("\n")[0]
        self.run = FrozenRun(key, task, text[:ERROR_CHARS_MAX], place_of(error), time.time())
        with contextlib.suppress(Exception):  # the error's class may do anything
            BaseException.add_note(error, f"its engine keeps the frames for a while: tc.debug({task}) opens them")

    def offer(self, filename: str, code: str) -> None:
        """Let ``%debug`` and ``%tb`` find the frames, and tell the agent.  Called when the run's end is recorded.

        Args:
            filename: the name of the run's own code in its frames; "" if it has none.
            code: that code.
        """
        __tracebackhide__ = True  # the debugger does not show this frame
        error, frames, run = self._error, self._frames, self.run
        if error is None or frames is None or run is None:
            return
        self._sources.enter_context(known_sources([frames]))
        if filename:
            linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        # IPython leaves out the first frame of a traceback, which is its own.
        here = sys._getframe()
        whole = TracebackType(frames, here, here.f_lasti, here.f_lineno)
        BaseException.with_traceback(error, whole)

        def restore() -> None:
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, whole
            if sys.version_info >= (3, 12):
                sys.last_exc = error
            self._shell.InteractiveTB.tb = whole

        restore()
        self._shell.restore_error_of_task = restore  # `client.frozen` calls it: errors in a console come after this one
        self._send(Frozen(self._engine, run))

    def used(self) -> None:
        """Note that a console runs a cell: the engine's time begins anew."""
        if self.run is not None:
            self.run = msgspec.structs.replace(self.run, used_s=time.time())
            self._send(Frozen(self._engine, self.run))
