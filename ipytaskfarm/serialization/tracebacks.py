"""Tracebacks as they travel: places in code, from which tracebacks are made again.

A traceback cannot be pickled, because it holds frames, which hold values. Its reader needs file, function, line and the
source lines. On the other side, each place becomes a frame of a tiny code object with the file, function and line of
the place. So Python, IPython, pytest and debuggers show the engine's frames like their own, and each exception of a
chain has its own traceback. The idea comes from tblib; this version also keeps columns, source lines, and the local
variables of the innermost frames as text, which `%debug` shows.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import dis
import linecache
import os
import re
import reprlib
import sys
import threading
import types
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from ..core.messages.payload import ErrorPlace
from ..core.text import Text, escaped, is_of_library
from ..system.user_code import file_here

TEXT_CHARACTERS_MAX = 200
ITEMS_MAX = 1000
"""Containers of other classes with more items are not turned into text."""
SORTED_MAX = 100
"""Sets with more items, of which only some are shown, are not sorted."""
SHOWN = 6
"""The number of values of a large array that are shown."""
FIELDS_MAX = 10

_LIBRARIES = frozenset({"numpy", "pandas", "polars", "torch", "tensorflow", "jax", "jaxlib", "xarray", "scipy", "cupy"})
"""Libraries of arrays and tables.  Their texts of large values take up to some milliseconds, or wait for a GPU."""
_SMALL = 8
"""Arrays and tables with at most this number of values are shown as the library shows them."""


class ShortTexts(reprlib.Repr):
    """Makes short texts of values, within some microseconds: of long ones the beginning and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = TEXT_CHARACTERS_MAX
        self.maxlong = 60

    def repr_instance(self, x: object, level: int) -> str:
        """Return the text of a value of any other class."""
        cls = type(x)
        if isinstance(x, str | bytes):
            return super().repr_instance(x, level)
        if str(cls.__module__).partition(".")[0] in _LIBRARIES:
            shape = getattr(x, "shape", None)
            if isinstance(shape, tuple) and _product(shape) > _SMALL:
                return _large(x, shape)
        elif hasattr(cls, "__len__") and (count := len(x)) > ITEMS_MAX:  # type: ignore[arg-type]
            return f"<{cls.__name__} of {count:,} items>"
        elif dataclasses.is_dataclass(x) and getattr(cls, "__repr__", None) is _repr_of_dataclass(cls):
            return self._dataclass(x, level)
        return super().repr_instance(x, level)

    def _dataclass(self, x: Any, level: int) -> str:
        """Return the text that a dataclass has by itself, with short texts of its values."""
        if level <= 0:
            return f"{type(x).__qualname__}(...)"
        fields = [field.name for field in dataclasses.fields(x) if field.repr]
        shown = [f"{name}={self.repr1(getattr(x, name), level - 1)}" for name in fields[:FIELDS_MAX]]
        return f"{type(x).__qualname__}({', '.join([*shown, '...'] if len(fields) > FIELDS_MAX else shown)})"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Return the text of a dict, in the dict's order."""
        if not x:
            return "{}"
        if level <= 0:
            return "{...}"
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return f"{{{', '.join([*pairs, '...'] if len(x) > self.maxdict else pairs)}}}"

    def repr_set(self, x: set[Any], level: int) -> str:
        """Return the text of a set."""
        return self._some_of(x, "{", "}", level) if len(x) > SORTED_MAX else super().repr_set(x, level)

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        """Return the text of a frozenset."""
        return self._some_of(x, "frozenset({", "})", level) if len(x) > SORTED_MAX else super().repr_frozenset(x, level)

    def _some_of(self, x: Iterable[Any], left: str, right: str, level: int) -> str:
        if level <= 0:
            return f"{left}...{right}"
        return f"{left}{', '.join(self.repr1(each, level - 1) for each in islice(x, self.maxset))}, ...{right}"


