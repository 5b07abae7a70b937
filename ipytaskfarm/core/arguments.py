"""Checks of text, durations, sizes and counts from users. Each returns the value in the form to keep; None stays None.

Numbers may be of any type (numpy's too), and text of any subclass of str; the kept values are Python's own. Numbers
that do not fit 64 bits are refused, because they could not be sent. Every error names the argument. A value cannot make
a check raise anything except TypeError and ValueError, whatever its own methods do.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from math import inf, isnan
from numbers import Real
from operator import index

from .requirements import bytes_of
from .text import did_you_mean, escaped, exactly, is_utf8, shown

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
"""The bounds of integers that the store and the wire can hold."""
SECONDS_MAX = 1e9
"""Thirty years: a longer duration is a mistake."""


def wrong(what: str, expected: str, value: object) -> TypeError:
    """Return the error for a value of another type."""
    return TypeError(f"{what} must be {expected}, not {type(value).__name__}: {shown(value)}")


def check_text(what: str, value: object) -> str | None:
    """Return text with its lone surrogates escaped, see `core.text`.

    It is for text that people read, or that is compared only with text that was checked here.

    Raises:
        TypeError: the value is not text.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(what, "a str or None", value)
    return escaped(value)


def check_name(what: str, value: object) -> str:
    """Return text that must not be changed.

    Raises:
        TypeError: the value is not text.
        ValueError: it cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise wrong(what, "a str", value)
    text = exactly(value)
    if not is_utf8(text):
        raise ValueError(f"{what} must be text that can be encoded as UTF-8, not {shown(text)} (a lone surrogate)")
    return text


def as_bool(value: object) -> bool | None:
    """Return a bool, of Python or numpy, as Python's.  None: the value is no bool."""
    if value is True or value is False:
        return bool(value)
    kind = type(value)
    return bool(value) if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_") else None


def check_int(what: str, value: object) -> int:
    """Return an integer of any type but bool.

    TypeError: the value is no integer.  ValueError: it does not fit 64 bits."""
    if isinstance(value, bool):
        raise wrong(what, "an int", value)
    try:
        number = index(value)  # type: ignore[arg-type]
    except Exception:  # it may have an __index__ of its own
        raise wrong(what, "an int", value) from None
    if not INT_MIN <= number <= INT_MAX:
        raise ValueError(f"{what} must be between -2**63 and 2**63 - 1, not {_number(number)}")
    return int(number)


def check_count(what: str, value: object, least: int) -> int | None:
    """Return a whole number that is at least `least`.  TypeError or ValueError: it is not."""
    if value is None:
        return None
    number = check_int(what, value)
    if number < least:
        raise ValueError(f"{what} must be {least} or more, not {number}")
    return number


def check_number(what: str, value: object, expected: str = "a number") -> float:
    """Return a number as a float; a number beyond all floats becomes infinite.

    `expected` is the error's phrase for what was expected.

    Raises:
        TypeError: the value is not a number.
        ValueError: it is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(what, expected, value)
    try:
        number = float(value)
    except OverflowError:
        number = -inf if value < 0 else inf
    except Exception:  # a class of the user's own
        raise wrong(what, expected, value) from None
    if isnan(number):
        raise ValueError(f"{what} must be {expected}, not nan")
    return number


def check_seconds(what: str, value: object, zero: bool = True) -> float | None:
    """Return a duration in seconds.

    value: seconds or a timedelta, 0 or more; with zero=False more than 0.  TypeError or ValueError: it is neither."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    seconds = check_number(what, value, "seconds, a timedelta or None")
    if not (seconds >= 0 if zero else seconds > 0):
        raise ValueError(f"{what} must be {'0 seconds or more' if zero else 'more than 0 seconds'}, not {seconds:g}")
    if seconds > SECONDS_MAX:
        raise ValueError(f"{what} must be {SECONDS_MAX:.0e} seconds at most, not {seconds:g}")
    return seconds


def check_timeout(what: str, value: object) -> float | None:
    """Return how long to wait, in seconds.  None: for ever, which infinity and more than `SECONDS_MAX` mean too.

    value: seconds or a timedelta; less than 0, which a computed rest may be, means 0.  TypeError: it is neither.
    ValueError: it is NaN."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    seconds = check_number(what, value, "seconds, a timedelta or None")
    return max(0.0, seconds) if seconds <= SECONDS_MAX else None


def check_bytes(what: str, value: object) -> int | None:
    """Return a size in bytes.

    value: a number, or text like ``"300 MiB"`` (k, M, G and T are powers of 1024).  TypeError or ValueError: it is
    neither."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = bytes_of(exactly(value))
        except ValueError:
            raise ValueError(f"{what} must be a size like '300 MiB' or '2G', not {shown(value)}") from None
    try:
        number = check_int(what, value)
    except TypeError:
        raise TypeError(f"{what} must be bytes or text like '300 MiB', not {type(value).__name__}") from None
    if number <= 0:
        raise ValueError(f"{what} must be more than 0 bytes, not {number}")
    return number


def check_names(what: str, value: object) -> list[str]:
    """Return one name or several as a list, each checked by `check_name`."""
    if isinstance(value, str):
        return [check_name(what, value)]
    if not isinstance(value, Iterable):
        raise wrong(what, "a name, or several", value)
    return [check_name(what, each) for each in value]


def _number(number: int) -> str:
    # Python refuses to write out numbers of thousands of digits.
    return str(number) if number.bit_length() < 200 else f"a number of {number.bit_length()} bits"


def one_of(attribute: str, choices: tuple[str, ...], value: object) -> str:
    """Return one of these words.  Raises ValueError for any other value."""
    word = exactly(value) if isinstance(value, str) else None
    if word is None or word not in choices:
        near = did_you_mean(word, choices)
        raise ValueError(f"{attribute} must be one of {', '.join(map(repr, choices))}, not {shown(value)}{near}")
    return word
