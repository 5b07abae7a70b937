"""Exceptions as they travel: always readable, and rebuilt where possible; of a missing module with the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata as metadata
import linecache
import os
import platform
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ..core.errors import ModuleMissing, RemoteError, TaskFarmError
from ..core.messages.payload import ErrorLink, FailureBody
from ..core.messages.task_types import FailureSummary
from .exception_parts import Budget, open_error, open_group, pack_alone, pack_group, pack_lost_fields, state_of
from .module_origin import UNPACK, archive_of
from .rebuild import is_call, source_lines
from .refusals import type_name
from .tracebacks import Places, made_frames, made_traceback

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_TRACEBACK_CHARACTERS_MAX = 64 * 1024
_VALUE_CHARACTERS_MAX = 16 * 1024
_BRIEF_CHARACTERS_MAX = 1000
_CHAIN_MAX = 200
"""The number of exceptions of one chain that travel."""
_ENDS_CALLERS = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
# Taken from the base class, because an exception's own __getattribute__ and __setattr__ may do anything.
_CAUSE: Any = BaseException.__dict__["__cause__"]
_CONTEXT: Any = BaseException.__dict__["__context__"]
_TRACEBACK: Any = BaseException.__dict__["__traceback__"]
_SUPPRESSES: Any = BaseException.__dict__["__suppress_context__"]


def user_traceback(error: BaseException, tb: types.TracebackType | None = None) -> types.TracebackType | None:
    """Return the traceback from the user's first frame on.

    If a by-value function was called, that is the frame after the call. Otherwise the farm's own frames at the
    beginning are skipped.
    """
    start = tb if tb is not None else traceback_of(error)
    current = start
    while current is not None:
        if is_call(current.tb_frame.f_code):
            return current.tb_next
        current = current.tb_next
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        start = start.tb_next
    return start


def pack_error(error: BaseException, tb: types.TracebackType | None = None) -> FailureBody:
    """Return an exception in the form in which a client gets it, with its causes, contexts and members of a group.

    Args:
        error: the exception.
        tb: the traceback from the user's first frame on; None for the whole traceback except the farm's own frames at
            the beginning.
    """
    chain = chain_of(error)
    tracebacks = [user_traceback(each, tb if each is error else None) for each in chain]
    with known_sources(tracebacks):
        text = traceback_text(error, tracebacks[0])
        places = Places()
        frames = [places.frames(each) for each in tracebacks]
    budget = Budget()
    numbers = {id(each): number for number, each in enumerate(chain)}
    links = [_link(each, numbers, frames[number], budget) for number, each in enumerate(chain)]
    pickled = links[0].pickled
    links[0] = msgspec.structs.replace(links[0], pickled=None)
    return FailureBody(
        etype=etype_of(error),
        value=_clip(_text(error), _VALUE_CHARACTERS_MAX),
        traceback=_clip(text, _TRACEBACK_CHARACTERS_MAX),
        pickled=pickled,
        links=tuple(links),
        places=tuple(places.found),
    )


def chain_of(error: BaseException) -> list[BaseException]:
    """Return the exception and all exceptions that Python would print with it."""
    found = [error]
    known = {id(error)}
    for each in found:  # the list grows during the loop
        for other in (_CAUSE.__get__(each), _CONTEXT.__get__(each), *_members(each)):
            if other is not None and id(other) not in known and len(found) < _CHAIN_MAX:
                known.add(id(other))
                found.append(other)
    return found


def traceback_of(error: BaseException) -> types.TracebackType | None:
    """Return `__traceback__`, even if the exception's class overrides the access to attributes."""
    found: types.TracebackType | None = _TRACEBACK.__get__(error)
    return found


def _members(error: BaseException) -> tuple[BaseException, ...]:
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _link(error: BaseException, numbers: dict[int, int], frames: tuple[int, ...], budget: Budget) -> ErrorLink:
    members = tuple(number for each in _members(error) if (number := numbers.get(id(each))) is not None)
    lost = None
    if members and isinstance(error, BaseExceptionGroup):
        pickled, why = pack_group(error, budget)
    else:
        pickled, why = pack_alone(error, budget)
    if pickled is not None and not members:
        try:
            lost = pack_lost_fields(error, pickled, budget)
        except Exception:
            lost = None  # pickle itself has written these fields
    notes = state_of(error).get("__notes__")
    return ErrorLink(
        etype_of(error),
        _clip(_text(error), _VALUE_CHARACTERS_MAX),
        pickled,
        lost,
        why,
        numbers.get(id(_CAUSE.__get__(error)), -1),
        numbers.get(id(_CONTEXT.__get__(error)), -1),
        bool(_SUPPRESSES.__get__(error)),
        members or None,
        tuple(str(each) for each in notes) if isinstance(notes, list | tuple) else (),
        frames,
    )