def on_one_line(value: object, text: str) -> str:
    """Return the text of a value without line breaks: of an array or a table its shape."""
    if "\n" not in text:
        return text
    with contextlib.suppress(Exception):  # the library may do anything
        shape = getattr(value, "shape", None) if str(type(value).__module__).partition(".")[0] in _LIBRARIES else None
        if isinstance(shape, tuple):
            return _large(value, shape)
    return " ".join(text.split())


def _product(shape: tuple[Any, ...]) -> int:
    """Return the number of values of an array; 0 if the shape is none of numbers."""
    total = 1
    for length in shape:
        if not isinstance(length, int):
            return 0
        total *= length
    return total


def _large(x: Any, shape: tuple[int, ...]) -> str:
    """Return shape and type of a large array or table, and the first values of a numpy array or the columns."""
    kind = f" {x.dtype}" if hasattr(x, "dtype") else ""
    inside = ""
    if type(x).__module__ == "numpy" and x.dtype.kind != "O":
        inside = ": " + ", ".join(map(str, x.flat[:SHOWN].tolist())) + ", …"
    elif hasattr(x, "columns"):
        columns = [str(name) for name in islice(x.columns, SHOWN)]
        inside = f": {', '.join(columns)}{', …' if shape[-1] > SHOWN else ''}"
    return f"<{type(x).__name__} {' × '.join(f'{n:,}' for n in shape)}{kind}{inside}>"


def _repr_of_dataclass(cls: type) -> object:
    """Return the class's `__repr__` if it was made by `dataclasses`, else None."""
    own = cls.__dict__.get("__repr__")
    params = getattr(cls, "__dataclass_params__", None)
    return own if own is not None and params is not None and params.repr and hasattr(own, "__wrapped__") else None


PLACES_MAX = 200
"""The number of different places of one failure, over all exceptions of its chain."""
FRAMES_MAX = 3000
"""The number of frames of one traceback. Of a longer traceback, the beginning and the end are kept."""
_AROUND = 2
"""The number of source lines before and after a place that travel with it."""
_BEGIN = 6
"""If the function begins at most this number of lines before the place, its lines from there on travel too."""
_LINES_MAX = 12
_LINE_CHARACTERS_MAX = 400
_FILES_KEPT = 512
VALUES_FRAMES = 8
"""The number of innermost frames, and of innermost frames of the user's own code, whose local variables are sent as
text."""
VALUES_MAX = 20
"""The number of local variables of one frame."""

TEXTS_S = 1.0
"""The longest time for the texts of the variables of one frame."""
_QUICK = frozenset({type(None), bool, int, float, complex, str, bytes, range})
_QUICK_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
"""Types of values whose texts take no time; of containers, if they are small and hold such values."""
_QUICK_ITEMS_MAX, _QUICK_DEPTH = 100, 3

_LONG, _NO_COLUMNS = 14, 13
"""Kinds of entries in a code object's table of positions, see CPython's Objects/locations.md."""
_UNITS_MAX = 8
_OPTIMIZED = 0x1
"""inspect.CO_OPTIMIZED: the code of a function, whose local variables are known."""
_TEMPLATE = compile("__keep__(__frame__())", "<place>", "exec", dont_inherit=True)


