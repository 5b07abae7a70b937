"""The reason why a run failed, in the two forms in which it travels: short for the controller, whole for the client."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ..core.messages import FromEngine, Frozen
from ..core.messages.payload import FailureBody
from ..core.messages.task_types import FailureSummary, FrozenRun, RunKey
from ..core.text import text_of
from ..serialization.exceptions import known_sources
from ..serialization.pack import chain_of, pack_error, traceback_of

VALUE_CHARS_MAX = 2000
NAME_CHARS_MAX = 200
TRACEBACK_CHARS_MAX = 64 * 1024
KINDS_MAX = 100
"""The most classes of an error that are named."""

_MACHINERY = re.compile(
    r"(ipytaskfarm\.(engine|serialization|transport|storage|system)|IPython|ipykernel|asyncio)(\.|$)"
)
_LIBRARY = tuple({sysconfig.get_path(kind) + "/" for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_IMPORT_SYSTEM = "<frozen importlib."
_HASH = re.compile(r"<(task|cell) [0-9a-f-]+>")


def describe(error: BaseException, filename: str = "", code: str = "") -> tuple[FailureSummary, FailureBody]:
    """Return the two forms of an error that ended a run. Its traceback is reduced to the user's frames.

    filename, code: of the run itself, for the source lines of its frames.
    """
    for each in chain_of(error):
        BaseException.with_traceback(each, user_frames(traceback_of(each)))
    place = place_of(error)
    lines = {filename: (len(code), None, code.splitlines(keepends=True), filename)} if filename else {}
    linecache.cache.update(lines)
    try:
        body = pack_error(error)
    finally:
        for name in lines:
            linecache.cache.pop(name, None)
    text = _HASH.sub("<task>", body.traceback)
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    body = msgspec.structs.replace(body, value=_HASH.sub("<task>", body.value), traceback=text)
    kinds = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-2][:KINDS_MAX])
    return FailureSummary(body.etype, _bounded(body.value), place, kinds), body


def _bounded(text: str) -> str:
    """Return the beginning of a long text and its end: the last line of an error's text names the cause."""
    half = VALUE_CHARS_MAX // 2
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: half - 3]}\n…\n{text[-half:]}"


def user_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of the engine and of IPython.

    Both may stand between the user's frames.  Those of Python's import system that lead to the engine's loader of
    modules are left out as well, as Python does for its own loaders.
    """
    kept: list[TracebackType] = []
    hidden = False
    while tb is not None:
        if _MACHINERY.match(tb.tb_frame.f_globals.get("__name__") or ""):
            hidden = True
            while kept and kept[-1].tb_frame.f_code.co_filename.startswith(_IMPORT_SYSTEM):
                kept.pop()
        else:
            kept.append(tb)
        tb = tb.tb_next
    if not hidden or not kept:
        return kept[0] if kept else None
    chain: TracebackType | None = None
    for each in reversed(kept):
        # A frame that a signal's handler interrupted at its very first instruction has no line.
        line: int | None = each.tb_lineno
        chain = TracebackType(chain, each.tb_frame, each.tb_lasti, line or each.tb_frame.f_code.co_firstlineno)
    return chain


def place_of(error: BaseException) -> str:
    """Return the innermost frame of the user's own code, or else the innermost frame.

    For a file that is no Python, that is its faulty line.
    """
    tb = user_frames(traceback_of(error))
    if isinstance(error, SyntaxError) and (tb is None or not (error.filename or "<").startswith("<")):
        return _HASH.sub("<task>", f"{error.filename or '<task>'}:{error.lineno}")
    found = ""
    for frame, line in traceback.walk_tb(tb):
        code = frame.f_code
        if not found or not code.co_filename.startswith((*_LIBRARY, "<frozen ")):
            found = f"{code.co_filename}:{line} in {code.co_name}"
    return _HASH.sub("<task>", found)


# -- errors whose classes do anything


def described(error: BaseException, filename: str = "", code: str = "") -> tuple[FailureSummary, FailureBody]:
    """Return an error in the two forms of `describe`; its traceback is dropped.

    An exception's own class may do anything when it is examined. In that case only its type and its text are given.
    """
    note = _note_on(error)
    try:
        found = describe(error, filename, code)
    except BaseException as problem:
        failure = brief(error, problem)
        found = failure, FailureBody(failure.etype, failure.value)
    if note:
        found = msgspec.structs.replace(found[0], value=f"{found[0].value}\n{note}"), found[1]
    BaseException.with_traceback(error, None)  # the class may override __setattr__
    return found


def brief(error: BaseException, problem: BaseException) -> FailureSummary:
    """Return an error by its type's qualified name and as much of its text as is available.

    `problem` is the reason why there is no more.
    """
    kind = type(error)
    is_plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"
    why = "" if problem is error else f" (no more can be told: {type(problem).__name__}: {text_of(problem):.200})"
    return FailureSummary(text_of(name)[:NAME_CHARS_MAX], f"{text_of(error)[:VALUE_CHARS_MAX]}{why}")


# -- names that went with a lost engine

_notices: list[str] = []
"""Of a replacement engine: the notice that names of the lost engine may be missing, for errors about missing names."""


def remember_loss(notice: str) -> None:
    """Store the notice: which engine was replaced, and what was not repeated on the replacement."""
    _notices[:] = [notice]


def forget_loss() -> None:
    """Forget the notice, because the namespace was cleared on purpose: a missing name was not lost."""
    _notices.clear()


def _note_on(error: BaseException) -> str:
    """Add the notice to an error about a missing name. Return the notice; "" if nothing was added."""
    if not _notices or type(error) is not NameError:
        return ""
    if _notices[0] not in getattr(error, "__notes__", ()):
        error.add_note(_notices[0])
    return _notices[0]


def half_imported(error: BaseException) -> str:
    """Return the name of a package whose import ended with this error while its compiled modules were loaded, or "".

    Python removes the modules whose import was interrupted, so that a later import starts afresh.  Compiled modules
    stay loaded, and those of numpy refuse a second import ("cannot load module more than once per process").
    """
    for name, folder in _packages(error.__traceback__).items():
        mapped = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        if any(line.endswith(".so") and f" {folder}/" in line for line in mapped):
            return name
    return ""


def _packages(place: TracebackType | None) -> dict[str, str]:
    """Return {top package: its folder} of the modules whose module-level code is in the traceback."""
    found = {}
    while place is not None:
        frame = place.tb_frame
        spec: Any = frame.f_globals.get("__spec__")
        if frame.f_code.co_name == "<module>" and getattr(spec, "origin", None):
            levels = spec.name.count(".") - (spec.submodule_search_locations is None)
            if levels >= 0:  # otherwise it is a module outside of packages
                folder = os.path.dirname(spec.origin)
                for _ in range(levels):
                    folder = os.path.dirname(folder)
                found[spec.name.partition(".")[0]] = os.path.realpath(folder)
        place = place.tb_next
    return found


ERROR_CHARS_MAX = 200


class Freezer:
    """What this engine keeps for a debugger.

    From then on the engine is *frozen*: it runs no task and no command, and its surroundings stay as the run has left
    them. ``%debug`` in a console opens the frames.
    """

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

        task: the task as people know it: of a chunk, the item that failed.
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
        """Let ``%debug`` and ``%tb`` find the frames, and tell the agent. Called when the run's end is recorded.

        filename, code: of the run itself, as its frames name it; "" if it has none.
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
