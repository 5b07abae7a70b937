"""The gate for text: what people's own programs say, made fit to travel, to be kept and to be shown.

Text travels as UTF-8.  A Python str may hold lone surrogates, which UTF-8 has no place for: a file name that is not
UTF-8 is read as ``"caf\\udce9"``.  Two rules hold:

- Text that people read (output, errors, progress, reasons), and names that are compared only with one another (of
  tasks, jobs, groups, unique keys), is *escaped*: ``"caf\\\\udce9"``.  Whoever looks for it is escaped as well, so the
  same name finds it.
- Text that has to be exactly what it is (code, names in a namespace, names of resources and properties) is refused at
  the call, see `core.arguments.check_name`.

`encoded` is the last gate, where messages are encoded: text that came another way is escaped there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

SHOWN_CHARS = 80
"""Of a value in an error message."""


def is_utf8(text: str) -> bool:
    """Whether text can travel as it is."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exactly(text: str) -> str:
    """The same characters as a str and nothing else: a subclass may do anything, and cannot be encoded."""
    return text if type(text) is str else str.__str__(text)


def escaped(text: str) -> str:
    """Text with its lone surrogates escaped; most text is returned as it is."""
    text = exactly(text)
    return text if is_utf8(text) else text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str:
    """``str(value)`` for people, escaped; a class of the user's own may do anything when it is asked."""
    return _asked(str, value, BaseException)


def shown(value: object, length: int = SHOWN_CHARS) -> str:
    """``repr(value)`` for an error message: escaped, and cut to a length."""
    text = _asked(repr, value, (Exception, SystemExit))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _asked(how: Callable[[Any], str], value: object, but: type[BaseException] | tuple[type[BaseException], ...]) -> str:
    try:
        return escaped(how(value))
    except but as problem:
        if issubclass(type(value), str):  # isinstance asks the value itself for its class
            return escaped(str.__str__(value))
        return f"<a {type(value).__name__} without a text: {type(problem).__name__}>"


def encoded(encode: Callable[[Any], bytes], message: object) -> bytes:
    """A message encoded; if there is text in it that is not UTF-8, or of a subclass of str, with that text escaped.

    Raises what `encode` does for anything else that cannot travel."""
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