class Places:
    """Collects the places of a failure's tracebacks, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[types.CodeType, int, int], int] = {}
        self._texts: dict[int, tuple[object, str]] = {}
        """The id of a value -> the value and its text: frames often share values."""
        self.found: list[ErrorPlace] = []

    def frames(self, tb: types.TracebackType | None) -> tuple[int, ...]:
        """Return the indexes of the places that a traceback consists of."""
        indexes: list[int] = []
        left = _length(tb)
        users = _innermost_users(tb) if left > VALUES_FRAMES else frozenset()
        while tb is not None:
            code = tb.tb_frame.f_code
            key = (code, tb.tb_lasti, tb.tb_lineno)
            index = self._known.get(key)
            if index is None and len(self.found) < PLACES_MAX:
                index = self._known[key] = len(self.found)
                has_values = left <= VALUES_FRAMES or tb in users
                self.found.append(_place(tb, code, self._texts if has_values else None))
            if index is not None:
                indexes.append(index)
            tb = tb.tb_next
            left -= 1
        if len(indexes) > FRAMES_MAX:
            half = FRAMES_MAX // 2
            indexes = indexes[:half] + indexes[-half:]
        return tuple(indexes)


def _innermost_users(tb: types.TracebackType | None) -> frozenset[types.TracebackType]:
    """Return the innermost entries of the user's own code: below them, libraries may have many."""
    users: deque[types.TracebackType] = deque(maxlen=VALUES_FRAMES)
    while tb is not None:
        if not is_of_library(tb.tb_frame.f_code.co_filename):
            users.append(tb)
        tb = tb.tb_next
    return frozenset(users)


def _length(tb: types.TracebackType | None) -> int:
    count = 0
    while tb is not None:
        tb, count = tb.tb_next, count + 1
    return count


def _place(tb: types.TracebackType, code: types.CodeType, texts: dict[int, tuple[object, str]] | None) -> ErrorPlace:
    """Return one place.  texts: those of values that are known already; None: without values."""
    line = tb.tb_lineno or code.co_firstlineno
    columns: tuple[int | None, int | None, int | None] = (None, None, None)
    if tb.tb_lasti >= 0:
        # A code object that was made by hand may have no table of positions: RuntimeError.
        with contextlib.suppress(RuntimeError):
            for start, end, column, end_column in islice(code.co_positions(), tb.tb_lasti // 2, None):
                if start == line:
                    columns = (end, column, end_column)
                break
    begin = code.co_firstlineno
    first = begin if 0 < begin <= line <= begin + _BEGIN and code.co_name != "<module>" else max(1, line - _AROUND)
    last = min(columns[0] or line, line + _LINES_MAX) + _AROUND
    source = linecache.getlines(code.co_filename, tb.tb_frame.f_globals)
    lines = tuple(each.rstrip("\n")[:_LINE_CHARACTERS_MAX] for each in source[first - 1 : last])
    module = tb.tb_frame.f_globals.get("__name__")
    return ErrorPlace(
        code.co_filename,
        module if isinstance(module, str) else "",
        code.co_name,
        code.co_firstlineno,
        line,
        *columns,
        lines,
        first,
        _values(tb.tb_frame, code, texts) if texts is not None else (),
    )


_short_texts = ShortTexts()
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)


_SECRET = (
    r"\w*(?:passw(?:or)?d|passphrase|secret|api_?key|private_?key|access_?key|credential|authorization)\w*|\w+_token"
)
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_TEXT = r"""b?'(?:[^'\\]|\\.)*'?|b?"(?:[^"\\]|\\.)*"?|[^\s,)\]}]+"""
_SECRET_ITEM = re.compile(rf"""(?P<name>(?<!\w)['"]?(?:{_SECRET})['"]?\s*[:=]\s*)(?:{_TEXT})""", re.IGNORECASE)
_TOKEN_CHARACTERS = 16
"""A name `token` alone is a secret's if its value is a text at least as long: most often it is a word of a text."""
_MASK = "<masked>"

_shown = ["masked"]


def show_values(which: str) -> None:
    """Set which values go with the failures of this process: one of `FAILURE_VALUES`."""
    _shown[0] = which


def _values(
    frame: types.FrameType, code: types.CodeType, texts: dict[int, tuple[object, str]]
) -> tuple[tuple[str, str], ...]:
    """Return the local variables of a frame as text; of a cell those that its code names."""
    if _shown[0] == "none":
        return ()
    known = frame.f_locals
    of_function = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    names = of_function if code.co_flags & _OPTIMIZED else _names_of_cell(code)
    shown = [
        name
        for name in dict.fromkeys(names)
        if name in known and not name.startswith("__") and not isinstance(known[name], _CODE)
    ]
    values = {name: known[name] for name in shown[:VALUES_MAX]}
    public = [value for name, value in values.items() if not _is_secret(name, value)]
    _add_texts(public, texts)
    return tuple((name, _MASK if _is_secret(name, value) else texts[id(value)][1]) for name, value in values.items())


