r"""Text of users' programs, made fit to be sent, stored and displayed.

Text travels as UTF-8. A Python str may contain lone surrogates, which UTF-8 cannot encode: a file name that is not
UTF-8 is read as ``"caf\udce9"``. Two rules hold:

- Text that people read (output, errors, progress, reasons), and names that are compared only with one another (of
  tasks, jobs, groups, unique keys), is *escaped*: ``"caf\\udce9"``. Names in queries are escaped too, so the same name
  is found.
- Text that must be exact (code, names in a namespace, names of resources and properties) is refused at the call, see
  `core.arguments.check_name`.

`encoded` is called where messages are encoded, and escapes text that was not escaped before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from signal import Signals
from typing import Any

import msgspec

SHOWN_CHARS = 80
"""The most characters of a value in an error message."""


class Text(str):
    """A str whose repr is the text itself, so that an interactive session shows its line breaks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def is_utf8(text: str) -> bool:
    """Return whether text can be encoded as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exactly(text: str) -> str:
    """Return a plain str with the same characters: a subclass of str may override anything, and cannot be encoded."""
    return text if type(text) is str else str.__str__(text)


def escaped(text: str) -> str:
    """Return the text with its lone surrogates escaped.  Most text is returned unchanged."""
    text = exactly(text)
    return text if is_utf8(text) else text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str:
    """Return ``str(value)``, escaped.  If the value's class raises, the text says so."""
    return escaped(value) if type(value) is str else _asked(str, value, BaseException)


def shown(value: object, length: int = SHOWN_CHARS) -> str:
    """Return ``repr(value)`` for an error message, escaped and cut to `length` characters."""
    text = _asked(repr, value, (Exception, SystemExit))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def error_line(etype: str, text: str) -> str:
    """Return an error as the last line of a traceback: ``ValueError: x``, without a text ``ValueError``."""
    return f"{etype}: {text}" if text else etype


def last_line(text: str) -> str:
    """Return the last line that is not blank: of a traceback, that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


_LIBRARY_FILE = re.compile(r"^<frozen |/(site|dist)-packages/|/lib\d*/python\d")


def is_of_library(filename: str) -> bool:
    """Return whether a file belongs to Python or to an installed library, also if it is one of another machine."""
    return _LIBRARY_FILE.search(filename) is not None


def signal_text(number: int) -> str:
    """Return a signal for people: its number and, unless it is a real-time signal, its name."""
    try:
        return f"signal {number} ({Signals(number).name})"
    except ValueError:
        return f"signal {number} (unknown)"


def place_beside(text: str, place: str) -> str:
    """Return the place of an error, to stand behind its text; "" if the text has it, like a crashed engine's stack."""
    return f" ({place})" if place and place.partition(":")[0] not in text else ""


def did_you_mean(word: object, known: Iterable[str], mark: str = "'") -> str:
    """Return ``", did you mean 'retries'?"`` for a word that resembles a known one, and "" for any other.

    mark: stands before and after the known word."""
    if not isinstance(word, str):
        return ""
    names = {each.casefold(): each for each in known}
    near = get_close_matches(exactly(word).casefold(), names, n=1, cutoff=0.65)
    found = names[near[0]] if near else None
    return "" if found is None else f", did you mean {mark}{found}{mark}?"


def _asked(how: Callable[[Any], str], value: object, but: type[BaseException] | tuple[type[BaseException], ...]) -> str:
    try:
        return escaped(how(value))
    except but as problem:
        if issubclass(type(value), str):  # isinstance asks the value itself for its class
            return escaped(str.__str__(value))
        return f"<a {type(value).__name__} without a text: {type(problem).__name__}>"


def encoded(encode: Callable[[Any], bytes], message: object) -> bytes:
    """Encode a message.  Text in it that is not UTF-8, or is of a subclass of str, is escaped.

    Raises what `encode` raises for other values that cannot be encoded."""
    try:
        return encode(message)
    except (UnicodeEncodeError, TypeError):
        return encode(_all_escaped(message))


def _all_escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {_all_escaped(key): _all_escaped(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple([_all_escaped(each) for each in value])
    if isinstance(value, list):
        return [_all_escaped(each) for each in value]
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: _all_escaped(getattr(value, name)) for name in value.__struct_fields__})
    return value
