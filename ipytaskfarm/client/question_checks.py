"""Check questions before they are sent: a value of a wrong type would end the whole session."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from ..core.messages import FetchResults, MarkTasksDone, Question, ReadBlob, SetSticky, WatchTasks, WriteBlob
from ..core.text import encoded, text_of
from .outbox import check_size

_encode = msgspec.msgpack.Encoder().encode
_NO_VALUES_OF_USERS = (WatchTasks, FetchResults, ReadBlob, WriteBlob)
"""Questions that the client itself makes; they are the most frequent ones, and the largest."""
_WHERE = re.compile(r"(.*) - at `\$(?:\.(\w+))?.*`$", re.DOTALL)


def check_question(question: Question) -> None:
    """Check the values of a question, as the controller does when it reads it.

    The controller cannot tell a message with a wrong value from one of a stranger, and refuses the session.

    Raises:
        TypeError, ValueError: a value is not of the type that is expected; the error names it.
        ResultTooLarge: its body is too large to be sent.
    """
    kind = type(question)
    if isinstance(question, _NO_VALUES_OF_USERS):
        return
    if isinstance(question, SetSticky | MarkTasksDone):
        return check_size(kind.__name__, len(question.body))
    try:
        _decoder(kind).decode(encoded(_encode, question))
    except msgspec.ValidationError as error:
        found = _WHERE.fullmatch(str(error))
        what = f"{found[2]}: {found[1]}" if found is not None and found[2] else str(error)
        raise TypeError(f"{what} ({kind.__name__})") from None
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{kind.__name__} cannot be sent: {text_of(error)}") from None


@functools.cache
def _decoder(kind: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)