_BY_NAME = frozenset({"LOAD_NAME", "STORE_NAME", "DELETE_NAME", "LOAD_GLOBAL", "STORE_GLOBAL"})


def _names_of_cell(code: types.CodeType) -> list[str]:
    """Return the variables that a cell names; its attributes may have the names of other variables."""
    used = {each.argval for each in dis.get_instructions(code) if each.opname in _BY_NAME}
    return [name for name in code.co_names if name in used]


def _add_texts(values: Sequence[object], texts: dict[int, tuple[object, str]]) -> None:
    """Add the texts of values that have none yet.

    The class of a value makes its text and may take any time for that: it may query a database.  So other values than
    numbers, strings and small containers of them have a second together, in a thread of its own, and a failure is
    reported in any case.
    """
    slow = []
    for value in values:
        if id(value) in texts:
            continue
        if _is_quick(value):
            texts[id(value)] = value, _shown_text(value)
        else:
            slow.append(value)
    if not slow:
        return
    made: dict[int, str] = {}

    def make() -> None:
        for value in slow:
            made[id(value)] = _shown_text(value)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name="texts of values", daemon=True)
    thread.start()
    thread.join(TEXTS_S)
    for value in slow:
        texts[id(value)] = value, made.get(id(value)) or f"<a {type(value).__name__}, its text takes too long>"


def _is_quick(value: object, depth: int = _QUICK_DEPTH) -> bool:
    """Return whether no code of a user's class takes part in the value's text."""
    kind = type(value)
    if kind in _QUICK:
        return True
    if depth == 0 or kind not in _QUICK_CONTAINERS or len(value) > _QUICK_ITEMS_MAX:  # type: ignore[arg-type]
        return False
    items = [*value, *value.values()] if isinstance(value, dict) else [*value]  # type: ignore[misc]
    return all(_is_quick(each, depth - 1) for each in items)


def _shown_text(value: object) -> str:
    return _text(value) if _shown[0] == "all" else _masked(value)


def _is_secret(name: str, value: object) -> bool:
    if _shown[0] == "all":
        return False
    if name == "token":
        return isinstance(value, str | bytes) and len(value) >= _TOKEN_CHARACTERS
    return _SECRET_NAME.fullmatch(name) is not None


def _masked(value: object) -> str:
    """Return a value as text, without what stands behind a name that looks like a secret's (in a dict, a repr)."""
    return _SECRET_ITEM.sub(rf"\g<name>{_MASK}", _text(value))


def argument_texts(arguments: Sequence[tuple[str, object]], length: int) -> list[str]:
    """Return arguments of a call as ``name=value``, each on one line, with the values that may go with failures.

    arguments: (name, value) of each; "" for a name that nobody knows. length: the most characters of a value.
    """
    texts: dict[int, tuple[object, str]] = {}
    if _shown[0] != "none":
        _add_texts([value for name, value in arguments if not _is_secret(name, value)], texts)
    found = []
    for name, value in arguments:
        if _shown[0] == "none":
            text = "…"
        else:
            text = _MASK if _is_secret(name, value) else on_one_line(value, texts[id(value)][1])
        short = text if len(text) <= length else f"{text[: length - 1]}…"
        found.append(f"{name}={short}" if name else short)
    return found


def _text(value: object) -> str:
    try:
        return escaped(_short_texts.repr(value)[: 2 * TEXT_CHARACTERS_MAX])
    except (Exception, SystemExit) as problem:  # the value's class may do anything
        return f"<a {type(value).__name__} without a text: {type(problem).__name__}>"