def brief_error(error: BaseException, tb: types.TracebackType | None = None) -> FailureSummary:
    """Return the summary for the controller: type, bounded text, and the innermost place in the user's code."""
    current = user_traceback(error, tb)
    place = ""
    while current is not None:
        code = current.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            place = f"{code.co_filename}:{current.tb_lineno} in {code.co_name}"
        current = current.tb_next
    if isinstance(error, SyntaxError) and not place and error.filename:
        place = f"{error.filename}:{error.lineno}"
    return FailureSummary(
        etype=_clip(etype_of(error), _BRIEF_CHARACTERS_MAX),
        value=_clip(_text(error), _BRIEF_CHARACTERS_MAX),
        place=_clip(place, _BRIEF_CHARACTERS_MAX),
    )


def unpack_error(body: FailureBody, engine_id: int | None = None) -> BaseException:
    """Return the exception.

    It has its real type if that can be rebuilt here; otherwise it is a `RemoteError` that names the type and the
    reason. It has its causes, contexts, notes and members, each with the engine's frames as its traceback, and the
    attributes ``remote_traceback`` (text) and ``engine_id``. An exception that would end the caller's interpreter or
    event loop when raised (SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError) is returned as a RemoteError.
    """
    links = body.links or (ErrorLink(body.etype, body.value),)
    first = msgspec.structs.replace(links[0], pickled=body.pickled)
    opened = Chain((first, *links[1:])).open()
    error = opened[0]
    if isinstance(error, _ENDS_CALLERS):
        opened[0] = error = _remote(first, "")
    frames = made_frames(body.places)
    for link, each in zip(links, opened, strict=True):
        _relate(each, link, opened)
        tb = made_traceback(body.places, frames, link.frames)
        if tb is not None:
            BaseException.with_traceback(each, tb)
    complete(error)
    for name, value in (("remote_traceback", body.traceback), ("engine_id", engine_id)):
        with contextlib.suppress(Exception):  # the class may define __setattr__, like a frozen dataclass
            object.__setattr__(error, name, value)
    return error


class Chain:
    """Opens the links of a failure."""

    def __init__(self, links: tuple[ErrorLink, ...]) -> None:
        self._links = links
        self._opened: list[BaseException | None] = [None] * len(links)

    def open(self) -> list[BaseException]:
        """Return the exceptions in the order of their links."""
        return [self._open(number) for number in range(len(self._links))]

    def _open(self, number: int) -> BaseException:
        found = self._opened[number]
        if found is None:
            found = self._opened[number] = self._made(self._links[number])
        return found

    def _made(self, link: ErrorLink) -> BaseException:
        if link.pickled is None:
            return _remote(link, link.why)
        try:
            if link.members is not None:
                return open_group(link.pickled, [self._open(each) for each in link.members])
            return open_error(link.pickled, link.fields)
        except Exception as problem:  # the class does not exist here, or its own code fails
            return _remote(link, f"{type(problem).__name__}: {problem}")


def _remote(link: ErrorLink, why: str) -> RemoteError:
    error = RemoteError(link.etype, link.value)
    for note in link.notes:
        error.add_note(note)
    if why:
        error.add_note(f"{link.etype} could not be rebuilt here: {why}")
    return error


def _relate(error: BaseException, link: ErrorLink, opened: list[BaseException]) -> None:
    """Set the cause and the context of an exception, even if its class overrides the setting of attributes."""
    if link.cause >= 0:
        _CAUSE.__set__(error, opened[link.cause])
    if link.context >= 0 and opened[link.context] is not error:
        _CONTEXT.__set__(error, opened[link.context])
    _SUPPRESSES.__set__(error, link.suppresses)
    _add_lost_notes(error, link.notes)


