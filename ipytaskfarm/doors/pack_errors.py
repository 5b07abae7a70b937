"""Exceptions as they travel: readable always, rebuilt where that is possible."""

from __future__ import annotations

import contextlib
import linecache
import os
import pickle
import traceback
import types
from collections.abc import Iterator

from ..core.errors import RemoteError, TaskFarmError, VersionMismatch
from ..core.parcels import Failure
from ..core.work import FailureBody
from .pack_build import is_call, source_lines
from .pack_cache import dumps
from .pack_missing import complete

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_PICKLED_BYTES_MAX = 1024 * 1024
_TRACEBACK_CHARACTERS_MAX = 64 * 1024
_VALUE_CHARACTERS_MAX = 16 * 1024
_BRIEF_CHARACTERS_MAX = 1000


def user_traceback(error: BaseException, tb: types.TracebackType | None = None) -> types.TracebackType | None:
    """The traceback from the user's first frame on: behind the call of a function that travelled, if there is one,
    else behind the farm's own frames at the beginning.
    """
    start = tb if tb is not None else error.__traceback__
    current = start
    while current is not None:
        if is_call(current.tb_frame.f_code):
            return current.tb_next
        current = current.tb_next
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        start = start.tb_next
    return start


def pack_error(error: BaseException, tb: types.TracebackType | None = None) -> FailureBody:
    """An exception as a client gets it.

    Args:
        error: the exception.
        tb: where its traceback begins for the user; None: all of it but the farm's own frames at the beginning.
    """
    pickled = None
    try:
        pickled = dumps(error)
    except Exception:
        pickled = None  # its name, text and traceback travel in any case
    if pickled is not None and len(pickled) > _PICKLED_BYTES_MAX:
        pickled = None
    return FailureBody(
        etype=type_name(error),
        value=_clip(_text(error), _VALUE_CHARACTERS_MAX),
        traceback=_clip(traceback_text(error, user_traceback(error, tb)), _TRACEBACK_CHARACTERS_MAX),
        pickled=pickled,
    )


def brief_error(error: BaseException, tb: types.TracebackType | None = None) -> Failure:
    """What the controller is told of it: type, bounded text, and the innermost place of the user's."""
    current = user_traceback(error, tb)
    place = ""
    while current is not None:
        code = current.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            place = f"{code.co_filename}:{current.tb_lineno} in {code.co_name}"
        current = current.tb_next
    if isinstance(error, SyntaxError) and not place and error.filename:
        place = f"{error.filename}:{error.lineno}"
    return Failure(
        etype=_clip(type_name(error), _BRIEF_CHARACTERS_MAX),
        value=_clip(_text(error), _BRIEF_CHARACTERS_MAX),
        place=_clip(place, _BRIEF_CHARACTERS_MAX),
    )


def unpack_error(body: FailureBody, engine_id: int | None = None) -> BaseException:
    """The exception, of its real type where that can be had, else a `RemoteError` that names it.

    It bears ``remote_traceback`` (text) and ``engine_id``.  What would end the caller's own interpreter or loop
    when raised (SystemExit, KeyboardInterrupt, GeneratorExit) comes as a RemoteError too.
    """
    error: BaseException | None = None
    why = ""
    if body.pickled is not None:
        try:
            error = pickle.loads(body.pickled)
        except VersionMismatch as problem:
            why = str(problem)
        except Exception:
            error = None  # a class that is not here, or whose own code fails: the text is all there is
    if not isinstance(error, Exception):
        error = RemoteError(body.etype, body.value)
        if why:
            error.add_note(why)
    complete(error)
    error.remote_traceback = body.traceback  # type: ignore[attr-defined]
    error.engine_id = engine_id  # type: ignore[attr-defined]
    return error


def type_name(error: BaseException) -> str:
    """As Python's own tracebacks name it; the farm's own errors by their bare names."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__") or isinstance(error, TaskFarmError):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:
        return f"<its text cannot be had: {type(problem).__name__}>"


def _clip(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def traceback_text(error: BaseException, tb: types.TracebackType | None) -> str:
    """As Python prints it, with the source lines of functions that came by value."""
    with _known_sources(tb):
        try:
            lines = traceback.TracebackException(type(error), error, tb, compact=True).format()
            return "".join(lines).rstrip("\n")
        except Exception as problem:  # an exception's own __str__ or __repr__ may do anything
            return f"{type_name(error)}: {_text(error)}\n(no traceback: {type(problem).__name__})"


@contextlib.contextmanager
def _known_sources(tb: types.TracebackType | None) -> Iterator[None]:
    """linecache never forgets an entry, and there may be very many cells: it has them for a moment."""
    added = []
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if filename not in linecache.cache and not os.path.exists(filename):
            lines = source_lines(filename)
            if lines is not None:
                linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
                added.append(filename)
        tb = tb.tb_next
    try:
        yield
    finally:
        for filename in added:
            linecache.cache.pop(filename, None)
