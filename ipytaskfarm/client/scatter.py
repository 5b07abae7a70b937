"""Sequences in parts, one for each engine, and together again.

From IPython 0.10's ``map.py``: blocks of which the first ``len % n`` are one longer (dist 'b'), or round robin
('r').  Nothing here knows numpy: an array is what has `dtype` and `shape`, and its own module joins its parts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..core.text import exactly, shown

DISTRIBUTIONS = ("b", "r")


def check_dist(dist: str) -> None:
    """ValueError for a distribution that does not exist."""
    if not isinstance(dist, str) or exactly(dist) not in DISTRIBUTIONS:
        raise ValueError(f"dist must be 'b' (blocks) or 'r' (round robin), not {shown(dist)}")


def parts(sequence: Any, count: int, dist: str = "b") -> list[Any]:
    """The sequence in `count` parts, of its own kind where it can be sliced; some may be empty."""
    check_dist(dist)
    whole = sequence if hasattr(sequence, "__len__") and _slices(sequence) else list(sequence)
    if dist == "r":
        return [whole[i::count] for i in range(count)]
    size, longer = divmod(len(whole), count)
    found = []
    start = 0
    for i in range(count):
        stop = start + size + (i < longer)
        found.append(whole[start:stop])
        start = stop
    return found


def flat(part: Any) -> Any:
    """A part of length 1 as its only item; others as they are."""
    return part[0] if len(part) == 1 else part


def joined(found: Sequence[Any], dist: str = "b") -> Any:
    """The inverse of `parts`: lists (and ranges) joined, tuples too, arrays concatenated; else the list of parts."""
    check_dist(dist)
    if found and all(_is_array(part) for part in found):
        return _joined_arrays(found, dist)
    if found and all(isinstance(part, tuple) for part in found):
        return tuple(_interleaved(found) if dist == "r" else chain.from_iterable(found))
    if all(isinstance(part, list | range) for part in found):
        return _interleaved(found) if dist == "r" else list(chain.from_iterable(found))
    return list(found)


def _slices(sequence: Any) -> bool:
    try:
        sequence[0:0]
    except (TypeError, KeyError, ValueError):
        return False
    return True


def _is_array(part: Any) -> bool:
    return hasattr(part, "dtype") and bool(getattr(part, "shape", ()))


def _joined_arrays(found: Sequence[Any], dist: str) -> Any:
    numpy = sys.modules["numpy"]  # there: something made the arrays
    masked = any(isinstance(part, numpy.ma.MaskedArray) for part in found)
    module = numpy.ma if masked else numpy  # numpy's own functions lose the masks
    if dist == "b":
        return module.concatenate(found)
    total = sum(len(part) for part in found)
    whole = module.empty((total, *found[0].shape[1:]), dtype=numpy.result_type(*found))
    for i, part in enumerate(found):
        whole[i :: len(found)] = part
    return whole


def _interleaved(found: Sequence[Sequence[Any]]) -> list[Any]:
    longest = max((len(part) for part in found), default=0)
    return [part[i] for i in range(longest) for part in found if i < len(part)]