# --------------------------------------------------------------------------------------------------
# On the receiving side


def made_frames(places: Sequence[ErrorPlace]) -> list[types.FrameType]:
    """Return a frame for each place."""
    return [_frame(place) for place in places]


def made_traceback(
    places: Sequence[ErrorPlace], frames: Sequence[types.FrameType], indexes: Sequence[int]
) -> types.TracebackType | None:
    """Return a traceback through these places; None for no places."""
    tb: types.TracebackType | None = None
    for index in reversed(indexes):
        tb = types.TracebackType(tb, frames[index], 0, places[index].line)
    return tb


def _frame(place: ErrorPlace) -> types.FrameType:
    kept: list[types.FrameType] = []
    names: dict[str, Any] = {"__name__": place.module, "__keep__": kept.append, "__frame__": sys._getframe}
    code = _TEMPLATE.replace(
        co_filename=_with_source(place),
        co_name=place.name,
        co_qualname=place.name,
        co_firstlineno=max(1, place.first_line),
        co_linetable=_positions(place),
    )
    exec(code, names, {name: Text(text) for name, text in place.values})
    del names["__keep__"], names["__frame__"]
    return kept[0]


def _positions(place: ErrorPlace) -> bytes:
    """Return a table of positions in which each instruction of the tiny code is at the place."""
    table = bytearray()
    delta = place.line - max(1, place.first_line)
    units = len(_TEMPLATE.co_code) // 2
    end, column, end_column = place.end_line, place.column, place.end_column
    while units > 0:
        length = min(units, _UNITS_MAX)
        known = end is not None and column is not None and end_column is not None and end >= place.line
        table.append(0x80 | ((_LONG if known else _NO_COLUMNS) << 3) | (length - 1))
        table += _varint((-delta << 1) | 1 if delta < 0 else delta << 1)
        if end is not None and column is not None and end_column is not None and known:
            table += _varint(end - place.line) + _varint(column + 1) + _varint(end_column + 1)
        delta = 0
        units -= length
    return bytes(table)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 64:
        found.append(0x40 | (number & 0x3F))
        number >>= 6
    found.append(number)
    return bytes(found)


_HEAD = "(*_):  # …"
"""The end of a line that stands for the first line of a function, which did not come along."""


def _differ(known: str, line: str) -> bool:
    return known != line and not known.endswith(_HEAD)


_sources: OrderedDict[str, dict[int, str]] = OrderedDict()
"""File name -> line number -> line, for files that do not exist here. linecache has the lines as long as this has."""
_sources_lock = threading.Lock()


def _with_source(place: ErrorPlace) -> str:
    """Return the file name to use for the place.

    If the file does not exist here, linecache gets the lines that came along.
    """
    name = file_here(place.filename)
    if not place.lines:
        return name
    with _sources_lock:
        if name not in _sources and (name in linecache.cache or os.path.exists(name)):
            return name
        lines = dict(enumerate(place.lines, place.lines_from))
        known = _sources.get(name)
        if known is not None and any(_differ(known.get(number, line), line) for number, line in lines.items()):
            # Other code has the same name: names of tasks are short.
            stem = name.removesuffix(">")
            name = f"{stem} {zlib.crc32(repr(place.lines).encode(errors='replace')):08x}{name[len(stem) :]}"
            known = _sources.get(name)
        # IPython reads a function from its first line on, and shows nothing of it without a `def` there.
        head = {place.first_line: f"def {place.name}{_HEAD}"} if place.name.isidentifier() else {}
        merged = _sources[name] = {**head, **(known or {}), **lines}
        _sources.move_to_end(name)
        text = [merged[number] + "\n" if number in merged else "\n" for number in range(1, max(merged) + 1)]
        linecache.cache[name] = (sum(map(len, text)), None, text, name)
        while len(_sources) > _FILES_KEPT:
            gone, _ = _sources.popitem(last=False)
            linecache.cache.pop(gone, None)
    return name
