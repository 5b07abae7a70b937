"""The reason why a run failed, in the two forms in which it travels: short for the controller, whole for the client."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from types import TracebackType

import msgspec

from ..core.messages.payload import FailureBody
from ..core.messages.task_types import FailureSummary
from ..serialization.pack import chain_of, pack_error, traceback_of

VALUE_CHARS_MAX = 2000
TRACEBACK_CHARS_MAX = 64 * 1024

_MACHINERY = re.compile(
    r"(ipytaskfarm\.(engine|serialization|transport|storage|system)|IPython|ipykernel|asyncio)(\.|$)"
)
_LIBRARY = tuple({sysconfig.get_path(kind) + "/" for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_HASH = re.compile(r"<(task|cell) [0-9a-f-]+>")


def describe(error: BaseException, filename: str = "", code: str = "") -> tuple[FailureSummary, FailureBody]:
    """Return the two forms of an error.

    Args:
        error: the error that ended the run. Its traceback is reduced to the user's frames.
        filename: the name of the run's own code in the traceback.
        code: the run's own code, for the source lines.
    """
    for each in chain_of(error):
        BaseException.with_traceback(each, user_frames(traceback_of(each)))
    place = _place(error)
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
    kinds = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-2])
    return FailureSummary(body.etype, _bounded(body.value), place, kinds), body


def _bounded(text: str) -> str:
    """Return the beginning of a long text and its end: the last line of an error's text names the cause."""
    half = VALUE_CHARS_MAX // 2
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: half - 3]}\n…\n{text[-half:]}"


def user_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of the engine and of IPython.

    IPython's may stand between the user's frames.
    """
    kept = []
    hidden = False
    while tb is not None:
        if _MACHINERY.match(tb.tb_frame.f_globals.get("__name__") or ""):
            hidden = True
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


def _place(error: BaseException) -> str:
    """Return the innermost frame of the user's own code, or else the innermost frame."""
    tb = traceback_of(error)
    if isinstance(error, SyntaxError) and tb is None:
        return f"<task>:{error.lineno}"
    found = ""
    for frame, line in traceback.walk_tb(tb):
        code = frame.f_code
        if not found or not code.co_filename.startswith((*_LIBRARY, "<frozen ")):
            found = f"{code.co_filename}:{line} in {code.co_name}"
    return _HASH.sub("<task>", found)
