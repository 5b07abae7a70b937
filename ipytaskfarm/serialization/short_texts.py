"""Short texts of values for failures, made within some microseconds also of large values."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

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
    """Makes short texts of values: of long ones the beginning and the end."""

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