def _add_lost_notes(error: BaseException, notes: tuple[str, ...]) -> None:
    """Add the notes that the exception's own pickle has left out, because its class has a ``__reduce__`` of its own."""
    state: dict[str, Any] = object.__getattribute__(error, "__dict__")
    kept = state.get("__notes__")
    have = [str(each) for each in kept] if isinstance(kept, list | tuple) else []
    if len(have) < len(notes):
        state["__notes__"] = [*have, *(each for each in notes if each not in have)]


def etype_of(error: BaseException) -> str:
    """Return the type's name as in Python's tracebacks; for the farm's own errors the name without the module."""
    return type(error).__qualname__ if isinstance(error, TaskFarmError) else type_name(error)


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
    """Return the traceback as Python prints it, with the source lines of by-value functions."""
    try:
        lines = traceback.TracebackException(type(error), error, tb, compact=True).format()
        return "".join(lines).rstrip("\n")
    except Exception as problem:  # an exception's own __str__, __getattr__ or __repr__ may do anything
        frames = _plain_frames(tb)
        return f"{frames}{etype_of(error)}: {_text(error)}\n(what it refers to is left out: {type(problem).__name__})"


def _plain_frames(tb: types.TracebackType | None) -> str:
    """Return the text of the frames, without the parts of which the formatting may fail."""
    lines = [] if tb is None else ["Traceback (most recent call last):\n"]
    while tb is not None:
        code = tb.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {tb.tb_lineno}, in {code.co_name}\n')
        source = linecache.getline(code.co_filename, tb.tb_lineno or 0, tb.tb_frame.f_globals).strip()
        if source:
            lines.append(f"    {source}\n")
        tb = tb.tb_next
    return "".join(lines)


@contextlib.contextmanager
def known_sources(tracebacks: Iterable[types.TracebackType | None]) -> Iterator[None]:
    """Add the source lines of by-value functions to linecache for the duration of the block.

    linecache never forgets an entry, and there may be very many cells.
    """
    added = []
    for tb in tracebacks:
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


_MODULE = re.compile(r"(?:^module|No module named) '([\w.]+)'")
_place = ["in this process"]


def name_place(place: str) -> None:
    """Set the words by which errors name this process. An engine names its node."""
    _place[:] = [place]


def missing(error: ModuleNotFoundError) -> ModuleMissing:
    """Return the error to raise when a pickle needs a module that does not exist here."""
    if isinstance(error, ModuleMissing) or error.name is None:
        return ModuleMissing(str(error), name=error.name)
    top = error.name.partition(".")[0]
    return ModuleMissing(
        f"module {error.name!r} cannot be imported {_place[0]} (Python {platform.python_version()}): install it there, "
        f"or, if it is pure Python, send it along: add_dependency({top!r})",
        name=error.name,
    )


def complete(error: BaseException) -> None:
    """Add to an error from elsewhere which version of the module this client has, or that it has it in an archive."""
    if not isinstance(error, ModuleNotFoundError):
        return
    found = _MODULE.search(str(error))
    module = sys.modules.get(found[1]) if found is not None else None
    if archive := archive_of(getattr(module, "__file__", None)):
        error.msg = f"{str(error).partition(':')[0]}: here it is in the archive {archive}: {UNPACK}"
        error.args = (error.msg,)
        return
    version = _version_of(found[1]) if found is not None else ""
    # A part that this client does not have either is not missing for want of the package.
    is_known = found is not None and ("." not in found[1] or found[1] in sys.modules)
    if not version or not is_known:
        return
    if isinstance(error, ModuleMissing):
        error.args = (f"{error} (this client has {version})",)
        error.msg = error.args[0]
    else:
        error.add_note(f"this client has {version}: install it where the engines run")


def _version_of(name: str) -> str:
    """Return the distribution of a top-level module and its version, like ``numpy 2.1.0``; "" if unknown."""
    top = name.partition(".")[0]
    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        pass
    for distribution in metadata.packages_distributions().get(top, ()):  # slow, but only used for error messages
        return f"{distribution} {metadata.version(distribution)}"
    version = getattr(sys.modules.get(top), "__version__", None)
    return f"{top} {version}" if isinstance(version, str) else ""
